# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Races: who is dropped, what it saves, and that nothing else changes the pick."""

import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from stopping import stop_after

from mmaselect.diffusion import FrozenDiT
from mmaselect.registry import CRITERIA
from mmaselect.report.plot import save_selection, selection_figure
from mmaselect.selection import (
    CalibrationSet,
    FisherScore,
    HighFrequencyRatio,
    ImageArrays,
    ImageFolder,
    InstanceSensitivity,
    SelectionCache,
    SelectionOptions,
    SelectionResult,
    Sweep,
)
from mmaselect.selection.arms import Places
from mmaselect.selection.conclude import conclude, settles
from mmaselect.selection.cost import SweepCost
from mmaselect.selection.criteria import PerImageCriterion
from mmaselect.selection.grid import TimestepGrid
from mmaselect.selection.race import contenders, on_one_scale, round_ends, round_scores
from mmaselect.selection.scoring import StepScores
from mmaselect.selection.stages import Stages

TAPS = [(1, 'query'), (3, 'query')]
GRID = [0, 100, 300, 600, 900]


# -- pure functions ------------------------------------------------------------------------------
def make_step(timestep, terms, name='A', taps=TAPS, finite=True):
    """A step from what each image adds: (images,) or (images, 2), the same in all taps."""
    terms = np.asarray(terms, float)
    rows = terms if terms.ndim == 2 else np.stack([terms, np.ones_like(terms)], 1)
    score = rows[:, 0].sum() / rows[:, 1].sum()
    value = dict(score=score, std=0.1, sem=0.1, nonfinite=0.0 if finite else 1.0)
    return StepScores(
        timestep, timestep / 1000, None,
        {(tap, name): value for tap in taps},
        {(tap, name): rows for tap in taps},
        len(rows),
    )  # fmt: skip


def test_rounds_double_from_what_the_criterion_needs():
    assert round_ends(HighFrequencyRatio(), 128, race=True) == [16, 32, 64, 128]
    assert round_ends(HighFrequencyRatio(), 16, race=True) == [16]
    assert round_ends(HighFrequencyRatio(), 128, race=False) == [128]
    assert round_ends(InstanceSensitivity(), 128, race=True)[0] == InstanceSensitivity.race_from
    assert InstanceSensitivity.race_from > HighFrequencyRatio.race_from
    assert round_ends(FisherScore(3), 128, race=True) == [128]


def test_rounds_of_a_sweep_that_takes_as_many_images_as_it_needs():
    assert round_ends(InstanceSensitivity(), 1024, True, 128) == [32, 64, 128, 256, 512, 1024]
    assert round_ends(InstanceSensitivity(), 300, False, 128) == [128, 256, 300]
    # Where there are no more images, it is the sweep of that many.
    assert round_ends(InstanceSensitivity(), 128, True, 128) == [32, 64, 128]
    assert round_ends(InstanceSensitivity(), 40, False, 128) == [40]


def test_more_images_are_taken_where_they_can_decide():
    rng = np.random.default_rng(0)
    common = rng.normal(5, 1, 64)
    noise = rng.normal(0, 1, 64)
    grid = [0, 100, 300, 600, 900]
    places = Places((tuple(TAPS),))

    def ends(lag):
        others = [make_step(t, common - 9) for t in grid[1:-1]]
        # At a distance of `lag`, with an error of an eighth.
        last = make_step(900, common - lag + noise - noise.mean())
        return settles([make_step(0, common), *others, last], 'A', places, grid)

    assert ends(2.0)  # decided
    assert not ends(0.1)  # about 270 images would tell
    assert ends(0.0)  # equals: no number of images tells
    far = [make_step(t, common[:8] - t) for t in grid]
    assert settles(far, 'A', places, grid) and not settles(far, 'A', places, grid, enough=16)


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    image = rng.normal(0, 10, 16)  # common to all timesteps
    own = rng.normal(0, 0.1, (3, 16))
    steps = [
        make_step(step, image + mean + own[i])
        for i, (step, mean) in enumerate([(0, 1.0), (100, 0.98), (200, 0.0)])
    ]
    assert contenders(steps, 'A', TAPS, 0.999) == [0, 100]
    # The same differences between other images are no differences at all.
    unpaired = [make_step(s.timestep, rng.permutation(s.per_image[TAPS[0], 'A'])) for s in steps]
    assert contenders(unpaired, 'A', TAPS, 0.999) == [0, 100, 200]


