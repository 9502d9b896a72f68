# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from typing import ClassVar

import diffusers
import pytest
import torch
from harness import FamilyProof, first_tokens, item
from published import check_published
from tiny_sd3 import save_sd3

from mmaselect.diffusion import FrozenDiT
from mmaselect.models import ASelecTDiT

#: Name to width, blocks, and parameters in billions as published.
PUBLISHED = {
    'stabilityai/stable-diffusion-3-medium-diffusers': (1536, 24, 2.0),
    'stabilityai/stable-diffusion-3.5-medium': (1536, 24, 2.5),
    'stabilityai/stable-diffusion-3.5-large': (2432, 38, 8.1),
}


class TestSD3Medium(FamilyProof):
    """No QK norm, no second attention; T5 left out."""

    left_out: ClassVar = {'text_encoder_3': None, 'tokenizer_3': None}

    num_blocks = 5
    stride = 8

    def build(self, folder):
        save_sd3(folder)

    def stock_pipeline(self, folder, **options):
        return super().stock_pipeline(folder, **options, **self.left_out)

    def points(self, block):
        path = f'transformer_blocks.{block}'
        return {
            'query': (f'{path}.attn.to_q', lambda output, n: output),
            'key': (f'{path}.attn.to_k', lambda output, n: output),
            'value': (f'{path}.attn.to_v', lambda output, n: output),
            'attention': (f'{path}.attn', item(0)),
            'output': (path, item(1)),
        }

    def test_a_size_beyond_the_position_table_is_refused(self, load):
        dit = load()
        dit.encode(torch.zeros(1, 3, 96, 96))
        with pytest.raises(ValueError, match=r'96x104 image.*12x12 tokens.*96 pixels'):
            dit.encode(torch.zeros(1, 3, 96, 97))

    def test_default_block_is_the_papers(self, load):
        family = load().family
        for depth, block in ((24, 9), (38, 14)):
            assert type(family)({**family.config, 'num_layers': depth}).default_block == block


class TestSD35Medium(TestSD3Medium):
    """QK norm, a second attention in the first blocks; a prompt, through T5 as well."""

    condition: ClassVar = {'prompt': 'a bird', 't5': True}
    prompt = 'a bird'
    left_out: ClassVar = {}

    def build(self, folder):
        save_sd3(folder, dual_attention_layers=(0, 1, 2), qk_norm='rms_norm')

    def post_points(self, block):
        return f'transformer_blocks.{block}.attn', first_tokens

    def test_second_attention_is_built_where_the_model_has_it(self, load):
        blocks = load(blocks=-1).transformer.transformer_blocks
        assert [b.attn2 is not None for b in blocks] == [True] * 3 + [False] * 2

    def test_features_of_the_wrong_kind_are_refused(self, saved):
        with pytest.raises(ValueError, match=r'query_post.*choose from query, key, value'):
            FrozenDiT.from_pretrained(saved(TestSD3Medium), features='query_post')


def test_prompt_and_t5_matter(saved):
    folder = saved(TestSD3Medium)
    noise = torch.randn(1, 16, 8, 8)
    seen = []
    for condition in (None, 'a bird', {'prompt': 'a bird', 't5': True}, {'t5': False}):
        dit = FrozenDiT.from_pretrained(folder, blocks=1, condition=condition)
        seen.append(dit.features(noise, 500, noise)[1, 'query'])
    assert torch.equal(seen[0], seen[3])
    assert not any(torch.equal(a, b) for i, a in enumerate(seen[:3]) for b in seen[:i])


def test_a_checkpoint_knows_its_prompt(saved):
    folder = saved(TestSD3Medium)

    def make(condition=None):
        return ASelecTDiT(folder, blocks=[1], timestep=100, condition=condition)

    state = make('a bird').state_dict()
    make('a bird').load_state_dict(state)
    with pytest.raises(ValueError, match=r"condition .*'a bird'.*, the config says .*''"):
        make().load_state_dict(state)
    long = 'a bird on a branch, and ' * 20
    state = make(long + 'a tree').state_dict()
    with pytest.raises(ValueError, match='condition'):
        make(long + 'a nest').load_state_dict(state)


@pytest.mark.parametrize(
    'load_kwargs', [{'device_map': {'': 'cpu'}}, {'low_cpu_mem_usage': False}], ids=str
)
def test_other_ways_of_loading_read_the_same(saved, load_kwargs):
    """The block that was built too many is gone before a device map or a weight sees it."""
    folder = saved(TestSD3Medium)
    noise = torch.randn(1, 16, 8, 8)
    plain = FrozenDiT.from_pretrained(folder, blocks=2)
    other = FrozenDiT.from_pretrained(dict(model=folder, load_kwargs=load_kwargs), blocks=2)
    assert type(other.transformer) is diffusers.SD3Transformer2DModel
    assert len(other.transformer.transformer_blocks) == 3
    expected = plain.features(noise, 300, noise)[2, 'query']
    assert torch.equal(other.features(noise, 300, noise)[2, 'query'], expected)


def test_quantised_weights(saved):
    quantization = pytest.importorskip('torchao.quantization', reason='torchao quantizes on a CPU')
    folder = saved(TestSD3Medium)
    noise = torch.randn(1, 16, 8, 8)
    plain = FrozenDiT.from_pretrained(folder, blocks=2)
    config = diffusers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    quantised = FrozenDiT.from_pretrained(
        dict(model=folder, load_kwargs={'quantization_config': config}), blocks=2
    )
    assert 'Int8' in type(quantised.transformer.transformer_blocks[0].attn.to_q.weight).__name__
    expected = plain.features(noise, 300, noise)[2, 'query']
    error = (quantised.features(noise, 300, noise)[2, 'query'] - expected).norm() / expected.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
    width, blocks, billions = PUBLISHED[name]
    check_published(
        *(name, width, blocks, billions),
        default_block={24: 9, 38: 14}[blocks],
        # 0.23 of SD3.5-medium's 2.5 billion are its position table.
        stored_tables=name.endswith('3.5-medium'),
    )
