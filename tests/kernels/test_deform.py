"""Deformable convolution: golden tensors of DCNv4, grid_sample, hand-made truths, gradients, bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import golden, relative

from medmamba.kernels import available_backends, deformable_conv, offset_mask_width
from medmamba.kernels.library import choose_instruction_set, missing_reason

CORE, CORE_INFO = golden("dcnv4_core.safetensors")
MODULE, MODULE_INFO = golden("dcnv4_module.safetensors")
FAST = [name for name in available_backends() if name != "reference"]


def core_options(case):
    told = CORE_INFO["cases"][case]
    return {
        "kernel_size": told["kernel_size"],
        "stride": told["stride"],
        "padding": told["pad"],
        "dilation": told["dilation"],
        "groups": told["group"],
        "offset_scale": told["offset_scale"],
        "remove_center": bool(told["remove_center"]),
    }


RUNS = [("reference", torch.float64, 1e-6), *[(name, torch.float32, 1e-5) for name in FAST]]


@pytest.mark.parametrize("case", sorted(CORE_INFO["cases"]))
@pytest.mark.parametrize(("backend", "dtype", "tolerance"), RUNS)
def test_the_operator_equals_the_golden_tensors(case, backend, dtype, tolerance):
    value = CORE[f"{case}/input"].to(dtype, copy=True).requires_grad_()
    offset_mask = CORE[f"{case}/offset_mask"].to(dtype, copy=True).requires_grad_()
    output = deformable_conv(value, offset_mask, **core_options(case), backend=backend)
    assert relative(output, CORE[f"{case}/output"]) <= tolerance
    (output * CORE[f"{case}/cotangent"].to(dtype)).sum().backward()
    assert relative(value.grad, CORE[f"{case}/grad/input"]) <= tolerance
    assert relative(offset_mask.grad, CORE[f"{case}/grad/offset_mask"]) <= 10 * tolerance


def test_the_published_module_equals_the_golden_tensors():
    leaves = {
        name: MODULE[name].to(torch.float64, copy=True).requires_grad_()
        for name in ("input", "param/offset_mask.weight")
    }
    bias = MODULE["param/offset_mask.bias"].to(torch.float64, copy=True).requires_grad_()
    offset_mask = leaves["input"] @ leaves["param/offset_mask.weight"].T + bias
    assert offset_mask.shape[-1] == offset_mask_width(MODULE_INFO["ctor"]["group"], 9)
    output = deformable_conv(leaves["input"], offset_mask, groups=MODULE_INFO["ctor"]["group"])
    assert relative(output, MODULE["output"]) <= 1e-6
    (output * MODULE["cotangent"]).sum().backward()
    for name, leaf in leaves.items():
        assert relative(leaf.grad, MODULE[f"grad/{name}"]) <= 1e-6, name
    assert relative(bias.grad, MODULE["grad/param/offset_mask.bias"]) <= 1e-6


def random_case(image, channels, groups, seed=0, spread=1.5, **options):
    generator = torch.Generator().manual_seed(seed)
    dims = len(image)
    kernel = options.get("kernel_size", 3)
    kernel = (kernel,) * dims if isinstance(kernel, int) else kernel
    taps = torch.Size(kernel).numel() - options.get("remove_center", False)
    stride, padding, dilation = (options.get(n, d) for n, d in (("stride", 1), ("padding", 1), ("dilation", 1)))
    output = [(n + 2 * padding - (dilation * (k - 1) + 1)) // stride + 1 for n, k in zip(image, kernel, strict=True)]
    value = torch.randn(2, *image, channels, generator=generator, dtype=torch.float64)
    width = offset_mask_width(groups, taps, dims)
    offset_mask = spread * torch.randn(2, *output, width, generator=generator, dtype=torch.float64)
    return value, offset_mask, {"groups": groups, **options}


CASES = [
    random_case((5, 7), 6, 2),
    random_case((1, 1), 3, 1),
    random_case((6, 5), 20, 1, stride=2, dilation=2, padding=2),
    random_case((4, 9), 34, 2, kernel_size=(3, 5), padding=1, offset_scale=0.5),
    random_case((5, 5), 8, 4, remove_center=True),
    random_case((3, 4, 5), 6, 2),
    random_case((4, 4, 3), 17, 1, stride=2, remove_center=True, offset_scale=2.0),
    random_case((2, 5, 4), 4, 2, kernel_size=(1, 3, 3), padding=0),
    random_case((5, 7), 6, 2, spread=1e4),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{tuple(case[0].shape[1:])}-{case[2]}")
@pytest.mark.parametrize("backend", FAST)
def test_output_and_gradients_equal_the_float64_reference(case, backend):
    value, offset_mask, options = case
    results = []
    for name, dtype in (("reference", torch.float64), (backend, torch.float32)):
        leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (value, offset_mask)]
        output = deformable_conv(*leaves, **options, backend=name)
        cotangent = torch.linspace(-1, 1, output.numel(), dtype=dtype).reshape(output.shape)
        results.append([output.detach(), *torch.autograd.grad((output * cotangent).sum(), leaves)])
    for exact, found in zip(*results, strict=True):
        assert relative(found, exact) <= 1e-4  # places in float32 are good to 1e-6 of a voxel, and offsets are steep


def test_without_offsets_it_is_an_ordinary_convolution_with_tap_weights():
    image = torch.randn(1, 6, 7, 4, dtype=torch.float64)
    weights = torch.arange(1, 10).double()
    offset_mask = torch.zeros(1, 6, 7, 32, dtype=torch.float64)
    offset_mask[..., 18:27] = weights
    kernel = weights.reshape(3, 3).T.expand(4, 1, 3, 3)  # taps are enumerated column first
    expected = torch.nn.functional.conv2d(image.permute(0, 3, 1, 2), kernel, padding=1, groups=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(deformable_conv(image, offset_mask), expected)


def test_in_3d_without_offsets_it_is_an_ordinary_convolution_too():
    image = torch.randn(1, 4, 5, 6, 2, dtype=torch.float64)
    weights = torch.arange(1, 28).double()
    offset_mask = torch.zeros(1, 4, 5, 6, 27 * 4, dtype=torch.float64)
    offset_mask[..., 81:] = weights
    kernel = weights.reshape(3, 3, 3).permute(2, 1, 0).expand(2, 1, 3, 3, 3)
    expected = torch.nn.functional.conv3d(image.permute(0, 4, 1, 2, 3), kernel, padding=1, groups=2)
    torch.testing.assert_close(deformable_conv(image, offset_mask), expected.permute(0, 2, 3, 4, 1))


def test_one_flat_slice_in_3d_is_the_2d_operator():
    value, flat, _ = random_case((5, 6), 4, 1)
    volume = torch.zeros(2, 1, 5, 6, offset_mask_width(1, 9, 3), dtype=torch.float64)
    volume[..., :27].unflatten(-1, (9, 3))[..., :2] = flat[:, None, ..., :18].unflatten(-1, (9, 2))
    volume[..., 27:36] = flat[:, None, ..., 18:27]
    found = deformable_conv(value.unsqueeze(1), volume, kernel_size=(1, 3, 3), padding=(0, 1, 1))
    torch.testing.assert_close(found.squeeze(1), deformable_conv(value, flat))


@pytest.mark.parametrize("backend", FAST)
def test_gradients_are_the_same_bits_every_time_and_for_any_number_of_threads(backend):
    value, offset_mask, options = random_case((9, 8), 40, 2)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            leaves = [tensor.float().requires_grad_() for tensor in (value, offset_mask)]
            output = deformable_conv(*leaves, **options, backend=backend)
            results.append(torch.autograd.grad(output.square().sum(), leaves))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for first, again in zip(results[0], other, strict=True):
            assert torch.equal(first, again)


def test_gradients_pass_gradcheck():
    value, offset_mask, options = random_case((2, 3), 2, 1, spread=0.3)
    leaves = (value[:1].requires_grad_(), offset_mask[:1].requires_grad_())
    assert torch.autograd.gradcheck(lambda v, o: deformable_conv(v, o, **options), leaves, fast_mode=True)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 7), min_size=2, max_size=3),
    st.integers(1, 3),
    st.integers(1, 20),
    st.booleans(),
    st.floats(0.1, 3),
)
def test_any_image_size_equals_the_reference(image, groups, per_group, remove_center, scale):
    value, offset_mask, options = random_case(
        tuple(image), groups * per_group, groups, remove_center=remove_center, offset_scale=scale
    )
    truth = deformable_conv(value, offset_mask, **options, backend="reference")
    found = deformable_conv(value.float(), offset_mask.float(), **options, backend=FAST[0])
    assert (found - truth).norm() <= 1e-4 * max(truth.norm().item(), 1)


def test_wrong_input_is_explained():
    value, offset_mask, _ = random_case((4, 4), 6, 2)
    with pytest.raises(ValueError, match="groups = 4 does not divide 6 channels"):
        deformable_conv(value, offset_mask, groups=4)
    with pytest.raises(ValueError, match=r"offset_mask must be .* = \(2, 4, 4, 54\), it is \(2, 4, 4, 53\)"):
        deformable_conv(value, offset_mask[..., :53], groups=2)
    with pytest.raises(ValueError, match=r"offset_mask must be .* = \(2, 2, 2, 54\)"):
        deformable_conv(value, offset_mask, groups=2, stride=2)
    with pytest.raises(ValueError, match="value must be"):
        deformable_conv(value[0], offset_mask)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        deformable_conv(value, offset_mask, groups=2, kernel_size=7)
    with pytest.raises(ValueError, match="stride must be one number or 2"):
        deformable_conv(value, offset_mask, groups=2, stride=(1, 1, 1))
    with pytest.raises(TypeError, match="value must be floating point"):
        deformable_conv(value.long(), offset_mask, groups=2)
    with pytest.raises(ValueError, match="leaves no tap"):
        deformable_conv(value, offset_mask, kernel_size=1, padding=0, remove_center=True)


needs_cpp = pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason()))


@needs_cpp
@pytest.mark.parametrize("name", ["avx512", "avx2", "base"])
@pytest.mark.parametrize("case", [CASES[2], CASES[6]], ids=["2d", "3d"])
def test_every_instruction_set_equals_the_reference(name, case):
    try:
        choose_instruction_set(name)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        test_output_and_gradients_equal_the_float64_reference(case, "cpp")
    finally:
        choose_instruction_set()


@needs_cpp
def test_the_operators_pass_opcheck_and_compile():
    from medmamba.kernels.deformable.compiled import deformable_conv_backward_op, deformable_conv_op

    value, offset_mask, _ = random_case((4, 5), 6, 2)
    leaves = [tensor.float().requires_grad_() for tensor in (value, offset_mask)]
    options = ([3, 3], [1, 1], [1, 1], [1, 1], 2, 1.0, False)
    torch.library.opcheck(deformable_conv_op, (*leaves, *options))
    inputs = [tensor.detach() for tensor in leaves]
    torch.library.opcheck(deformable_conv_backward_op, (torch.randn(2, 4, 5, 6), *inputs, *options))
    compiled = torch.compile(lambda v, o: deformable_conv(v, o, groups=2), fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(deformable_conv(*leaves, groups=2).square().sum(), leaves)
    for found, truth in zip(torch.autograd.grad(compiled(*leaves).square().sum(), leaves), expected, strict=True):
        assert torch.equal(found, truth)
    (gradient,) = torch.autograd.grad(deformable_conv(*leaves, groups=2).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
