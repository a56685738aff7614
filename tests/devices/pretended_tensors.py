"""Tensors of a GPU that is pretended: they say that they are on cuda:N and compute on the CPU, with real values.

What it shows: tensors of two devices in one operator, work that the host waits for, launches of Triton kernels on
another device than their tensors', random numbers of the wrong device, and the flow of a whole training or prediction.
What it cannot show: the kernels' results and speed, the memory of a device, cuDNN's and NCCL's behaviour.

PyTorch's C++ sees a tensor without data (meta) that has CUDA's dispatch keys; Python sees the device. Autocast, which
C++ leaves to tensors that it takes for CUDA's, is imitated by the lists of PyTorch's documentation.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch._library.custom_ops import OPDEFS
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

import medmamba.kernels.deformable.compiled
import medmamba.kernels.scan.compiled  # noqa: F401  both register the operators below
from medmamba.kernels.state_space_duality.api import ssd_torch

CPU = torch.device("cpu")
SOURCES = Path(__file__).resolve().parents[2]

# Functions that autocast computes in the lower precision, and in float32.
LOW = {torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d, torch.conv_transpose3d, torch.matmul}
LOW |= {torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum, F.linear, F.scaled_dot_product_attention}
LOW |= {torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm}
HIGH = {torch.exp, torch.Tensor.exp, torch.log, torch.Tensor.log, torch.log1p, torch.pow, torch.Tensor.pow}
HIGH |= {torch.Tensor.__pow__, torch.sum, torch.Tensor.sum, torch.prod, torch.cumsum, torch.Tensor.cumsum}
HIGH |= {torch.softmax, torch.Tensor.softmax, torch.log_softmax, torch.Tensor.log_softmax, torch.norm, torch.rsqrt}
HIGH |= {F.softmax, F.log_softmax, F.layer_norm, F.group_norm, F.softplus, F.cross_entropy, F.nll_loss, F.mse_loss}
HIGH |= {F.binary_cross_entropy_with_logits, F.cosine_similarity, F.interpolate, F.normalize}

# Operators whose results are shaped by values: the host waits for them.
SHAPED_BY_VALUES = {"aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::bincount"}
SHAPED_BY_VALUES |= {"aten::repeat_interleave.Tensor", "aten::equal"}


@dataclass(frozen=True)
class Wait:
    """One time that the host waited for a device: what for, and the line of medmamba."""

    what: str
    where: str


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel: on the device that was current, with tensors of a device."""

    kernel: str
    current: int
    tensors: int


@dataclass
class Gpu:
    """What was noted while the devices were pretended."""

    waits: list[Wait] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    """How often each operator ran on a pretended tensor."""

    def wait(self, what: str) -> None:
        """Note that the host waits here."""
        self.waits.append(Wait(what, _line_of_medmamba()))

    def forget(self) -> None:
        """Start the notes anew."""
        self.waits.clear()
        self.launches.clear()
        self.operators.clear()


class Machine:
    """The pretended machine of this process."""

    gpu: Gpu = Gpu()
    count: int = 0
    current: int = 0
    last: torch.device = torch.device("cuda", 0)
    random: dict[int, torch.Tensor] = {}  # noqa: RUF012
    out_of_memory_in: int | None = None


class Pretended(torch.Tensor):
    """A tensor on a pretended device; ``inner`` has its values."""

    inner: torch.Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: torch.Tensor, place: torch.device) -> "Pretended":
        with no_dispatch():
            outer = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
            self = torch.Tensor._make_subclass(
                cls, outer, False, dispatch_device=False, device_for_backend_keys=torch.device("cuda")
            )
        self.inner, self.place = inner.detach(), place
        return self

    @property
    def device(self) -> torch.device:
        return self.place

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    @property
    def is_meta(self) -> bool:
        return False

    def get_device(self) -> int:
        return int(self.place.index)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {self.place} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def is_pinned(self) -> bool:
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> "torch.Tensor":
        copied = self.detach().clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self, **_options: Any) -> str:
        return f"{self.inner!r} on {self.place}"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _line_of_medmamba() -> str:
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(SOURCES) and not path.is_relative_to(SOURCES / "tests") and ".venv" not in path.parts:
            return f"{path.relative_to(SOURCES)}:{frame.name}"
    return "elsewhere"


def placed(device: Any) -> torch.device:
    """The device with its number, as CUDA's tensors have it."""
    device = torch.device(device)
    return torch.device("cuda", Machine.current) if device.type == "cuda" and device.index is None else device


