"""MATE's block: what its review tokens do."""

from __future__ import annotations

import torch

from medmamba.networks.planned.mate import MATEMixer


def test_review_tokens_change_the_scan_and_zero_of_them_do_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 4, 4, 8)
    with_review, without = MATEMixer(8, review=2), MATEMixer(8, review=0)
    without.load_state_dict({k: v for k, v in with_review.state_dict().items() if ".review." not in k})
    assert not torch.allclose(with_review(x), without(x))
    with_review.review_size = 0
    torch.testing.assert_close(with_review(x), without(x))
