# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json
import shutil
from typing import ClassVar

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    UniPCMultistepScheduler,
)
from harness import FamilyProof, FeatureProof, first_tokens, item
from published import check_published, published_config
from tiny_language import llama
from tiny_text import clip_encoder, clip_tokenizer, qwen2_tokenizer, t5_encoder, t5_tokenizer
from tiny_vae import kl_vae
from transformers import AutoTokenizer, LlamaForCausalLM

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.hidream import HiDreamFamily

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'HiDream-ai/HiDream-I1-Full': (2560, 48, 17.1),  # '17B'
    'HiDream-ai/HiDream-I1-Dev': (2560, 48, 17.1),
    'HiDream-ai/HiDream-I1-Fast': (2560, 48, 17.1),
}

T5, LLAMA, DOUBLE, SINGLE, SIDE = 32, 16, 2, 3, 64


def save_pipeline(folder, scheduler):
    tokenizer = qwen2_tokenizer(max_length=128)
    HiDreamImagePipeline(
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            num_layers=DOUBLE,
            num_single_layers=SINGLE,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[T5, LLAMA],
            text_emb_dim=20,
            num_routed_experts=4,
            num_activated_experts=2,
            axes_dims_rope=(8, 4, 4),
            max_resolution=(24, 24),
            llama_layers=[0, 1, 2, 2, 2],
        ),
        scheduler=scheduler,
        vae=kl_vae(scale=0.3611, shift=0.1159),
        text_encoder=clip_encoder(16, projection=12, max_length=128, seed=3),
        tokenizer=clip_tokenizer(128),
        text_encoder_2=clip_encoder(8, projection=8, max_length=128, seed=4),
        tokenizer_2=clip_tokenizer(128),
        text_encoder_3=t5_encoder(T5),
        tokenizer_3=t5_tokenizer(128),
        text_encoder_4=llama(tokenizer, LLAMA),
        tokenizer_4=tokenizer,
    ).save_pretrained(folder)


def leave_llama_out(folder):
    """As the published repositories do; returns where it lies then."""
    beside = folder / 'llama'
    for part in ('text_encoder_4', 'tokenizer_4'):
        shutil.copytree(folder / part, beside, dirs_exist_ok=True)
        shutil.rmtree(folder / part)
    index = json.loads((folder / 'model_index.json').read_text())
    del index['text_encoder_4'], index['tokenizer_4']
    (folder / 'model_index.json').write_text(json.dumps(index))
    return beside


class HiDream:
    num_blocks = DOUBLE + SINGLE
    stride = 8
    # Of as many pixels as the pipeline makes; those that are not square are filled up.
    sizes = ((SIDE, SIDE), (SIDE // 2, 2 * SIDE), (2 * SIDE, SIDE // 2))
    stacks = ('double_stream_blocks', 'single_stream_blocks')
    call_options: ClassVar = {'guidance_scale': 0.0}

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def stock_pipeline(self, folder, **options):
        pipeline = super().stock_pipeline(folder, **options)
        pipeline.default_sample_size = SIDE // pipeline.vae_scale_factor
        return pipeline

    def points(self, block):
        if block < DOUBLE:
            path, image = f'double_stream_blocks.{block}.block', item(0, first_tokens)
        else:
            path, image = f'single_stream_blocks.{block - DOUBLE}.block', first_tokens
        return {
            'query': (f'{path}.attn1.to_q', first_tokens),
            'key': (f'{path}.attn1.to_k', first_tokens),
            'value': (f'{path}.attn1.to_v', first_tokens),
            'attention': (f'{path}.attn1', image),
            'output': (path, image),
        }

    def post_points(self, block):
        return self.points(block)['attention'][0], first_tokens


class TestHiDream(HiDream, FamilyProof):
    """The scheduler of Full, and a folder that holds all four encoders."""

    # Of a generation with three steps.
    timesteps = (667, 334)
    timestep = 667

    def build(self, folder):
        save_pipeline(
            folder,
            UniPCMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type='flow_prediction'
            ),
        )

    def step(self, timestep):
        return 3 - timestep // 333

    def steps(self, pipeline, noisy, timestep):
        return self.steps_until(pipeline, noisy, self.step(timestep), of=3)

    def stock_level(self, pipeline, timestep):
        sigma = pipeline.scheduler.sigmas[self.step(timestep)]
        return (1 - sigma).item(), sigma.item()

    def test_too_large_an_image_is_refused(self, load):
        dit = load()
        dit.encode(torch.zeros(1, 3, 128, 128))
        dit.encode(torch.zeros(1, 3, 96, 88))
        with pytest.raises(ValueError, match=r'144 tokens .*not square.*16x10.*9216 pixels'):
            dit.encode(torch.zeros(1, 3, 128, 80))


class TestHiDreamWithLlamaElsewhere(HiDream, FeatureProof):
    """A prompt; shifted by the tokens of the largest square, whatever the image's."""

    prompt = 'a red bird'
    condition: ClassVar = {'prompt': 'a red bird'}

    def build(self, folder):
        save_pipeline(folder, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
        type(self).condition = {**self.condition, 'llama': str(leave_llama_out(folder))}

    def stock_pipeline(self, folder, **options):
        return super().stock_pipeline(
            folder,
            text_encoder_4=LlamaForCausalLM.from_pretrained(
                folder / 'llama', dtype=options.get('torch_dtype')
            ),
            tokenizer_4=AutoTokenizer.from_pretrained(folder / 'llama'),
            **options,
        )


def test_llama_must_be_given_where_the_pipeline_has_none(tmp_path):
    save_pipeline(tmp_path, FlowMatchEulerDiscreteScheduler(shift=3.0))
    leave_llama_out(tmp_path)
    with pytest.raises(ValueError, match=r'Llama 3\.1 8B as well.*llama=.meta-llama/Llama-3\.1'):
        FrozenDiT.from_pretrained(tmp_path, blocks=0)
    nowhere = {'llama': str(tmp_path / 'vae')}
    with pytest.raises(ValueError, match=r'condition llama=.*vae.: no Llama with its tokenizer'):
        FrozenDiT.from_pretrained(tmp_path, blocks=0, condition=nowhere)


def test_another_llama_embeds_the_prompt_again(tmp_path):
    save_pipeline(tmp_path, FlowMatchEulerDiscreteScheduler(shift=3.0))
    beside = leave_llama_out(tmp_path)
    seen = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(beside)
        torch.nn.init.normal_(model.model.embed_tokens.weight)
        model.save_pretrained(beside)
        dit = FrozenDiT.from_pretrained(tmp_path, blocks=0, condition={'llama': str(beside)})
        seen.append(dit.condition_llama)
    assert not torch.equal(*seen)


def test_all_projections_of_text_are_kept(saved):
    """They are numbered from the last block on, and the first reads the last two."""
    folder = saved(TestHiDream)
    dit = FrozenDiT.from_pretrained(folder, blocks=0)
    assert len(dit.transformer.caption_projection) == DOUBLE + SINGLE + 1
    assert len(dit.transformer.single_stream_blocks) == 0


def test_tokens_of_the_largest_square():
    assert HiDreamFamily(published_config('HiDream-ai/HiDream-I1-Full')).max_tokens == 4096


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    check_published(name, *PUBLISHED[name])
