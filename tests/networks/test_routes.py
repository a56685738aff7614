"""Every scan route visits every token once, on every grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmamba.errors import ConfigError
from medmamba.networks.blocks.scan_core import ScanCore
from medmamba.networks.routes import available_routes, routes
from medmamba.plans.families import route_count

shapes = st.one_of(
    st.tuples(*[st.integers(1, 9)] * 2),
    st.tuples(*[st.integers(1, 6)] * 3),
)


@pytest.mark.parametrize("name", available_routes())
@settings(max_examples=30, deadline=None)
@given(shape=shapes)
def test_every_route_is_a_permutation_on_every_grid(name: str, shape: tuple[int, ...]) -> None:
    table = routes(name, shape)
    assert table.dtype == torch.int32
    assert table.shape == (route_count(name, len(shape)), int(np.prod(shape)))
    everything = np.arange(int(np.prod(shape)))
    for row in table.numpy():
        np.testing.assert_array_equal(np.sort(row), everything)


@pytest.mark.parametrize("name", available_routes())
@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 1)])
def test_a_single_token_has_the_trivial_route(name: str, shape: tuple[int, ...]) -> None:
    assert routes(name, shape).unique().tolist() == [0]


def test_cross_scan_is_rows_columns_and_both_backwards() -> None:
    assert routes("cross", (2, 3)).tolist() == [
        [0, 1, 2, 3, 4, 5],
        [0, 3, 1, 4, 2, 5],
        [5, 4, 3, 2, 1, 0],
        [5, 2, 4, 1, 3, 0],
    ]


def test_raster_routes_make_each_axis_of_a_volume_fastest_once() -> None:
    shape = (2, 3, 4)
    first_steps = {int(row[1]) - int(row[0]) for row in routes("raster", shape).numpy()[::2]}
    assert first_steps == {1, 4, 12}  # neighbours along W, H and D
    table = routes("raster", shape)
    for k in range(0, 6, 2):
        assert torch.equal(table[k + 1], table[k].flip(0))


@settings(max_examples=40, deadline=None)
@given(shape=shapes)
def test_consecutive_tokens_of_a_snake_always_touch(shape: tuple[int, ...]) -> None:
    for row in routes("snake", shape).numpy():
        position = np.stack(np.unravel_index(row, shape), axis=1)
        assert (np.abs(np.diff(position, axis=0)).sum(axis=1) == 1).all()


def test_mhs_routes_on_a_small_grid() -> None:
    assert routes("snake", (3, 4))[0].tolist() == [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]
    assert routes("diagonal", (3, 4))[0].tolist() == [0, 1, 4, 8, 5, 2, 3, 6, 9, 10, 7, 11]
    assert routes("spiral", (3, 4))[0].tolist() == [0, 1, 2, 3, 7, 11, 10, 9, 8, 4, 5, 6]


@settings(max_examples=40, deadline=None)
@given(shape=shapes)
def test_consecutive_tokens_of_a_spiral_always_touch(shape: tuple[int, ...]) -> None:
    for row in routes("spiral", shape).numpy():
        position = np.stack(np.unravel_index(row, shape), axis=1)
        assert (np.abs(np.diff(position, axis=0)).sum(axis=1) == 1).all()


def test_continuous_scan_equals_the_published_one_on_an_even_square() -> None:
    assert routes("continuous", (2, 2)).tolist() == [[0, 1, 3, 2], [2, 3, 1, 0], [2, 0, 1, 3], [3, 1, 0, 2]]


def test_rotary_orders_of_a_volume_let_w_h_t_t_run_fastest() -> None:
    table = routes("rotary", (2, 3, 4))
    assert [int(row[1] - row[0]) for row in table[::2]] == [1, 4, 12, 12]
    assert torch.equal(routes("rotary:2-4", (2, 3, 4)), table[2:4])


def test_a_prefix_of_a_set_keeps_its_first_routes() -> None:
    assert torch.equal(routes("raster:2", (2, 3, 4)), routes("bidirectional", (2, 3, 4)))
    assert route_count("raster:4", 3) == 4


def test_unknown_or_impossible_routes_name_the_value_and_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"Unknown route set 'snak'\. Did you mean 'snake'\?"):
        routes("snak", (2, 2))
    with pytest.raises(ConfigError, match=r"'raster:7' asks for '7' routes; 'raster' has 1 to 6 in 3 dimensions"):
        routes("raster:7", (2, 2, 2))
    with pytest.raises(ConfigError, match=r"at least one token, got \(0, 2\)"):
        routes("cross", (0, 2))


@pytest.mark.parametrize("name", available_routes())
@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)], ids=str)
def test_what_a_scan_returns_lies_where_it_was_read_and_knows_only_what_came_before(name: str, grid: tuple) -> None:
    table = routes(name, grid)
    count, tokens = table.shape
    torch.manual_seed(0)
    core = ScanCore(2, count, 3, 1).double()
    x = torch.randn(1, tokens, 2, dtype=torch.float64)
    touched = x + torch.eye(tokens, dtype=torch.float64)[:, :, None]  # sample i: token i is another one
    with torch.no_grad():
        difference = core(touched, table, merge=False) - core(x, table, merge=False)  # (i, L, K, 2)
        changed = difference.abs().amax(-1) > 1e-12
        rank = torch.argsort(table.long(), dim=1)  # when each token is visited
        for k in range(count):
            assert torch.equal(changed[:, :, k], rank[k][:, None] <= rank[k][None, :])
        core.dt_projs_weight.zero_()
        core.dt_projs_bias.fill_(-1e4)  # no step: every route returns its input
        torch.testing.assert_close(core(x, table), count * x)
