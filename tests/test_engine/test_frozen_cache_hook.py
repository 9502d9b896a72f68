# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What is said and refused before a run with a cache, and runs of one and two ranks."""

import io
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from forks import run_ranks
from mmengine.dataset import BaseDataset
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import DATASETS
from mmengine.runner import Runner

from mmaselect.engine.hooks.frozen_cache_hook import count_variants
from mmaselect.models import ASelecTDiT


class Pictures(torch.utils.data.Dataset):
    """Random pictures; ``change`` is the augmentation."""

    def __init__(self, change, number=8):
        generator = torch.Generator().manual_seed(1)
        self.pictures = torch.rand(number, 3, 32, 32, generator=generator)
        self.change = change

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        return dict(inputs=self.change(self.pictures[index]), labels=index % 2)


def same(picture):
    return picture


def flip(picture):
    return picture.flip(2) if random.random() < 0.5 else picture


def crops(picture):
    top, left = np.random.randint(2), np.random.randint(3)
    return picture[:, top : top + 28, left : left + 28]


def jitter(picture):
    return picture * torch.empty(1).uniform_(0.5, 1)


class Model(BaseModel):
    """A linear classifier of features."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = torch.nn.Linear(16, 2)

    def init_weights(self):
        torch.nn.init.constant_(self.head.weight, 0.01)
        torch.nn.init.zeros_(self.head.bias)

    def forward(self, inputs, labels=None, mode='tensor'):
        logits = self.head(self.backbone(inputs)[0].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=torch.nn.functional.cross_entropy(logits, labels))
        return logits


def make_runner(folder, work_dir, change=same, cache='features', epochs=3, **options):
    backbone = ASelecTDiT(folder, blocks=[2], timestep=300, noise='fixed', cache=cache)
    backbone.passes = 0

    def count(module, args):
        backbone.passes += len(args[0])

    backbone.dit.transformer.register_forward_pre_hook(count)
    return Runner(
        model=Model(backbone),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            dataset=Pictures(change),
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        custom_hooks=[dict(type='EMAHook'), dict(type='mmaselect.FrozenCacheHook')],
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        default_scope='mmengine',
        randomness=dict(seed=0),
        experiment_name=f'{work_dir.name}{epochs}',
        **options,
    )


def test_a_run_and_a_second_one(tiny_dit, tmp_path):
    weights = {}
    for name, cache, passes in (
        ('plain', None, 24),
        ('one', 'features', 8),
        ('two', 'features', 0),
    ):
        runner = make_runner(tiny_dit, tmp_path / name, cache=cache)
        runner.train()
        assert runner.model.backbone.passes == passes
        assert isinstance(next(h for h in runner.hooks if isinstance(h, EMAHook)), EMAHook)
        weights[name] = runner.model.head.weight.detach()
    assert torch.equal(weights['one'], weights['two'])
    assert torch.allclose(weights['plain'], weights['one'], atol=1e-6)


def test_a_resumed_run_ends_the_same(tiny_dit, tmp_path):
    whole = make_runner(tiny_dit, tmp_path / 'whole')
    whole.train()
    shutil.rmtree(tmp_path / 'cache')
    make_runner(tiny_dit, tmp_path / 'parts', epochs=1).train()
    rest = make_runner(tiny_dit, tmp_path / 'parts', resume=True)
    rest.train()
    assert rest.epoch == 3 and rest.model.backbone.passes == 0
    assert torch.allclose(rest.model.head.weight, whole.model.head.weight, atol=1e-6)


def test_room_is_told_and_bounded(tiny_dit, tmp_path):
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    runner = make_runner(tiny_dit, tmp_path / 'run', change=flip)
    MMLogger.get_current_instance().addHandler(handler)
    runner.train()
    MMLogger.get_current_instance().removeHandler(handler)
    # 16 channels of 8 x 8 tokens, and a key of 16 bytes.
    needed = 8 * 2 * (16 * 64 * 4 + 16) / 1e6
    assert f'8 training images in about 2 variants take {needed:.1f} MB as float32' in (
        heard.getvalue()
    )
    assert 8 < runner.model.backbone.passes <= 16
    wanted = {'training': (8, 2, (32, 32)), 'validation': (3, 1, (32, 32))}
    text = runner.model.backbone.cache.check_room(wanted, [300, 7])
    assert '2 variants and 3 validation images at 2 timesteps take 0.2 MB' in text
    runner = make_runner(tiny_dit, tmp_path / 'small', cache=dict(kind='features', max_gb=1e-5))
    with pytest.raises(ValueError, match=r'the cache is too small.*Raise max_gb.*cache=None'):
        runner.train()
    assert runner.model.backbone.passes == 0, 'before it starts'


def test_what_is_random_without_end_is_refused(tiny_dit, tmp_path):
    runner = make_runner(tiny_dit, tmp_path / 'run', change=jitter)
    with pytest.raises(ValueError, match=r'backbone: .* cannot hold .* more than 12 variants'):
        runner.train()
    runner = make_runner(tiny_dit, tmp_path / 'mixed')
    runner.model.data_preprocessor.batch_augments = [object()]
    with pytest.raises(ValueError, match='mixes images of a batch'):
        runner.train()


@pytest.mark.parametrize('change, variants', [(same, 1), (flip, 2), (crops, 6), (jitter, None)])
def test_variants_are_counted_and_nothing_is_drawn(change, variants):
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    found, size = count_variants(Pictures(change), lambda sample: sample['inputs'][None])
    assert found == variants or (variants == 6 and 5 <= found <= 7)
    assert size == ((28, 28) if change is crops else (32, 32))
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


@DATASETS.register_module()
class NumberedPictures(BaseDataset):
    """Pictures through a toolbox's own pipeline."""

    def load_data_list(self):
        rng = np.random.default_rng(0)
        return [
            dict(img=rng.integers(0, 255, (32, 32, 3), np.uint8), gt_label=0, sample_idx=index)
            for index in range(6)
        ]


