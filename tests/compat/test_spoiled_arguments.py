"""Whatever is handed to an answered function, it computes that or says which argument is wrong."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_loops import close

from medmamba.compat.causal_convolution import causal_conv1d_fn, causal_conv1d_update
from medmamba.compat.chunk_scan import mamba_chunk_scan_combined
from medmamba.compat.gated_norms import layernorm_fn
from medmamba.compat.norms import layer_norm_fn
from medmamba.compat.selective_scan import selective_scan_fn
from medmamba.compat.state_update import selective_state_update
from medmamba.kernels import mamba3_scan

FUNCTIONS = {
    "selective_scan_fn": (
        selective_scan_fn,
        {"u": (2, 4, 5), "delta": (2, 4, 5), "A": (4, 3), "B": (2, 2, 3, 5), "C": (2, 2, 3, 5), "D": (4,)},
    ),
    "causal_conv1d_fn": (
        causal_conv1d_fn,
        {"x": (2, 4, 5), "weight": (4, 3), "bias": (4,), "initial_states": (2, 4, 2)},
    ),
    "causal_conv1d_update": (
        causal_conv1d_update,
        {"x": (2, 4), "conv_state": (2, 4, 3), "weight": (4, 3), "bias": (4,)},
    ),
    "mamba_chunk_scan_combined": (
        lambda **given: mamba_chunk_scan_combined(**given, chunk_size=2),
        {"x": (2, 5, 4, 3), "dt": (2, 5, 4), "A": (4,), "B": (2, 5, 2, 3), "C": (2, 5, 2, 3), "z": (2, 5, 4, 3)},
    ),
    "layer_norm_fn": (
        lambda **given: layer_norm_fn(**given, bias=None),
        {"x": (2, 5, 4), "weight": (4,), "residual": (2, 5, 4), "x1": (2, 5, 4)},
    ),
    "layernorm_fn": (
        lambda **given: layernorm_fn(**given, bias=None),
        {"x": (2, 5, 4), "weight": (4,), "z": (2, 5, 4)},
    ),
    "selective_state_update": (
        selective_state_update,
        {"state": (2, 4, 3), "x": (2, 4), "dt": (2, 4), "A": (4, 3), "B": (2, 3), "C": (2, 3), "D": (4,)},
    ),
    "mamba3_scan": (
        mamba3_scan,
        {
            **{"x": (2, 5, 3, 1, 4), "B": (2, 5, 3, 1, 6), "C": (2, 5, 3, 1, 6), "dt": (2, 5, 3)},
            **{"decay": (2, 5, 3), "mix": (2, 5, 3), "turn": (2, 5, 3, 2), "D": (3,)},
        },
    ),
}


FREE = {
    ("causal_conv1d_fn", "x", "longer", 2),
    ("causal_conv1d_update", "conv_state", "longer", 2),
    ("causal_conv1d_update", "weight", "longer", 1),
    ("mamba3_scan", "x", "longer", 4),
    ("mamba3_scan", "turn", "longer", 3),
    ("mamba3_scan", "turn", "empty", 3),
}
"""Function, argument, change and axis that make other good arguments: more positions, a longer window or kept state,
wider heads, more or fewer turned pairs."""


def good_inputs(name):
    shapes = FUNCTIONS[name][1]
    generator = torch.Generator().manual_seed(1)
    values = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for key in ("A", "decay"):
        if key in values:
            values[key] = -values[key].abs() - 0.1
    for key in ("dt", "delta", "mix"):
        if key in values:
            values[key] = values[key].sigmoid()
    return values


def call(name, values):
    """The outputs and the state that was updated."""
    values = {key: value.clone() for key, value in values.items()}
    found = FUNCTIONS[name][0](**values)
    kept = [values[key] for key in ("state", "conv_state") if key in values]
    return [*(found if isinstance(found, tuple) else (found,)), *kept]


def test_no_position_and_a_state_of_five_axes_are_named():
    values = good_inputs("causal_conv1d_fn")
    with pytest.raises(ValueError, match=r"x must be \(batch, D, L\) .* without a 0; they are \(2, 4, 0\)"):
        causal_conv1d_fn(**values | {"x": values["x"][..., :0]})
    values = good_inputs("selective_state_update")
    with pytest.raises(ValueError, match=r"state must be \(batch, width, N\) or .*, it is \(1, 1, 2, 4, 3\)"):
        selective_state_update(**values | {"state": values["state"][None, None]})


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=25)
@given(st.data())
def test_another_dtype_or_stride_gives_the_same_numbers(name, data):
    values = good_inputs(name)
    key = data.draw(st.sampled_from(sorted(values)))
    how = data.draw(st.sampled_from(["float64", "bfloat16", "transposed", "every second"]))
    value, tolerance = values[key], 2e-5
    if how in ("float64", "bfloat16"):
        changed, tolerance = value.to(getattr(torch, how)), 3e-2 if how == "bfloat16" else tolerance
    elif how == "transposed":
        changed = value.transpose(0, -1).contiguous().transpose(0, -1)
    else:
        changed = value.repeat_interleave(2, -1)[..., ::2]
    wanted = call(name, {one: other.double() for one, other in values.items()})
    found = call(name, values | {key: changed})
    close(found, wanted, tolerance)


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=60)
@given(st.data())
def test_another_shape_or_kind_is_named(name, data):
    values = good_inputs(name)
    key = data.draw(st.sampled_from(sorted(values)))
    value = values[key]
    how = data.draw(st.sampled_from(["longer", "empty", "integers", "complex", "elsewhere", "one axis more"]))
    axis = data.draw(st.integers(0, value.dim() - 1))
    if how == "longer":
        changed = torch.cat([value, value.narrow(axis, 0, 1)], axis)
    elif how == "empty":
        changed = value.narrow(axis, 0, 0)
    elif how == "one axis more":
        changed = value[None, None, None]
    else:
        changed = {"integers": value.long(), "complex": value * 1j, "elsewhere": value.to("meta")}[how]
    if (name, key, how, axis) in FREE:
        FUNCTIONS[name][0](**{**values, key: changed})
        return
    with pytest.raises((TypeError, ValueError)) as refused:
        FUNCTIONS[name][0](**{**values, key: changed})
    assert set(re.findall(r"\w+", str(refused.value))) & set(values)
