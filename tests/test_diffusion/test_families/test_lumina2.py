# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
)
from diffusers.models.embeddings import apply_rotary_emb
from harness import FamilyProof, FeatureProof, last_tokens, recorded
from published import check_published
from tiny_language import gemma2
from tiny_text import gemma_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.lumina2 import Lumina2Family

#: Name, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    (
        'Alpha-VLLM/Lumina-Image-2.0',
        Lumina2Transformer2DModel,
        {
            'sample_size': 128,
            'patch_size': 2,
            'in_channels': 16,
            'hidden_size': 2304,
            'num_layers': 26,
            'num_refiner_layers': 2,
            'num_attention_heads': 24,
            'num_kv_heads': 8,
            'multiple_of': 256,
            'axes_dim_rope': (32, 32, 32),
            'axes_lens': (300, 512, 512),
            'cap_feat_dim': 2304,
        },
        2304,
        26,
        2.6,
    ),
]

TEXT, WIDTH, HEADS = 8, 48, 4


class Lumina2:
    num_blocks = 4
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))

    def build(self, folder):
        tokenizer = gemma_tokenizer(max_length=256)
        Lumina2Pipeline(
            tokenizer=tokenizer,
            text_encoder=gemma2(tokenizer, TEXT),
            vae=kl_vae(4, scale=0.3611, shift=0.1159, levels=4),
            transformer=Lumina2Transformer2DModel(
                sample_size=8,
                in_channels=4,
                hidden_size=WIDTH,
                num_layers=self.num_blocks,
                num_refiner_layers=2,
                num_attention_heads=HEADS,
                num_kv_heads=HEADS // 2,
                multiple_of=8,
                axes_dim_rope=(4, 4, 4),
                axes_lens=(300, 16, 32),
                cap_feat_dim=TEXT,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        ).save_pretrained(folder)

    def stock_prompt(self, pipeline, batch):
        """As guidance asks for the empty prompt: nothing precedes it."""
        *_, embeds, mask = pipeline.encode_prompt('a bird', num_images_per_prompt=batch)
        return embeds, mask

    def stock_call(self, pipeline, noisy, model_time):
        embeds, mask = self.stock_prompt(pipeline, len(noisy))
        pipeline.transformer(
            hidden_states=noisy,
            timestep=1 - model_time / pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            encoder_attention_mask=mask,
            return_dict=False,
        )

    def points(self, block):
        path = f'layers.{block}'
        return {
            'query': (f'{path}.attn.to_q', last_tokens),
            'key': (f'{path}.attn.to_k', last_tokens),
            'value': (f'{path}.attn.to_v', last_tokens),
            'attention': (f'{path}.attn', last_tokens),
            'output': (path, last_tokens),
        }

    def stock_post(self, pipeline, noisy, model_time, block):
        path = f'layers.{block}.attn'
        names = [f'{path}.norm_q', f'{path}.norm_k']
        with recorded(pipeline.transformer, names) as outputs:
            self.stock_call(pipeline, noisy, model_time)
        _, mask = self.stock_prompt(pipeline, len(noisy))
        rotary = pipeline.transformer.rope_embedder(noisy, mask)[3]
        query, key = (apply_rotary_emb(outputs[n], rotary, use_real=False) for n in names)
        tokens = noisy[0, 0].numel() // 4
        return {
            'query_post': query.flatten(2)[:, -tokens:],
            'key_post': key.repeat_interleave(2, dim=2).flatten(2)[:, -tokens:],
        }


class TestLumina2(Lumina2, FamilyProof):
    stacks = ('layers',)

    def test_keys_and_values_have_fewer_channels(self, load):
        dit = load(blocks=0, features=load().family.features)
        channels = {feature: dit.channels((0, feature)) for feature in dit.family.features}
        narrow = {feature for feature, count in channels.items() if count == WIDTH // 2}
        assert narrow == {'key', 'value'}
        assert {*channels.values()} == {WIDTH, WIDTH // 2}


class TestLumina2WithAPrompt(Lumina2, FeatureProof):
    """The system prompt precedes it, so the text is longer than the image."""

    condition = 'a red bird'

    def stock_prompt(self, pipeline, batch):
        embeds, mask, *_ = pipeline.encode_prompt(
            self.condition, do_classifier_free_guidance=False, num_images_per_prompt=batch
        )
        assert mask.sum(dim=1).min() > 100
        return embeds, mask


def test_clean_is_one_and_noise_is_zero(tmp_path):
    TestLumina2().build(tmp_path)
    dit = FrozenDiT.from_pretrained(tmp_path, blocks=0)
    told = []
    handle = dit.transformer.time_caption_embed.register_forward_pre_hook(
        lambda module, args: told.append(args[1][0].item())
    )
    latent = torch.zeros(1, 4, 4, 4)
    with handle:
        for timestep in (0, 500, 999):
            dit.features(latent, timestep, latent)
    # sigma of t = 500 is 6/7 after a shift of 6.
    assert told == pytest.approx([1.0, 1 / 7, 1 - 6 * 0.999 / (1 + 5 * 0.999)], abs=1e-6)


def test_too_large_an_image_is_refused():
    family = Lumina2Family(PUBLISHED[0][2])
    family.check_grid((512, 512), 16)
    with pytest.raises(ValueError, match=r'512x512 tokens.*8192x8192; got 8x513 .*128x8208'):
        family.check_grid((8, 513), 16)


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)
