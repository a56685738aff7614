"""The scan backend of a training: chosen once, reported, recorded, kept on resuming."""

from __future__ import annotations

import json

import pytest

import medmamba
from medmamba.errors import ConfigError
from medmamba.models.network import network_arguments
from medmamba.models.run_folder import RunFolder
from medmamba.plans.json_record import SEAL
from medmamba.training.config import RESOLVED_AT_START, TrainConfig

SHORT = {"steps_per_epoch": 2, "workers": 0, "warmup_steps": 0, "validation_cases": 1, "augment": "none"}


def _train(run, lines=None, **options):
    config = TrainConfig(**{**SHORT, **options.pop("config", {})})
    events = [] if lines is None else lines
    return medmamba.train(run, network="u_mamba_bot", fold="all", config=config, on_start=events.append, **options)


def test_the_backend_that_ran_is_reported_recorded_and_kept(clinic_run, recwarn):
    lines: list[str] = []
    result = _train(clinic_run, lines, config={"steps": 1, "scan_backend": "torch"})
    assert lines[0].startswith("Device cpu, precision ")
    assert "scan backend torch" in lines[0]
    state = json.loads((result.folder / "checkpoints" / "last" / "state.json").read_text())
    assert state["versions"]["scan_backend"] == state["config"]["scan_backend"] == "torch"
    assert "scan backend torch" in (clinic_run / "report" / "training.html").read_text()

    with pytest.raises(ConfigError, match=r"Backend 'triton' cannot run: the Triton kernels run on CUDA") as error:
        _train(clinic_run, config={"steps": 1, "scan_backend": "triton"}, restart=True)
    assert "\n" not in str(error.value)
    assert (result.folder / "checkpoints" / "last").is_dir()  # refused before anything is deleted

    with pytest.raises(ConfigError, match="scan_backend was 'torch', now 'cpp'"):
        _train(clinic_run, config={"steps": 2, "scan_backend": "cpp"}, resume=True)
    _train(clinic_run, lines, config={"steps": 2}, resume=True)
    assert "scan backend torch" in lines[-1]


def test_a_run_of_another_machine_continues_with_what_runs_here(clinic_run):
    result = _train(clinic_run, config={"steps": 1})
    for path in (result.folder / "train.json", result.folder / "checkpoints" / "last" / "state.json"):
        stored = json.loads(path.read_text())
        del stored[SEAL]  # as if that machine had written it
        part = stored.get("config", stored)
        here, part["scan_backend"] = part["scan_backend"], "triton"
        if "versions" in stored:
            stored["versions"]["scan_backend"] = "triton"
        path.write_text(json.dumps(stored))
    with pytest.warns(UserWarning, match=f"scan_backend triton, now {here}.*not bit-identically"):
        _train(clinic_run, config={"steps": 2}, resume=True)
    assert json.loads((result.folder / "train.json").read_text())["scan_backend"] == here


def test_a_run_of_an_earlier_version_has_no_backend_yet():
    stored = TrainConfig().model_dump(exclude={"scan_backend"})
    assert TrainConfig(**stored).scan_backend == "auto"
    assert "scan_backend" in RESOLVED_AT_START


def test_another_network_on_the_plan_of_one_without_a_scan_scans(clinic_run):
    plan = RunFolder(clinic_run).read_plan()
    assert not plan.default.network.use_scan  # plain_unet
    assert network_arguments(plan, plan.default, network="vm_unet")["use_scan"]
    assert not network_arguments(plan, plan.default, network="vm_unet", use_scan=False)["use_scan"]
