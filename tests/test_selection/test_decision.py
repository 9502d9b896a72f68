# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Whether images decide a pick, and picks that are made of nothing."""

import json

import numpy as np
import pytest

from mmaselect.apis import select_timestep
from mmaselect.cli import main
from mmaselect.report import selection_page
from mmaselect.report.notice import pick_notice
from mmaselect.report.plot import selection_figure
from mmaselect.selection import SelectionResult
from mmaselect.selection.conclude import conclude, pick_interval
from mmaselect.selection.decision import MOST_IMAGES, decide, neighborhood
from mmaselect.selection.race import contenders
from mmaselect.selection.scoring import StepScores

TAP = (1, 'query')
GRID = list(range(0, 1000, 100))


def make_steps(means, spread, images=64, seed=0):
    """Steps whose images have independent scores with a standard deviation of ``spread``."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(len(means), images))
    noise = (noise - noise.mean(1, keepdims=True)) / noise.std(1, keepdims=True)
    rows = [mean + spread * own for mean, own in zip(means, noise, strict=True)]
    return [
        StepScores(
            step, step / 1000, None,
            {(TAP, 'A'): dict(score=row.mean(), std=spread, sem=spread / images**0.5, nonfinite=0)},
            {(TAP, 'A'): np.stack([row, np.ones_like(row)], 1)}, images,
        )
        for step, row in zip(GRID, rows, strict=False)
    ]  # fmt: skip


def test_a_pick_is_decided_if_its_rivals_are_its_neighbors():
    near = decide(make_steps([0.0, 0.99, 1.0, 0.99, *[0.0] * 6], 0.2), 'A', [TAP], GRID)
    assert near.decided and near.rivals == (100, 200, 300) and near.images_needed is None
    means = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.97, 0.0, 0.0, 0.0]
    far = decide(make_steps(means, 0.2), 'A', [TAP], GRID)
    assert not far.decided and far.rivals == (200, 600)
    few = decide(make_steps(means, 0.01, 31), 'A', [TAP], GRID, enough=32)
    assert not few.decided and few.rivals == tuple(GRID) and few.images_needed == 32
    assert sorted(neighborhood(250, GRID, GRID)) == [200, 300]


def test_as_many_images_as_are_named_decide_it():
    means = [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.97, 0.0, 0.0, 0.0]
    found = decide(make_steps(means, 0.2), 'A', [TAP], GRID)
    assert 64 < found.images_needed < 2000
    fewer = decide(make_steps(means, 0.2, int(0.6 * found.images_needed)), 'A', [TAP], GRID)
    more = decide(make_steps(means, 0.2, int(1.6 * found.images_needed)), 'A', [TAP], GRID)
    assert not fewer.decided and more.decided


def test_equals_are_not_told_apart_by_rounding():
    steps = make_steps([1.0] * 10, 0.0, images=2)
    for place, step in enumerate(steps):
        step.per_image[TAP, 'A'][:, 0] += place * 1e-14
    assert contenders(steps, 'A', [TAP], 0.999) == GRID
    assert pick_interval(steps, 'A', [TAP]) is None
    found = decide(steps, 'A', [TAP], GRID)
    assert not found.decided and found.rivals == tuple(GRID) and found.images_needed is None
    warnings = {w.code: w.text for w in conclude(steps, ['A'], [TAP], 'torch.float32').warnings}
    assert f'more than {MOST_IMAGES:,} images' in warnings['undecided']
    assert '10 of 10 timesteps (0 to 900) cannot be told from it' in warnings['undecided']


def test_a_criterion_that_does_not_say_what_an_image_adds_decides_nothing():
    steps = [StepScores(s.timestep, 0.1, None, s.values) for s in make_steps([0.0, 1.0], 0.1)]
    assert decide(steps, 'A', [TAP], GRID) is None


# -- every face says it ---------------------------------------------------------------------------
OPTIONS = dict(timesteps='0:1000:100', image_size=32, cache=False, progress=False)


def noise_images(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ('images', 'said'),
    [
        (noise_images(2), 'needs 4 images or more that differ, got 2: add images'),
        (noise_images(1) * 9, 'got 1, as 8 are copies'),
        ([np.zeros((side, side, 3), np.uint8) for side in range(30, 40)], 'got 1, as 9 are copies'),
        ([*noise_images(3), *noise_images(3)], 'got 3, as 3 are copies'),
    ],
)
def test_too_few_images_that_differ_are_refused(tiny_dit, images, said):
    with pytest.raises(ValueError, match=said):
        select_timestep(tiny_dit, images, **OPTIONS)


def test_one_image_is_no_mean(tiny_dit):
    with pytest.raises(ValueError, match='PaperHFR needs 2 images or more that differ, got 1'):
        select_timestep(tiny_dit, noise_images(1), selection='paper', **OPTIONS)


@pytest.fixture(scope='module')
def undecided(tiny_dit):
    """Noise has no content, so that no timestep finds an image's other view."""
    return select_timestep(tiny_dit, [*noise_images(6), *noise_images(1)], **OPTIONS)


def test_an_undecided_pick_says_so(undecided, tmp_path):
    assert undecided.decided is False and len(undecided.rivals) > 1
    texts = {warning.code: warning.text for warning in undecided.warnings}
    assert texts['copies'] == '1 of 7 images are copies of others'
    assert texts['few'] == 'there are 6 different images, and this criterion asks for 32 or more'
    assert (
        'cannot be told from it on 7 images; about 32 images would settle it' in texts['undecided']
    )
    assert '(undecided, ' in str(undecided)
    notice = pick_notice(undecided, 1000)
    assert '(undecided' in notice and 'UNDECIDED: ' in notice and 'cannot be told' in notice
    data = json.loads(undecided.save(tmp_path / 'selection.json').read_text())
    assert data['decided'] is False and data['rivals'] == undecided.rivals
    loaded = SelectionResult.load(tmp_path / 'selection.json')
    assert loaded.to_dict() == undecided.to_dict() and str(loaded) == str(undecided)
    undecided.check()
    assert '<div class="badge">undecided</div>' in selection_page(undecided)


def test_the_command_says_so(tiny_dit, tmp_path, capsys):
    from PIL import Image

    for number, image in enumerate(noise_images(6)):
        Image.fromarray(image).save(tmp_path / f'{number}.png')
    command = ['select', str(tmp_path), '--pretrained', tiny_dit, '--timesteps', '0:1000:100']
    assert main([*command, '--image-size', '32', '--no-cache']) == 0
    assert '(undecided, ' in capsys.readouterr().out.splitlines()[0]


def test_the_figure_has_a_legend(undecided):
    (legend,) = selection_figure(undecided).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[:2] == ['score', 'two standard errors']