def test_a_timestep_is_dropped_at_the_bound_of_students_t():
    # The quantile of 0.999 with 15 degrees of freedom is 3.733 (any table has it).
    noise = np.random.default_rng(1).normal(size=16)
    noise = (noise - noise.mean()) / noise.std(ddof=1) * 4  # its standard error is 1
    for lead, left in ((3.72, [0, 100]), (3.74, [0])):
        steps = [make_step(0, np.full(16, lead)), make_step(100, noise)]
        assert contenders(steps, 'A', TAPS, 0.999) == left


def test_a_ratio_of_sums_has_the_error_of_the_bootstrap():
    rng = np.random.default_rng(2)
    energy = rng.gamma(2, 1, 200)
    shares = [0.5 + 0.1 * rng.normal(size=200), 0.48 + 0.1 * rng.normal(size=200)]
    terms = [np.stack([share * energy, energy], 1) for share in shares]
    weights = rng.multinomial(200, np.full(200, 1 / 200), size=4000)
    sums = [weights @ rows for rows in terms]
    drawn = sums[0][:, 0] / sums[0][:, 1] - sums[1][:, 0] / sums[1][:, 1]
    lead = np.diff([-rows[:, 0].sum() / rows[:, 1].sum() for rows in terms])[0]
    steps = [make_step(0, terms[0]), make_step(100, terms[1])]
    # The confidence at which the second one is dropped tells the error that was used.
    for factor, left in ((0.95, [0]), (1.05, [0, 100])):
        confidence = float(student.cdf(factor * lead / drawn.std(), 199))
        assert contenders(steps, 'A', TAPS, confidence) == left


def test_equals_stay_and_what_is_not_finite_goes():
    steps = [
        make_step(0, np.ones(8)), make_step(100, np.ones(8)), make_step(200, np.zeros(8)),
        make_step(300, np.full(8, 9.0), finite=False),
    ]  # fmt: skip
    assert contenders(steps, 'A', TAPS, 0.999) == [0, 100]
    assert contenders(steps[3:], 'A', TAPS, 0.999) == []


def test_who_was_dropped_keeps_the_distance_on_common_images():
    early = [make_step(0, [2.0, 4.0]), make_step(100, [1.0, 2.0])]
    late = [make_step(0, [2.0, 4.0, 9.0, 9.0]), early[1]]
    placed = on_one_scale(late, {2: round_scores(early)}, late[0])
    # The winner rose: nobody is drawn above what it scored.
    assert [step.values[TAPS[0], 'A']['score'] for step in placed] == [6.0, 1.5]
    found = conclude(late, ['A'], TAPS, 'torch.float32', 4, {2: round_scores(early)})
    assert found.curve.scores == [6.0, 1.5]
    fallen = [make_step(0, [2.0, 4.0, 1.0, 1.0]), early[1]]
    placed = on_one_scale(fallen, {2: round_scores(early)}, fallen[0])
    assert [step.values[TAPS[0], 'A']['score'] for step in placed] == [2.0, 0.5]
    assert [point.images for point in found.curve.points] == [4, 2]


def test_only_the_last_in_the_race_can_win():
    # Scores of few images are no rival to those of many, be they higher.
    early = [make_step(0, [1.0, 1.0]), make_step(100, [0.9, 0.9]), make_step(200, [1.1, 0.9])]
    late = [make_step(0, [1.0, 1.0, 0.0, 0.0]), early[1], make_step(200, [1.1, 0.9, 0.1, 0.1])]
    found = conclude(late, ['A'], TAPS, 'torch.float32', 4, {2: round_scores(early)})
    assert found.curve.timestep == 200
    assert not any(warning.code == 'flat' for warning in found.warnings)
    assert set(found.interval) <= {0, 200}


