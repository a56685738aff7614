"""Every JSON file that is read back, damaged in many ways: a value that can be used, or one line that says no."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from tiny_models import TINY, write_noise

from medmamba.dicom.segmentation import mask_to_segmentation
from medmamba.disk.atomic import write_json, write_text
from medmamba.errors import ConfigError, MedmambaError
from medmamba.evaluation.run import _of_report
from medmamba.images.cases import find_cases
from medmamba.inference.folder.case_job import read_record, record_path
from medmamba.inference.folder.run import predict, reproduce
from medmamba.models.checkpoint import load_checkpoint, read_state, save_checkpoint
from medmamba.models.prediction_setup import PredictionSetup, read_prediction_setup
from medmamba.models.run_folder import RunFolder, read_plan
from medmamba.models.trained_folds import mirrors_by_default, read_fingerprint, read_model_facts
from medmamba.networks.build import build_network, rebuild_network
from medmamba.plans.json_record import SEAL, sealed
from medmamba.plans.nnunet_files import from_nnunet, to_nnunet
from medmamba.plans.schema import Plan
from medmamba.preprocessing.store import CaseReader
from medmamba.training.cascade import _is_fresh
from medmamba.training.config import TrainConfig
from medmamba.training.fold import stored_config
from medmamba.training.progress import EpochMetrics, Progress, read_metrics, write_metrics

MUTATIONS = 200
ODD = [
    None, True, -1, 0, 1, 3, 0.5, 2**70, 1e308, -1e-300, 10**6, "", "x", "../../x", "/x", "a\0b", "\n", "\ud800",
    [], {}, [[]], [None], {"a": 1}, [1] * 50, "9" * 300, [-1, -1, -1], [4096] * 3,
]  # fmt: skip
WHOLE = [b"", b"null", b"[]", b"{}", b'"x"', b"1", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"[NaN]", b"[{}]"]


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The path of every entry."""
    entries = value.items() if isinstance(value, dict) else enumerate(value[:6]) if isinstance(value, list) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """One of many ways in which a file goes wrong: by bits, by editing, by another program."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(WHOLE)
    if kind == 1:
        changed = bytearray(raw)
        for _ in range(rng.choice([1, 1, 4])):
            changed[rng.randrange(len(changed))] = rng.choice([rng.randrange(256), *b'09-",['])
        return bytes(changed[: rng.choice([len(changed), len(changed), rng.randrange(len(changed))])])
    document = json.loads(raw)
    found = list(places(document))
    path = min(rng.sample(found, min(len(found), rng.choice([1, 4]))), key=len)
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    if kind == 2:
        holder.pop(path[-1])
    elif kind == 3 and isinstance(holder, dict):
        holder[rng.choice(["zzz", "../x", "", "\n"])] = holder.pop(path[-1])
    elif kind == 4 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[path[-1]]))
    else:
        holder[path[-1]] = copy.deepcopy(rng.choice(ODD))
    return json.dumps(document).encode()


@pytest.fixture(scope="module")
def everything(tiny_run, small_run, tmp_path_factory) -> Path:
    """A run with every kind of JSON file, some of them written by hand."""
    top = tmp_path_factory.mktemp("everything")
    run, fold = top / "run", top / "run" / "models" / "3d_fullres" / "fold_0"
    shutil.copytree(tiny_run, run)
    _unsealed(run / "fingerprint.json")
    plan = read_plan(run / "plan.json")
    images = write_noise(top / "images", 1, (20, 24, 20))
    predict(run, images, top / "masks", device="cpu", mirror=False, folds=(0,))
    setup = PredictionSetup(
        plan_sha256=plan.hash(), configurations=["3d_fullres"], folds={"3d_fullres": ["fold_0"]},
        dice={"3d_fullres": 0.5}, cases=4, cleaning=[{"label": "Anterior", "action": "largest_component"}],
    )  # fmt: skip
    write_text(run / "best.json", setup.to_json())
    write_json(fold / "train.json", TrainConfig(steps=3).model_dump(mode="json"))
    epoch = EpochMetrics(1, 3, 2.0, 0.5, 0.4, 0.3, 1e-3, 2.0, 0.1, 0, {"Anterior": 0.3})
    write_metrics(fold, [epoch])
    shutil.rmtree(fold / "checkpoints")
    network, optimizer = _training()
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    state = {"progress": Progress(step=3, epochs=[epoch]).as_json(), "averaged_steps": 0}
    save_checkpoint(fold / "checkpoints", network, optimizer, state)
    _unsealed(fold / "checkpoints" / "last" / "state.json")
    shutil.copytree(next((small_run / "preprocessed" / "3d_fullres").iterdir()), top / "case")
    document = json.loads((top / "case" / "case.json").read_text())
    document.pop(SEAL)
    write_json(top / "case" / "case.json", {**document, "case_id": "case", "annotated": [1]})
    write_json(top / "case" / "previous.json", {"weights_sha256": "0" * 64})
    write_json(top / "bundle" / "models" / "x" / "fold_0" / "model.json", {})
    settings = {"mirror": True, "configuration": ["x"]}
    write_json(top / "bundle" / "configs" / "metadata.json", {"medmamba": {"settings": settings}})
    unet = json.loads(plan.to_json())
    for part in unet["configurations"].values():
        part["network"] |= {"name": "plain_unet"}
    write_text(top / "nnUNetPlans.json", to_nnunet(Plan.from_json(json.dumps(unet))))
    return top


def _training() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    network = build_network(**TINY)
    return network, torch.optim.AdamW(network.parameters())


def _unsealed(path: Path) -> None:
    document = json.loads(path.read_text())
    document.pop(SEAL)
    write_json(path, document)


DESCRIPTION = json.dumps({"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"})
FOLD = "run/models/3d_fullres/fold_0"


def _resume(fold: Path) -> None:
    state = load_checkpoint(fold / "checkpoints", *_training())
    Progress.from_json(state.get("progress", {}), fold)


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "plan": ("run/plan.json", lambda top: read_plan(top / "run/plan.json")),
    "fingerprint": ("run/fingerprint.json", lambda top: read_fingerprint(top / "run")),
    "splits": ("run/splits.json", lambda top: RunFolder(top / "run").read_splits()),
    "best": ("run/best.json", lambda top: read_prediction_setup(top / "run")),
    "model": (f"{FOLD}/model.json", lambda top: rebuild_network(read_model_facts(top / FOLD).network)),
    "train": (f"{FOLD}/train.json", lambda top: stored_config(top / FOLD)),
    "metrics": (f"{FOLD}/metrics.json", lambda top: read_metrics(top / FOLD)),
    "state": (f"{FOLD}/checkpoints/last/state.json", lambda top: _resume(top / FOLD)),
    "case": ("case/case.json", lambda top: CaseReader(top / "case")),
    "previous": ("case/previous.json", lambda top: _is_fresh(CaseReader(top / "case"), top / FOLD)),
    "metadata": ("bundle/configs/metadata.json", lambda top: mirrors_by_default(top / "bundle")),
    "report": ("masks/report.json", lambda top: reproduce(top / "masks/report.json", top / "none", top / "images")),
    "report_of_masks": ("masks/report.json", lambda top: _of_report(top / "masks")),
    "report_of_mask": (
        "masks/report.json",
        lambda top: mask_to_segmentation(top / "masks" / "none.nii.gz", top / "none", top / "seg.dcm"),
    ),
    "nnunet": (
        "nnUNetPlans.json",
        lambda top: from_nnunet((top / "nnUNetPlans.json").read_bytes(), DESCRIPTION),
    ),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_json_file_is_used_or_refused_in_a_line(everything, name):
    place, read = READERS[name]
    path = everything / place
    raw, rng = path.read_bytes(), random.Random(name)
    try:
        for _ in range(MUTATIONS):
            path.write_bytes(damaged(raw, rng))
            with suppress(MedmambaError):
                read(everything)
    finally:
        path.write_bytes(raw)


def test_a_damaged_record_of_a_case_counts_as_none(everything):
    (case,) = find_cases(everything / "images")
    path, rng = record_path(everything / "masks", case), random.Random(0)
    raw = path.read_bytes()
    for _ in range(MUTATIONS):
        path.write_bytes(damaged(raw, rng))
        read_record(everything / "masks", case)
    path.write_bytes(raw)
    assert read_record(everything / "masks", case) is not None


@pytest.mark.parametrize("name", ["model", "train", "state", "best", "fingerprint", "case"])
def test_a_file_with_its_hash_is_refused_when_it_was_altered_and_one_of_an_earlier_version_is_read(everything, name):
    place, read = READERS[name]
    path = everything / place
    raw = path.read_text()
    read(everything)  # as earlier versions wrote it
    document = sealed(json.loads(raw))
    write_json(path, document)
    read(everything)
    keys = {"model": "fold", "train": "seed", "state": "averaged_steps", "best": "cases", "fingerprint": "dataset_name"}
    key = keys.get(name, "shape")
    for altered in ({**document, key: 7}, {k: v for k, v in document.items() if k != key}, {**document, "new": 1}):
        write_json(path, altered)
        with pytest.raises(ConfigError, match=r"was altered after it was written \(SHA-256\)"):
            read(everything)
    path.write_text(raw)


def test_what_is_written_carries_its_hash(tmp_path):
    network, optimizer = _training()
    save_checkpoint(tmp_path, network, optimizer, {"progress": {"validation_dice": float("nan")}})
    assert SEAL in json.loads((tmp_path / "last" / "state.json").read_text())
    assert SEAL not in read_state(tmp_path / "last")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": [4096] * 3}, "has over"),
        ({"batch_size": 10**9}, "has over"),
        ({"spacing_mm": [1e-300, 1, 1]}, "spacing_mm must be from"),
        ({"strides": [[1, 1, 1], [0, 2, 2]]}, "strides must be from 1 to"),
        ({"features_per_stage": [10**7] * 2}, "features_per_stage must be from 1 to"),
        ({"features_per_stage": [2048] * 2, "blocks_per_stage": [100] * 2}, "weights, at most"),
        ({"kernel_sizes": [[999] * 3] * 2}, "kernel_sizes must be from 1 to"),
        ({"blocks_per_stage": [10**6] * 2}, "blocks_per_stage must be from 0 to"),
        ({"decoder_convs": [10**9]}, "decoder_convs must be 1 numbers from 1 to"),
        ({"previous_stage": "3d_fullres"}, "follows itself"),
    ],
)
def test_numbers_that_no_network_is_built_from_are_refused_with_the_plan(small_run, change, message):
    document = json.loads((small_run / "plan.json").read_text())
    part = document["configurations"]["3d_fullres"]
    part["network"] |= {
        "strides": [[1] * 3, [2] * 3], "features_per_stage": [8, 8], "blocks_per_stage": [1, 1],
        "kernel_sizes": [[3] * 3] * 2, "decoder_convs": None,
    }  # fmt: skip
    Plan.from_json(json.dumps(document))
    for key, value in change.items():
        (part if key in part else part["network"])[key] = value
    with pytest.raises(ConfigError, match=message):
        Plan.from_json(json.dumps(document))


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "a/b", "a\\b", "..", "c:x", "", " ", "a\n", "x" * 300])
def test_a_configuration_whose_name_leads_out_of_the_run_is_refused(small_run, name):
    document = json.loads((small_run / "plan.json").read_text())
    document["configurations"][name] = {**document["configurations"]["3d_fullres"], "name": name}
    with pytest.raises(ConfigError, match="must be the name of a folder"):
        Plan.from_json(json.dumps(document))
    document["configurations"]["3d_fullres mine (2)"] = document["configurations"].pop(name)
    document["configurations"]["3d_fullres mine (2)"]["name"] = "3d_fullres mine (2)"
    Plan.from_json(json.dumps(document))
