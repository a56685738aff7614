"""A network's scans run on the backend that was chosen for them, and its name can be asked for."""

from __future__ import annotations

import pytest
import torch

from medmamba.errors import ConfigError
from medmamba.kernels import available_backends
from medmamba.networks import available_networks, build_network
from medmamba.networks.blocks import deformable, scan_core
from medmamba.networks.build import network_facts
from medmamba.networks.planned import mamba3
from medmamba.networks.scan_backend import scan_backend_of, set_scan_backend

FASTEST = available_backends("cpu")[0]
SCANNING = [name for name in available_networks() if network_facts(name).has_scan]
GPU_KERNELS_ON_CPU = r"^--scan-backend triton: Backend 'triton' cannot run: .* not cpu\. Available here: cpp, torch\.$"


def tiny(name: str, **changes: object) -> torch.nn.Module:
    torch.manual_seed(0)
    numbers = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, "strides": [[1, 1], [2, 2], [2, 2]]}
    return build_network(name, **numbers, features_per_stage=[8, 16, 16], **changes).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SCANNING)
def test_every_operator_of_a_network_runs_on_the_chosen_backend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for module, function in (
        (scan_core, "routed_scan"),
        (deformable, "deformable_conv"),
        (mamba3, "mamba3_scan"),
    ):
        operator = getattr(module, function)

        def spy(*args: object, operator=operator, backend: str = "missing", **options: object) -> torch.Tensor:
            asked.append(backend)
            return operator(*args, backend=backend, **options)

        monkeypatch.setattr(module, function, spy)
    network, image = tiny(name), torch.randn(1, 1, 12, 12)
    with torch.no_grad():
        by_default = network(image)
        assert set(asked) == {"auto"}
        assert scan_backend_of(network, "cpu") == FASTEST
        asked.clear()
        set_scan_backend(network, "reference")
        torch.testing.assert_close(network(image), by_default, rtol=1e-3, atol=1e-4)
    assert set(asked) == {"reference"}
    assert scan_backend_of(network, torch.device("cpu")) == "reference"


def test_the_choice_follows_copies_and_is_no_part_of_the_weights() -> None:
    from copy import deepcopy

    network = tiny("vm_unet")
    weights = list(network.state_dict())
    set_scan_backend(network, "torch")
    assert scan_backend_of(deepcopy(network), "cpu") == "torch"
    assert list(network.state_dict()) == weights
    assert scan_backend_of(tiny("vm_unet"), "cpu") == FASTEST


def test_a_network_without_scans_has_no_backend() -> None:
    for network in (tiny("plain_unet"), tiny("vm_unet", use_scan=False), tiny("vim", use_scan=False)):
        set_scan_backend(network, "triton")
        assert scan_backend_of(network, "cpu") == "none"


def test_double_precision_is_scanned_in_torch_operations() -> None:
    assert scan_backend_of(tiny("vm_unet").double(), "cpu") == "torch"


def test_a_backend_that_cannot_run_says_why_and_what_can() -> None:
    network = tiny("vm_unet")
    set_scan_backend(network, "triton")
    with pytest.raises(ConfigError, match=GPU_KERNELS_ON_CPU):
        scan_backend_of(network, "cpu")
    with pytest.raises(ConfigError, match=r"^Unknown scan backend 'tritn'\. Did you mean 'triton'\? Available: auto, "):
        set_scan_backend(network, "tritn")
    with pytest.raises(ConfigError, match=r"^Unknown scan backend 'gpu'"):
        set_scan_backend(network, "gpu")


def test_a_deformable_convolution_that_runs_without_scans_is_reported() -> None:
    network = tiny("hrvmamba", use_scan=False)
    assert scan_backend_of(network, "cpu") == FASTEST
    set_scan_backend(network, "torch")
    assert scan_backend_of(network, "cpu") == "torch"