# -- sweeps --------------------------------------------------------------------------------------
@CRITERIA.register_module()
class Spread(PerImageCriterion):
    """A user's own criterion that is raced from four images on.

    On the tiny model 900 is best, 600 not far behind, and the others are dropped at once.
    """

    race_from = 4

    def per_image(self, feature):
        return feature.float().flatten(2).std(2).mean(1)


def make_sweep(folder, photos, num_images=20, **options):
    dit = FrozenDiT.from_pretrained(folder, blocks=[1, 3])
    images = CalibrationSet(ImageFolder(photos), 32, num_images=num_images)
    given = dict(criterion='Spread', others=['HighFrequencyRatio'], batch_size=3, confidence=0.99)
    cache = options.pop('cache', None)
    return Sweep(dit, images, {**given, 'timesteps': GRID, **options}, cache)


def images_of(result):
    return {point.timestep: point.images for point in result.curve.points}


@pytest.fixture(scope='module')
def raced(tiny_dit, photos):
    return make_sweep(tiny_dit, photos).run(progress=False)


def test_a_race_picks_what_the_full_sweep_picks_for_less(tiny_dit, photos, raced):
    full = make_sweep(tiny_dit, photos, method='full').run(progress=False)
    assert raced.timestep == full.timestep
    assert (raced.method, full.method) == ('race', 'full')
    seen = images_of(raced)
    assert set(seen.values()) <= {4, 8, 16, 20} and min(seen.values()) == 4 < max(seen.values())
    assert seen[raced.timestep] == max(seen.values()) == raced.num_images
    # One draw serves both criteria: passes are pairs of an image and a timestep.
    assert raced.model_evaluations == sum(seen.values()) < full.model_evaluations == 20 * len(GRID)
    assert raced.settings['race'] == dict(rounds=[4, 8, 16, 20], confidence=0.99)
    assert 'race' not in full.settings and raced.key != full.key
    # All passes are equal, so that FLOPs need not be counted.
    assert full.cost == SweepCost(1.0)
    assert raced.cost == SweepCost(raced.model_evaluations / full.model_evaluations)


def test_a_race_runs_the_passes_that_it_tells_of(tiny_dit, photos, raced):
    sweep = make_sweep(tiny_dit, photos)
    counted = dict(passes=0)
    sweep.dit.transformer.register_forward_pre_hook(
        lambda module, args: counted.update(passes=counted['passes'] + len(args[0]))
    )
    result = sweep.run(progress=False)
    assert counted['passes'] == result.model_evaluations
    assert {**result.to_dict(), 'seconds': 0} == {**raced.to_dict(), 'seconds': 0}


def test_one_bar_counts_what_a_race_may_still_take(tiny_dit, photos, raced, capsys, monkeypatch):
    sweep = make_sweep(tiny_dit, photos)
    bounds = []
    at_most = Stages._at_most

    def noted(stages):
        bounds.append(at_most(stages))
        return bounds[-1]

    monkeypatch.setattr(Stages, '_at_most', noted)
    monkeypatch.setenv('COLUMNS', '160')
    monkeypatch.setattr('mmaselect.terminal.progress._hidden', False)  # a command before hid it
    result = sweep.run(progress=True)
    (line,) = [one for one in capsys.readouterr().err.splitlines() if 'selecting' in one]
    read = sum(images_of(result).values())
    assert f'{read}/{read} images x timesteps, at most' in line
    # As if nothing were dropped: the first bound is the full sweep, and each later one is lower.
    assert bounds[0] == 20 * len(GRID) and bounds == sorted(set(bounds), reverse=True)


def test_a_score_is_computed_once_for_the_images_that_it_has_seen(tiny_dit, photos, raced):
    sweep = make_sweep(tiny_dit, photos)
    computed = Counter()
    first = next(iter(sweep.options.criteria.values()))
    compute = type(first).compute

    def counting(self):
        computed[float(self.moments[0, 1]), int(self.moments[0, 0])] += 1
        return compute(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(first), 'compute', counting)
        result = sweep.run(progress=False)
    rounds = {images: number for number, images in enumerate([4, 8, 16, 20], 1)}
    wanted = sum(rounds[images] for images in images_of(result).values())
    assert set(computed.values()) == {1}
    assert len(computed) == 2 * wanted, 'of two blocks'
    assert result.curve == raced.curve


