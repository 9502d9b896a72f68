# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What we cannot read is refused by its config alone, before any weight is looked for."""

import diffusers
import pytest
import torch

from mmaselect.diffusion import FrozenDiT, PipelineSource, family_of, known_families
from mmaselect.diffusion.families.chroma import ChromaFamily

VIDEO = (
    'WanVACETransformer3DModel',
    'LTXVideoTransformer3DModel',
    'HunyuanVideoTransformer3DModel',
    'CogVideoXTransformer3DModel',
    'MochiTransformer3DModel',
)


def save_config(name, folder):
    with torch.device('meta'):
        getattr(diffusers, name)().save_config(folder / 'transformer')


@pytest.mark.parametrize('name', VIDEO)
def test_video_transformers_are_refused(name, tmp_path):
    save_config(name, tmp_path)
    with pytest.raises(ValueError, match=f"'{name}' is not supported") as error:
        FrozenDiT.from_pretrained(tmp_path)
    assert 'video transformers are out of scope' in str(error.value)
    assert all(known in str(error.value) for known in known_families())


@pytest.mark.parametrize('needed', ['99.0', '1000.1.2'])
def test_too_old_a_diffusers_is_an_error_that_names_the_needed_one(needed, tmp_path, monkeypatch):
    save_config('ChromaTransformer2DModel', tmp_path)
    monkeypatch.setattr(ChromaFamily, 'min_diffusers', needed)
    with pytest.raises(ImportError, match=rf'Chroma.*needs diffusers >= {needed}') as error:
        FrozenDiT.from_pretrained(tmp_path)
    assert f'{diffusers.__version__} is installed' in str(error.value)
    assert f"pip install -U 'diffusers>={needed}'" in str(error.value)


def test_the_installed_diffusers_is_new_enough(tmp_path):
    save_config('ChromaTransformer2DModel', tmp_path)
    assert family_of(PipelineSource(tmp_path)).title == 'Chroma'
