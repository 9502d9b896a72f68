# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch

from mmaselect.registry import CRITERIA
from mmaselect.selection.criteria import HighFrequencyRatio, PaperHFR, paper_hfr


def test_a_value_worked_out_by_hand():
    """Two waves along 32 tokens: 2/32 cycles per token (low), 8/32 (high), and a mean."""
    position = torch.arange(32)
    low, high = (torch.cos(2 * torch.pi * n * position / 32) for n in (2, 8))
    first = 5 + 2 * low + high  # powers 4 and 1, the mean left out: a fifth is high
    second = 3 * high  # all of it
    feature = torch.stack([first, second]).reshape(1, 2, 4, 8)
    assert paper_hfr(feature).item() == pytest.approx((0.2 + 1) / 2)
    # Tokens in row-major order, and not a column at a time.
    assert paper_hfr(feature.transpose(2, 3)).item() != pytest.approx(0.6, abs=0.05)


def test_it_is_one_of_the_definitions_and_has_no_options():
    feature = torch.randn(5, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    criteria = PaperHFR(), HighFrequencyRatio(dims='tokens', cutoff=0.15), HighFrequencyRatio()
    for criterion in criteria:
        criterion.update(feature[:2])
        criterion.update(feature[2:])
    paper, same, plane = (criterion.compute()['score'].item() for criterion in criteria)
    assert paper == pytest.approx(same) == pytest.approx(paper_hfr(feature).mean().item())
    assert abs(paper - plane) > 0.01
    assert CRITERIA.get('PaperHFR') is PaperHFR
    with pytest.raises((TypeError, ValueError), match='cutoff'):
        PaperHFR(cutoff=0.3)
