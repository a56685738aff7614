"""A block that contains the scan leaves Python: torch.export, tracing for TorchScript and ONNX, vmap."""

import io

import pytest
import torch
from scan_cases import float32, scan_inputs

from medmamba.kernels import available_backends, routed_scan


class Block(torch.nn.Module):
    """Projections and a scan along two routes, as in a network."""

    def __init__(self, backend):
        super().__init__()
        values = float32(scan_inputs(1, 12, 2, 6, 3))
        self.backend = backend
        self.projection = torch.nn.Linear(6, 2 * (6 + 3 + 3))
        self.A, self.D, self.dt_bias = (torch.nn.Parameter(values[name]) for name in ("A", "D", "dt_bias"))
        self.register_buffer("routes", values["routes"].int())

    def forward(self, x):
        dt, B, C = self.projection(x).unflatten(-1, (2, 12)).split([6, 3, 3], -1)
        return routed_scan(x, dt, self.A, B, C, self.D, self.dt_bias, self.routes, backend=self.backend)


@pytest.mark.parametrize("backend", ["torch", available_backends()[0]])
def test_torch_export_keeps_the_function_through_a_file(backend):
    block, x = Block(backend).eval(), torch.randn(2, 12, 6)
    exported = torch.export.export(block, (x,))
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    assert torch.equal(torch.export.load(file).module()(x), block(x))


@pytest.mark.parametrize("backend", ["torch", available_backends()[0]])
def test_an_exported_block_serves_every_batch_size(backend):
    block = Block(backend).eval()
    exported = torch.export.export(
        block, (torch.randn(2, 12, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    ).module()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 12, 6)
        assert torch.equal(exported(x), block(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_torch_backend_is_the_plain_operation_form_for_torchscript_and_onnx():
    block, x = Block("torch").eval(), torch.randn(2, 12, 6)
    traced = torch.jit.trace(block, x, check_trace=False)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert all(kind.startswith(("aten::", "prim::")) for kind in kinds)
    for other in (x, torch.randn(2, 12, 6)):
        assert torch.equal(traced(other), block(other))
        torch.testing.assert_close(traced(other), Block.forward(block, other))


@pytest.mark.filterwarnings("ignore")
def test_the_plain_operation_form_runs_in_onnxruntime(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    block, x = Block("torch").eval(), torch.randn(2, 12, 6)
    path = str(tmp_path / "block.onnx")
    torch.onnx.export(block, (x,), path, dynamo=True, input_names=["x"], verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), block(x).detach(), rtol=1e-5, atol=1e-5)


def test_the_plain_operation_form_equals_the_compiled_kernel():
    values = float32(scan_inputs(1, 40, 2, 6, 3))
    torch.testing.assert_close(routed_scan(**values, backend="torch"), routed_scan(**values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["torch", available_backends()[0]])
def test_vmap_over_the_image_is_a_loop_with_the_same_result(backend):
    values = float32(scan_inputs(1, 12, 2, 6, 3))
    images = torch.randn(3, 1, 12, 6)
    del values["x"]
    found = torch.vmap(lambda x: routed_scan(x, **values, backend=backend))(images)
    expected = torch.stack([routed_scan(x, **values, backend=backend) for x in images])
    torch.testing.assert_close(found, expected)
