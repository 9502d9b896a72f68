# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from harness import FeatureProof, item
from published import check_published, published_config
from rooted_proof import RootedProof
from tiny_language import gemma2
from tiny_text import gemma_tokenizer

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.sana import SanaFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Efficient-Large-Model/Sana_600M_1024px_diffusers': (1152, 28, 0.6),
    'Efficient-Large-Model/Sana_1600M_1024px_diffusers': (2240, 20, 1.6),
    'Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers': (2240, 60, 4.8),
}

TEXT = 8


def dc_autoencoder():
    torch.manual_seed(2)
    widths, depths, scales = (4,) * 6, (1,) * 6, ((),) * 6
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=depths,
        decoder_layers_per_block=depths,
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
        scaling_factor=0.41407,
    ).eval()


class Sana:
    num_blocks = 4
    stride = 32
    sizes = ((256, 256), (128, 192), (192, 64))
    transformer_options: ClassVar = {}
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=3.0, prediction_type='flow_prediction'
    )

    def build(self, folder):
        tokenizer = gemma_tokenizer(max_length=4096)
        SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=gemma2(tokenizer, TEXT),
            vae=dc_autoencoder(),
            transformer=SanaTransformer2DModel(
                sample_size=4,
                in_channels=4,
                out_channels=4,
                num_layers=self.num_blocks,
                num_attention_heads=2,
                attention_head_dim=8,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=TEXT,
                **self.transformer_options,
            ),
            scheduler=self.scheduler,
        ).save_pretrained(folder)

    def points(self, block):
        path, whole = f'transformer_blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }

    def stock_latent(self, pipeline, images):
        return pipeline.vae.encode(images).latent * pipeline.vae.config.scaling_factor


class TestSana(Sana, RootedProof):
    """The empty prompt, as guidance asks for it: no page of instructions precedes it."""

    # Of a generation with three steps, which are 999, 666 and 333.
    timesteps = (333, 666)
    timestep = 333
    call_options: ClassVar = {
        'guidance_scale': 1.0,
        'use_resolution_binning': False,
        'complex_human_instruction': None,
    }

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, 3 - timestep // 333, of=3)

    def stock_level(self, pipeline, timestep):
        index = 3 - timestep // 333
        alpha, sigma = pipeline.scheduler._sigma_to_alpha_sigma_t(pipeline.scheduler.sigmas[index])
        return alpha.item(), sigma.item()

    def test_time_is_whole(self, load, pipeline):
        """As the int64 table of its own scheduler has it."""
        dit = load()
        scheduler = pipeline.scheduler
        scheduler.set_timesteps(scheduler.config.num_train_timesteps - 1)
        told = []
        handle = dit.transformer.time_embed.register_forward_pre_hook(
            lambda module, args: told.append(args[0][0].item())
        )
        latent, noise, *_ = self.noisy(dit, self.sizes[0])
        with handle:
            for timestep in (999, 640, 300, 1):
                dit.features(latent, timestep, noise)
        table = scheduler.timesteps.tolist()
        assert told == [table[999 - timestep] for timestep in (999, 640, 300, 1)]


class TestSana15(Sana, FeatureProof):
    """QK norm, positions, time with a fraction, and a prompt after a page of instructions."""

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    call_options: ClassVar = {'guidance_scale': 1.0, 'use_resolution_binning': False}
    transformer_options: ClassVar = {
        'qk_norm': 'rms_norm_across_heads',
        'interpolation_scale': 1.0,
    }
    condition = prompt = 'a red bird'

    def points(self, block):
        # Linear attention has no product of queries and keys whose operands could be recorded.
        path, whole = f'transformer_blocks.{block}.attn1', item(slice(None))
        post = {'query_post': (f'{path}.norm_q', whole), 'key_post': (f'{path}.norm_k', whole)}
        return {**super().points(block), **post}


def test_after_the_norm_is_offered_where_there_is_one(saved):
    folder = saved(TestSana)
    with pytest.raises(ValueError, match="'query_post' is not available for Sana: choose from"):
        FrozenDiT.from_pretrained(folder, features='query_post')


def test_sprint_is_refused():
    with pytest.raises(ValueError, match=r'Sana-Sprint .*use the Sana'):
        SanaFamily(
            {
                **published_config('Efficient-Large-Model/Sana_1600M_1024px_diffusers'),
                'guidance_embeds': True,
            }
        )


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