@CRITERIA.register_module()
class SpreadOfTwoDraws(PerImageCriterion):
    draws = 2
    race_from = 4

    def per_image(self, one, other):
        return (one - other).float().flatten(2).std(2).mean(1)


def test_others_that_need_passes_of_their_own_see_the_first_round_only(tiny_dit, photos):
    result = make_sweep(tiny_dit, photos, others=['SpreadOfTwoDraws']).run(progress=False)
    assert {point.images for point in result.others['SpreadOfTwoDraws'].points} == {4}
    # One draw for each image that the race took, and a second one for the first four.
    raced = sum(images_of(result).values())
    assert result.model_evaluations == raced + 4 * len(GRID)
    # One that says nothing of so few images sees all that the race takes.
    result = make_sweep(tiny_dit, photos, others=['CrossSpectrumHFR']).run(progress=False)
    assert result.model_evaluations == 2 * raced


def test_others_without_passes_of_their_own_see_what_the_race_takes(tiny_dit, photos):
    result = make_sweep(tiny_dit, photos, others=['HighFrequencyRatio']).run(progress=False)
    other = result.others['HighFrequencyRatio']
    assert images_of(result) == {point.timestep: point.images for point in other.points}


def test_a_sure_race_is_the_full_sweep(tiny_dit, photos):
    sure = make_sweep(tiny_dit, photos, confidence=1 - 1e-15).run(progress=False)
    full = make_sweep(tiny_dit, photos, method='full').run(progress=False)
    assert set(images_of(sure).values()) == {20}
    assert sure.curve.scores == pytest.approx(full.curve.scores, abs=1e-6)
    assert sure.interval == full.interval and sure.warnings == full.warnings


def test_no_race_with_fewer_images_than_the_criterion_needs(tiny_dit, photos):
    for options in (dict(num_images=4), dict(criterion='InstanceSensitivity')):
        sweep = make_sweep(tiny_dit, photos, **options)
        assert not sweep.races and sweep.round_ends == [len(sweep.calibration)]
        assert sweep.run(progress=False).method == 'full'


@pytest.mark.parametrize('size', [1, 7, 20])
def test_batch_size_does_not_matter(tiny_dit, photos, raced, size):
    result = make_sweep(tiny_dit, photos, batch_size=size).run(progress=False)
    assert images_of(result) == images_of(raced) and result.timestep == raced.timestep
    for name, curve in {'Spread': result.curve, **result.others}.items():
        before = raced.curve if name == 'Spread' else raced.others[name]
        assert curve.scores == pytest.approx(before.scores, abs=1e-6)
    assert result.interval == raced.interval
    assert result.model_evaluations == raced.model_evaluations


def score_on_first(tiny_dit, photos, criterion, count, timesteps):
    """Scores on the images that a race takes first, by the model and the criterion alone."""
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[1, 3])
    images = CalibrationSet(ImageFolder(photos), 32, num_images=20)
    options = SelectionOptions(criterion='Spread', others=[], batch_size=20, method='full')
    stages = Stages(dit, images, options, TimestepGrid(tuple(GRID)), [20])
    encoded = stages.encode(images.batch(images.order[:count]))
    scores = {}
    for step in timesteps:
        maps = dit.features(encoded.draws[0].latent, step, encoded.draws[0].noise)
        scores[step] = np.mean([criterion.per_image(maps[key]).mean() for key in dit.keys])
    return scores


def test_dropped_timesteps_keep_their_distance_to_the_pick(tiny_dit, photos, raced):
    dropped = min(images_of(raced), key=images_of(raced).get)
    scores = score_on_first(tiny_dit, photos, Spread(), 4, (dropped, raced.timestep))
    points = {point.timestep: point.score for point in raced.curve.points}
    moved = points[raced.timestep] - scores[raced.timestep]
    assert points[dropped] == pytest.approx(scores[dropped] + min(0.0, moved), abs=1e-5)


