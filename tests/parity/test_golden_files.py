"""Our paper presets compute the published functions: outputs, intermediates and gradients."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from parity.compare import compare, main, summary
from parity.golden import formula_tensor

ROOT = Path(__file__).parents[2]
SMALL = sorted((ROOT / "tests" / "data" / "parity").glob("*.safetensors"))
SHARED = Path(os.environ.get("MEDMAMBA_SHARED", ROOT.parent / "shared")) / "parity"
LARGE = [path for path in sorted(SHARED.glob("*.safetensors")) if path.name not in {p.name for p in SMALL}]


@pytest.mark.parametrize("path", SMALL, ids=lambda p: p.stem)
def test_module_equals_the_published_one(path: Path) -> None:
    checks = compare(path)
    assert checks
    assert all(check.passed for check in checks), summary(checks)


@pytest.mark.skipif(not LARGE, reason="no folder of large golden files; name its parent in MEDMAMBA_SHARED")
@pytest.mark.parametrize("path", LARGE, ids=lambda p: p.stem)
def test_network_equals_the_published_one(path: Path) -> None:
    checks = compare(path)
    assert checks
    assert all(check.passed for check in checks), summary(checks)


def _altered(path: Path, target: Path, key: str, **config: object) -> Path:
    """A copy of a golden file with one tensor and some of its description changed."""
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[key] = tensors[key] * 1.001
    meta["config"] = json.dumps(json.loads(meta["config"]) | config)
    save_file(tensors, target, metadata=meta)
    return target


@pytest.mark.parametrize("key", ["param/A_logs", "param/conv2d.bias", "output", "grad/x_proj_weight"])
def test_a_changed_number_is_noticed(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = _altered(ROOT / "tests/data/parity/vmunet_ss2d.safetensors", tmp_path / "altered.safetensors", key)
    assert main([str(altered)]) == 1
    assert capsys.readouterr().out.startswith("ABOVE altered.safetensors")


def test_an_unknown_model_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = _altered(
        ROOT / "tests/data/parity/vmunet_ss2d.safetensors", tmp_path / "x.safetensors", "output", model="SS4D"
    )
    assert main([str(altered)]) == 2
    assert "Unknown golden model 'SS4D'. Did you mean 'SS2D'?" in capsys.readouterr().out


def test_missing_and_damaged_files_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    assert main([str(tmp_path / "none.safetensors"), str(tmp_path / "cut.safetensors")]) == 2
    out = capsys.readouterr().out
    assert "no such golden file" in out
    assert "cut.safetensors" in out


def test_formula_parameters_are_bounded_and_named() -> None:
    a, b = (formula_tensor(name, (4, 9), 0) for name in ("x.weight", "y.weight"))
    assert not torch.equal(a, b)
    assert a.abs().max() <= (3 / 9) ** 0.5
    assert formula_tensor("norm.weight", (64,), 0).sub(1).abs().max() <= 0.2
    logs = formula_tensor("m.A_logs", (3, 16), 0)
    assert (logs - torch.arange(1, 17).log()).abs().max() <= 0.1
