"""VMamba's cross-scan and cross-merge: orders of positions, layouts, and that one is the transpose of the other."""

import pytest
import torch
from plain_loops import close

from medmamba.compat.cross_scan import CrossMergeF, CrossScanTritonF, cross_merge_fn, cross_scan_fn


@pytest.mark.parametrize(
    ("scans", "orders"),
    [
        (0, [[0, 1, 2, 3, 4, 5], [0, 3, 1, 4, 2, 5], [5, 4, 3, 2, 1, 0], [5, 2, 4, 1, 3, 0]]),
        (1, [[0, 1, 2, 3, 4, 5]] * 4),
        (2, [[0, 1, 2, 3, 4, 5]] * 2 + [[5, 4, 3, 2, 1, 0]] * 2),
    ],
)
def test_the_four_orders_of_an_image_of_two_rows(scans, orders):
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert cross_scan_fn(image, scans=scans)[0, :, 0].tolist() == orders


@pytest.mark.parametrize("scans", [0, 1, 2])
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("first_in", [True, False])
@pytest.mark.parametrize("first_out", [True, False])
def test_merge_is_the_transpose_of_scan_in_every_layout(scans, one_by_one, first_in, first_out):
    batch, channels, height, width = 2, 3, 4, 5
    options = {"in_channel_first": first_in, "out_channel_first": first_out, "one_by_one": one_by_one, "scans": scans}
    image = (batch, channels, height, width) if first_in else (batch, height, width, channels)
    if one_by_one:
        image = (batch, 4, channels, height, width) if first_in else (batch, height, width, 4, channels)
    sequence = (batch, 4, channels, height, width) if first_out else (batch, height, width, 4, channels)
    x = torch.randn(image, dtype=torch.float64, requires_grad=True)
    y = torch.randn(sequence, dtype=torch.float64, requires_grad=True)
    scanned, merged = cross_scan_fn(x, **options), cross_merge_fn(y, **options)
    assert scanned.shape == ((batch, 4, channels, 20) if first_out else (batch, 20, 4, channels))
    head = (batch, 4, channels) if one_by_one else (batch, channels)
    assert merged.shape == ((*head, 20) if first_in else (batch, 20, *head[1:]))
    close([(scanned.flatten() * y.flatten()).sum()], [(merged.flatten() * x.flatten()).sum()], 1e-12)
    close([torch.autograd.grad(scanned, x, y.view(scanned.shape))[0].view(merged.shape)], [merged], 1e-12)
    close([torch.autograd.grad(merged, y, x.view(merged.shape))[0].view(scanned.shape)], [scanned], 1e-12)


def test_the_names_of_autograd_functions_answer():
    x = torch.randn(1, 2, 3, 4)
    assert torch.equal(CrossScanTritonF.apply(x, True, True, False, 0), cross_scan_fn(x))
    y = torch.randn(1, 4, 2, 3, 4)
    assert torch.equal(CrossMergeF.apply(y, True), cross_merge_fn(y))


def test_orders_made_without_gradients_serve_a_training():
    x = torch.randn(1, 1, 7, 9)
    with torch.inference_mode():
        cross_scan_fn(x)
    leaf = x.clone().requires_grad_()
    cross_scan_fn(leaf).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(x, 4.0))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: cross_scan_fn(torch.rand(1, 2, 3, 4), scans=3), r"scans is 3; it must be 0 \(cross\)"),
        (lambda: cross_scan_fn(torch.rand(1, 2, 12)), "x must have 4 axes"),
        (lambda: cross_merge_fn(torch.rand(1, 4, 2, 12)), "y must have 5 axes"),
    ],
)
def test_a_wrong_argument_is_named(act, message):
    with pytest.raises(ValueError, match=message):
        act()
