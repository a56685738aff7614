"""One step of a scan with a state that is kept (mamba_ssm.ops.triton.selective_state_update)."""

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from medmamba.compat.usage import torch_on, used
from medmamba.kernels.arguments import check_kinds, check_shapes


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """The output at the next position; the state is updated in place.

    Arguments, each also without its axis of heads:
        state: (batch, heads, width, N), of any strides.
        x, dt, z: (batch, heads, width).
        A: (heads, width, N); D, dt_bias: (heads, width).
        B, C: (batch, groups, N), where groups divides heads.
        state_batch_indices: (batch,), the rows of a larger state that belong to the entries.

    Returns (batch, heads, width), or (batch, width), in the dtype of x. Computed in float32 (float64 for float64).
    """
    named: dict[str, Tensor | None] = {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D}
    named |= {"z": z, "dt_bias": dt_bias}
    check_kinds(named, {"state_batch_indices": state_batch_indices})
    if state.dim() not in (3, 4):
        raise ValueError(f"state must be (batch, width, N) or (batch, heads, width, N), it is {tuple(state.shape)}.")
    heads_given = state.dim() == 4
    axes = {"x": 3, "dt": 3, "z": 3, "A": 3, "B": 3, "C": 3, "D": 2, "dt_bias": 2}
    first_axis = {"A": 0, "D": 0, "dt_bias": 0}
    full: dict[str, Tensor | None] = {"state": state if heads_given else state.unsqueeze(1)}
    for name, dims in axes.items():
        value = named[name]
        lacks = value is not None and value.dim() == dims - 1
        full[name] = value.unsqueeze(first_axis.get(name, 1)) if value is not None and lacks else value
    rows = full["state"]
    assert rows is not None
    rows = rows if state_batch_indices is None else rows[state_batch_indices]
    groups = B.shape[1] if B.dim() == 3 else 1
    sizes = dict(zip(("batch", "heads", "width", "N"), (x.shape[0], *rows.shape[1:]), strict=True))
    shapes = {"x": "(batch, heads, width)", "dt": "(batch, heads, width)", "z": "(batch, heads, width)"}
    shapes |= {"A": "(heads, width, N)", "D": "(heads, width)", "dt_bias": "(heads, width)"}
    shapes |= {"B": "(batch, groups, N)", "C": "(batch, groups, N)", "state": "(batch, heads, width, N)"}
    check_shapes(full | {"state": rows}, shapes, sizes | {"groups": groups})
    if groups == 0 or sizes["heads"] % groups:
        raise ValueError(f"{groups} groups of B and C do not divide {sizes['heads']} heads.")
    used("selective_state_update", torch_on(x))
    kind = torch.float64 if any(v is not None and v.dtype == torch.float64 for v in named.values()) else torch.float32
    wide = {name: None if value is None else value.to(kind) for name, value in full.items()}
    step, skip, gate = wide["dt"], wide["D"], wide["z"]
    assert step is not None
    assert wide["x"] is not None
    assert wide["A"] is not None
    if wide["dt_bias"] is not None:
        step = step + wide["dt_bias"]
    step = softplus(step) if dt_softplus else step
    per_group = sizes["heads"] // groups
    to_state, from_state = (
        value.repeat_interleave(per_group, 1).unsqueeze(2) for value in (wide["B"], wide["C"]) if value is not None
    )
    decay = torch.exp(step.unsqueeze(-1) * wide["A"])
    new = rows.detach().to(kind) * decay + (step * wide["x"]).unsqueeze(-1) * to_state
    y = (new * from_state).sum(-1)
    y = y if skip is None else y + wide["x"] * skip
    y = (y if gate is None else y * silu(gate)).to(x.dtype)
    with torch.no_grad():
        stored = new if heads_given else new.squeeze(1)
        if state_batch_indices is None:
            state.copy_(stored)
        else:
            state[state_batch_indices] = stored.to(state.dtype)
    return y if heads_given else y.squeeze(1)


selective_state_update_ref = selective_state_update
