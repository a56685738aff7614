"""Whatever is registered keeps the interface that training and prediction rely on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medmamba.errors import ConfigError
from medmamba.networks import available_networks, build_network
from medmamba.networks.blocks.scan_core import count_scans
from medmamba.networks.build import network_facts

DIMS = (2, 3)


def tiny(name: str, dims: int, **changes: object) -> nn.Module:
    """The network with three stages, anisotropic at first, and few channels."""
    torch.manual_seed(0)
    numbers: dict[str, object] = {
        "spatial_dims": dims,
        "in_channels": 2,
        "out_channels": 3,
        "strides": [[1] * dims, [1] + [2] * (dims - 1), [2] * dims],
        "features_per_stage": [8, 16, 16],
        "deep_supervision": True,
    }
    return build_network(name, **{**numbers, **changes})  # type: ignore[arg-type]


def odd_image(dims: int, batch: int = 2) -> torch.Tensor:
    """A size that no stride divides."""
    return torch.randn(batch, 2, *(7, 9, 5)[:dims], generator=torch.Generator().manual_seed(1))


every_network = pytest.mark.parametrize("name", available_networks())
both_dimensions = pytest.mark.parametrize("dims", DIMS)


@every_network
@both_dimensions
def test_logits_have_the_image_size_and_supervision_gets_coarser(name: str, dims: int) -> None:
    net, image = tiny(name, dims), odd_image(dims)
    outputs = net(image)
    assert isinstance(outputs, list)
    assert len(outputs) == len(net.heads) == 2
    assert outputs[0].shape == (2, 3, *image.shape[2:])
    coarse = [-(-n // s) for n, s in zip(image.shape[2:], [1] + [2] * (dims - 1), strict=True)]
    assert list(outputs[1].shape[2:]) == coarse
    net.eval()
    logits = net(image[:1])
    assert isinstance(logits, torch.Tensor)
    assert logits.shape == (1, 3, *image.shape[2:])


@every_network
@both_dimensions
def test_every_parameter_receives_a_gradient(name: str, dims: int) -> None:
    net = tiny(name, dims)
    for parameter in net.parameters():  # nnU-Net's residual blocks begin with a norm that lets nothing through
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    torch.stack([out.square().mean() for out in net(odd_image(dims))]).sum().backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@every_network
@both_dimensions
def test_one_image_is_overfitted(name: str, dims: int) -> None:
    net = tiny(name, dims, deep_supervision=False)
    image = odd_image(dims, batch=1)
    truth = (image[:, 0] > 0).long() + (image[:, 1] > 0.8).long()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(image), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@every_network
@both_dimensions
def test_state_dict_round_trip_reproduces_the_logits(name: str, dims: int) -> None:
    net, image = tiny(name, dims).eval(), odd_image(dims)
    twin = tiny(name, dims)
    nn.init.ones_(next(twin.parameters()))
    twin.load_state_dict(net.state_dict())
    twin.eval()
    with torch.no_grad():
        assert torch.equal(net(image), twin(image))
    pointers = [t.data_ptr() for t in net.state_dict().values()]
    assert len(pointers) == len(set(pointers))  # safetensors refuses shared memory


@every_network
def test_patch_size_does_not_change_the_weights(name: str) -> None:
    net = tiny(name, 3).eval()
    with torch.no_grad():
        for shape in ((1, 1, 1), (4, 4, 4), (3, 12, 6)):
            assert net(torch.randn(1, 2, *shape)).shape == (1, 3, *shape)


@pytest.mark.parametrize("name", [n for n in available_networks() if network_facts(n).has_scan])
@both_dimensions
def test_the_twin_without_scan_differs_only_by_the_scan(name: str, dims: int) -> None:
    with_scan, without = tiny(name, dims), tiny(name, dims, use_scan=False)
    own = {key: p.shape for key, p in with_scan.named_parameters()}
    twin = {key: p.shape for key, p in without.named_parameters()}
    assert twin.items() <= own.items()
    extra = own.keys() - twin.keys()
    assert extra
    assert all(".scan." in key for key in extra)


def test_deep_supervision_is_off_unless_asked_for() -> None:
    net = tiny("vm_unet", 2, deep_supervision=False)
    assert isinstance(net(odd_image(2)), torch.Tensor)
    assert len(net.heads) == 1


def test_a_patch_stem_still_answers_at_full_resolution() -> None:
    net = tiny("vm_unet", 3, stem="patch", strides=[[2, 4, 4], [1, 2, 2]], features_per_stage=[8, 16])
    outputs = net(odd_image(3))
    assert [tuple(o.shape[2:]) for o in outputs] == [(7, 9, 5), (4, 3, 2)]


@pytest.mark.parametrize("name", [n for n in available_networks() if "checkpoint_blocks" in network_facts(n).options])
def test_recomputing_blocks_gives_the_same_gradients(name: str) -> None:
    nets = [tiny(name, 2, deep_supervision=False, checkpoint_blocks=flag) for flag in (False, True)]
    for net in nets:
        net(odd_image(2)).square().mean().backward()
    for (key, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vmunet"}, r"Unknown network 'vmunet'\. Did you mean 'vm_unet'\?"),
        ({"rout": "snake"}, r"Unknown option of network 'vm_unet' 'rout'\. Did you mean 'routes'\?"),
        ({"routes": "zigzag"}, r"Unknown route set 'zigzag'"),
        ({"routes": ["cross", "cross"]}, r"routes has 2 entries for 3 stages"),
        ({"features_per_stage": [8, 16]}, r"features_per_stage has 2 entries for 3 stages"),
        ({"strides": [[1, 1], [2], [2, 2]]}, r"strides\[1\] must be 2 numbers, got \[2\]"),
        ({"stem": "convolution"}, r"stem must be one of conv, patch, got 'convolution'"),
        ({"kernels": [[3, 3], [2, 3], [3, 3]]}, r"kernels must be odd"),
        ({"out_channels": 0}, r"out_channels must be from 1 to 65536, got 0"),
        ({"spatial_dims": 4}, r"spatial_dims must be 2 or 3, got 4"),
    ],
)
def test_impossible_numbers_are_named(changes: dict[str, object], message: str) -> None:
    name = str(changes.pop("name", "vm_unet"))
    with pytest.raises(ConfigError, match=message):
        tiny(name, 2, **changes)


def test_a_network_without_a_scan_has_none_to_leave_out() -> None:
    with pytest.raises(ConfigError, match="'plain_unet' has no scan to leave out"):
        tiny("plain_unet", 2, use_scan=False)


def test_options_say_which_networks_have_a_scan() -> None:
    assert {"state_size", "routes", "use_scan"} <= set(network_facts("vm_unet").options)
    assert set(network_facts("plain_unet").options) == {"decoder_convs", "parts"}
    assert not network_facts("mambaout").has_scan


@pytest.mark.parametrize("name", [n for n in available_networks() if "schedule" in network_facts(n).options])
@both_dimensions
def test_with_the_falling_schedule_the_bottleneck_has_one_route(name: str, dims: int) -> None:
    net, whole = tiny(name, dims, schedule="falling"), tiny(name, dims)
    torch.stack([out.square().mean() for out in net(odd_image(dims))]).sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    steps = []
    for network in (net, whole):
        with torch.no_grad(), count_scans() as scans:
            network.eval()(torch.zeros(1, 2, *(8,) * dims))
        steps.append(scans[-1])  # the last block to run is at the bottleneck
    assert steps[1] == {"vim": 2, "mate": 2, "mamba3": 2, "segmamba": 3}.get(name, 2 * dims) * steps[0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("hrvmamba", {"features_per_stage": [8, 18, 16]}, r"divisible by 4; features_per_stage\[1\] is 18, .* is 16"),
        ("mhs_vm", {"heads": "CQ"}, r"different letters out of CXSZ, got 'CQ'"),
        ("vm_unet", {"schedule": "steep"}, r"schedule must be one of constant, falling, rising, got 'steep'"),
        ("plain_unet", {"strides": [[2, 2]] * 3}, r"starts at full resolution"),
        (
            "residual_unet",
            {"strides": [[1, 1], [2, 2]], "features_per_stage": [8, 8]},
            r"needs at least 3 stages, got 2",
        ),
        ("hrvmamba", {"deformable": "sometimes"}, r"deformable must be one of auto, always, never"),
        ("vim", {"directions": "v3"}, r"directions must be none, v1 or v2, got 'v3'"),
        ("vm_unet", {"drop_path": 1.5}, r"drop_path must lie in \[0, 1\), got 1.5"),
        ("vm_unet", {"state_size": 0}, r"state_size must be at least 1, got 0"),
        ("vm_unet", {"expand": 0.05}, r"expand 0.05 leaves no channel of 16; use at least 0.0625"),
        ("lamamba", {"window": 0}, r"window must be at least 1, got 0"),
        ("mambaout", {"kernel": 4}, r"kernel must be odd, got 4; use 5"),
        ("mambaout", {"conv_ratio": 3.0}, r"conv_ratio 3.0 is more than the expansion; use at most 2"),
    ],
)
def test_what_a_family_asks_for_is_said(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(name, 2, **changes)


@pytest.mark.slow
@every_network
@both_dimensions
def test_compiled_and_exported_networks_give_the_same_logits(name: str, dims: int) -> None:
    image = odd_image(dims, batch=1)
    net = tiny(name, dims, deep_supervision=False).eval()
    with torch.no_grad():
        expected = net(image)
        compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), expected, rtol=1e-4, atol=1e-4)
        exported = torch.export.export(net, (image,))
        torch.testing.assert_close(exported.module()(image), expected, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@every_network
@both_dimensions
def test_the_same_image_gives_the_same_logits_and_gradients(name: str, dims: int) -> None:
    net, image = tiny(name, dims, deep_supervision=False), odd_image(dims)
    results = []
    for _ in range(2):
        net.zero_grad()
        logits = net(image)
        logits.square().mean().backward()
        results.append((logits.detach().clone(), [p.grad.clone() for p in net.parameters()]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@every_network
def test_autocast_to_bfloat16_stays_close_to_float32(name: str) -> None:
    net, image = tiny(name, 2, deep_supervision=False), odd_image(2)
    expected = net(image)
    with torch.autocast("cpu", torch.bfloat16):
        logits = net(image)
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    error = (logits.float() - expected).norm() / expected.norm()
    assert error < 0.05  # bfloat16 carries 8 bits: 0.4 % per operation
