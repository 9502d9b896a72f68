# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What ``import mmaselect`` gives, and what it does not import."""

import subprocess
import sys

import pytest

import mmaselect
from mmaselect import list_models, model_info
from mmaselect.openmmlab.compat import multimodal_is_broken


def test_every_public_name_is_there():
    names = [
        *('ASelecTDiT', 'FeatureExtractor', 'FeaturesOnly', 'FrozenDiT', 'SelectionResult'),
        'TransformersBackbone',
        *('list_criteria', 'list_models', 'model_info', 'select', 'select_timestep'),
    ]
    assert [name for name in mmaselect.__all__ if name != '__version__'] == names
    assert dir(mmaselect) == sorted(mmaselect.__all__)
    for name in names:
        assert getattr(mmaselect, name).__name__ in (name, name.partition('_')[0])
    with pytest.raises(AttributeError, match="'mmaselect' has no attribute 'no_such_thing'"):
        mmaselect.no_such_thing  # noqa: B018


@pytest.mark.skipif(multimodal_is_broken(), reason='MMPretrain has to be mended here at once')
def test_import_is_lazy_and_registers():
    code = (
        'import sys, mmaselect\n'
        'from mmengine.registry import MODELS\n'
        'assert "mmaselect" in MODELS._children and mmaselect.list_models()\n'
        'heavy = {"torch", "diffusers", "matplotlib", "PIL"} & sys.modules.keys()\n'
        'assert not heavy, heavy\n'
        'from mmaselect import FrozenDiT\n'
        'assert FrozenDiT.__module__.startswith("mmaselect.diffusion")\n'
        'assert MODELS.get("mmaselect.ASelecTDiT") is mmaselect.ASelecTDiT\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_list_models_filters():
    everything = list_models()
    assert len(set(everything)) == len(everything) > 20
    assert list_models('DIT-xl') == ['facebook/DiT-XL-2-256', 'facebook/DiT-XL-2-512']
    assert list_models(['*sigma*', 'schnell']) == [
        'black-forest-labs/FLUX.1-schnell',
        'PixArt-alpha/PixArt-Sigma-XL-2-1024-MS',
    ]
    assert list_models('sana*') == []  # a pattern with a wildcard fits a whole name
    assert list_models('*/sana*', exclude_filters=['600M', '1600M']) == [
        'Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers'
    ]
    assert {model_info(name).family for name in list_models(family='flux')} == {'flux'}
    assert {model_info(name).family for name in list_models(family='flux*')} == {'flux', 'flux2'}
    gated, free = list_models(gated=True), list_models(gated=False)
    assert gated and free and sorted(gated + free) == sorted(everything)


def test_model_info():
    model = model_info('black-forest-labs/FLUX.1-dev')
    assert (model.blocks, model.transformer_class) == (57, 'FluxTransformer2DModel')
    with pytest.raises(KeyError, match=r"'flux' is not in the list .* list_models\(\) has"):
        model_info('flux')