def poison(dit, hit):
    """Make the true model overflow where ``hit(timestep, calls at it)`` says so."""
    features, calls = dit.features, {}

    def poisoned(latent, timestep, noise):
        calls[timestep] = calls.get(timestep, 0) + 1
        maps = features(latent, timestep, noise)
        if hit(timestep, calls[timestep]):
            maps = {key: value * float('inf') for key, value in maps.items()}
        return maps

    dit.features = poisoned


def test_the_others_come_back_if_all_leaders_overflow_later_on(tiny_dit, photos, raced):
    leaders = [step for step, images in images_of(raced).items() if images > 4]
    sweep = make_sweep(tiny_dit, photos)
    # Four images are two batches: from the third on, those who are still in the race overflow.
    poison(sweep.dit, lambda step, call: step in leaders and call > 2)
    result = sweep.run(progress=False)
    assert result.timestep not in leaders
    rest = [step for step in GRID if step not in leaders]
    assert all(images_of(result)[step] == 20 for step in rest)
    assert f'at timesteps {leaders}' in result.warnings[0].text
    full = make_sweep(tiny_dit, photos, method='full').run(progress=False)
    for step in rest:
        place = GRID.index(step)
        assert result.curve.scores[place] == pytest.approx(full.curve.scores[place], abs=1e-6)


# -- finer steps at the end -----------------------------------------------------------------------
def test_finer_steps_stay_within_the_grid():
    grid = TimestepGrid(tuple(GRID), 50)
    assert (
        grid.next_to(0) == [50] and grid.next_to(300) == [250, 350] and grid.next_to(900) == [850]
    )
    assert TimestepGrid(tuple(GRID)).next_to(300) == []
    assert TimestepGrid((0, 100, 130), 50).reachable == [0, 30, 50, 80, 100, 130]
    assert TimestepGrid((20, 100)).reachable == [20, 100]
    assert grid.has_finer_steps and TimestepGrid(tuple(GRID), 299).has_finer_steps
    assert not TimestepGrid(tuple(GRID), 300).has_finer_steps
    assert (
        not TimestepGrid((7,), 1).has_finer_steps and not TimestepGrid(tuple(GRID)).has_finer_steps
    )


@CRITERIA.register_module()
class NearSpread(Spread):
    """Best where the spread is that of timestep 240: of the grid, at 300."""

    def per_image(self, feature):
        return -(super().per_image(feature) - 0.147).abs()


def make_finer(*args, **options):
    return make_sweep(*args, **{**dict(criterion='NearSpread', refine=60), **options})


def test_finer_steps_climb_to_what_a_full_sweep_of_them_finds(tiny_dit, photos):
    coarse = make_finer(tiny_dit, photos, refine=None).run(progress=False)
    result = make_finer(tiny_dit, photos).run(progress=False)
    # From 300 to both sides, and on from 240, which is better.
    assert result.curve.timesteps == sorted([*GRID, 180, 240, 360])
    dense = make_finer(
        tiny_dit, photos, timesteps=result.curve.timesteps, method='full', refine=None
    ).run(progress=False)
    assert (coarse.timestep, result.timestep, dense.timestep) == (300, 240, 240)
    seen = images_of(result)
    assert result.model_evaluations == sum(seen.values())
    # What was in the race to its end has the score of the full sweep, and what was dropped keeps
    # its distance to the coarse grid's finalists, but for a rise.
    scores = dict(zip(result.curve.timesteps, result.curve.scores, strict=True))
    for point in dense.curve.points:
        if seen[point.timestep] == result.num_images:
            assert scores[point.timestep] == pytest.approx(point.score, abs=1e-6)
    first = score_on_first(tiny_dit, photos, NearSpread(), coarse.num_images, (0, 300))
    moved = scores[300] - first[300]
    assert scores[0] <= first[0] + min(0.0, moved) + 1e-6  # block by block: lower still
    assert result.settings['finer_steps'] == 60 and 'finer_steps' not in coarse.settings
    result.check()


