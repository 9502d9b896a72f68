# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest
import torch
from diffusers import DDPMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline
from diffusers.models.embeddings import apply_rotary_emb, get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from harness import FeatureProof, item, recorded
from published import check_published
from rooted_proof import RootedProof
from tiny_language import bert, bert_tokenizer
from tiny_text import t5_encoder, t5_tokenizer
from tiny_vae import kl_vae

from mmaselect.diffusion import FrozenDiT

_XL = {
    'sample_size': 128,
    'patch_size': 2,
    'in_channels': 4,
    'num_layers': 40,
    'num_attention_heads': 16,
    'attention_head_dim': 88,
    'hidden_size': 1408,
    'mlp_ratio': 4.3637,
    'activation_fn': 'gelu-approximate',
    'cross_attention_dim': 1024,
    'cross_attention_dim_t5': 2048,
    'pooled_projection_dim': 1024,
    'text_len': 77,
    'text_len_t5': 256,
}

#: Name, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    ('Tencent-Hunyuan/HunyuanDiT-v1.1-Diffusers', HunyuanDiT2DModel, _XL, 1408, 40, 1.5),
    (
        'Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers',
        HunyuanDiT2DModel,
        {**_XL, 'use_style_cond_and_image_meta_size': False},
        1408,
        40,
        1.5,
    ),
]

TEXT, TEXT_T5, HEADS, HEAD = 8, 32, 2, 8


class HunyuanDiT:
    num_blocks = 6
    stride = 16
    sizes = ((128, 128), (64, 96), (96, 32))
    # The first of those with a skip is the fifth.
    chosen_blocks = (0, 3, 4, 5)
    transformer_options = {}  # noqa: RUF012

    def build(self, folder):
        tokenizer = bert_tokenizer()
        HunyuanDiTPipeline(
            vae=kl_vae(4, scale=0.13025, shift=0.0, levels=4),
            text_encoder=bert(tokenizer, TEXT),
            tokenizer=tokenizer,
            text_encoder_2=t5_encoder(TEXT_T5),
            tokenizer_2=t5_tokenizer(max_length=256),
            transformer=HunyuanDiT2DModel(
                sample_size=8,
                patch_size=2,
                in_channels=4,
                num_layers=self.num_blocks,
                num_attention_heads=HEADS,
                attention_head_dim=HEAD,
                hidden_size=HEADS * HEAD,
                activation_fn='gelu-approximate',
                cross_attention_dim=TEXT,
                cross_attention_dim_t5=TEXT_T5,
                pooled_projection_dim=16,
                **self.transformer_options,
            ),
            scheduler=DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.03,
                beta_schedule='scaled_linear',
                prediction_type='v_prediction',
                steps_offset=1,
                clip_sample=False,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(folder)

    def stock_prompt(self, pipeline, batch, encoder, length):
        """As guidance asks for the empty prompt."""
        _, embeds, _, mask = pipeline.encode_prompt(
            'a bird',
            num_images_per_prompt=batch,
            max_sequence_length=length,
            text_encoder_index=encoder,
        )
        return embeds, mask

    def rotary(self, noisy):
        grid = (noisy.shape[-2] // 2, noisy.shape[-1] // 2)
        region = get_resize_crop_region_for_grid(grid, 512 // 8 // 2)
        return get_2d_rotary_pos_embed(HEAD, region, grid, output_type='pt')

    def stock_call(self, pipeline, noisy, model_time):
        batch = len(noisy)
        bert_embeds, bert_mask = self.stock_prompt(pipeline, batch, 0, 77)
        t5_embeds, t5_mask = self.stock_prompt(pipeline, batch, 1, 256)
        height, width = (8 * side for side in noisy.shape[-2:])
        pipeline.transformer(
            noisy,
            torch.tensor([self.timestep] * batch).to(noisy.dtype),
            encoder_hidden_states=bert_embeds,
            text_embedding_mask=bert_mask,
            encoder_hidden_states_t5=t5_embeds,
            text_embedding_mask_t5=t5_mask,
            image_meta_size=torch.tensor([[1024.0, 1024, height, width, 0, 0]] * batch),
            style=torch.tensor([0] * batch),
            image_rotary_emb=self.rotary(noisy),
            return_dict=False,
        )

    def points(self, block):
        path, whole = f'blocks.{block}', item(slice(None))
        return {
            'query': (f'{path}.attn1.to_q', whole),
            'key': (f'{path}.attn1.to_k', whole),
            'value': (f'{path}.attn1.to_v', whole),
            'attention': (f'{path}.attn1', whole),
            'output': (path, whole),
        }

    def stock_post(self, pipeline, noisy, model_time, block):
        path = f'blocks.{block}.attn1'
        with recorded(pipeline.transformer, [f'{path}.norm_q', f'{path}.norm_k']) as outputs:
            self.stock_call(pipeline, noisy, model_time)
        return {
            f'{name}_post': apply_rotary_emb(outputs[f'{path}.norm_{name[0]}'], self.rotary(noisy))
            .transpose(1, 2)
            .flatten(2)
            for name in ('query', 'key')
        }


class TestHunyuanDiT(HunyuanDiT, RootedProof):
    """Up to 1.1: the model is told the size of the image and a style."""

    stacks = ('blocks',)

    def test_truncation_leaves_the_skips_alone(self, load, pipeline):
        """Blocks with a skip are those beyond the middle of the *published* depth."""
        stock = [block.skip_linear is not None for block in pipeline.transformer.blocks]
        assert stock == [False] * 4 + [True] * 2
        for depth in range(1, self.num_blocks + 1):
            transformer = load(blocks=depth - 1).transformer
            assert [b.skip_linear is not None for b in transformer.blocks] == stock[:depth]


class TestHunyuanDiT12(HunyuanDiT, FeatureProof):
    """From 1.2 on it is not told; a prompt, and not the empty one."""

    transformer_options = {'use_style_cond_and_image_meta_size': False}  # noqa: RUF012
    condition = 'a red bird'

    def stock_prompt(self, pipeline, batch, encoder, length):
        embeds, _, mask, _ = pipeline.encode_prompt(
            self.condition,
            num_images_per_prompt=batch,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            text_encoder_index=encoder,
        )
        return embeds, mask


@pytest.mark.parametrize('told', [True, False])
def test_the_size_is_heard_up_to_version_1_1(tmp_path, told):
    proof = TestHunyuanDiT()
    proof.transformer_options = {'use_style_cond_and_image_meta_size': told}
    proof.build(tmp_path)
    dit = FrozenDiT.from_pretrained(tmp_path)
    latent, noise, *_ = proof.noisy(dit, (64, 64))
    (before,) = dit.features(latent, 300, noise).values()
    dit.condition_pixels_per_latent.mul_(2)
    (after,) = dit.features(latent, 300, noise).values()
    assert torch.equal(before, after) is not told


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)
