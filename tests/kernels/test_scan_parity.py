"""The scan computes the published function: golden tensors, and a float64 loop at awkward shapes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import errors, gated_in_segments, golden, outputs_and_gradients, relative, scan_inputs

from medmamba.kernels import available_backends, routed_scan, selective_scan, selective_scan_ref
from medmamba.kernels.library import choose_instruction_set

TENSORS, CASES = golden("selective_scan.safetensors")
# Tolerances of the golden data: float64 limited by the stored digits, float32 by the algorithm.
FLOAT64, OUTPUT32, GRADIENT32 = 1e-10, 5e-6, 2e-5
ARGUMENTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
FAST = [name for name in available_backends() if name != "reference"]


@pytest.fixture(params=["avx512", "avx2", "base"])
def instruction_set(request):
    try:
        choose_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    except RuntimeError as error:
        pytest.skip(str(error))
    yield request.param
    choose_instruction_set()


def run_golden(case, backend, dtype):
    leaves = {}
    for name in ARGUMENTS:
        value = TENSORS.get(f"{case}/{name}")
        leaves[name] = None if value is None else value.to(dtype, copy=True).requires_grad_()
    options = {"delta_softplus": CASES[case]["delta_softplus"], "return_last_state": True, "backend": backend}
    output, last = selective_scan(**leaves, **options)
    given_names = [name for name, value in leaves.items() if value is not None]
    cotangent = TENSORS[f"{case}/cotangent"].to(dtype)
    gradients = torch.autograd.grad((output * cotangent).sum(), [leaves[name] for name in given_names])
    return output, last, dict(zip(given_names, gradients, strict=True))


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize(("backend", "dtype"), [("reference", torch.float64), ("torch", torch.float64)])
def test_float64_backends_equal_the_golden_tensors(case, backend, dtype):
    output, last, gradients = run_golden(case, backend, dtype)
    assert relative(output, TENSORS[f"{case}/output"]) <= FLOAT64
    assert relative(last, TENSORS[f"{case}/last_state"]) <= FLOAT64
    for name, gradient in gradients.items():
        assert relative(gradient, TENSORS[f"{case}/grad/{name}"]) <= FLOAT64, name


@pytest.mark.parametrize("case", sorted(CASES))
@pytest.mark.parametrize("backend", FAST)
def test_float32_backends_equal_the_golden_tensors(case, backend):
    check_float32(case, backend)


@pytest.mark.parametrize("case", sorted(CASES))
def test_every_instruction_set_equals_the_golden_tensors(case, instruction_set):
    check_float32(case, "cpp")


def check_float32(case, backend):
    output, last, gradients = run_golden(case, backend, torch.float32)
    assert relative(output, TENSORS[f"{case}/output"]) <= OUTPUT32
    assert relative(last, TENSORS[f"{case}/last_state"]) <= OUTPUT32
    for name, gradient in gradients.items():
        truth = TENSORS[f"{case}/grad/{name}"]
        assert relative(gradient, truth) <= GRADIENT32, name


def test_the_reference_by_its_mamba_ssm_name_is_the_reference():
    inputs = {name: TENSORS.get(f"G1/{name}") for name in ARGUMENTS}
    output = selective_scan_ref(*inputs.values(), True)
    assert relative(output, TENSORS["G1/output"]) <= OUTPUT32


SHAPES = [  # batch, L, K, channels, N: around the tile of 32 positions and the vectors of 16, 8 and 4 channels
    (1, 1, 1, 1, 1),
    (2, 2, 2, 3, 2),
    (1, 31, 4, 16, 16),
    (2, 33, 3, 17, 8),
    (2, 32, 4, 8, 24),
    (1, 63, 1, 15, 4),
    (1, 65, 2, 40, 1),
    (3, 130, 2, 5, 7),
    (1, 300, 2, 40, 3),
    (1, 20, 1, 4, 64),
    (1, 9, 1, 2, 256),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"merge": False}, {"softplus": False}], ids=str)
@pytest.mark.parametrize("per_route", [False, True], ids=["shared", "per_route"])
def test_outputs_and_all_gradients_equal_the_float64_loop(shape, options, per_route):
    inputs = scan_inputs(*shape, per_route=per_route)
    if options.get("softplus") is False:
        inputs["dt"], inputs["dt_bias"] = 0.1 * inputs["dt"].abs(), 0.01 * inputs["dt_bias"].abs()
    truth = outputs_and_gradients(inputs, "reference", torch.float64, **options)
    exact = outputs_and_gradients(inputs, "torch", torch.float64, **options)
    assert max(errors(exact, truth).values()) <= 1e-12
    for backend in FAST:
        for name, error in errors(outputs_and_gradients(inputs, backend, torch.float32, **options), truth).items():
            assert error <= (1e-6 if name in ("y", "last_state") else 5e-6), (backend, name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("merge", [True, False])
def test_gate_and_segments_equal_the_float64_loop(shape, merge):
    inputs = gated_in_segments(scan_inputs(*shape), merge)
    truth = outputs_and_gradients(inputs, "reference", torch.float64, merge=merge)
    exact = outputs_and_gradients(inputs, "torch", torch.float64, merge=merge)
    assert max(errors(exact, truth).values()) <= 1e-12
    for backend in FAST:
        for name, error in errors(outputs_and_gradients(inputs, backend, torch.float32, merge=merge), truth).items():
            assert error <= (1e-6 if name in ("y", "last_state") else 5e-6), (backend, name)


@pytest.mark.parametrize("backend", ["reference", *FAST])
def test_segments_are_scans_of_their_own(backend):
    inputs = {name: value.float() for name, value in scan_inputs(1, 90, 2, 20, 4).items()}
    del inputs["initial_state"]
    inputs["routes"] = torch.stack([torch.arange(90), torch.arange(89, -1, -1)])
    borders = (0, 1, 31, 33, 90)
    segments = torch.bucketize(torch.arange(90), torch.tensor(borders), right=True).unsqueeze(0)
    whole = routed_scan(**inputs, segments=segments, backend=backend)
    for start, end in itertools.pairwise(borders):
        part = {name: value[:, start:end] if name in ("x", "dt", "B", "C") else value for name, value in inputs.items()}
        part["routes"] = torch.stack([torch.arange(end - start), torch.arange(end - start - 1, -1, -1)])
        torch.testing.assert_close(whole[:, start:end], routed_scan(**part, backend=backend), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 65, 2, 19, 5), (1, 200, 4, 33, 16)], ids=str)
def test_every_instruction_set_equals_the_float64_loop(shape, instruction_set):
    inputs = gated_in_segments(scan_inputs(*shape))
    truth = outputs_and_gradients(inputs, "reference", torch.float64)
    found = errors(outputs_and_gradients(inputs, "cpp", torch.float32), truth)
    assert max(found.values()) <= 5e-6, found


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 80), st.integers(1, 4), st.integers(1, 40), st.integers(1, 20)),
    st.integers(0, 10_000),
    st.booleans(),
    st.booleans(),
    st.sets(st.sampled_from(["D", "dt_bias", "initial_state", "routes", "z", "segments"])),
)
def test_any_shape_with_any_argument_left_out_equals_the_loop(shape, seed, per_route, merge, left_out):
    inputs = gated_in_segments(scan_inputs(*shape, seed=seed, per_route=per_route), merge, seed)
    inputs = {name: value for name, value in inputs.items() if name not in left_out}
    truth = outputs_and_gradients(inputs, "torch", torch.float64, merge=merge)
    values = outputs_and_gradients(inputs, FAST[0], torch.float32, merge=merge)
    for (
        name
    ) in truth:  # a gradient that is one cancelling sum has no relative error to speak of: at least 1 per element
        size = max(truth[name].norm().item(), truth[name].numel() ** 0.5)
        assert (values[name] - truth[name]).norm().item() <= 2e-5 * size, name


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_gradients_pass_gradcheck_in_float64(backend):
    inputs = gated_in_segments(scan_inputs(1, 5, 2, 2, 3))
    inputs["segments"] = torch.tensor([[0, 0, 1, 1, 0]])
    integers = {name: inputs[name] for name in ("routes", "segments")}
    names = [name for name in inputs if name not in integers]
    leaves = tuple(inputs[name].requires_grad_() for name in names)

    def run(*values):
        return routed_scan(**dict(zip(names, values, strict=True)), **integers, backend=backend, return_last_state=True)

    assert torch.autograd.gradcheck(run, leaves)


def test_the_chunked_backend_is_the_same_across_chunk_borders(monkeypatch):
    inputs = gated_in_segments(scan_inputs(2, 70, 2, 3, 4))
    whole = outputs_and_gradients(inputs, "torch", torch.float64)
    monkeypatch.setattr("medmamba.kernels.scan.reference.CHUNK_ELEMENTS", 2 * 2 * 3 * 4 * 7)
    assert max(errors(outputs_and_gradients(inputs, "torch", torch.float64), whole).values()) <= 1e-13


def test_without_gradients_positions_are_solved_one_by_one_in_small_chunks(monkeypatch):
    inputs = gated_in_segments(scan_inputs(2, 70, 2, 3, 4))
    wanted = routed_scan(**inputs, backend="reference", return_last_state=True)
    monkeypatch.setattr("medmamba.kernels.scan.reference.CACHED_ELEMENTS", 2 * 2 * 3 * 4 * 7)
    monkeypatch.delattr("medmamba.kernels.scan.reference._chunk")
    with torch.no_grad():
        found = routed_scan(**inputs, backend="torch", return_last_state=True)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


def test_reversing_the_route_is_scanning_the_reversed_image():
    inputs = scan_inputs(1, 50, 1, 6, 4)
    inputs["routes"] = torch.arange(49, -1, -1).unsqueeze(0)
    backward = routed_scan(**inputs, backend="reference")
    flipped = {name: value.flip(1) if name in ("x", "dt", "B", "C") else value for name, value in inputs.items()}
    flipped["routes"] = None
    forward = routed_scan(**flipped, backend="reference")
    torch.testing.assert_close(backward, forward.flip(1), rtol=0, atol=0)


@pytest.mark.parametrize("backend", FAST)
def test_two_halves_joined_by_the_state_are_the_whole(backend):
    inputs = {name: value.float() for name, value in scan_inputs(2, 100, 2, 9, 4).items() if name != "routes"}
    whole, end = routed_scan(**inputs, backend=backend, return_last_state=True)
    parts, state = [], inputs.pop("initial_state")
    for part in (slice(0, 37), slice(37, 100)):
        piece = {name: value[:, part] if name in ("x", "dt", "B", "C") else value for name, value in inputs.items()}
        y, state = routed_scan(**piece, initial_state=state, backend=backend, return_last_state=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, end, rtol=1e-5, atol=1e-6)