@pytest.mark.parametrize(
    'transform, variants',
    [
        (dict(type='RandomFlip', prob=0.5, direction='horizontal'), 2),
        (dict(type='RandomResizedCrop', scale=32), None),
        (dict(type='ColorJitter', brightness=0.4), None),
        (None, 1),
    ],
)
def test_the_toolboxes_transforms(transform, variants):
    import mmpretrain.datasets  # noqa: F401

    pipeline = [dict(transform, _scope_='mmpretrain')] if transform else []
    dataset = NumberedPictures(
        pipeline=[*pipeline, dict(type='PackInputs', _scope_='mmpretrain')], serialize_data=False
    )
    found, _ = count_variants(dataset, lambda sample: sample['inputs'][None])
    assert found == variants


def _rank(folder, out):
    torch.distributed.init_process_group('gloo')
    runner = make_runner(
        folder,
        out / 'run',
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(
                type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None
            )
        ),
    )
    passes = []

    class Count(Hook):
        def after_train_epoch(self, runner):
            passes.append(runner.model.module.backbone.passes)

    runner.register_hook(Count())
    runner.train()
    weight = runner.model.module.head.weight.detach().clone()
    rank = torch.distributed.get_rank()
    torch.save(dict(passes=passes, weight=weight), out / f'{rank}.pt')
    torch.distributed.destroy_process_group()


def test_ranks_share_what_they_compute(tiny_dit, tmp_path):
    assert run_ranks(lambda: _rank(tiny_dit, tmp_path), tmp_path) == [0, 0]
    ranks = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    # Half of the images each in the first epoch, in others of which each rank has other images.
    assert [rank['passes'] for rank in ranks] == [[4, 4, 4], [4, 4, 4]]
    assert torch.equal(ranks[0]['weight'], ranks[1]['weight'])
    assert len(list((tmp_path / 'cache').rglob('shard-*.safetensors'))) == 2
