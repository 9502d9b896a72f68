# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``benchmarks/``: the replay of schedules, what a pick loses, and the recipes of small models."""

import argparse
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1] / 'benchmarks'
if not ROOT.is_dir():
    pytest.skip('benchmarks/ is not in an installed package', allow_module_level=True)
sys.path.insert(0, str(ROOT))
import bill  # noqa: E402
import place  # noqa: E402
import small_models  # noqa: E402

sys.path.remove(str(ROOT))


@pytest.fixture
def replay():
    """One cell whose score and accuracy fall with the distance to t = 225, without noise."""
    far = np.abs(np.array(bill.FULL) - 225) / 100
    terms = {size: np.repeat((5 - far)[None, :, None], size, 2) for size in bill.SIZES}
    return bill.Replay(terms, 80 - 10 * far[None], [0], np.array([7.0]))


def test_the_full_sweep_takes_two_passes_for_views_and_one_for_the_curve(replay):
    passes, flops, found = bill.SCHEDULES[0].play(replay)
    assert passes == 40 * 128 * 3 and flops == 7 * passes == replay.full_flops
    assert found == pytest.approx(80)


def test_a_race_without_noise_ends_after_its_first_round(replay):
    passes, _, found = bill.Schedule('race', confidence=0.95).play(replay)
    assert passes == 40 * 32 * 3
    assert found == pytest.approx(80)


def test_finer_steps_find_what_the_coarse_grid_lacks(replay):
    coarse = dict(grid=bill.COARSE, confidence=0.95)
    passes, _, found = bill.Schedule('coarse', **coarse).play(replay)
    assert (passes, found) == (8 * 32 * 3, pytest.approx(77.5))
    passes, flops, found = bill.Schedule('finer', **coarse, refine=25).play(replay)
    assert (passes, found) == (8 * 32 * 3 + 3 * 32 * 3, pytest.approx(80))
    assert flops == 7 * passes


def test_at_most_so_many_timesteps_go_on(replay):
    passes, *_ = bill.Schedule('kept', bill.COARSE, confidence=None, keep=(4, 2)).play(replay)
    assert passes == 8 * 32 * 3 + 4 * 32 * 2 + 2 * 64 * 2


def test_passes_end_at_the_deepest_cell_that_is_left(replay):
    # A deeper cell that is worse everywhere is read in the first round alone.
    terms = {size: np.concatenate([one, one - 1]) for size, one in replay.terms.items()}
    both = bill.Replay(terms, replay.accuracy.repeat(2, 0), [0, 1], np.array([7.0, 10.0]))
    # Two timesteps are equally good, and go on to the end.
    passes, flops, _ = bill.Schedule('two', (200, 250), confidence=0.95).play(both)
    first, later = 2 * 32 * 3, 2 * 2 * 96
    assert (passes, flops) == (first + later, 10 * first + 7 * later)
    assert both.full_flops == 10 * bill.FULL_PASSES


def test_the_regrets_of_place_and_time_add_up():
    accuracy = np.array([[60.0, 40.0], [50.0, 55.0]])
    scores = np.array([[[0.0, 0.1], [0.9, 0.2]]])
    picked = place.pick(accuracy, scores, [0, 1])
    assert (picked.cells.tolist(), picked.steps.tolist()) == ([1], [0])
    assert picked.regret == [10] and picked.regret_of_place == [5] and picked.regret_of_time == [5]
    assert place.pick(accuracy, scores, [0]).steps == [1]


@pytest.fixture
def options(tmp_path):
    """Two steps on eight images of 8x8."""
    rng = np.random.default_rng(0)
    for number in range(8):
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'{number}.png')
    recipe = dict(steps=2, batch=4, width=32, lr=1e-3, warmup_steps=1, seed=0)
    return argparse.Namespace(data=tmp_path, out=tmp_path / 'out', **recipe)


def test_the_autoencoder_says_what_scale_its_latents_have(options, capsys):
    options.width = 8
    model = small_models.train_autoencoder(options).eval()
    spread = float(capsys.readouterr().out.split()[-1])
    assert model.config.scaling_factor == pytest.approx(1 / spread, rel=0.01)
    images = torch.zeros(1, 3, 8, 8)
    assert model.encode(images).latent_dist.mean.shape == (1, 4, 4, 4)


def test_the_miniature_of_sd3_is_read_without_text_encoders(options):
    options.width = 64
    small_models.train_mmdit(options).save_pretrained(options.out / 'transformer')
    dit = small_models.read_model(str(options.out), features=['query', 'attention'])
    latent = dit.encode(torch.zeros(2, 3, 8, 8))
    maps = dit.features(latent, 500, torch.zeros_like(latent))
    assert len(maps) == 12 and maps[5, 'attention'].shape == (2, 64, 2, 2)