def test_a_full_sweep_is_refined_too(tiny_dit, photos):
    result = make_finer(tiny_dit, photos, method='full').run(progress=False)
    assert set(images_of(result).values()) == {20} and result.timestep == 240
    assert result.curve.timesteps == sorted([*GRID, 180, 240, 360])
    # Without what each image adds there is but one leader.
    source = ImageArrays([np.full((32, 32, 3), 9 * n, np.uint8) for n in range(12)], [0, 1] * 6)
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[1, 3])
    images = CalibrationSet(source, 32, num_images=12)
    criterion = dict(type='FisherScore', num_classes=2)
    options = SelectionOptions(criterion=criterion, others=[], timesteps=GRID)
    coarse = Sweep(dit, images, options).run(progress=False)
    fine = Sweep(dit, images, options.replaced(refine=60)).run(progress=False)
    climbed = set(fine.curve.timesteps) - set(GRID)
    assert {fine.timestep - 60, fine.timestep + 60} & {*climbed, coarse.timestep}
    assert all((step - coarse.timestep) % 60 == 0 for step in climbed)


def test_a_spacing_that_is_no_finer_is_an_error(tiny_dit, photos):
    with pytest.raises(ValueError, match='refine=300 is not finer than timesteps='):
        make_sweep(tiny_dit, photos, refine=300)
    with pytest.raises(ValueError, match='refine must be at least 1'):
        make_sweep(tiny_dit, photos, refine=0)


# -- results -------------------------------------------------------------------------------------
def test_results_and_pictures_tell_of_the_race(raced, tmp_path):
    path, picture = save_selection(raced, tmp_path)
    assert SelectionResult.load(path) == raced
    raced.check()
    assert picture.stat().st_size > 10_000
    figure = selection_figure(raced)
    dropped = sum(images < raced.num_images for images in images_of(raced).values())
    for axis in figure.axes:
        (bars,) = axis.containers
        assert len(bars[0].get_xdata()) == dropped
        assert bars[0].get_markerfacecolor() == 'white'
    assert 'race over 4 to' in figure.get_suptitle()


def test_a_selection_json_from_before_there_were_races_is_read(raced, tmp_path):
    data = raced.to_dict()
    del data['method']
    for curve in (data, *data['others'].values(), *data['per_tap']):
        for point in curve['curve']:
            del point['images']
    (tmp_path / 'selection.json').write_text(json.dumps(data))
    result = SelectionResult.load(tmp_path / 'selection.json')
    assert result.method == 'full' and set(images_of(result).values()) == {None}
    assert result.curve.scores == raced.curve.scores
    (axis, *_) = selection_figure(result).axes
    assert not axis.containers


# -- interruptions and ranks ---------------------------------------------------------------------
@pytest.fixture
def always_saved(monkeypatch):
    monkeypatch.setattr('mmaselect.selection.partial.SAVE_SECONDS', 0)
    monkeypatch.setattr('mmaselect.selection.partial._SHARE_OF_TIME', 0)


def without_seconds(result):
    return {**result.to_dict(), 'seconds': 0}


@pytest.mark.parametrize('passes', [1, 10, 11, 13])
def test_a_killed_race_goes_on_where_it_was(
    tiny_dit, photos, tmp_path, passes, raced, always_saved
):
    cache = SelectionCache(tmp_path / 'cache')
    sweep = make_sweep(tiny_dit, photos, cache=cache)
    stop_after(sweep.dit, passes)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    again = make_sweep(tiny_dit, photos, cache=cache)
    calls = stop_after(again.dit, 1000)
    result = again.run(progress=False)
    whole = make_sweep(tiny_dit, photos)
    all_calls = stop_after(whole.dit, 1000)
    assert without_seconds(result) == without_seconds(whole.run(progress=False))
    assert len(calls) == len(all_calls) - passes
    assert [path.name for path in (tmp_path / 'cache').iterdir()] == [f'{result.key}.json']


def test_sums_of_images_in_another_order_are_not_gone_on_with(
    tiny_dit, photos, tmp_path, always_saved
):
    cache = SelectionCache(tmp_path / 'cache')
    sweep = make_sweep(tiny_dit, photos, cache=cache)
    stop_after(sweep.dit, 7)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    (path,) = (tmp_path / 'cache' / 'partial').iterdir()
    stored = torch.load(path, weights_only=True)
    torch.save({**stored, 'order': sorted(stored['order'])}, path)
    again = make_sweep(tiny_dit, photos, cache=cache)
    calls = stop_after(again.dit, 1000)
    again.run(progress=False)
    whole = make_sweep(tiny_dit, photos)
    all_calls = stop_after(whole.dit, 1000)
    whole.run(progress=False)
    assert len(calls) == len(all_calls)


