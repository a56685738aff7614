"""The Triton backend of state-space duality: launches, and PyTorch operators with gradients.

Imported at the first call of the backend, as it needs Triton.
"""

import torch
from torch import Tensor

from medmamba.kernels.operators import define_operator
from medmamba.kernels.state_space_duality import triton_kernels as kernels

# Positions per chunk; the largest block of p or n that is written, and that of the one that is summed over (the next
# size of either makes products spill, on sm_80); elements of the state per program that chains chunks; and warps.
CHUNK = 64
WIDEST_BLOCK = 32
SMALL_BLOCK = 16
ELEMENTS = 128
WARPS = 8
# Precision of matrix units for float32: three products of TF32 where supported.
PRECISION = "ieee" if torch.version.hip else "tf32x3"


def block_of(width: int) -> int:
    """The block of p or n that is written: a power of two that matrix units take."""
    return max(SMALL_BLOCK, min(WIDEST_BLOCK, 1 << (width - 1).bit_length()))


class _Launch:
    """Sizes of one scan, and its launches."""

    def __init__(self, X: Tensor, A: Tensor, B: Tensor) -> None:
        batch, length, heads, P = X.shape
        groups, N = B.shape[2:]
        self.A, self.chunks, self.pairs = A, -(-length // CHUNK), batch * heads
        self.batch, self.length, self.heads, self.groups, self.P, self.N = batch, length, heads, groups, P, N
        self.sizes = (length, heads, groups, P, N, self.chunks)
        self.options = {"Q": CHUNK, "PRECISION": PRECISION, "num_warps": WARPS}

    def states(self, V: Tensor, M: Tensor, edge: Tensor | None, adjoint: bool) -> Tensor:
        """The state before each chunk and after the last from the first, or the adjoints from the last (`edge`)."""
        states = V.new_empty(self.batch, self.chunks + 1, self.heads, self.P, self.N, dtype=torch.float32)
        states[:, -1 if adjoint else 0] = 0 if edge is None else edge
        BP, BN = block_of(self.P), block_of(self.N)
        grid = (self.chunks, -(-self.P // BP) * -(-self.N // BN), self.pairs)
        kernels.ssd_states[grid](V, self.A, M, states, *self.sizes, BP=BP, BN=BN, ADJOINT=adjoint, **self.options)
        sizes = (self.length, self.heads, self.P, self.N, self.chunks)
        blocks = -(-self.P * self.N // ELEMENTS)
        kernels.ssd_pass[(blocks, self.pairs)](self.A, states, *sizes, Q=CHUNK, BE=ELEMENTS, ADJOINT=adjoint)
        return states

    def outputs(
        self, query: Tensor, key: Tensor, value: Tensor, states: Tensor, adjoint: bool, swapped: bool
    ) -> Tensor:
        """Y or one of dX, dB, dC for every head, (batch, length, heads, width of value)."""
        width = value.shape[-1]
        out = states.new_empty(self.batch, self.length, self.heads, width)
        grid = (self.chunks, -(-width // block_of(width)), self.pairs)
        options = {"BI": SMALL_BLOCK, "BO": block_of(width), "ADJOINT": adjoint, "SWAPPED": swapped}
        kernels.ssd_outputs[grid](query, key, value, self.A, states, out, *self.sizes, **options, **self.options)
        return out


def forward(X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Y and the last state in float32, from contiguous inputs in float32, bfloat16 or float16."""
    launch = _Launch(X, A, B)
    states = launch.states(X, B, initial_state, adjoint=False)
    return launch.outputs(C, B, X, states, adjoint=False, swapped=False), states[:, -1].clone()


def backward(
    dY: Tensor, dlast: Tensor | None, X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of X, A, B, C and the initial state, in float32."""
    launch = _Launch(X, A, B)
    states = launch.states(X, B, initial_state, adjoint=False)
    adjoints = launch.states(dY, C, dlast, adjoint=True)
    dX = launch.outputs(B, C, dY, adjoints, adjoint=True, swapped=False)
    dA = A.new_empty(A.shape, dtype=torch.float32)
    kernels.ssd_decay_gradient[(launch.chunks, launch.pairs)](
        *(X, A, B, C, states, adjoints, dY, dA, *launch.sizes),
        **{"BP": SMALL_BLOCK, "BN": SMALL_BLOCK},
        **launch.options,
    )
    dB = launch.outputs(X, dY, C, adjoints, adjoint=True, swapped=True)
    dC = launch.outputs(dY, X, B, states, adjoint=False, swapped=True)
    dB, dC = (value.unflatten(2, (B.shape[2], -1)).sum(3) for value in (dB, dC))
    return dX, dA, dB, dC, adjoints[:, 0].clone()


def _shapes(X: Tensor, A: Tensor, B: Tensor, C: Tensor, initial_state: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, _, heads, P = X.shape
    return X.new_empty(X.shape, dtype=torch.float32), X.new_empty((batch, heads, P, B.shape[3]), dtype=torch.float32)


ssd_triton, ssd_triton_backward = define_operator(
    "ssd_chunked",
    "ssd_triton",
    "Tensor X, Tensor A, Tensor B, Tensor C, Tensor? initial_state",
    forward,
    backward,
    _shapes,
    devices="cuda",
    outputs=2,
)
