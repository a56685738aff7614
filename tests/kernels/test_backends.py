"""Every row of a table of backends computes what the reference computes, and says why where it cannot run."""

import pytest
import torch
from scan_cases import errors, gated_in_segments, outputs_and_gradients, scan_inputs, ssd_inputs

from medmamba.kernels import routed_scan
from medmamba.kernels.backends import Backend, choose_backend
from medmamba.kernels.deformable.api import DEFORMABLE_BACKENDS, geometry_of
from medmamba.kernels.library import ScanArguments
from medmamba.kernels.scan.api import SCAN_BACKENDS
from medmamba.kernels.scan.reference import ScanInputs
from medmamba.kernels.state_space_duality.api import SSD_BACKENDS

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 beside float64


def runs(backend: Backend) -> bool:
    return backend.why_not("cpu", torch.float32) is None


@pytest.mark.parametrize("name", [name for name, backend in SCAN_BACKENDS.items() if runs(backend)])
@pytest.mark.parametrize("merge", [True, False])
def test_every_scan_backend_equals_the_reference_with_every_argument_given(name, merge):
    inputs = gated_in_segments(scan_inputs(2, 40, 3, 5, 4), merge)
    truth = outputs_and_gradients(inputs, "reference", torch.float64, merge=merge)
    found = errors(outputs_and_gradients(inputs, name, torch.float32, merge=merge), truth)
    assert max(found.values()) <= 2e-6, found


@pytest.mark.parametrize("name", [name for name, backend in DEFORMABLE_BACKENDS.items() if runs(backend)])
def test_every_deformable_backend_equals_the_reference(name):
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 4, 5, 6, generator=generator)
    geometry = geometry_of(value, groups=2)
    offset_mask = torch.randn(2, *geometry.output, geometry.columns, generator=generator)
    truth = DEFORMABLE_BACKENDS["reference"].run(value.double(), offset_mask.double(), geometry)
    torch.testing.assert_close(DEFORMABLE_BACKENDS[name].run(value, offset_mask, geometry).double(), truth, **CLOSE)


@pytest.mark.parametrize("name", [name for name, backend in SSD_BACKENDS.items() if runs(backend)])
def test_every_backend_of_state_space_duality_equals_the_reference(name):
    values = list(ssd_inputs(1, 50, 2, 3, 1, 4).values())
    truth = SSD_BACKENDS["reference"].run(*values, 16)
    for output, exact in zip(SSD_BACKENDS[name].run(*(value.float() for value in values), 16), truth, strict=True):
        torch.testing.assert_close(output.double(), exact, **CLOSE)


def test_the_library_takes_the_inputs_in_the_order_of_the_operators():
    names = [name for name, _kind in ScanArguments._fields_]
    assert names[names.index("x") :][: len(ScanInputs._fields) - 2] == list(ScanInputs._fields[:-2])


def test_a_row_of_the_table_is_all_that_a_backend_needs(monkeypatch):
    called = []

    def mine(scan):
        called.append(scan)
        return SCAN_BACKENDS["torch"].run(scan)

    here = Backend(mine, lambda device, dtype: None if dtype == torch.float64 else "it is for float64 (test)")
    monkeypatch.setitem(SCAN_BACKENDS, "mine", here)
    inputs = scan_inputs(1, 6, 2, 3, 2)
    assert torch.equal(routed_scan(**inputs, backend="mine"), routed_scan(**inputs, backend="torch"))
    assert called[0].routes.dtype == torch.int32
    single = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    with pytest.raises(RuntimeError, match=r"Backend 'mine' cannot run: it is for float64 \(test\)\. Available here: "):
        routed_scan(**single, backend="mine")


def test_the_first_row_that_runs_is_the_automatic_choice():
    table = {"gpu": Backend(len, lambda device, dtype: "no"), "plain": Backend(len), "slow": Backend(len)}
    assert choose_backend(table, "auto", "cpu", torch.float32) == "plain"
    assert choose_backend(table, "slow", "cpu", torch.float32) == "slow"
    with pytest.raises(ValueError, match=r"Unknown backend 'fast'\. Available: auto, gpu, plain, slow\."):
        choose_backend(table, "fast", "cpu", torch.float32)
