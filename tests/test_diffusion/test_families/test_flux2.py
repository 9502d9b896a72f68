# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import functools

import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from diffusers.models.embeddings import apply_rotary_emb
from harness import FamilyProof, item, last_tokens
from published import check_published
from tiny_chat import chat_tokenizer, mistral3, pixtral_processor, qwen3

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families.flux2 import Flux2Family

_DEV = {
    'patch_size': 1,
    'in_channels': 128,
    'out_channels': None,
    'num_layers': 8,
    'num_single_layers': 48,
    'attention_head_dim': 128,
    'num_attention_heads': 48,
    'joint_attention_dim': 15360,
    'timestep_guidance_channels': 256,
    'mlp_ratio': 3.0,
    'axes_dims_rope': [32, 32, 32, 32],
    'rope_theta': 2000,
    'eps': 1e-06,
    'guidance_embeds': True,
}
_KLEIN_4B = {
    **_DEV,
    'num_layers': 5,
    'num_single_layers': 20,
    'num_attention_heads': 24,
    'joint_attention_dim': 7680,
    'guidance_embeds': False,
}
_KLEIN_9B = {
    **_DEV,
    'num_layers': 8,
    'num_single_layers': 24,
    'num_attention_heads': 32,
    'joint_attention_dim': 12288,
    'guidance_embeds': False,
}
#: Name, class, config as on the model page, width, blocks, parameters in billions as published.
PUBLISHED = [
    ('black-forest-labs/FLUX.2-dev', Flux2Transformer2DModel, _DEV, 6144, 56, 32),
    ('black-forest-labs/FLUX.2-klein-4B', Flux2Transformer2DModel, _KLEIN_4B, 3072, 25, 4),
    ('black-forest-labs/FLUX.2-klein-9B', Flux2Transformer2DModel, _KLEIN_9B, 4096, 32, 9),
]

DOUBLE, SINGLE, WIDTH, TEXT = 2, 3, 32, 8


@functools.lru_cache(maxsize=4)
def embedded(pipeline, batch):
    with torch.no_grad():
        return pipeline.encode_prompt([''] * batch)