def _check(name: str, places: list[torch.device]) -> None:
    if len(set(places)) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{places[0]} and {next(place for place in places if place != places[0])}! ({name})"
        )


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator on the tensors' values; its results on their device."""
    name, gpu = function.name(), Machine.gpu
    places: list[torch.device] = []
    known: dict[int, Pretended] = {}

    def values(value: Any) -> Any:
        if isinstance(value, Pretended):
            places.append(value.place)
            known[id(value.inner)] = value
            return value.inner
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            places.append(CPU)
        return value

    asked = kwargs.get("device")
    inner_args, inner_kwargs = tree_map(values, args), tree_map(values, dict(kwargs))
    if asked is not None:
        inner_kwargs["device"] = CPU if torch.device(asked).type == "cuda" else asked
    on_gpu = any(place.type == "cuda" for place in places)
    if asked is not None and torch.device(asked).type == "meta":  # C++ asks for the device that it sees
        if on_gpu:
            asked = next(place for place in places if place.type == "cuda")
        elif torch._C._current_graph_task_id() != -1:
            asked = Machine.last
        inner_kwargs["device"] = CPU if torch.device(asked).type == "cuda" else asked
    target = placed(asked) if asked is not None else next((p for p in places if p.type == "cuda"), CPU)
    if on_gpu or target.type == "cuda":
        Machine.last = target if target.type == "cuda" else Machine.last
        gpu.operators[name] = gpu.operators.get(name, 0) + 1
        _count_memory()
        if name.startswith("medmamba::"):
            return _compiled(function, args, inner_args, target)
    if name in ("aten::_to_copy", "aten::copy_"):
        _note_copy(name, args, kwargs, target, gpu)
        target = args[0].device if name == "aten::copy_" or asked is None else target
    elif name == "aten::_local_scalar_dense" and on_gpu:
        gpu.wait("item")
    elif on_gpu:
        if name in SHAPED_BY_VALUES:
            gpu.wait(name.removeprefix("aten::"))
        if name in ("aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"):
            for index in args[1]:
                if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                    gpu.wait("index by a mask")
                elif isinstance(index, torch.Tensor) and not isinstance(index, Pretended):
                    gpu.wait("index from the host")
            places = [p for p in places if p.type == "cuda"]
        _check(name, places)
    generator = kwargs.get("generator")
    own_numbers = target.type == "cuda" and generator is None and torch.Tag.nondeterministic_seeded in function.tags
    with _random_numbers_of(target.index) if own_numbers else nullcontext():
        made = _computed(function, inner_args, inner_kwargs)

    def wrapped(value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or isinstance(value, Pretended):
            return value
        if id(value) in known:
            old = known[id(value)]
            if old.shape != value.shape:
                raise NotImplementedError(f"{name} changes the shape of a tensor in place.")
            return old
        return Pretended(value, target) if target.type == "cuda" else value

    return tree_map(wrapped, made)


def _computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operator on the CPU; in float32 where only a device has it in half precision."""
    try:
        return function(*args, **kwargs)
    except NotImplementedError as error:
        if "not implemented for" not in str(error):
            raise
    halves = (torch.float16, torch.bfloat16)
    half = next(a.dtype for a in tree_leaves(args) if isinstance(a, torch.Tensor) and a.dtype in halves)
    made = function(*tree_map_only(torch.Tensor, lambda a: a.float() if a.dtype == half else a, args), **kwargs)
    return tree_map_only(torch.Tensor, lambda a: a.to(half) if a.dtype == torch.float32 else a, made)


def _note_copy(name: str, args: Any, kwargs: dict[str, Any], target: torch.device, gpu: Gpu) -> None:
    source = args[1] if name == "aten::copy_" else args[0]
    to = args[0].device if name == "aten::copy_" else (target if kwargs.get("device") is not None else source.device)
    waits_not = kwargs.get("non_blocking", args[2] if name == "aten::copy_" and len(args) > 2 else False)
    if source.device.type == "cuda" and to.type == "cpu":
        if not (waits_not and name == "aten::_to_copy"):  # which makes page-locked memory for it
            gpu.wait("copy to the host")
    elif source.device.type == "cpu" and to.type == "cuda" and not (waits_not and source.is_pinned()) and source.dim():
        gpu.wait("copy from the host")


def _count_memory() -> None:
    if Machine.out_of_memory_in is None:
        return
    Machine.out_of_memory_in -= 1
    if Machine.out_of_memory_in < 0:
        Machine.out_of_memory_in = None
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@contextmanager
def _random_numbers_of(index: int) -> Iterator[None]:
    host = torch.random.default_generator.get_state()
    if index in Machine.random:
        torch.random.default_generator.set_state(Machine.random[index])
    try:
        yield
    finally:
        Machine.random[index] = torch.random.default_generator.get_state()
        torch.random.default_generator.set_state(host)


class NotedKernel:
    """Stands for a Triton kernel: notes its launches instead of running it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*arguments: Any, **flags: Any) -> None:
            places = [a.device for a in (*arguments, *flags.values()) if isinstance(a, torch.Tensor)]
            _check(self.name, places)
            if not all(0 < edge < 65536 for edge in grid[1:]) or not 0 < grid[0] < 2**31:
                raise RuntimeError(f"Triton Error [CUDA]: invalid argument: grid {grid} of {self.name}")
            Machine.gpu.launches.append(Launch(self.name, Machine.current, places[0].index))

        return launch


