"""Every code block of the documentation runs as it is written, in the order of its page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_series import write_series
from doc_pages import ADDED, PAGES, ROOT, SHORTER, blocks_of, name_of, not_run

from medmamba.datasets import read_dataset
from medmamba.dicom.codes import read_codes
from medmamba.networks.published.vm_unet import PublishedVMUNet

MEDMAMBA = f"""#!{sys.executable}
import sys
from medmamba.cli.main import run
if __name__ == "__main__":
    words, added = sys.argv[1:], {ADDED!r}
    run([*words, *added.get(words[0], []), *(["--restart"] if words[0] == "train" else [])])
"""
ALONE = [
    "docs/explanation/geometry.md",
    "docs/explanation/why-hd95-differs.md",
    "docs/how-to/add-a-block.md",
    "docs/how-to/add-a-metric.md",
    "docs/how-to/add-a-network.md",
    "docs/how-to/add-a-scan-route.md",
    "docs/how-to/add-a-loss.md",
    "docs/how-to/add-a-normalisation.md",
    "docs/how-to/add-an-augmentation.md",
    "docs/how-to/add-a-scan-backend.md",
    "docs/reference/networks.md",
    "kernels/README.md",
]
STARTS_WITH_PLANNING = {"README.md", "docs/tutorial/your-own-dataset.md"}
NNUNET = "docs/how-to/change-a-plan.md"
BRING = "docs/how-to/bring-your-nnunet.md"
CASCADE = "docs/how-to/predict-many-cases.md"
TRAIN = "docs/how-to/train.md"
LEFT_BEHIND = {
    "README.md": ["MASKS/evaluation.json", "RUN/report/index.html", "RUN/best.json"],
    "docs/index.md": ["demo/overview.png"],
    "docs/tutorial/your-own-dataset.md": ["RUN/report/dataset.html", "RUN/report/index.html", "MASKS/evaluation.html"],
    NNUNET: ["RUN/report/pilot.json", "plan.json", "UNET/nnUNetPlans.json"],
    CASCADE: ["RUN/best.json", "RUN/models/3d_cascade_fullres/fold_0"],
    "docs/how-to/export-a-model.md": [
        "BUNDLE/models/trained.pt",
        "MASKS/SERIES.dcm",
        "CONTOURS/SERIES_rtstruct.dcm",
        "seg.dcm",
    ],
    "docs/how-to/serve-a-model.md": ["answer.zip"],
    TRAIN: ["FLAT/models/2d/fold_0/init.json", "RUN/report/training.html"],
    "docs/how-to/use-from-python.md": ["mask.nii.gz", "report.html", "seg.dcm"],
    "docs/explanation/which-network.md": ["RUN/models/3d_fullres/fold_0"],
}
"""Files that stand on the desk when the page has been followed."""


@pytest.fixture
def desk(tmp_path, monkeypatch, small_dataset, tiny_run, small_run):
    """A folder that holds what the pages talk about, under their names; the working folder of the test."""
    for name in ("DATASET", "MYDATA"):
        shutil.copytree(small_dataset, tmp_path / name)
    for name, part in (
        ("IMAGES", "imagesTs"),
        ("NEW_IMAGES", "imagesTs"),
        ("UNLABELLED", "imagesTr"),
        ("TRUTH", "labelsTs"),
    ):
        shutil.copytree(small_dataset / part, tmp_path / name)
    image = min((small_dataset / "imagesTs").iterdir())
    for name in ("case", "new", "a", "b", "NEW_IMAGES/case_17"):
        shutil.copy(image, tmp_path / f"{name}.nii.gz")
    shutil.copytree(tiny_run, tmp_path / "RUN")
    shutil.copytree(small_run / "preprocessed", tmp_path / "RUN" / "preprocessed")
    noise = np.random.default_rng(0).integers(0, 900, (17, 22, 18)).astype(np.int16)
    write_series(tmp_path / "SERIES", noise, **{"0020_0052": "1.2.9"})
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "bin").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()  # the environment of the test is active already
    (tmp_path / "bin" / "medmamba").write_text(MEDMAMBA)
    (tmp_path / "bin" / "medmamba").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def quick_python(monkeypatch):
    """`medmamba.plan`, `train` and `Predictor` with a small patch, one step, and no mirroring, for blocks of Python."""
    import medmamba
    from medmamba.training.config import TrainConfig

    plan, train = medmamba.plan, medmamba.train
    small = {"patch_size": (16, 24, 16), "batch_size": 2}
    one_step = TrainConfig(steps=1, steps_per_epoch=1, workers=0, warmup_steps=0)

    class QuickPredictor(medmamba.Predictor):
        def __init__(self, model, options=None, **choices):
            super().__init__(model, options, **{"mirror": False, **choices})

    monkeypatch.setattr(medmamba, "Predictor", QuickPredictor, raising=False)
    monkeypatch.setattr(medmamba, "plan", lambda data, run, **c: plan(data, run, **{**small, **c}), raising=False)
    monkeypatch.setattr(
        medmamba, "train", lambda run, **c: train(run, **{**c, "config": one_step, "restart": True}), raising=False
    )


@pytest.fixture
def service(desk, loopback):
    """Starts the service of a shell line on a free port, and stops it at the end as Ctrl-C does."""
    running = []

    def start(line: str) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = line.replace("8000", str(port))
        process = subprocess.Popen(["bash", "-c", f"exec {command}"], stdout=subprocess.PIPE, text=True)
        running.append(process)
        said = process.stdout.readline()
        assert f"127.0.0.1:{port}" in said, said
        return port

    yield start
    for process in running:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=600)
        assert process.returncode in (0, 130), process.returncode


def shell(text: str) -> str:
    """What a shell block prints; fails with its errors."""
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    command = ["bash", "-euo", "pipefail", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    return done.stdout


def prepare(page: str, desk: Path) -> None:
    """What a page presumes and the desk has not."""
    if page in STARTS_WITH_PLANNING:
        shutil.rmtree(desk / "RUN")
    if page == BRING:
        golden = ROOT / "tests" / "data" / "nnunet_models" / "Dataset601_coarse"
        name = "nnUNetTrainer__plainPlans__3d_fullres"
        shutil.copytree(golden / name, f"NNUNET_RESULTS/{name}")
        shutil.copytree(golden / "images", "NNUNET_IMAGES")
    if page == NNUNET:
        shell(
            "medmamba plan DATASET -o OTHER --network residual_unet; medmamba convert plans OTHER -o nnUNetPlans.json"
        )
        shell("medmamba convert dataset DATASET -o RAW; cp RAW/dataset.json .")
    if page == CASCADE:
        add_cascade(desk / "RUN")
    if page == TRAIN:
        body = PublishedVMUNet().state_dict()
        torch.save(
            {"model": {name.replace(".scan.", "."): body[name] for name in body if "layers." in name}},
            "vmamba_small_e238_ema.pth",
        )


def add_cascade(run: Path) -> None:
    """Both stages of a cascade, on the grid of the run's own configuration, and two folds."""
    document = json.loads((run / "plan.json").read_text())
    full = document["configurations"]["3d_fullres"] | {"decisions": []}
    for name, previous in (("3d_lowres", None), ("3d_cascade_fullres", "3d_lowres")):
        document["configurations"][name] = full | {"name": name, "previous_stage": previous}
        shutil.copytree(run / "preprocessed" / "3d_fullres", run / "preprocessed" / name)
    (run / "plan.json").write_text(json.dumps(document))
    cases = [case for fold in json.loads((run / "splits.json").read_text()) for case in fold["val"]]
    halves = [cases[::2], cases[1::2]]
    (run / "splits.json").write_text(json.dumps([{"train": a, "val": b} for a, b in (halves, halves[::-1])]))


