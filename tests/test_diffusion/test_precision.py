# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``dtype='auto'``: what was published, and what the hardware has."""

import json
import shutil

import diffusers
import pytest
import torch

from mmaselect.diffusion import FrozenDiT, PipelineSource
from mmaselect.diffusion import precision as module
from mmaselect.diffusion.precision import auto_dtype, published_dtype


def published(folder, target, dtype, variant=None, **kwargs):
    """A copy of a pipeline with its transformer in another precision."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    for file in (target / 'transformer').iterdir():
        file.unlink()
    model = diffusers.DiTTransformer2DModel.from_pretrained(folder, subfolder='transformer')
    # One weight in fp32, as some checkpoints have it.
    model.to(dtype).pos_embed.proj.float()
    model.save_pretrained(target / 'transformer', variant=variant, **kwargs)
    return str(target)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    'how',
    [
        dict(),
        dict(safe_serialization=False),
        dict(max_shard_size='20KB'),
        dict(variant='half'),
        dict(variant='half', max_shard_size='20KB'),
    ],
)
def test_most_weights_decide(tiny_dit, tmp_path, dtype, how):
    folder = published(tiny_dit, tmp_path / 'model', dtype, **how)
    assert published_dtype(PipelineSource(dict(model=folder, variant=how.get('variant')))) == dtype


def test_the_hardware_decides_where_it_must(tiny_dit, tmp_path, monkeypatch):
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    sources = [
        PipelineSource(published(tiny_dit, tmp_path / str(dtype), dtype)) for dtype in dtypes
    ]

    def chosen(accelerated, has_bf16):
        monkeypatch.setattr(module, 'cpu_has_bf16', lambda: has_bf16)
        return tuple(auto_dtype(source, accelerated) for source in sources)

    assert chosen(True, False) == dtypes
    assert chosen(False, False) == (torch.float32,) * 3
    assert chosen(False, True) == (torch.float32, torch.float32, torch.bfloat16)


def test_a_model_is_loaded_in_it(tiny_dit, tmp_path, monkeypatch):
    folder = published(tiny_dit, tmp_path / 'model', torch.bfloat16)
    monkeypatch.setattr(module, 'cpu_has_bf16', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: False)
    assert FrozenDiT.from_pretrained(folder, dtype='auto').dtype == torch.bfloat16
    monkeypatch.setattr(module, 'cpu_has_bf16', lambda: False)
    assert FrozenDiT.from_pretrained(folder, dtype='auto').dtype == torch.float32


def test_without_weights_it_says_so(tiny_dit, tmp_path, monkeypatch):
    folder = published(tiny_dit, tmp_path / 'model', torch.bfloat16)
    for file in (tmp_path / 'model' / 'transformer').glob('*.safetensors'):
        file.unlink()
    monkeypatch.setattr(module, 'cpu_has_bf16', lambda: True)
    with pytest.raises(FileNotFoundError, match=r"dtype='auto' looks at the weights.*Set dtype to"):
        auto_dtype(PipelineSource(folder))
    json.loads((tmp_path / 'model' / 'transformer' / 'config.json').read_text())
