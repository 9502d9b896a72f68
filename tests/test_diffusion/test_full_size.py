# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Published models at full size on a CUDA device that nobody has: devices, dtypes, waits, memory.

Every family at miniature size is in ``test_families``; here are those that our configs read, and
the largest. They take seconds each, most of which goes into making modules.
"""

import gc
import sys
from pathlib import Path

import pytest
import torch
from fake_cuda import FakeCuda

from mmaselect.diffusion import FrozenDiT
from mmaselect.images.views import ViewBoxes
from mmaselect.launch.config import load_config
from mmaselect.models import ASelecTDiT
from mmaselect.selection.criteria import spectrum
from mmaselect.selection.criteria.view_pairs import (
    info_nce,
    retrieval_hits,
    standardized_match,
    whiten_pairs,
)
from mmaselect.selection.options import SelectionOptions
from mmaselect.selection.scoring import EncodedBatch, Reading, on_host, score_step, start_meters

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / 'benchmarks').is_dir():
    pytest.skip('benchmarks/ is not in an installed package', allow_module_level=True)
sys.path.insert(0, str(ROOT / 'benchmarks'))
from full_size import MODELS, build  # noqa: E402

BATCH = SelectionOptions().batch_size
GIB = 2**30
#: Most that may lie on the device at native size with the default batch, in GiB: what the weights
#: take, and as much as was counted for the largest layer of the VAE, and a tenth.
ROOM = {
    'facebook/DiT-XL-2-512': 6.5,
    'stabilityai/stable-diffusion-3-medium-diffusers': 7.8,
    'stabilityai/stable-diffusion-3.5-medium': 8.5,
    'stabilityai/stable-diffusion-3.5-large': 12.7,
    'black-forest-labs/FLUX.1-dev': 22.0,
    'Efficient-Large-Model/Sana_1600M_1024px_diffusers': 10.1,
    'Qwen/Qwen-Image': 30.2,
}
CRITERIA = (
    'InstanceSensitivity', 'InstanceRetrieval', 'ViewAlignment', 'InstanceDiscrimination',
    'DenseCorrespondence', 'CrossSpectrumHFR', 'HighFrequencyRatio', 'PaperHFR',
    dict(type='FisherScore', num_classes=5),
)  # fmt: skip
each = pytest.mark.parametrize(
    'model',
    [
        pytest.param(model, marks=[pytest.mark.thorough] if place else [], id=model.name)
        for place, model in enumerate(MODELS)
    ],
)


@pytest.fixture
def device():
    with FakeCuda() as entered:
        yield entered
    spectrum.band_weights.cache_clear()  # a tensor of a device that is no more
    gc.collect()


def batch_of(dit, size, images=BATCH):
    pixels = torch.zeros(images, 3, size, size, device='cuda')
    latent = dit.encode(pixels)
    return pixels, latent, torch.zeros_like(latent)


@each
def test_a_pass_and_the_scoring_of_each_criterion(model, device):
    dit = build(model, 'cuda', features=('query', 'output'))
    gc.collect()
    device.forget()
    assert {tensor.device.type for tensor in (*dit.parameters(), *dit.buffers())} == {'cuda'}
    assert {one.dtype for one in dit.transformer.parameters()} == {model.dtype}
    _, latent, noise = batch_of(dit, model.native)
    assert latent.dtype == torch.float32
    for number, autocast in enumerate((torch.float16, torch.bfloat16)):
        with torch.autocast('cuda', autocast):
            maps = dit.features(latent, 300, noise)
        assert {one.dtype for one in maps.values()} == {model.dtype}
        assert {one.device.type for one in maps.values()} == {'cuda'}
        if number == 0:  # what is copied once, is copied in the first pass
            assert device.peak < ROOM[model.name] * GIB, device.peak / GIB
            del maps
            device.waits.clear()
    assert not device.waits

    criteria = SelectionOptions(criterion=CRITERIA[0], others=CRITERIA[1:]).criteria
    assert len(criteria) == len(CRITERIA)
    meters = start_meters(criteria, dit.keys, torch.device('cuda'))
    boxes = torch.tensor([[0.0, 0.0, 0.8, 0.8], [0.2, 0.2, 1.0, 1.0]]).expand(BATCH, 2, 4)
    readings = Reading(latent, noise), Reading(latent, noise)
    batch = EncodedBatch(
        readings,
        list(range(BATCH)),
        torch.arange(BATCH) % 5,
        readings,
        ViewBoxes(boxes, torch.zeros(BATCH, 2, dtype=torch.bool)),
    )
    device.forget()
    for _ in range(2):
        score_step(dit, batch, 300, meters)
        if not device.waits:
            break
        device.forget()  # filters of a spectrum are made once
    assert not device.waits
    assert device.peak < ROOM[model.name] * GIB, device.peak / GIB
    computed = [
        meter.compute.__wrapped__()
        for (_, name), meter in meters.items()
        if not meter.views and name != 'FisherScore'
    ]
    assert computed and not device.waits
    assert {v.device.type for found in computed for v in found.values()} == {'cuda'}
    with pytest.raises(RuntimeError, match='numpy'):  # there are no values to go on with
        on_host(computed, 1)
    assert len(device.waits) == 1, 'one copy brings all numbers'


@pytest.mark.parametrize('width', [64, 1152])
def test_views_are_compared_without_a_wait(width, device):
    first, second = torch.zeros(2, 128, width, device='cuda')
    pairs = whiten_pairs(first, second)
    values = standardized_match(*pairs), retrieval_hits(*pairs), info_nce(*pairs, 0.1)
    assert not device.waits
    assert {(one.device.type, one.dtype, len(one)) for one in values} == {
        ('cuda', torch.float64, 128)
    }


@pytest.mark.thorough
@each
def test_the_backbone_and_heads_in_training_and_evaluation(model, device, monkeypatch):
    seg = cls = None
    if model.heads is not None:
        names = (f'models/aselect_{model.heads}_upernet', 'heads/linear', 'heads/attnpool')
        base = ROOT / 'configs' / '_base_'
        seg, *cls = (load_config(base / f'{name}.py').model for name in names)
    blocks = [8, 11] if seg is None else list(seg.backbone.blocks)
    dit = build(model, 'cuda', lambda family: blocks)
    monkeypatch.setattr(FrozenDiT, 'from_pretrained', lambda *args, **kwargs: dit)
    for noise in ('fixed', 'fresh'):
        backbone = ASelecTDiT(model.name, timestep=300, noise=noise)
        images = torch.zeros(2, 3, 512, 512, device='cuda')
        for training in (True, False):
            backbone.train(training)
            assert not any(module.training for module in dit.modules())
            for autocast in (torch.float16, torch.bfloat16):
                with torch.autocast('cuda', autocast):
                    for _ in range(4):  # the first batches are looked at
                        device.forget()
                        maps = backbone(images)
                assert not device.waits, (noise, training)
                assert {(m.device.type, m.dtype) for m in maps} == {('cuda', torch.float32)}
                assert not any(m.requires_grad for m in maps)
    if seg is None:
        return
    from mmpretrain.registry import MODELS as PRETRAIN_MODELS
    from mmseg.registry import MODELS as SEG_MODELS

    width = maps[0].shape[1]
    with torch.device('cuda'):
        neck = SEG_MODELS.build(dict(seg.neck, embed_dim=width)).train()
        heads = [
            SEG_MODELS.build(dict(seg[name])).train() for name in ('decode_head', 'auxiliary_head')
        ]
        linear, pool = (
            PRETRAIN_MODELS.build(dict(one.head, in_channels=width)).train() for one in cls
        )
    device.forget()
    # Forward alone: autograd wants the context of a true device.
    with torch.autocast('cuda', torch.float16):
        pyramid = neck(maps)
        logits = [head(pyramid) for head in heads]
        logits += [linear((maps[0].mean((2, 3)),)), pool((maps[0],))]
        losses = [one.float().logsumexp(1).mean() for one in logits]
    assert {(one.device.type, one.dtype) for one in logits} == {('cuda', torch.float16)}
    assert {one.device.type for one in losses} == {'cuda'}
    assert not device.waits


@pytest.mark.thorough
def test_the_page_has_the_counted_figures():
    import gpu

    model, options = MODELS[0], SelectionOptions()
    page = gpu.PAGE.read_text(encoding='utf-8')
    for line in gpu.table({model: gpu.need(model, options)}, options).splitlines():
        assert line in page, 'run `python benchmarks/gpu.py --write`'
