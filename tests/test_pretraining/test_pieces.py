# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The pieces of the pre-training tool, each against an independent computation."""

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmaselect.diffusion.locate import WEIGHTS_DIR
from mmaselect.pretraining.clean import LatentSource, PixelSource
from mmaselect.pretraining.images import read_images
from mmaselect.pretraining.initial_weights import has_other_classes, load_initial_weights
from mmaselect.pretraining.network import build_dit, build_optimizers, build_schedule
from mmaselect.pretraining.objective import Objective
from mmaselect.pretraining.query_probe import ProbeImages, as_frozen, pooled_queries
from mmaselect.pretraining.randomness import DataOrder, step_generator
from mmaselect.pretraining.run_folder import RunFolder
from mmaselect.pretraining.sampling import image_grid
from mmaselect.pretraining.tokens import TokenDrop, to_tokens

CPU = torch.device('cpu')


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small_dit():
    model = build_dit(channels=3, size=8, patch=2, width=16, depth=2, heads=2, num_classes=3)
    for parameter in model.parameters():  # adaLN-zero would answer 0 whatever it is asked
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_images_are_resized_by_the_shorter_side_and_cut_in_the_middle(tmp_path):
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / 'wide.png')
    assert (read_images(tmp_path, size=10).images == 255).all()
    assert read_images(tmp_path, size=5).images.shape == (1, 3, 5, 5)


def test_unreadable_files_are_listed_all_of_them(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'good.png')
    for name in ('bad.png', 'worse.jpg'):
        (tmp_path / name).write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'2 of 3 files cannot.*\n  .*bad\.png \(.*\n  .*worse'):
        read_images(tmp_path, size=4)


def test_a_folder_without_a_readable_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no image in .*looked in all sub-folders for \.'):
        read_images(tmp_path, size=4)
    (tmp_path / 'bad.png').write_bytes(b'no image')
    with pytest.raises(ValueError, match='none of 1 files can be read'):
        read_images(tmp_path)


def test_images_that_memory_cannot_hold_are_refused_before_they_are_read(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
    with pytest.raises(MemoryError, match=r'1 images of 10000000x10000000 take .* GiB'):
        read_images(tmp_path, size=10_000_000)


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    folder = RunFolder(tmp_path)
    folder.prepare({'lr': 1}, resume=False)
    folder.save_state(7, {'step': 7}, lambda path: path.mkdir())
    with pytest.raises(FileExistsError, match=r'holds a run at step_00000007: add --resume'):
        folder.prepare({'lr': 1}, resume=False)
    with pytest.raises(ValueError, match='lr: 1 before, 2 now'):
        folder.prepare({'lr': 2}, resume=True)
    folder.settings_file.unlink()
    with pytest.raises(FileNotFoundError, match=r'without the settings\.json'):
        folder.prepare({'lr': 1}, resume=True)


def test_class_folders_may_be_nested(tmp_path):
    for name in ('b/left', 'a', 'b/right'):
        (tmp_path / name).mkdir(parents=True)
        Image.new('L', (4, 4), 7).save(tmp_path / name / 'image.JPG')
    images = read_images(tmp_path)
    assert images.classes == ('a', 'b')
    assert images.labels.tolist() == [0, 1, 1]
    assert images.images.shape == (3, 3, 4, 4)


def test_null_class_gives_one_answer_in_training_mode():
    """diffusers' own label dropout, different in each block, is off."""
    model = small_dit().train()
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([10])
    answers = [model(x, timestep=t, class_labels=torch.tensor([1])).sample for _ in range(40)]
    assert all(torch.equal(a, answers[0]) for a in answers)
    assert not torch.equal(answers[0], model(x, timestep=t, class_labels=torch.tensor([3])).sample)


def test_untrained_network_answers_zero():
    model = build_dit(channels=3, size=8, patch=2, width=16, depth=2, heads=2, num_classes=3)
    x = torch.randn(2, 3, 8, 8)
    assert not model(
        x, timestep=torch.tensor([1, 2]), class_labels=torch.tensor([0, 3])
    ).sample.any()


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='Muon came with PyTorch 2.9')
def test_muon_gets_the_matrices_that_act_on_tokens_and_adamw_all_else():
    model = small_dit()
    adamw, muon = build_optimizers(model, 'muon')
    names = {id(p): n for n, p in model.named_parameters()}
    by_muon = {names[id(p)] for g in muon.param_groups for p in g['params']}
    by_adamw = {names[id(p)] for g in adamw.param_groups for p in g['params']}
    assert len(by_muon) == 2 * 6  # query, key, value, output and two of the MLP, in two blocks
    assert all('attn1' in n or 'ff' in n for n in by_muon)
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw


@pytest.mark.parametrize('kind', ['cosine', 'linear', 'constant_with_warmup', 'wsd'])
def test_schedule_warms_up_and_ends_where_it_should(kind):
    factor = build_schedule(kind, steps=100, warmup_steps=10, decay_steps=20)
    factors = [factor(step) for step in range(100)]
    np.testing.assert_allclose(factors[:10], np.arange(1, 11) / 10)
    if kind == 'wsd':
        assert factors[10:81] == [1.0] * 71
        np.testing.assert_allclose(factors[80:], np.arange(20, 0, -1) / 20)
    elif kind == 'cosine':
        np.testing.assert_allclose(
            factors[10:], 0.5 * (1 + np.cos(np.pi * np.arange(1, 91) / 90)), atol=1e-12
        )
    else:
        assert factors[-1] == (1 if kind == 'constant_with_warmup' else 0)


