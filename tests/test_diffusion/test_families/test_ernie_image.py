# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import (
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from harness import FamilyProof, FeatureProof, first_tokens
from published import check_published
from tiny_chat import chat_tokenizer, mistral3
from tiny_vae import flux2_vae

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'baidu/ERNIE-Image': (4096, 36, 8),
    'baidu/ERNIE-Image-Turbo': (4096, 36, 8),
}

TEXT = 8


class ErnieImage:
    num_blocks = 4
    stride = 8
    # Of a generation with eight steps.
    timesteps = (625, 750)
    timestep = 625

    def build(self, folder):
        transformer = ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=self.num_blocks,
            ffn_hidden_size=48,
            in_channels=16,
            out_channels=16,
            text_in_dim=TEXT,
            rope_axes_dim=(4, 6, 6),
        )
        # Zero as constructed: no block would do anything.
        torch.nn.init.normal_(transformer.adaLN_modulation[-1].weight, std=0.1)
        torch.nn.init.normal_(transformer.adaLN_modulation[-1].bias, std=0.5)
        ErnieImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=4.0),
            vae=flux2_vae(),
            text_encoder=mistral3(TEXT, layers=2).model,
            tokenizer=chat_tokenizer(),
        ).save_pretrained(folder)

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, 8 - timestep * 8 // 1000, of=8)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[8 - timestep * 8 // 1000]
        return (1 - sigma).item(), sigma.item()

    def points(self, block):
        path = f'layers.{block}'
        return {
            'query': (f'{path}.self_attention.to_q', first_tokens),
            'key': (f'{path}.self_attention.to_k', first_tokens),
            'value': (f'{path}.self_attention.to_v', first_tokens),
            'attention': (f'{path}.self_attention', first_tokens),
            # Between blocks the sequence leads, and the batch comes second.
            'output': (path, lambda output, n: output[:n].transpose(0, 1)),
        }

    def post_points(self, block):
        return f'layers.{block}.self_attention', first_tokens

    def stock_latent(self, pipeline, images):
        latent = pipeline._patchify_latents(pipeline.vae.encode(images).latent_dist.mode())
        # The inverse of what the pipeline does before it decodes.
        std = torch.sqrt(pipeline.vae.bn.running_var.view(1, -1, 1, 1) + 1e-5)
        return (latent - pipeline.vae.bn.running_mean.view(1, -1, 1, 1)) / std


class TestErnieImage(ErnieImage, FamilyProof):
    stacks = ('layers',)


class TestErnieImageWithAPrompt(ErnieImage, FeatureProof):
    condition = prompt = 'a red bird'


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