def runnable(path: Path) -> bool:
    """Whether a page has a block that is run here."""
    lines = [line for block in blocks_of(path, "sh") for line in block.lines]
    return (name_of(path) not in ALONE and bool(blocks_of(path, "python"))) or not all(map(not_run, lines))


@pytest.mark.parametrize("name", ALONE)
def test_a_page_that_needs_no_data_runs(name, registrations_undone):
    names: dict[str, object] = {}
    for block in blocks_of(ROOT / name, "python"):
        exec(compile(block.text, name, "exec"), names)
    assert names


def test_the_table_of_hd95_holds_what_the_tools_compute(capsys):
    page = ROOT / "docs/explanation/why-hd95-differs.md"
    names: dict[str, object] = {}
    for block in blocks_of(page, "python"):
        exec(compile(block.text, "page", "exec"), names)
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if f"# {line}" not in page.read_text(encoding="utf-8")] == []
    for tool, value in names["table"].items():
        row = next(
            line for line in page.read_text(encoding="utf-8").splitlines() if line.lower().startswith(f"| {tool}")
        )
        assert f"| {value} mm |" in row


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if runnable(path)], ids=name_of)
def test_a_page_runs(path, desk, quick_python, service):
    prepare(name_of(path), desk)
    names: dict[str, object] = {}
    port = None
    for block in blocks_of(path, "sh", "python"):
        if block.kind == "python":
            exec(compile(block.text, name_of(path), "exec"), names)
        elif block.text.startswith("medmamba serve"):
            port = service(block.text.strip())
        elif any(map(not_run, block.lines)):
            assert all(map(not_run, block.lines)), f"{name_of(path)}: one block for what runs and what does not"
        else:
            shell(block.text if port is None else block.text.replace("8000", str(port)))
    missing = [name for name in LEFT_BEHIND.get(name_of(path), []) if not (desk / name).exists()]
    assert not missing, sorted(str(found.relative_to(desk)) for found in desk.rglob("*") if "DATA" not in str(found))
    if port is not None:
        assert zipfile.ZipFile("answer.zip").namelist() == ["mask.nii.gz", "report.json"]


BENCHMARKS = sorted(
    {
        line.split("#")[0]
        for path in PAGES
        for block in blocks_of(path, "sh")
        for line in block.lines
        if line.startswith("python benchmarks/")
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("line", BENCHMARKS)
def test_a_benchmarks_script_knows_the_options_of_its_page(line):
    script, *words = line.split()[1:]
    part = [word for word in words[:1] if script.endswith("budget_runs.py")]  # its commands have options of their own
    told = subprocess.run(
        [sys.executable, str(ROOT / script), *part, "--help"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", told))
    assert {word for word in words if word.startswith("-")} <= known


def test_every_json_block_is_what_its_reader_takes(tmp_path):
    read = 0
    for path in PAGES:
        for block in blocks_of(path, "json"):
            (tmp_path / "dataset.json").write_text(block.text)
            (tmp_path / "cases.csv").write_text("image_0,image_1,label\na.nii.gz,b.nii.gz,c.nii.gz\n")
            if '"labels"' in block.text:
                read_dataset(tmp_path, strict=False)
            else:
                read_codes(tmp_path / "dataset.json", ["anterior", "posterior"])
            read += 1
    assert read >= 5


def test_shortcuts_of_this_test_are_still_needed():
    lines = "\n".join(line for path in PAGES for block in blocks_of(path, "sh") for line in block.lines)
    assert [long for long in SHORTER if long not in lines] == []
    assert [command for command in ADDED if f"medmamba {command} " not in f"{lines} ".replace("\n", " \n")] == []
    assert [page for page in LEFT_BEHIND if not runnable(ROOT / page)] == []
