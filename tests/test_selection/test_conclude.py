# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Picks and warnings from scores alone: no model, no images."""

import math

import pytest

from mmaselect.selection.conclude import build_curve, conclude
from mmaselect.selection.scoring import StepScores

TAPS = [(1, 'query'), (4, 'query')]
GRID = range(0, 1000, 100)


def make_steps(curves, sem=0.001, grid=GRID, broken=()):
    """Steps from {criterion: {tap: scores}}; ``broken`` are (timestep, tap) with bad features."""
    return [
        StepScores(
            timestep=timestep,
            noise_level=timestep / 1000,
            log_snr=None,
            values={
                (tap, name): dict(
                    score=scores[i], std=0.1, sem=sem, nonfinite=float((timestep, tap) in broken)
                )
                for name, taps in curves.items()
                for tap, scores in taps.items()
            },
        )
        for i, timestep in enumerate(grid)
    ]


def one_tap(scores, **options):
    grid = range(0, 100 * len(scores), 100)
    steps = make_steps({'A': {TAPS[0]: scores}}, grid=grid, **options)
    return conclude(steps, ['A'], TAPS[:1], 'torch.float16')


def test_the_mean_over_blocks_decides():
    first = [0, 0, 9, 0, 0, 0, 0, 0, 0, 0]
    second = [0, 0, 0, 8, 0, 0, 8, 8, 0, 0]
    steps = make_steps({'A': {TAPS[0]: first, TAPS[1]: second}})
    found = conclude(steps, ['A'], TAPS, 'torch.float32')
    assert found.curve.timestep == 200
    assert found.curve.scores == [0, 0, 4.5, 4, 0, 0, 4, 4, 0, 0]
    assert [(c.block, c.feature, c.timestep) for c in found.per_tap] == [
        (1, 'query', 200), (4, 'query', 300),
    ]  # fmt: skip
    assert (found.curve.block, found.curve.best.noise_level) == (None, 0.2)
    assert found.warnings == []


@pytest.mark.parametrize(
    ('scores', 'said'),
    [
        ([0.1, 0.2, 0.9, 0.3, 0.1], None),
        ([0.9, 0.2, 0.1, 0.1, 0.1], 'is the first point of the grid: the image with the least'),
        ([0.1, 0.2, 0.1, 0.1, 0.9], 'is the last point of the grid: the maximum may lie outside'),
        ([0.9, 0.2], None),
    ],
)
def test_a_pick_at_the_end_of_the_grid(scores, said):
    warnings = one_tap(scores).warnings
    assert (warnings == []) if said is None else (len(warnings) == 1 and said in warnings[0].text)


def test_what_is_said_of_zero_depends_on_the_model():
    steps = make_steps({'A': {TAPS[0]: [0.9, 0.2, 0.1]}}, grid=[0, 100, 200])

    def said(model):
        return conclude(steps, ['A'], TAPS[:1], 'torch.float32', model=model).warnings

    assert said('mmaselect://dit_digits') == []
    (unknown,) = said('runs/dit/pipeline')
    (published,) = said('facebook/DiT-XL-2-256')
    assert 'trained briefly can be best there' in unknown.text
    assert 'facebook/DiT-XL-2-256 was trained at length' in published.text
    assert all('is the first point of the grid' in one.text for one in (unknown, published))


def test_ends_are_those_of_the_finite_scores():
    (warning, end) = one_tap([0.1, 0.9, 0.5, 0.3], broken=[(0, TAPS[0])]).warnings
    assert 'at timesteps [0]: those timesteps cannot be picked' in warning.text
    assert 'timestep 100, is the first point' in end.text
    assert 'the maximum may lie outside' in end.text


def test_a_flat_curve():
    (warning,) = one_tap([0.1, 0.2, 0.15], sem=0.2).warnings
    assert 'the curve is flat: scores differ by 0.1, their standard error is 0.2' in warning.text
    assert one_tap([0.1], sem=0.2).warnings == []


def test_of_equal_scores_the_smallest_timestep_wins():
    assert one_tap([0.1, 0.3, 0.3, 0.2]).curve.timestep == 100


@pytest.mark.parametrize(('pick', 'count'), [(3, 0), (4, 0), (5, 1), (9, 1)])
def test_disagreement_is_more_than_a_tenth_of_the_grid(pick, count):
    peak = [0.0] * 10
    peak[3] = 1.0
    other = [0.0] * 10
    other[pick] = 1.0
    steps = make_steps({'A': {TAPS[0]: peak}, 'B': {TAPS[0]: other}})
    found = conclude(steps, ['A', 'B'], TAPS[:1], 'torch.float32')
    assert found.others['B'].timestep == 100 * pick
    said = [f'B disagrees: it would pick timestep {100 * pick} instead of 300']
    assert [warning.text for warning in found.warnings] == said[:count]


def test_bad_features_in_one_block_rule_the_timestep_out_for_all():
    scores = {tap: [0, 9, 5, 0, 0, 0, 0, 0, 0, 0] for tap in TAPS}
    steps = make_steps({'A': scores, 'B': scores}, broken=[(100, TAPS[1])])
    assert [step.is_finite for step in steps] == [True, False] + [True] * 8
    assert steps[1].value(TAPS[0], 'B', 'score') is None
    found = conclude(steps, ['A', 'B'], TAPS, 'torch.float16')
    assert found.curve.timestep == found.others['B'].timestep == 200
    assert [curve.timestep for curve in found.per_tap] == [200, 200]
    assert 'in torch.float16 at timesteps [100]' in found.warnings[0].text


def test_nothing_to_pick_from():
    with pytest.raises(RuntimeError, match=r'no timestep gave finite features in torch\.float16'):
        one_tap([0.1, 0.2], broken=[(0, TAPS[0]), (100, TAPS[0])])
    with pytest.raises(RuntimeError, match=r'A gave no finite score at any of \[0, 100\]'):
        one_tap([math.nan, math.inf])


def test_an_undefined_error_leaves_the_score():
    (step,) = make_steps({'A': {TAPS[0]: [0.5]}}, sem=math.nan, grid=[0])
    (point,) = build_curve([step], 'A', TAPS[:1]).points
    assert (point.score, point.sem) == (0.5, None)