@pytest.mark.parametrize('target', ['epsilon', 'v_prediction', 'flow'])
def test_noising_and_target_follow_the_formulas(target):
    objective = Objective(target)
    clean, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    noisy, model_times = objective.add_noise(clean, noise, torch.tensor([0.1234, 0.9999]))
    expected = objective.expected_output(clean, noise, model_times)
    if target == 'flow':
        sigma = torch.tensor([0.1234, 0.9999]).view(2, 1, 1, 1)
        torch.testing.assert_close(model_times, torch.tensor([123.4, 999.9]))
        torch.testing.assert_close(noisy, (1 - sigma) * clean + sigma * noise)
        torch.testing.assert_close(expected, noise - clean)
        return
    assert model_times.tolist() == [123, 999]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[[123, 999]].reshape(2, 1, 1, 1)
    alpha, sigma = (torch.tensor(x**0.5, dtype=torch.float32) for x in (alpha_bar, 1 - alpha_bar))
    torch.testing.assert_close(noisy, alpha * clean + sigma * noise, atol=1e-5, rtol=1e-4)
    velocity = alpha * noise - sigma * clean
    torch.testing.assert_close(
        expected, noise if target == 'epsilon' else velocity, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(target='noise'), "target must be one of epsilon, v_prediction, flow, got 'noise'"),
        (dict(sampling='cosine'), "sampling must be one of uniform, logit-normal, got 'cosine'"),
    ],
)
def test_an_unknown_objective(options, message):
    with pytest.raises(ValueError, match=message):
        Objective(**options)


def test_sampler_ends_at_the_clean_image():
    """With the true answer at every step, sampling returns the image it started from."""
    clean = torch.rand(1, 3, 4, 4) * 2 - 1
    for target in ('epsilon', 'v_prediction', 'flow'):
        objective = Objective(target)
        sampler = objective.sampler()
        sampler.set_timesteps(10)
        noise = torch.randn(1, 3, 4, 4)
        start = torch.tensor([1.0])
        x, _ = objective.add_noise(clean, noise, start)
        for time in sampler.timesteps:
            model_times = time.reshape(1)
            x = sampler.step(
                objective.expected_output(clean, noise, model_times), time, x
            ).prev_sample
        torch.testing.assert_close(x, clean, atol=0.02, rtol=0)


def test_logit_normal_times_have_the_median_that_was_asked_for():
    times = Objective('flow', 'logit-normal', logit_mean=-0.8, logit_std=1.2).draw_times(
        20000, generator()
    )
    assert times.median().item() == pytest.approx(1 / (1 + np.exp(0.8)), abs=0.01)
    assert times.min() > 0 and times.max() < 1


def test_to_tokens_is_unfold():
    samples = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(to_tokens(samples, 2), F.unfold(samples, 2, stride=2).mT)


def test_tokens_in_another_order_give_the_same_answers_in_that_order():
    """Positions travel with their tokens, and answers are matched to the right ones."""
    model = small_dit()
    drop = TokenDrop(model, keep=0.55)
    assert (drop.count, drop.total) == (9, 16)
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([5, 500]), torch.tensor([0, 3])
    whole = to_tokens(model(x, timestep=t, class_labels=y).sample, 2)
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    drop.use(order)
    answer = drop.output_tokens(model(x, timestep=t, class_labels=y).sample, order)
    expected = whole.gather(1, order[..., None].expand(-1, -1, 12))
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(drop.kept(x, order)[1, 0], to_tokens(x, 2)[1, order[1, 0]])


def test_dropped_tokens_are_not_seen():
    model = small_dit()
    drop = TokenDrop(model, keep=0.25)
    index = drop.draw(1, generator())
    assert index.shape == (1, 4) and len(set(index[0].tolist())) == 4
    drop.use(index)
    x, t, y = torch.randn(1, 3, 8, 8), torch.tensor([5]), torch.tensor([0])
    seen = torch.zeros(1, 16, 12).scatter(1, index[..., None].expand(-1, -1, 12), 1.0)
    mask = F.fold(seen.mT, (8, 8), 2, stride=2)
    a, b = (model(v, timestep=t, class_labels=y).sample for v in (x, x * mask + 9 * (1 - mask)))
    assert torch.equal(a, b)


def test_data_order_visits_every_image_once_an_epoch():
    order = DataOrder(10, seed=1)
    whole = order(0, 30)
    for epoch in whole.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(whole[:10], whole[10:20])
    assert torch.equal(DataOrder(10, seed=1)(7, 16), whole[7:23])


