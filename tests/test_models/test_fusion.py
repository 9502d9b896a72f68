# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Several timesteps read as one."""

import pytest
import torch

from mmaselect.models import ASelecTDiT

IMAGES = torch.linspace(-1, 1, 2 * 3 * 32 * 40).reshape(2, 3, 32, 40) * 127.5 + 127.5
RANGE = dict(input_mean=0, input_std=1)


def build(folder, timestep, **options):
    return ASelecTDiT(folder, blocks=[1, 3], timestep=timestep, **RANGE, **options).eval()


def test_maps_are_those_of_each_timestep(tiny_latent_dit):
    alone = [build(tiny_latent_dit, step)(IMAGES) for step in (600, 50)]
    joined = build(tiny_latent_dit, [600, 50])
    assert joined.out_channels == [32, 32] and joined.timestep == 600
    averaged = build(tiny_latent_dit, dict(steps=(600, 50), fusion='mean'))
    assert averaged.out_channels == [16, 16]
    for block in (0, 1):
        one, two = alone[0][block], alone[1][block]
        assert torch.allclose(joined(IMAGES)[block], torch.cat([one, two], 1), atol=1e-6)
        assert torch.allclose(averaged(IMAGES)[block], (one + two) / 2, atol=1e-6)
    assert "timestep=[600, 50], fusion='concat'" in str(joined)


def test_cost_is_a_pass_each_and_one_encoding(tiny_latent_dit):
    model = build(tiny_latent_dit, [10, 20, 30])
    count = dict(encoded=0, passes=0)

    def counter(name):
        return lambda *_: count.update({name: count[name] + 1})

    model.dit.codec.register_forward_hook(counter('encoded'))
    model.dit.transformer.transformer_blocks[0].register_forward_hook(counter('passes'))
    model(IMAGES)
    assert count == dict(encoded=1, passes=3)


@pytest.mark.parametrize('kind', ['features', 'latents'])
def test_with_a_cache(tiny_latent_dit, kind):
    plain = build(tiny_latent_dit, [600, 50], noise='fixed')(IMAGES)
    for _ in range(2):
        model = build(tiny_latent_dit, [600, 50], noise='fixed', cache=kind)
        for found, expected in zip(model(IMAGES), plain, strict=True):
            assert torch.allclose(found, expected, atol=1e-5)
        model.train()  # writes what is in memory


def test_one_of_them_is_selected_and_travels(tiny_dit, photos):
    selection = dict(timesteps=[0, 400], num_images=4, image_size=32)
    options = dict(calibration=photos, selection=selection)
    model = build(tiny_dit, [700, 'auto'], **options)
    model.init_weights()
    assert model.timestep == model.selection_result.timestep in (0, 400)
    again = build(tiny_dit, [700, 'auto'], **options)
    again.load_state_dict(model.state_dict())
    for found, expected in zip(again(IMAGES), model(IMAGES), strict=True):
        assert torch.equal(found, expected)
    for other in (
        build(tiny_dit, 700),
        build(tiny_dit, [701, 'auto']),
        build(tiny_dit, ['auto', 700]),
        build(tiny_dit, dict(steps=[700, 'auto'], fusion='mean')),
    ):
        with pytest.raises(ValueError, match=r'trained on 2 timesteps \(fusion concat, \[700\]'):
            other.load_state_dict(model.state_dict())
    with pytest.raises(ValueError, match='trained on one timestep, but this config reads 2'):
        model.load_state_dict(build(tiny_dit, 700).state_dict())


@pytest.mark.parametrize(
    ('timestep', 'message'),
    [
        ([], 'a list of different ones, got'),
        ([50, 50], 'a list of different ones, got'),
        (['auto', 'auto'], 'a list of different ones, got'),
        ([50, 'late'], "timestep must be 'auto' or a whole number, or a list of them, got 'late'"),
        ([50, 1000], 'timestep 1000 is out of range'),
    ],
)
def test_bad_timesteps(tiny_dit, timestep, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_dit, timestep)
    with pytest.raises(ValueError, match='fusion must be one of concat, mean'):
        build(tiny_dit, dict(steps=[1, 2], fusion='sum'))
    with pytest.raises(ValueError, match=r"timestep has unknown keys \['step'\]"):
        build(tiny_dit, dict(step=3))


def test_fresh_noise_is_one_draw_for_all_timesteps(tiny_dit):
    model = build(tiny_dit, dict(steps=[300, 301], fusion='concat'), noise='fresh')
    seen = []
    read = model.dit.features

    def recorded(latent, timestep, noise):
        seen.append(noise)
        return read(latent, timestep, noise)

    model.dit.features = recorded
    model(IMAGES), model(IMAGES)
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])
