# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import ClassifierFreeGuidance, Flux3AutoBlocks, Flux3Transformer2DModel
from harness import FamilyProof, FeatureProof, item, last_tokens
from tiny_chat import qwen3_vl_chat, qwen3_vl_processor
from tiny_vae import flux2_vae

from mmaselect.diffusion import PipelineSource
from mmaselect.diffusion.families.flux3 import Flux3Family

# Layers of the language model that are read; the deepest is its 32nd.
TEXT, LAYERS, MODE, SINGLE = 8, 8, 2, 3


def blocks_of_the_pipeline():
    """As a call goes through them, but for the rewriting of prompts, and up to the latent."""
    blocks = Flux3AutoBlocks()
    for name in ('prompt_upsampler', 'decode'):
        blocks.sub_blocks.pop(name)
    return blocks


class Flux3:
    num_blocks = MODE + SINGLE
    stride = 8

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def build(self, folder):
        processor = qwen3_vl_processor()
        pipeline = blocks_of_the_pipeline().init_pipeline()
        pipeline.update_components(
            transformer=Flux3Transformer2DModel(
                in_channels=16,
                cond_in_channels=16,
                num_layers=MODE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=LAYERS * TEXT,
                timestep_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
            ),
            vae=flux2_vae(),
            text_encoder=qwen3_vl_chat(processor, TEXT, layers=32),
            tokenizer=processor,
        )
        pipeline.save_pretrained(str(folder), overwrite_modular_index=True)

    def stock_pipeline(self, folder, **options):
        pipeline = blocks_of_the_pipeline().init_pipeline(str(folder))
        pipeline.load_components(**options)
        pipeline.update_components(guider=ClassifierFreeGuidance(guidance_scale=1.0))
        return pipeline

    def stock_call(self, pipeline, noisy, size, timestep):
        pipeline(
            prompt=self.prompt,
            num_images_per_prompt=len(noisy),
            height=size[0],
            width=size[1],
            latents=noisy.to(pipeline.transformer.dtype),
            sigmas=[timestep / 1000],
            num_inference_steps=1,
            output='latents',
        )

    def stock_latent(self, pipeline, images):
        vae = pipeline.vae
        step = Flux3AutoBlocks().sub_blocks['vae_encoder'].sub_blocks['image_conditioning']
        latent = vae.encode(images).latent_dist.mode()
        latent = step.sub_blocks['encode']._patchify_latents(latent)
        std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return (latent - vae.bn.running_mean.view(1, -1, 1, 1)) / std

    def points(self, block):
        if block < MODE:
            path, tokens, output = f'mode_blocks.image.{block}', item(slice(None)), None
        else:
            path, tokens = f'single_transformer_blocks.{block - MODE}', last_tokens
            output = item(1)
        return {
            'query': (f'{path}.attn.to_q', tokens),
            'key': (f'{path}.attn.to_k', tokens),
            'value': (f'{path}.attn.to_v', tokens),
            'attention': (f'{path}.attn', tokens),
            'output': (path, output or tokens),
        }

    def post_points(self, block):
        return self.points(block)['attention']


class TestFlux3(Flux3, FamilyProof):
    """The empty prompt."""

    def test_the_index_of_a_modular_pipeline(self, folder):
        source = PipelineSource(folder)
        assert source.index()['_class_name'] == 'Flux3ModularPipeline'
        assert source.has_vae()
        assert len(source.index()['vae']) == 3

    def test_reference_images_have_no_blocks(self, load):
        assert len(load(blocks=-1).transformer.mode_blocks['image_cond']) == 0

    def block_paths(self, state_dict):
        parts = [name.split('.') for name in state_dict]
        mode = {tuple(p[:3]) for p in parts if p[:2] == ['mode_blocks', 'image']}
        return mode | {tuple(p[:2]) for p in parts if p[0] == 'single_transformer_blocks'}


class TestFlux3WithAPrompt(Flux3, FeatureProof):
    """That needs more room than the text is padded to at least."""

    condition = prompt = 'a red bird ' * 9


def test_distilled_is_refused():
    with pytest.raises(ValueError, match=r'distilled FLUX\.3.*flow_map=True.*no next step'):
        Flux3Family({'flow_map': True})


def test_sizes():
    """By the defaults of the class: no weights are published under a name that is known here."""
    with torch.device('meta'):
        transformer = Flux3Transformer2DModel()
    family = Flux3Family(dict(transformer.config))
    assert (family.width, family.num_blocks, family.default_block) == (3072, 33, 16)
    blocks = [family.block(transformer, index) for index in range(33)]
    assert blocks == [
        *transformer.mode_blocks['image'],
        *transformer.single_transformer_blocks,
    ]
