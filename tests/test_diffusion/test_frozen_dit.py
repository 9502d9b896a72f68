# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import diffusers
import pytest
import torch

from mmaselect.diffusion import FEATURES, FrozenDiT

NULL_CLASS = 10


def stock_features(folder, latent, timestep, noise, blocks, label=NULL_CLASS):
    """Stock diffusers: the full model, its own scheduler, plain hooks."""
    model = diffusers.DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer').eval()
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder='scheduler')
    caught = {}

    def keep(key):
        return lambda module, args, output: caught.__setitem__(key, output)

    for index in blocks:
        block = model.transformer_blocks[index]
        block.attn1.to_q.register_forward_hook(keep((index, 'query')))
        block.attn1.to_k.register_forward_hook(keep((index, 'key')))
        block.attn1.to_v.register_forward_hook(keep((index, 'value')))
        block.attn1.register_forward_hook(keep((index, 'attention')))
        block.register_forward_hook(keep((index, 'output')))
    batch = latent.shape[0]
    steps = torch.full((batch,), timestep)
    noisy = scheduler.add_noise(latent, noise, steps)
    with torch.no_grad():
        try:
            model(noisy, timestep=steps, class_labels=torch.full((batch,), label))
        except RuntimeError:
            # DiT cannot unpatchify rectangles; by then every hook has fired.
            assert latent.shape[-1] != latent.shape[-2]
    return caught


@pytest.mark.parametrize('size', [(32, 32), (16, 40), (40, 16)])
@pytest.mark.parametrize('folder', ['tiny_dit', 'tiny_latent_dit'])
def test_features_are_those_of_stock_diffusers(request, folder, size):
    folder = request.getfixturevalue(folder)
    dit = FrozenDiT.from_pretrained(folder, blocks=[0, 3, -1], features=FEATURES)
    latent = dit.encode(torch.rand(2, 3, *size) * 2 - 1)
    noise = torch.randn_like(latent)
    ours = dit.features(latent, 120, noise)
    stock = stock_features(folder, latent, 120, noise, [0, 3, 5])
    assert set(ours) == set(stock) == set(dit.keys)
    for key, tokens in stock.items():
        feature = ours[key]
        assert feature.shape == (2, 16, size[0] // 4, size[1] // 4)
        assert torch.equal(feature.flatten(2).transpose(1, 2), tokens), key


def test_class_condition_reaches_the_model(tiny_dit):
    latent, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    ours = FrozenDiT.from_pretrained(tiny_dit, blocks=2, condition=3).features(latent, 50, noise)
    stock = stock_features(tiny_dit, latent, 50, noise, [2], label=3)
    assert torch.equal(ours[2, 'query'].flatten(2).mT, stock[2, 'query'])
    null = FrozenDiT.from_pretrained(tiny_dit, blocks=2).features(latent, 50, noise)
    assert not torch.equal(ours[2, 'query'], null[2, 'query'])


def test_only_needed_blocks_are_built(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[1, -4, 1])
    assert dit.blocks == (1, 2, 1)
    assert len(dit.transformer.transformer_blocks) == 3
    assert dit.num_blocks == 6
    assert dit.keys == ((1, 'query'), (2, 'query'))


def test_the_pass_ends_at_the_deepest_wanted_feature(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2], features='query')
    later = []
    dit.transformer.transformer_blocks[2].attn1.to_k.register_forward_hook(
        lambda *_: later.append('key')
    )
    latent = torch.rand(1, 3, 32, 32)
    dit.features(latent, 5, torch.randn_like(latent))
    assert not later
    # and nothing of ours is left behind
    assert not dit.transformer.transformer_blocks[2].attn1.to_q._forward_hooks


@pytest.mark.parametrize('shape', [(3, 32, 32), (1, 4, 32, 32)])
def test_what_is_no_batch_of_rgb_images_is_refused(tiny_dit, shape):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[0])
    with pytest.raises(ValueError, match=r'expected RGB images \(B, 3, H, W\), got shape'):
        dit.encode(torch.rand(shape))


