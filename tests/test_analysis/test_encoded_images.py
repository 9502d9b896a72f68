# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import torch


def test_maps_are_those_of_the_model(open_with, classification_config):
    from mmaselect.diffusion import draw_noise
    from mmaselect.selection.scoring import noise_seed

    study = open_with(classification_config, '--blocks', '1', '4', '--features', 'query', 'value')
    images = study.images('train', 5)
    encoded = study.encode(images).images
    batch = next(iter(images.batches(5)))
    latent = study.dit.encode(batch.images)
    for draw in range(2):
        seeds = [noise_seed(0, index, draw) for index in range(5)]
        noise = draw_noise(tuple(latent.shape[1:]), seeds)
        expected = study.dit.features(latent, 300, noise)
        (found,) = encoded.features(300, draws=2)
        assert list(found.draws[draw]) == [(1, 'query'), (1, 'value'), (4, 'query'), (4, 'value')]
        for tap, maps in expected.items():
            assert torch.equal(found.draws[draw][tap], maps)
    assert encoded.num_tokens == 64
    assert encoded.labels.tolist() == batch.labels.tolist()


def test_noise_depends_on_neither_batch_nor_timestep(open_with, classification_config):
    small = open_with(classification_config, '--batch-size', '2')
    large = open_with(classification_config, '--batch-size', '8')
    tap = (1, 'query')

    def maps(study, first=0):
        encoded = study.encode(study.images('train', 6), first=first).images
        return torch.cat([batch.draws[0][tap] for batch in encoded.features(500)])

    torch.testing.assert_close(maps(small), maps(large), rtol=0, atol=1e-5)
    assert not torch.allclose(maps(small), maps(small, first=6), atol=1e-2)