@pytest.mark.parametrize('left', [1, 4])
def test_a_killed_refinement_goes_on_where_it_was(tiny_dit, photos, tmp_path, left, always_saved):
    whole = make_finer(tiny_dit, photos)
    all_calls = stop_after(whole.dit, 1000)
    wanted = whole.run(progress=False)
    cache = SelectionCache(tmp_path / 'cache')
    sweep = make_finer(tiny_dit, photos, cache=cache)
    stop_after(sweep.dit, len(all_calls) - left)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    again = make_finer(tiny_dit, photos, cache=cache)
    calls = stop_after(again.dit, 1000)
    assert without_seconds(again.run(progress=False)) == without_seconds(wanted)
    assert len(calls) == left


def _rank(rank, world, folder, photos, out, passes, options):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{out}/store', rank=rank, world_size=world
    )
    sweep = make_sweep(folder, photos, cache=SelectionCache(f'{out}/cache'), **options)
    calls = stop_after(sweep.dit, passes[rank])
    try:
        result = without_seconds(sweep.run(progress=False))
    except (KeyboardInterrupt, RuntimeError) as error:
        os._exit(3 if isinstance(error, KeyboardInterrupt) else 4)
    with open(f'{out}/rank{rank}.json', 'w') as file:
        json.dump(dict(result=result, calls=len(calls)), file)
    torch.distributed.destroy_process_group()


