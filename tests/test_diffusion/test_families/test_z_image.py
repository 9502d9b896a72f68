# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from harness import FamilyProof, first_tokens
from published import check_published, published_config
from tiny_chat import chat_tokenizer, qwen3
from tiny_vae import kl_vae

from mmaselect.diffusion.families.z_image import ZImageFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'Tongyi-MAI/Z-Image': (3840, 30, 6),
    'Tongyi-MAI/Z-Image-Turbo': (3840, 30, 6),
}

TEXT = 16


class TestZImage(FamilyProof):
    num_blocks = 4
    stride = 8
    # 64, 96 and 48 tokens: the last are padded to 64.
    sizes = ((64, 64), (64, 96), (96, 32))
    stacks = ('layers',)
    call_options: ClassVar = {'guidance_scale': 0.0}

    def build(self, folder):
        transformer = ZImageTransformer2DModel(
            in_channels=16,
            dim=32,
            n_layers=self.num_blocks,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=TEXT,
            rope_theta=256.0,
            axes_dims=[4, 6, 6],
            axes_lens=[64, 16, 16],
        )
        # Zero as constructed: padding that leaks would not be seen.
        torch.nn.init.normal_(transformer.x_pad_token)
        torch.nn.init.normal_(transformer.cap_pad_token)
        ZImagePipeline(
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=kl_vae(scale=0.3611, shift=0.1159),
            text_encoder=qwen3(TEXT, layers=2),
            tokenizer=chat_tokenizer(),
        ).save_pretrained(folder)

    def points(self, block):
        path = f'layers.{block}'
        return {
            'query': (f'{path}.attention.to_q', first_tokens),
            'key': (f'{path}.attention.to_k', first_tokens),
            'value': (f'{path}.attention.to_v', first_tokens),
            'attention': (f'{path}.attention', first_tokens),
            'output': (path, first_tokens),
        }

    def post_points(self, block):
        return f'layers.{block}.attention', first_tokens

    def block_paths(self, state_dict):
        """Without the padding tokens, which no submodule holds."""
        return super().block_paths({name for name in state_dict if '.' in name})

    def test_time_runs_backwards(self, load):
        told = []
        dit = load()
        latent, noise, *_ = self.noisy(dit, self.sizes[0])
        dit.transformer.register_forward_pre_hook(lambda module, args: told.append(args[1]))
        for timestep in (0, 500, 999):
            dit.features(latent, timestep, noise)
        # With a shift of 3: sigma = 3 s / (1 + 2 s).
        expected = [[1 - 3 * s / (1 + 2 * s)] * 2 for s in (0.0, 0.5, 0.999)]
        torch.testing.assert_close(torch.stack(told), torch.tensor(expected))


def test_too_large_an_image_is_refused():
    family = ZImageFamily(published_config('Tongyi-MAI/Z-Image'))
    family.check_grid((512, 512), 16)
    with pytest.raises(ValueError, match=r'512x512 tokens.*20x513.*8192x8192 pixels'):
        family.check_grid((20, 513), 16)


def test_omni_is_refused():
    with pytest.raises(ValueError, match=r'Omni .*siglip_feat_dim.*not supported'):
        ZImageFamily({**published_config('Tongyi-MAI/Z-Image'), 'siglip_feat_dim': 1152})


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
