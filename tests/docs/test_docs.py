"""The documentation is true: commands exist with their options, code runs, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series
from typer.main import get_command

from medmamba.cli.main import app
from medmamba.cli.main import run as medmamba_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "examples" / "README.md"]
OWN_TESTS = {"geometry.md", "networks.md"}
"""Pages whose blocks are run by tests beside the code they describe."""


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    text = path.read_text(encoding="utf-8")
    return [match.group(2) for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if match[1] == language]


def commands_of(path):
    """Every line of a page that calls medmamba, in blocks and in table cells, as words."""
    lines = [line for block in blocks(path, "") for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`(medmamba [a-z][^`]*)`", path.read_text(encoding="utf-8"))
    for line in lines:
        if line.startswith("medmamba ") and "…" not in line and "COMMAND" not in line and "[OPTIONS]" not in line:
            yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_every_command_on_a_page_exists_with_its_options(path):
    group = get_command(app)
    for words in commands_of(path):
        known = {option for parameter in group.params for option in parameter.opts} | {"--help", "-h"}
        known |= {"--install-completion", "--show-completion"}
        command = group
        for word in words:
            if word.startswith("-") and " " not in word:
                if not word.lstrip("-").replace(".", "").isdigit():
                    assert word.partition("=")[0] in known, f"{path.name}: medmamba {' '.join(words)}: {word}"
            elif hasattr(command, "commands"):
                assert word in command.commands, f"{path.name}: medmamba {' '.join(words)}"
                command = command.commands[word]
                known |= {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_the_page_of_commands_is_what_the_commands_say():
    from medmamba.cli.reference import commands_page

    page = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert page == commands_page(), "run: python -m medmamba.cli.reference > docs/reference/commands.md"


def test_every_page_is_in_the_sites_contents_or_reached_from_one():
    contents = (ROOT / "mkdocs.yml").read_text()
    everything = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    for path in (ROOT / "docs").rglob("*.md"):
        name = str(path.relative_to(ROOT / "docs"))
        if not name.startswith("benchmarks/"):
            assert name in contents or path.name in everything, f"{name} is nowhere linked"


def test_names_of_the_python_reference_exist():
    from importlib import import_module

    for name in re.findall(r"^::: (\S+)", (ROOT / "docs/reference/python.md").read_text(), re.M):
        module, _, attribute = name.rpartition(".")
        found = getattr(import_module(module), attribute, None)
        assert found is not None or import_module(name)
        assert (found or import_module(name)).__doc__


@pytest.fixture
def desk(tmp_path, monkeypatch, example_data, tiny_run, small_run, small_dataset):
    """A folder that holds what the pages talk about, under their names; training ends after one step."""
    import medmamba
    from medmamba.training.config import TrainConfig

    images = sorted((small_dataset / "imagesTs").iterdir())
    for name in ("DATASET", "MYDATA"):
        shutil.copytree(small_dataset, tmp_path / name)
    run = shutil.copytree(tiny_run, tmp_path / "RUN")
    shutil.copytree(small_run / "preprocessed", run / "preprocessed")
    for name in ("case", "new", "a", "b", "NEW_IMAGES/case_17"):
        (tmp_path / "NEW_IMAGES").mkdir(exist_ok=True)
        shutil.copy(images[0], tmp_path / f"{name}.nii.gz")
    noise = np.random.default_rng(0).integers(0, 900, (17, 22, 18)).astype(np.int16)
    write_series(tmp_path / "SERIES", noise, **{"0020_0052": "1.2.9"})
    (tmp_path / "labels.json").write_text("{}")
    shutil.copytree(small_dataset / "imagesTs", tmp_path / "IMAGES")
    monkeypatch.chdir(tmp_path)
    quick = TrainConfig(steps=1, steps_per_epoch=1, workers=0, warmup_steps=0)
    plan, train = medmamba.plan, medmamba.train

    def quick_plan(dataset, run, **choices):
        shutil.rmtree(run, ignore_errors=True)
        return plan(dataset, run, **{"patch_size": (16, 24, 16), "batch_size": 2, **choices})

    monkeypatch.setattr(medmamba, "plan", quick_plan, raising=False)
    monkeypatch.setattr(medmamba, "train", lambda run, **c: train(run, **{**c, "config": quick}), raising=False)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python") and p.name not in OWN_TESTS], ids=name_of)
def test_python_on_a_page_runs(path, desk, capsys):
    names: dict[str, object] = {}
    for block in blocks(path, "python"):
        exec(compile(block, str(path), "exec"), names)


SERVED = "serve"  # does not return; tests/inference/test_serve.py runs it
LONG = {"train": ["--steps", "1", "--steps-per-epoch", "1", "--workers", "0"]}
ELSEWHERE = {"export", "demo", "plan", "find-best", "convert"}
"""Run by tests/bundle, tests/cli, tests/training (cascades) and tests/inference, with other data."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "docs/tutorial/your-own-dataset.md",
        "docs/how-to/change-a-plan.md",
        "docs/how-to/export-a-model.md",
        "docs/how-to/predict-many-cases.md",
        "docs/explanation/which-network.md",
        "docs/reference/exit-codes.md",
    ],
)
def test_commands_on_a_page_run_in_its_order(name, desk, small_dataset, capsys):
    shutil.copytree(small_dataset / "labelsTs", desk / "TRUTH")
    (desk / "MASKS").mkdir()
    shutil.rmtree(desk / "NEW_IMAGES")
    shutil.copytree(small_dataset / "imagesTs", desk / "NEW_IMAGES")
    ran = []
    for block in blocks(ROOT / name, ""):
        for line in block.splitlines():
            elsewhere = line.startswith("medmamba ") and line.split()[1] in (*ELSEWHERE, SERVED)
            if not line.startswith("medmamba ") or elsewhere or "cascade" in line:
                continue
            words = shlex.split(line, comments=True)[1:]
            words = [word for at, word in enumerate(words) if "--max-minutes" not in words[max(0, at - 1) : at + 1]]
            extra = LONG.get(words[0], [])
            extra = [*extra, "--restart"] if words[0] == "train" else extra
            extra = ["--fold", "0", "--no-mirror"] if words[0] == "predict" else extra
            with pytest.raises(SystemExit) as stop:
                medmamba_command([*words, *extra])
            assert not stop.value.code, f"{line}: {capsys.readouterr().err}"
            ran.append(words[0])
    assert ran


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    pytest.importorskip("mkdocstrings", reason="needs the extra 'docs'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "site" / "reference" / "python.html").read_text()
    assert "from_bundle" in page
    index = (tmp_path / "site" / "index.html").read_text()
    assert not re.search(r'<(script|link)[^>]*(src|href)="https?:', index)
