# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
)
from harness import FamilyProof, FeatureProof, item
from published import check_published, published_config
from tiny_chat import qwen2_vl_processor, qwen25_vl
from tiny_text import clip_encoder, clip_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion.families.kandinsky5 import Kandinsky5Family

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers': (2560, 50, 6),
}

TEXT, POOLED = 16, 16


class Kandinsky5:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    stacks = ('visual_transformer_blocks',)
    # Of a generation with four steps.
    timesteps = (667, 334)
    timestep = 667

    def build(self, folder):
        processor = qwen2_vl_processor()
        transformer = Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=TEXT,
            in_text_dim2=POOLED,
            time_dim=16,
            model_dim=24,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=self.num_blocks,
            axes_dims=(4, 4, 4),
        )
        # Zero as constructed: no block would do anything.
        for name, parameter in transformer.named_parameters():
            if 'modulation' in name:
                torch.nn.init.normal_(parameter, std=0.2)
        Kandinsky5T2IPipeline(
            transformer=transformer,
            vae=kl_vae(4, scale=0.3611, shift=0.1159, levels=4),
            text_encoder=qwen25_vl(processor.tokenizer, TEXT),
            tokenizer=processor,
            text_encoder_2=clip_encoder(POOLED, max_length=77),
            tokenizer_2=clip_tokenizer(max_length=77),
            scheduler=FlowMatchEulerDiscreteScheduler(),
        ).save_pretrained(folder)

    def stock_pipeline(self, folder, **options):
        pipeline = super().stock_pipeline(folder, **options)
        # It makes images of the nearest of these sizes.
        pipeline.resolutions = [(width, height) for height, width in self.sizes]
        return pipeline

    def step(self, timestep):
        return 3 - timestep // 333

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=4)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[self.step(timestep)]
        return (1 - sigma).item(), sigma.item()

    def stock_latents(self, pipeline, noisy):
        return noisy.permute(0, 2, 3, 1)[:, None].contiguous()

    def stock_latent(self, pipeline, images):
        # Without the shift, as its call decodes and its sibling for editing encodes.
        return pipeline.vae.encode(images).latent_dist.mode() * pipeline.vae.config.scaling_factor

    def points(self, block):
        path, whole = f'visual_transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.self_attention.to_query', whole),
            'key': (f'{path}.self_attention.to_key', whole),
            'value': (f'{path}.self_attention.to_value', whole),
            'attention': (f'{path}.self_attention', whole),
            'output': (path, whole),
        }

    def post_points(self, block):
        return f'visual_transformer_blocks.{block}.self_attention', item(slice(None))


class TestKandinsky5(Kandinsky5, FamilyProof):
    """The empty prompt."""


class TestKandinsky5WithAPrompt(Kandinsky5, FeatureProof):
    """Cleaned of entities and blanks."""

    condition = prompt = 'a  red bird &amp; co '


def test_editing_and_video_models_are_refused():
    with pytest.raises(ValueError, match=r'I2I.*T2V.*not supported: use .kandinskylab/.*T2I'):
        Kandinsky5Family(
            {
                **published_config('kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers'),
                'visual_cond': True,
            }
        )


def test_too_large_an_image_is_refused():
    family = Kandinsky5Family(published_config('kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers'))
    family.check_grid((128, 1), 16)
    with pytest.raises(ValueError, match=r'128x128 tokens.*1x129.*2048 pixels'):
        family.check_grid((1, 129), 16)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
