# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json
from typing import ClassVar

import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    PiflowScheduler,
)
from harness import FamilyProof, FeatureProof, item
from published import check_published, published_config
from tiny_chat import qwen25_vl, qwen25_vl_processor
from tiny_text import clip_encoder, clip_tokenizer

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.kandinsky6 import Kandinsky6Family

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'kandinskylab/Kandinsky-6.0-Pro-5s-Diffusers': (4096, 60, 29),
    'kandinskylab/Kandinsky-6.0-Lite-distill-5s-Diffusers': (1792, 32, 3.178),
}

TEXT, POOLED, GRID = 16, 16, 4


class Kandinsky6:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    stacks = ('visual_transformer_blocks',)
    images_per_prompt = 'num_videos_per_prompt'
    call_options: ClassVar = {'guidance_scale': 1.0, 'num_frames': 1, 'sample_audio': False}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    outputs = 1

    def build(self, folder):
        processor = qwen25_vl_processor()
        torch.manual_seed(2)
        vae = AutoencoderKLHunyuanVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
        )
        Kandinsky6TI2VAPipeline(
            transformer=Kandinsky6Transformer3DModel(
                in_visual_dim=4,
                out_visual_dim=4 * self.outputs,
                in_text_dim=TEXT,
                in_text_dim2=POOLED,
                time_dim=16,
                model_dim=24,
                ff_dim=32,
                num_text_blocks=1,
                num_visual_blocks=self.num_blocks,
                axes_dims=(4, 4, 4),
                in_audio_dim=4,
                out_audio_dim=4 * self.outputs,
                model_dim_a=12,
                ff_dim_a=16,
                ca_rope=True,
                cross_gates=True,
                fix_modulation=True,
                visual_token_type_num_embeddings=2,
            ),
            vae=vae.eval(),
            text_encoder=qwen25_vl(processor.tokenizer, TEXT),
            tokenizer=processor,
            text_encoder_2=clip_encoder(POOLED, max_length=77),
            tokenizer_2=clip_tokenizer(max_length=77),
            scheduler=self.scheduler,
        ).save_pretrained(folder)

    def stock_latents(self, pipeline, noisy):
        return noisy[:, :, None]

    def stock_latent(self, pipeline, images):
        latent = pipeline.vae.encode(images[:, :, None]).latent_dist.mode()[:, :, 0]
        return latent * pipeline.vae.config.scaling_factor

    def points(self, block):
        path, whole = f'visual_transformer_blocks.{block}', item(slice(None))
        attention = f'{path}.video_dec_block.self_attention'
        return {
            'query': (f'{attention}.to_query', whole),
            'key': (f'{attention}.to_key', whole),
            'value': (f'{attention}.to_value', whole),
            'attention': (attention, whole),
            'output': (path, item(0)),
        }

    def post_points(self, block):
        return self.points(block)['attention'][0], item(slice(None))


class TestKandinsky6(Kandinsky6, FamilyProof):
    """The empty prompt."""

    def test_sound_is_not_loaded(self, load):
        dit = load(blocks=-1)
        names = [name for name, _ in dit.transformer.named_parameters() if '_blocks.' in name]
        assert names
        assert not any('audio' in name or '.va_' in name or '.av_' in name for name in names)


class TestKandinsky6Distilled(Kandinsky6, FeatureProof):
    """With a scheduler of its own, and a prompt."""

    condition = prompt = 'a red bird'
    scheduler = PiflowScheduler(shift=5.0, n_grid=GRID, final_step_size_scale=1.0)
    outputs = GRID
    # Of a generation with eight steps.
    timesteps = (875, 750)
    timestep = 750

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, 8 - timestep // 125, of=8)

    def running_latents(self, pipeline, noisy):
        return noisy.permute(0, 2, 3, 1)[:, None]

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[8 - timestep // 125]
        return (1 - sigma).item(), sigma.item()


def test_a_class_that_only_the_index_names(tmp_path):
    """As published: transformer/config.json does not say what it is the config of."""
    TestKandinsky6().build(tmp_path)
    file = tmp_path / 'transformer' / 'config.json'
    config = json.loads(file.read_text())
    assert config.pop('_class_name') == 'Kandinsky6Transformer3DModel'
    file.write_text(json.dumps(config))
    dit = FrozenDiT.from_pretrained(tmp_path, blocks=0)
    assert dit.family.title == 'Kandinsky 6'
    (tmp_path / 'model_index.json').unlink()
    with pytest.raises(ValueError, match=r"config\.json is incomplete: it has no '_class_name'"):
        FrozenDiT.from_pretrained(tmp_path, blocks=0)


def test_too_large_an_image_is_refused():
    family = Kandinsky6Family(
        published_config('kandinskylab/Kandinsky-6.0-Lite-distill-5s-Diffusers')
    )
    family.check_grid((128, 1), 16)
    with pytest.raises(ValueError, match=r'128x128 tokens.*1x129.*2048 pixels'):
        family.check_grid((1, 129), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