def run_ranks(folder, photos, out, world=2, passes=(1000, 1000), **options):
    context = torch.multiprocessing.get_context('fork')
    (out / 'store').unlink(missing_ok=True)
    args = (world, folder, photos, str(out), passes, options)
    ranks = [context.Process(target=_rank, args=(rank, *args)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    found = [out / f'rank{rank}.json' for rank in range(world)]
    return [json.loads(path.read_text()) if path.exists() else None for path in found]


def test_two_ranks_race_as_one(tiny_dit, photos, tmp_path, raced):
    one, two = run_ranks(tiny_dit, photos, tmp_path)
    assert one['result'] == two['result']
    result = SelectionResult.from_dict(one['result'])
    assert result.timestep == raced.timestep and images_of(result) == images_of(raced)
    assert result.curve.scores == pytest.approx(raced.curve.scores, abs=1e-6)
    assert result.interval == raced.interval
    assert result.model_evaluations == raced.model_evaluations


def test_two_ranks_refine_as_one(tiny_dit, photos, tmp_path):
    one, two = run_ranks(tiny_dit, photos, tmp_path, criterion='NearSpread', refine=60)
    alone = make_finer(tiny_dit, photos).run(progress=False)
    assert one['result'] == two['result']
    result = SelectionResult.from_dict(one['result'])
    assert result.timestep == alone.timestep and images_of(result) == images_of(alone)


def test_ranks_that_were_killed_in_two_stages_go_on_together(
    tiny_dit, photos, tmp_path, always_saved, monkeypatch
):
    monkeypatch.setenv('MMASELECT_RANK_TIMEOUT', '4')
    (tmp_path / 'whole').mkdir()
    whole = run_ranks(tiny_dit, photos, tmp_path / 'whole')
    # The first stage has five passes a rank (one batch of two images at each timestep). Rank 1 is
    # killed before it begins the second; rank 0 has begun it.
    killed = run_ranks(tiny_dit, photos, tmp_path, passes=(1000, len(GRID)))
    assert killed == [None, None]
    stages = sorted(
        torch.load(path, weights_only=True)['done']['stage']
        for path in (tmp_path / 'cache' / 'partial').iterdir()
    )
    assert stages == [0, 1]
    again = run_ranks(tiny_dit, photos, tmp_path)
    assert [rank['result'] for rank in again] == [rank['result'] for rank in whole]
    assert all(a['calls'] < w['calls'] for a, w in zip(again, whole, strict=True))


# -- as many images as it takes ----------------------------------------------------------------
@CRITERIA.register_module()
class Waver(Spread):
    """One that no number of images at hand decides."""

    def per_image(self, feature):
        return (3000 * super().per_image(feature)).sin()


@pytest.fixture
def few(monkeypatch):
    """Begin with 8 images in place of 128."""
    monkeypatch.setattr('mmaselect.selection.options.FIRST_IMAGES', 8)


def test_a_clear_pick_takes_no_more_than_the_first_images(tiny_dit, photos, few, raced):
    result = make_sweep(tiny_dit, photos).run(progress=False)
    assert result.timestep == raced.timestep and result.decided
    assert result.num_images == 8 and set(images_of(result).values()) == {4, 8}
    assert result.settings['race'] == dict(rounds=[4, 8, 16, 20], confidence=0.99, settles_from=8)
    assert result.key != raced.key and result.model_evaluations <= raced.model_evaluations
    full = make_sweep(tiny_dit, photos, method='full').run(progress=False)
    assert full.timestep == raced.timestep and full.method == 'full'
    assert set(images_of(full).values()) == {8}
    assert full.others['HighFrequencyRatio'].best.images == 8
    stated = make_sweep(tiny_dit, photos, method='full')
    stated.options = stated.options.replaced(num_images=20)
    assert 'race' in full.settings and stated.settings().get('race') is None


def test_an_undecided_pick_takes_all_images(tiny_dit, photos, few):
    result = make_sweep(tiny_dit, photos, criterion='Waver').run(progress=False)
    assert result.num_images == 20 and not result.decided and result.indecision
    full = make_sweep(tiny_dit, photos, criterion='Waver', method='full').run(progress=False)
    assert set(images_of(full).values()) == {20}
    # The criterion that never decides, but sees what there is, is scored on all of them, too.
    assert full.others['HighFrequencyRatio'].best.images == 20
    draws = dict(criterion='Waver', others=['SpreadOfTwoDraws'], method='full')
    further = make_sweep(tiny_dit, photos, **draws).run(progress=False)
    whole = make_sweep(tiny_dit, photos, **draws)
    whole.options = whole.options.replaced(num_images=20)
    whole.round_ends = [20]
    expected = whole.run(progress=False).others['SpreadOfTwoDraws'].scores
    assert further.others['SpreadOfTwoDraws'].scores == pytest.approx(expected)


def test_it_is_the_sweep_of_the_first_images_where_there_are_no_more(tiny_dit, photos, few):
    grows = make_sweep(tiny_dit, photos, num_images=8)
    states = make_sweep(tiny_dit, photos, num_images=8)
    states.options = states.options.replaced(num_images=8)
    assert grows.options.grows and not states.options.grows
    assert grows.settings() == states.settings()


def test_a_killed_sweep_that_grew_resumes(tiny_dit, photos, tmp_path, few, always_saved):
    whole = make_sweep(tiny_dit, photos, criterion='Waver')
    all_calls = stop_after(whole.dit, 1000)
    wanted = whole.run(progress=False)
    cache = SelectionCache(tmp_path / 'cache')
    sweep = make_sweep(tiny_dit, photos, criterion='Waver', cache=cache)
    stop_after(sweep.dit, len(all_calls) - 3)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    again = make_sweep(tiny_dit, photos, criterion='Waver', cache=cache)
    calls = stop_after(again.dit, 1000)
    assert without_seconds(again.run(progress=False)) == without_seconds(wanted)
    assert len(calls) == 3


@pytest.mark.parametrize('criterion', ['Spread', 'Waver'])
def test_two_ranks_take_as_many_images_as_one(tiny_dit, photos, tmp_path, few, criterion):
    one, two = run_ranks(tiny_dit, photos, tmp_path, criterion=criterion)
    alone = make_sweep(tiny_dit, photos, criterion=criterion).run(progress=False)
    assert one['result'] == two['result']
    result = SelectionResult.from_dict(one['result'])
    assert result.timestep == alone.timestep and images_of(result) == images_of(alone)