def test_an_error_inside_the_model_is_not_swallowed(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    with pytest.raises(RuntimeError):
        latent = torch.rand(1, 4, 32, 32)  # 4 channels for a 3-channel model
        dit.features(latent, 5, torch.randn_like(latent))
    assert not dit.transformer.transformer_blocks[2].attn1.to_q._forward_hooks


def test_a_feature_that_never_fires_is_an_error(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    attention = dit.transformer.transformer_blocks[2].attn1
    attention.fuse_projections()
    attention.set_processor(diffusers.models.attention_processor.FusedAttnProcessor2_0())
    latent = torch.rand(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"never produced \[\(2, 'query'\)\]"):
        dit.features(latent, 5, torch.randn_like(latent))


@pytest.mark.parametrize('size', [(30, 45), (5, 7), (33, 32)])
def test_sizes_that_the_stride_does_not_divide_are_padded(tiny_latent_dit, size):
    dit = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[1])
    images = torch.rand(2, 3, *size) * 2 - 1
    latent = dit.encode(images)
    feature = dit.features(latent, 9, torch.zeros_like(latent))[1, 'query']
    assert feature.shape[-2:] == (-(-size[0] // 4), -(-size[1] // 4))
    # What was there before is there still: the pad only repeats the border.
    padded = torch.nn.functional.pad(images, (0, -size[1] % 4, 0, -size[0] % 4), mode='replicate')
    assert torch.equal(dit.encode(padded), latent)


def test_vae_latent_is_the_scaled_mode(tiny_latent_dit):
    vae = diffusers.AutoencoderKL.from_pretrained(tiny_latent_dit, subfolder='vae').eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(images).latent_dist.mode() * 0.5
    dit = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[1])
    assert torch.allclose(dit.encode(images), expected, atol=1e-6)
    assert not list(dit.codec.vae.decoder.parameters())


def test_shift_is_subtracted_before_scaling(tiny_latent_dit, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_latent_dit, tmp_path / 'shifted')
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder='vae')
    vae.register_to_config(shift_factor=0.25)
    vae.save_pretrained(folder / 'vae')
    images = torch.rand(1, 3, 32, 32)
    plain = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[0]).encode(images)
    shifted = FrozenDiT.from_pretrained(folder, blocks=[0]).encode(images)
    assert torch.allclose(shifted, plain - 0.25 * 0.5, atol=1e-6)


def test_tiny_vae(tiny_latent_dit, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_latent_dit, tmp_path / 'taesd')
    shutil.rmtree(folder / 'vae')
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), latent_channels=4,
    ).eval()  # fmt: skip
    vae.save_pretrained(folder / 'vae')
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    dit = FrozenDiT.from_pretrained(folder, blocks=[0])
    with torch.no_grad():
        assert torch.allclose(dit.encode(images), vae.encode(images).latents, atol=1e-6)


@pytest.mark.parametrize('dtype', ['fp16', 'bf16'])
def test_half_precision_is_close_to_single(tiny_latent_dit, dtype):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    noise = torch.randn(2, 4, 16, 16)
    maps = {}
    for name in ('fp32', dtype):
        dit = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[3], dtype=name)
        maps[name] = dit.features(dit.encode(images), 100, noise)[3, 'query'].float()
    error = (maps[dtype] - maps['fp32']).norm() / maps['fp32'].norm()
    assert error < 0.05


def test_autocast_does_not_change_features(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[3])
    latent, noise = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    plain = dit.features(latent, 100, noise)[3, 'query']
    with torch.autocast('cpu', torch.bfloat16):
        mixed = dit.features(latent, 100, noise)[3, 'query']
    assert torch.equal(plain, mixed)


def test_it_stays_frozen_and_in_eval_mode(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[3])
    dit.train()
    assert not any(module.training for module in dit.modules())
    assert not any(parameter.requires_grad for parameter in dit.parameters())
    latent = torch.rand(1, 3, 32, 32, requires_grad=True)
    feature = dit.features(latent, 10, torch.randn(1, 3, 32, 32))[3, 'query']
    assert not feature.requires_grad


def test_bad_arguments(tiny_dit):
    with pytest.raises(ValueError, match=r'block 6 is out of range.*0 to 5'):
        FrozenDiT.from_pretrained(tiny_dit, blocks=[6])
    with pytest.raises(ValueError, match='blocks is empty'):
        FrozenDiT.from_pretrained(tiny_dit, blocks=[])
    with pytest.raises(ValueError, match=r"feature 'q' .* choose from query, key"):
        FrozenDiT.from_pretrained(tiny_dit, features='q')
    with pytest.raises(ValueError, match=r"dtype 'int8'.*'fp16'"):
        FrozenDiT.from_pretrained(tiny_dit, dtype='int8')
    with pytest.raises(ValueError, match=r'class label from 0 to 9'):
        FrozenDiT.from_pretrained(tiny_dit, condition=11)
    dit = FrozenDiT.from_pretrained(tiny_dit)
    with pytest.raises(ValueError, match=r'\(B, 3, H, W\)'):
        dit.encode(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match='differ in shape'):
        dit.features(torch.rand(1, 3, 32, 32), 5, torch.rand(1, 3, 16, 32))
    with pytest.raises(ValueError, match=r'timestep 1000 is out of range'):
        dit.features(torch.rand(1, 3, 32, 32), 1000, torch.rand(1, 3, 32, 32))
