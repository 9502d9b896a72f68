# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import diffusers
import pytest
from diffusers.models.attention_dispatch import attention_backend
from harness import FamilyProof, FeatureProof, item, last_tokens
from published import check_published, published_config
from tiny_text import clip_encoder, clip_tokenizer, t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion.families.flux import FluxFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'black-forest-labs/FLUX.1-dev': (3072, 57, 12),
    'black-forest-labs/FLUX.1-schnell': (3072, 57, 12),
}

DOUBLE, SINGLE = 2, 3


def save_pipeline(folder, guidance_embeds=True, dynamic=True):
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if dynamic else 1.0, use_dynamic_shifting=dynamic
        ),
        vae=kl_vae(scale=0.3611, shift=0.1159),
        text_encoder=clip_encoder(16),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(32),
        tokenizer_2=t5_tokenizer(),
    ).save_pretrained(folder)


class Flux:
    num_blocks = DOUBLE + SINGLE
    stride = 8
    stacks = ('transformer_blocks', 'single_transformer_blocks')

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def points(self, block):
        if block < DOUBLE:
            path = f'transformer_blocks.{block}'
            pick = attention = lambda output, n: output
            attention = item(0)
        else:
            path = f'single_transformer_blocks.{block - DOUBLE}'
            pick = attention = last_tokens
        return {
            'query': (f'{path}.attn.to_q', pick),
            'key': (f'{path}.attn.to_k', pick),
            'value': (f'{path}.attn.to_v', pick),
            'attention': (f'{path}.attn', attention),
            'output': (path, item(1)),
        }

    def post_points(self, block):
        return self.points(block)['attention'][0], last_tokens

    def stock_latents(self, pipeline, noisy):
        return pipeline._pack_latents(noisy, *noisy.shape)


class TestFluxDev(Flux, FamilyProof):
    """Guidance embedding and a shift that depends on the resolution."""

    call_options: ClassVar = {}

    def build(self, folder):
        save_pipeline(folder)

    def test_single_blocks_are_left_out_where_none_is_needed(self, load):
        assert len(load(blocks=DOUBLE - 1).transformer.single_transformer_blocks) == 0

    @pytest.mark.parametrize('condition', [{'guidance': '1'}, {'guidance': True}, {'prompt': 3}, 7])
    def test_a_condition_of_the_wrong_type_is_refused(self, load, condition):
        with pytest.raises(TypeError, match=r'does not fit FLUX\.1'):
            load(condition=condition)

    def test_post_features_need_the_native_attention(self, load):
        """The message says so; the features that hooks read stay as they are."""
        dit = load(blocks=1, features=('query', 'query_post'))
        latent, noise, *_ = self.noisy(dit, self.sizes[0])
        dit.features(latent, self.timestep, noise)
        wanted = r"never produced \[\(1, 'query_post'\)\].*native"
        with attention_backend('flex'), pytest.raises(RuntimeError, match=wanted):
            dit.features(latent, self.timestep, noise)


class TestFluxSchnell(Flux, FeatureProof):
    """No guidance embedding, no shift; a prompt, padded to fewer tokens."""

    prompt = 'a bird'
    condition: ClassVar = {'prompt': 'a bird', 'max_sequence_length': 256}
    call_options: ClassVar = {'max_sequence_length': 256}

    def build(self, folder):
        save_pipeline(folder, guidance_embeds=False, dynamic=False)


class TestFluxGuidance(Flux, FeatureProof):
    """A guidance scale of the user's, a whole number; fewer tokens than there are by default."""

    condition: ClassVar = {'guidance': 1, 'max_sequence_length': 16}
    call_options: ClassVar = {'guidance_scale': 1.0, 'max_sequence_length': 16}

    def build(self, folder):
        save_pipeline(folder)


def test_variants_that_take_a_second_image_are_refused():
    with pytest.raises(ValueError, match=r'second image.*in_channels=384, out_channels=64'):
        FluxFamily(
            {
                **published_config('black-forest-labs/FLUX.1-dev'),
                'in_channels': 384,
                'out_channels': 64,
            }
        )


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