class TestFlux2Klein(FamilyProof):
    """Qwen3 embeds the prompt; no guidance embedding."""

    num_blocks = DOUBLE + SINGLE
    stride = 8
    stacks = ('transformer_blocks', 'single_transformer_blocks')
    pipeline_class = Flux2KleinPipeline
    guidance = None

    @property
    def chosen_blocks(self):
        return (0, 1, 2, 4)  # the last and the first of the two stacks, too

    def encoder(self):
        return {'text_encoder': qwen3(TEXT, layers=28), 'tokenizer': chat_tokenizer()}

    def build(self, folder):
        vae = AutoencoderKLFlux2(
            down_block_types=('DownEncoderBlock2D',) * 3,
            up_block_types=('UpDecoderBlock2D',) * 3,
            block_out_channels=(4, 4, 4),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
        self.pipeline_class(
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=DOUBLE,
                num_single_layers=SINGLE,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * TEXT,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=self.guidance is not None,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=vae,
            **self.encoder(),
        ).save_pretrained(folder)

    def stock_call(self, pipeline, noisy, model_time):
        batch = len(noisy)
        embeds, text_ids = embedded(pipeline, batch)
        pipeline.transformer(
            hidden_states=pipeline._pack_latents(noisy),
            timestep=model_time / 1000,
            guidance=self.guidance and torch.full((batch,), self.guidance),
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_ids(noisy),
        )

    def points(self, block):
        if block < DOUBLE:
            path = f'transformer_blocks.{block}'
            return {
                'query': (f'{path}.attn.to_q', last_tokens),
                'key': (f'{path}.attn.to_k', last_tokens),
                'value': (f'{path}.attn.to_v', last_tokens),
                'attention': (f'{path}.attn', item(0)),
                'output': (path, item(1)),
            }
        path = f'single_transformer_blocks.{block - DOUBLE}'
        fused = f'{path}.attn.to_qkv_mlp_proj'

        def part(index):  # Q, K, V, then twice the hidden size of the feed-forward part
            return lambda output, n: output.split([WIDTH] * 3 + [6 * WIDTH], dim=2)[index][:, -n:]

        return {
            'query': (fused, part(0)),
            'key': (fused, part(1)),
            'value': (fused, part(2)),
            'output': (path, last_tokens),
        }

    def stock_post(self, pipeline, noisy, model_time, block):
        """And the attention of a single-stream block, from the input of its joint projection."""
        model = pipeline.transformer
        attn = (
            model.transformer_blocks[block].attn
            if block < DOUBLE
            else model.single_transformer_blocks[block - DOUBLE].attn
        )
        caught = {}
        hooks = [
            attn.norm_q.register_forward_hook(lambda m, args, out: caught.update(query=out)),
            attn.norm_k.register_forward_hook(lambda m, args, out: caught.update(key=out)),
        ]
        if block >= DOUBLE:
            hooks.append(
                attn.to_out.register_forward_pre_hook(lambda m, args: caught.update(joint=args[0]))
            )
        self.stock_call(pipeline, noisy, model_time)
        for hook in hooks:
            hook.remove()
        n = noisy.shape[2] * noisy.shape[3]
        rotation = model.pos_embed(pipeline._prepare_latent_ids(noisy)[0])
        post = {
            f'{name}_post': apply_rotary_emb(caught[name][:, -n:], rotation, sequence_dim=1)
            for name in ('query', 'key')
        }
        post = {name: value.flatten(2) for name, value in post.items()}
        return post if block < DOUBLE else {**post, 'attention': caught['joint'][:, -n:, :WIDTH]}

    def stock_latent(self, pipeline, images):
        return pipeline._encode_vae_image(images, generator=None)

    def test_single_blocks_are_left_out_where_none_is_needed(self, load):
        assert len(load(blocks=DOUBLE - 1).transformer.single_transformer_blocks) == 0


class _Dev(TestFlux2Klein):
    pipeline_class = Flux2Pipeline
    guidance = 4.0

    def encoder(self):
        return {'text_encoder': mistral3(TEXT, layers=31), 'tokenizer': pixtral_processor()}


def test_dev(tmp_path):
    """Mistral 3 embeds the prompt; a guidance embedding, told the pipeline's default scale."""
    proof = _Dev()
    proof.build(tmp_path)
    pipeline = proof.stock_pipeline(tmp_path)
    pipeline.transformer.requires_grad_(False)
    load = functools.partial(FrozenDiT.from_pretrained, tmp_path)
    proof.test_features_equal_stock_diffusers(load, pipeline, size=1)
    other = load(condition={'guidance': 1.0})
    latent, noise, *_ = proof.noisy(other, proof.sizes[1])
    features = [dit.features(latent, 300, noise)[2, 'query'] for dit in (load(), other)]
    assert not torch.equal(*features)


def test_guidance_is_an_option_of_dev_alone():
    dev, klein = Flux2Family(_DEV), Flux2Family(_KLEIN_4B)
    assert dev.parse_condition({'guidance': 2.5}) == ('', {'guidance': 2.5})
    with pytest.raises(ValueError, match=r'unknown keys.*guidance'):
        klein.parse_condition({'guidance': 2.5})


@pytest.mark.parametrize('num_blocks', [1, 8, 9, 56])
def test_build_overrides(num_blocks):
    built = Flux2Family(_DEV).build_overrides(num_blocks)
    assert built == {
        'num_layers': min(num_blocks, 8),
        'num_single_layers': max(num_blocks - 8, 0),
    }


@pytest.mark.parametrize('model', PUBLISHED, ids=lambda model: model[0])
def test_published_sizes(model):
    check_published(model)