def _compiled(function: Any, args: Any, inner: Any, place: torch.device) -> Any:
    """One of medmamba's operators: its launches are noted, its results are the CPU's."""
    with torch._C._EnableTorchFunction(), Operators(), Functions():
        made = OPDEFS[function._schema.name]._backend_fns["cuda"](*args)
    name = function.name().removeprefix("medmamba::").removesuffix("_backward")
    backward = function.name().endswith("_backward")
    inner = [
        value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value for value in inner
    ]
    values = ON_CPU[name][backward](*inner)
    one = isinstance(values, torch.Tensor)
    seen = [made] if one else list(made)
    found = [values] if one else list(values)
    for index, (a, b) in enumerate(zip(seen, found, strict=True)):
        # Saved states have a form of their own in each backend.
        assert a.shape == b.shape or index == 2, f"{function.name()}: {tuple(a.shape)}, on the CPU {tuple(b.shape)}"
    on_device = [Pretended(b.to(a.dtype), place) for a, b in zip(seen, found, strict=True)]
    return on_device[0] if one else tuple(on_device) if not backward else on_device


def _duality(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return ssd_torch(*arguments, chunk=64)


def _duality_backward(dY: torch.Tensor, dlast: torch.Tensor | None, *inputs: torch.Tensor | None) -> list[torch.Tensor]:
    """By autograd, which a dispatch mode leaves out."""
    autograd = torch._C.DispatchKey.AutogradFunctionality
    with torch.enable_grad(), torch._C._SetExcludeDispatchKeyGuard(autograd, False):
        given = [None if value is None else value.detach().requires_grad_() for value in inputs]
        Y, last = _duality(*given)
        loss = (Y * dY).sum() if dlast is None else (Y * dY).sum() + (last * dlast).sum()
        found = iter(torch.autograd.grad(loss, [value for value in given if value is not None]))
    return [dY.new_empty(0) if value is None else next(found) for value in given]


ON_CPU: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "routed_scan_triton": (torch.ops.medmamba.routed_scan_cpp, torch.ops.medmamba.routed_scan_cpp_backward),
    "deformable_conv": (torch.ops.medmamba.deformable_conv, torch.ops.medmamba.deformable_conv_backward),
    "ssd_triton": (_duality, _duality_backward),
}


class DeviceGenerator(torch.Generator):
    """A generator of a pretended device."""

    place: torch.device

    def __new__(cls, device: Any = "cpu") -> "DeviceGenerator":
        self = super().__new__(cls, device="cpu")
        self.place = placed(device)
        return self


class Functions(TorchFunctionMode):
    """Autocast's lists, and indices that are lists, which C++ would put on the device it sees."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], Pretended):
            args = (args[0], _indices(args[1], args[0]), *args[2:])
            if len(args) == 3 and isinstance(args[2], bool | int | float):
                args = (*args[:2], torch.full((), args[2], dtype=args[0].dtype))  # a fill on a device: no copy
        if function is torch.Tensor.to:
            args, kwargs = _to(args, kwargs)
        if isinstance(generator := kwargs.get("generator"), DeviceGenerator):
            place = next((a.device for a in args if isinstance(a, torch.Tensor)), kwargs.get("device") or CPU)
            if torch.device(place).type != generator.place.type:
                raise RuntimeError(f"Expected a {place} generator, but found one of {generator.place} ({function})")
        if torch.is_autocast_enabled("cuda") and (function in LOW or function in HIGH):
            kind = torch.get_autocast_dtype("cuda") if function in LOW else torch.float32

            def cast(value: Any) -> Any:
                low = isinstance(value, Pretended) and value.is_floating_point() and value.dtype != torch.float64
                return value.to(kind) if low else value

            with torch.autocast("cuda", enabled=False):
                return function(*tree_map(cast, args), **tree_map(cast, kwargs))
        return function(*args, **kwargs)


def _to(args: Any, kwargs: Any) -> Any:
    """Arguments of ``Tensor.to`` that C++ understands: no other tensor, and not the device on which the tensor is."""
    tensor, *rest = args
    if rest and isinstance(rest[0], torch.Tensor):
        rest[:1] = [rest[0].device, rest[0].dtype]
    if rest and not isinstance(rest[0], torch.dtype):
        kwargs = {"device": rest.pop(0)} | kwargs
        kwargs |= dict(zip(("dtype", "non_blocking", "copy"), rest, strict=False))
        rest = []
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": placed(kwargs["device"])}
    if kwargs.get("device") is not None and kwargs["device"] == tensor.device:
        kwargs = {name: value for name, value in kwargs.items() if name != "device"}
        if not rest and kwargs.get("dtype") is None:
            kwargs["dtype"] = tensor.dtype
    return (tensor, *rest), kwargs


def _indices(index: Any, tensor: Pretended) -> Any:
    def one(value: Any) -> Any:
        if isinstance(value, list):
            return torch.tensor(value, device=tensor.device)  # a blocking copy, as on a device
        if hasattr(value, "__array__") and not isinstance(value, torch.Tensor) and getattr(value, "ndim", 0):
            return torch.as_tensor(value).to(tensor.device)
        return value

    return tuple(one(value) for value in index) if isinstance(index, tuple) else one(index)


class Operators(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})