def test_draws_depend_on_seed_step_and_rank_only():
    draws = {
        key: torch.rand(1, generator=step_generator(*key, CPU)).item()
        for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(set(draws.values())) == 4
    assert torch.rand(1, generator=step_generator(0, 1, 0, CPU)).item() == draws[0, 1, 0]


def test_pixels_are_scaled_and_mirrored():
    images = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2) * 10
    out = PixelSource(images)(torch.tensor([1, 0]), torch.tensor([False, True]), generator())
    torch.testing.assert_close(out[0], images[1] / 127.5 - 1)
    torch.testing.assert_close(out[1], images[0].flip(-1) / 127.5 - 1)


def test_latents_are_those_of_the_vae():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
    ).eval()
    vae.quant_conv.bias.data[4:] = -30.0  # log-variance: next to no spread, so draws are the mean
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    source = LatentSource(vae, images, CPU, batch_size=2)
    out = source(torch.tensor([2, 2]), torch.tensor([False, True]), generator())
    both = torch.stack([images[2], images[2].flip(-1)]).float() / 127.5 - 1
    expected = vae.encode(both).latent_dist.mean * vae.config.scaling_factor
    torch.testing.assert_close(out, expected, atol=2e-3, rtol=2e-3)  # kept in half precision


def test_vae_whose_latents_a_dit_pipeline_would_decode_wrongly_is_refused():
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), shift_factor=0.1)
    with pytest.raises(ValueError, match=r'shift_factor=0\.1'):
        LatentSource(vae, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), CPU)


def test_grid_is_row_by_row():
    images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    grid = np.asarray(image_grid(images, columns=3))
    assert grid.shape == (4, 6, 3)
    assert grid[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match='do not fill rows of 4'):
        image_grid(images, columns=4)


def test_weights_of_the_shipped_model_are_put_in():
    model = build_dit(channels=3, size=32, patch=4, width=224, depth=6, heads=4, num_classes=10)
    load_initial_weights(model, 'mmaselect://dit_cifar10', 'v_prediction')
    shipped = diffusers.DiTTransformer2DModel.from_pretrained(
        WEIGHTS_DIR / 'dit_cifar10' / 'transformer'
    )
    mine, theirs = model.state_dict(), shipped.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name].float()) for name in mine)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    # What the loaded model would bring with it: 10 % of the labels dropped, in each block others.
    assert model.transformer_blocks[0].norm1.emb.class_embedder.dropout_prob == 0


@pytest.mark.parametrize(
    ('change', 'target', 'message'),
    [
        ({'depth': 5}, 'v_prediction', r'num_layers is 6 there and 5 here \(--depth\)'),
        ({'heads': 8}, 'v_prediction', 'num_attention_heads is 4 there and 8 here'),
        ({'num_classes': 9}, 'v_prediction', 'num_embeds_ada_norm is 10 there and 9 here'),
        ({}, 'epsilon', "predicts 'v_prediction'.* give --target v_prediction"),
    ],
)
def test_weights_of_another_network_are_refused(change, target, message):
    shape = dict(channels=3, size=32, patch=4, width=224, depth=6, heads=4, num_classes=10)
    with pytest.raises(ValueError, match=message):
        load_initial_weights(build_dit(**(shape | change)), 'mmaselect://dit_cifar10', target)


def test_classes_of_initial_weights_are_compared():
    config = diffusers.DiTPipeline.load_config(WEIGHTS_DIR / 'dit_cifar10')
    names = list(config['id2label'].values())
    assert len(names) == 10
    assert not has_other_classes('mmaselect://dit_cifar10', names)
    assert has_other_classes('mmaselect://dit_cifar10', names[::-1])


@pytest.mark.parametrize('target', ['epsilon', 'v_prediction', 'flow'])
def test_pooled_queries_are_those_of_the_network_itself(target):
    """Read by a hook of our own, noised by the training's own objective: the same, bit for bit."""
    model, objective, timestep = small_dit(), Objective(target), 100
    pixels = torch.randint(0, 256, (6, 3, 8, 8), generator=generator(1), dtype=torch.uint8)
    images = ProbeImages(pixels, PixelSource(pixels), np.arange(6) % 2, 4)
    pooled = pooled_queries(as_frozen(model, objective, [1, 0]), images, timestep)

    caught = {}
    for block in (0, 1):
        model.transformer_blocks[block].attn1.to_q.register_forward_hook(
            lambda module, inputs, output, block=block: caught.update({block: output})
        )
    noise = torch.randn(pixels.shape, generator=generator(0))
    fraction = timestep if target == 'flow' else timestep + 0.5
    times = torch.full((6,), fraction / 1000)
    noisy, model_times = objective.add_noise(pixels / 127.5 - 1, noise, times)
    model(noisy, timestep=model_times, class_labels=torch.full((6,), 3))
    assert list(pooled) == [1, 0]
    for block, queries in pooled.items():
        assert np.array_equal(queries, caught[block].mean(1).detach().numpy())


def test_accuracy_of_a_probe_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = rng.standard_normal((60, 5)).astype(np.float32)
    features[:, 0] += 1.5 * labels
    images = ProbeImages(torch.empty(0), None, labels, 40)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    expected = model.fit(features[:40], labels[:40]).score(features[40:], labels[40:])
    assert images.accuracy(features) == expected
    assert 0.5 < expected < 1
