"""Numbers at the edge, layouts nobody planned for, wrong input, threads and processes."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_cases import ROOT, ScansWhileLoading, errors, float32, outputs_and_gradients, scan_inputs

from medmamba.kernels import available_backends, routed_scan, selective_scan
from medmamba.kernels.library import missing_reason

FAST = [name for name in available_backends() if name != "reference"]
needs_cpp = pytest.mark.skipif(missing_reason() is not None, reason=str(missing_reason()))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("bias", [-60.0, -20.0, 0.0, 30.0, 200.0])
def test_tiny_and_huge_steps_give_the_float64_result_and_no_nan(backend, bias):
    inputs = scan_inputs(1, 70, 2, 5, 16)
    inputs["dt_bias"] = torch.full_like(inputs["dt_bias"], bias)
    truth = outputs_and_gradients(inputs, "reference", torch.float64)
    values = outputs_and_gradients(inputs, backend, torch.float32)
    for name in truth:
        assert values[name].isfinite().all(), name
        # where everything decays within one step the gradient of dt is a sum of numbers that vanish
        scale = truth[name].abs().max().clamp_min(1e-6)
        assert (values[name] - truth[name]).abs().max() <= 2e-5 * scale, name


@pytest.mark.parametrize("backend", FAST)
def test_weak_decay_over_a_long_route_keeps_its_accuracy(backend):
    inputs = scan_inputs(1, 3000, 1, 4, 2)
    inputs["A"] = -1e-3 * torch.ones_like(inputs["A"])
    truth = outputs_and_gradients(inputs, "torch", torch.float64)
    found = errors(outputs_and_gradients(inputs, backend, torch.float32), truth)
    assert max(found.values()) <= 2e-5, found


@pytest.mark.parametrize("backend", FAST)
def test_a_growing_state_is_computed_like_any_other(backend):
    inputs = scan_inputs(1, 12, 1, 3, 2)
    inputs["A"] = inputs["A"].abs()
    truth = outputs_and_gradients(inputs, "reference", torch.float64)
    assert max(errors(outputs_and_gradients(inputs, backend, torch.float32), truth).values()) <= 1e-5


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "dt_bias"])
def test_a_nan_in_any_input_reaches_the_output(backend, name):
    inputs = float32(scan_inputs(1, 6, 1, 3, 2))
    inputs[name].view(-1)[0] = float("nan")
    assert routed_scan(**inputs, backend=backend).isnan().any()


@pytest.mark.parametrize("backend", FAST)
def test_non_contiguous_inputs_give_the_same_numbers(backend):
    inputs = float32(scan_inputs(2, 12, 2, 6, 4))
    expected = routed_scan(**inputs, backend=backend)
    for name, value in inputs.items():
        if value.dim() < 2:
            continue
        strange = value.transpose(0, -1).contiguous().transpose(0, -1)
        assert torch.equal(routed_scan(**{**inputs, name: strange}, backend=backend), expected), name
    shared_row = inputs["B"][:, :1].expand(-1, 12, -1, -1)  # overlapping memory: stride 0
    assert torch.equal(
        routed_scan(**{**inputs, "B": shared_row}, backend=backend),
        routed_scan(**{**inputs, "B": shared_row.contiguous()}, backend=backend),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FAST)
def test_half_precision_inputs_are_computed_in_float32(backend, dtype):
    inputs = scan_inputs(1, 40, 2, 6, 4)
    for name in ("x", "dt", "B", "C"):
        inputs[name] = inputs[name].to(dtype)
    y = routed_scan(**{n: v.float() if v.dtype == torch.float64 else v for n, v in inputs.items()}, backend=backend)
    truth = routed_scan(
        **{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}, backend="reference"
    )
    assert y.dtype == torch.float32
    assert (y - truth).norm() <= 1e-6 * truth.norm()


@pytest.mark.parametrize("backend", FAST)
def test_autocast_does_not_lower_the_precision(backend):
    inputs = float32(scan_inputs(1, 40, 2, 6, 4))
    expected = routed_scan(**inputs, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(routed_scan(**inputs, backend=backend), expected)


@needs_cpp
@pytest.mark.parametrize("shape", [(1, 700, 4, 200, 16), (2, 300, 3, 24, 5), (9, 30, 1, 16, 2)], ids=str)
def test_gradients_are_bit_equal_for_any_number_of_threads(shape):
    inputs = scan_inputs(*shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(outputs_and_gradients(inputs, "cpp", torch.float32))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(other[name], value), name


@needs_cpp
def test_work_is_done_on_as_many_threads_as_torch_is_told():
    inputs = float32(scan_inputs(4, 600, 4, 64, 16))
    before = torch.get_num_threads()
    try:
        for threads, as_expected in ((1, lambda share: share < 0.1), (2, lambda share: share > 0.2)):
            torch.set_num_threads(threads)
            routed_scan(**inputs)
            # where other programs compute, a thread may come too late for its part: once is proof
            assert any(as_expected(_share_of_other_threads(inputs)) for _ in range(200)), threads
    finally:
        torch.set_num_threads(before)


def _share_of_other_threads(inputs):
    """Of the processor time of some scans, what other threads than this one took."""
    time.sleep(0.05)  # OpenMP's threads go on turning for a moment after their last piece of work
    start = time.process_time(), time.thread_time()
    for _ in range(10):
        routed_scan(**inputs)
    return 1 - (time.thread_time() - start[1]) / (time.process_time() - start[0])


@needs_cpp
def test_calls_from_several_python_threads_do_not_disturb_each_other():
    inputs = scan_inputs(2, 200, 2, 40, 8)
    expected = outputs_and_gradients(inputs, "cpp", torch.float32)
    wrong = []

    def work():
        for _ in range(5):
            values = outputs_and_gradients(inputs, "cpp", torch.float32)
            wrong.extend(name for name in expected if not torch.equal(values[name], expected[name]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# torch's own OpenMP threads do not survive a fork: a loader worker runs torch on one thread. The scan's own
# threads must survive, so the script below starts no others and asks the child for two.
FORKING = """
import os, torch
from medmamba.kernels import routed_scan
inputs = torch.load(PATH, weights_only=True)
torch.set_num_threads(2)
expected = routed_scan(**inputs)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(routed_scan(**inputs), expected) else 3)
assert os.waitpid(child, 0)[1] == 0
"""


@needs_cpp
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_can_scan_on_several_threads_after_its_parent_has(tmp_path):
    torch.save(float32(scan_inputs(2, 100, 2, 40, 4)), tmp_path / "inputs.pt")
    script = FORKING.replace("PATH", repr(str(tmp_path / "inputs.pt")))
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=600)


@needs_cpp
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_loader_workers_can_scan(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"{method} does not exist here")
    dataset = ScansWhileLoading()
    expected = [dataset[index] for index in range(4)]
    loader = torch.utils.data.DataLoader(dataset, None, num_workers=2, multiprocessing_context=method, timeout=600)
    for value, truth in zip(loader, expected, strict=True):
        assert torch.equal(value, truth)


WRONG_SHAPES = [
    ("x", (2, 5, 4), r"x must be .* = \(2, 6, 4\) to fit dt \(2, 6, 3, 4\), it is \(2, 5, 4\)"),
    ("x", (2, 6, 2, 4), r"x must be .* = \(2, 6, 3, 4\)"),
    ("dt", (2, 6, 4), r"dt must be \(batch, L, K, channels\), it is \(2, 6, 4\)"),
    ("A", (3, 4), r"A must be \(K, channels, N\), it is \(3, 4\)"),
    ("A", (3, 5, 2), r"A must be .* = \(3, 4, 2\)"),
    ("B", (2, 6, 3, 3), r"B must be \(batch, L, K, N\) = \(2, 6, 3, 2\)"),
    ("C", (2, 6, 2, 2), r"C must be .* = \(2, 6, 3, 2\)"),
    ("D", (4,), r"D must be \(K, channels\) = \(3, 4\)"),
    ("dt_bias", (3, 1), r"dt_bias must be \(K, channels\)"),
    ("initial_state", (2, 3, 4), r"initial_state must be \(batch, K, channels, N\)"),
    ("z", (2, 6, 3, 4), r"z must be \(batch, L, channels\) = \(2, 6, 4\)"),
    ("segments", (2, 3), r"segments must be \(batch, L\) = \(2, 6\)"),
]


@pytest.mark.parametrize(("name", "shape", "message"), WRONG_SHAPES)
def test_a_wrong_shape_is_named_with_the_right_one(name, shape, message):
    inputs = float32(scan_inputs(2, 6, 3, 4, 2))
    inputs[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        routed_scan(**inputs)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("row", [[0, 1, 1, 3], [0, 1, 2, 4], [-1, 0, 1, 2], [0, 1, 2, 3 + 2**32]])
def test_routes_that_are_not_permutations_are_refused(backend, row):
    inputs = float32(scan_inputs(1, 4, 2, 3, 2))
    inputs["routes"][1] = torch.tensor(row)
    with pytest.raises(ValueError, match=r"not a permutation of 0\.\."):
        routed_scan(**inputs, backend=backend)


@pytest.mark.parametrize("backend", FAST)
def test_a_table_of_routes_that_was_written_to_is_looked_at_again(backend):
    inputs = float32(scan_inputs(1, 4, 2, 3, 2))
    inputs["routes"] = inputs["routes"].int()
    for _ in range(2):
        routed_scan(**inputs, backend=backend)
    inputs["routes"][1, 0] = inputs["routes"][1, 1]
    with pytest.raises(ValueError, match=r"Row 1 of `routes`|not a permutation"):
        routed_scan(**inputs, backend=backend)


def test_other_wrong_arguments_are_explained():
    inputs = float32(scan_inputs(1, 4, 2, 3, 2))
    with pytest.raises(ValueError, match=r"routes must be \(K, L\) = \(2, 4\) .*, it is \(2, 3\)"):
        routed_scan(**{**inputs, "routes": inputs["routes"][:, :3]})
    with pytest.raises(TypeError, match=r"routes must be integers, they are torch\.float32"):
        routed_scan(**{**inputs, "routes": inputs["routes"].float()})
    with pytest.raises(TypeError, match=r"A is torch\.complex64: complex numbers are not supported"):
        routed_scan(**{**inputs, "A": inputs["A"].to(torch.complex64)})
    with pytest.raises(TypeError, match=r"x must be floating point, it is torch\.int64"):
        routed_scan(**{**inputs, "x": inputs["x"].long()})
    with pytest.raises(ValueError, match="B is on meta and x on cpu"):
        routed_scan(**{**inputs, "B": inputs["B"].to("meta")})
    with pytest.raises(ValueError, match="N = 257 states per channel; at most 256"):
        routed_scan(
            torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1), -torch.ones(1, 1, 257), *[torch.ones(1, 1, 1, 257)] * 2
        )
    with pytest.raises(ValueError, match="L is 0"):
        routed_scan(torch.ones(1, 0, 1), torch.ones(1, 0, 1, 1), -torch.ones(1, 1, 2), *[torch.ones(1, 0, 1, 2)] * 2)
    with pytest.raises(ValueError, match=r"Unknown backend 'cuda'\. Available: auto, cpp"):
        routed_scan(**inputs, backend="cuda")


def test_the_compatible_function_explains_wrong_arguments():
    u, A, B = torch.ones(1, 6, 4), -torch.ones(6, 2), torch.ones(1, 2, 4)
    with pytest.raises(ValueError, match=r"delta must be \(batch, D, L\) = \(1, 6, 4\), it is \(1, 3, 4\)"):
        selective_scan(u, u[:, :3], A, B, B)
    with pytest.raises(ValueError, match=r"A must be \(D, N\) = \(6, 2\), it is \(5, 2\)"):
        selective_scan(u, u, A[:5], B, B)
    with pytest.raises(ValueError, match="4 groups of B and C do not divide D = 6"):
        selective_scan(u, u, A, torch.ones(1, 4, 2, 4), torch.ones(1, 4, 2, 4))
    with pytest.raises(ValueError, match=r"z must be \(batch, D, L\) = \(1, 6, 4\), it is \(1, 2, 4\)"):
        selective_scan(u, u, A, B, B, z=u[:, :2])
    with pytest.raises(TypeError, match="complex"):
        selective_scan(u, u, A.to(torch.complex64), B, B)


def test_a_backend_that_cannot_run_is_an_error_and_not_a_fallback(monkeypatch):
    inputs = float32(scan_inputs(1, 4, 1, 2, 2))
    with pytest.raises(RuntimeError, match=r"Backend 'cpp' cannot run: .*float32, the inputs are float64"):
        routed_scan(**{n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}, backend="cpp")
    monkeypatch.setattr("medmamba.kernels.availability.missing_reason", lambda: "the library is missing (test)")
    with pytest.raises(RuntimeError, match=r"Backend 'cpp' cannot run: the library is missing \(test\)"):
        routed_scan(**inputs, backend="cpp")


def test_the_fallback_is_announced_once(monkeypatch, recwarn):
    from medmamba.kernels.availability import announce_fallback

    announce_fallback.cache_clear()
    monkeypatch.setattr("medmamba.kernels.availability.missing_reason", lambda: "the library is missing (test)")
    inputs = float32(scan_inputs(1, 4, 1, 2, 2))
    for _ in range(3):
        routed_scan(**inputs)
    said = [str(w.message) for w in recwarn if w.category is RuntimeWarning]
    assert len(said) == 1
    assert "torch backend on cpu" in said[0]
    assert "the library is missing (test)" in said[0]
    announce_fallback.cache_clear()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 12), min_size=8, max_size=8))
def test_no_route_table_reads_outside_the_image(row):
    inputs = float32(scan_inputs(1, 8, 1, 3, 2))
    inputs["routes"] = torch.tensor([row])
    if sorted(row) == list(range(8)):
        routed_scan(**inputs)
    else:
        with pytest.raises(ValueError, match="permutation"):
            routed_scan(**inputs)
