# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``tools/train.py`` and ``tools/test.py`` as a user calls them, on the toolboxes' own models."""

import importlib.util
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import free_port, run_ranks, run_script
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools'

SEGMENTATION = """
default_scope = 'mmseg'
crop_size = (32, 32)
norm_cfg = dict(type='SyncBN', requires_grad=True)
sync_bn = 'torch'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True,
        size=crop_size),
    backbone=dict(
        type='ResNet', depth=18, base_channels=8, num_stages=1, out_indices=(0,), strides=(1,),
        dilations=(1,), norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead', in_channels=8, in_index=0, channels=8, num_convs=1, num_classes=3,
        norm_cfg=norm_cfg, loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
data = dict(
    type='BaseSegDataset', data_root='{root}', reduce_zero_label=False,
    metainfo=dict(classes=('sky', 'sea', 'sand'), palette=[[0, 0, 9], [0, 9, 0], [9, 0, 0]]),
    img_suffix='.png', seg_map_suffix='.png',
    data_prefix=dict(img_path='images', seg_map_path='labels'))
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True), dataset=dict(**data, pipeline=pipeline))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**data, pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)],
        [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]])]
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.02))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=10, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=10),
    visualization=dict(type='SegVisualizationHook'))
log_processor = dict(by_epoch=False)
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
env_cfg = dict(dist_cfg=dict(backend='nccl'))
randomness = dict(seed=0)
"""

CLASSIFICATION = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(num_classes=3, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    backbone=dict(type='ResNet', depth=18, base_channels=4, stem_channels=4),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=32))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
data = dict(type='CustomDataset', data_root='{root}', pipeline=pipeline)
train_dataloader = dict(
    batch_size=2, num_workers=0, dataset=data, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=2, num_workers=0, dataset=data, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = [dict(type='SingleLabelMetric', items=['precision']), dict(type='Accuracy')]
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.05))
train_cfg = dict(by_epoch=True, max_epochs=1, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1),
    visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
auto_scale_lr = dict(base_batch_size=4)
randomness = dict(seed=0)
"""


def load_tool(name):
    """A script of tools/, imported without running it."""
    spec = importlib.util.spec_from_file_location(f'tool_{name}', TOOLS / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, code=0, **variables):
    """Run a command at the repository's root; its output, once its exit code is as expected."""
    environment = {
        **os.environ,
        'PYTHONPATH': str(ROOT),
        'PYTHON': sys.executable,
        'OMP_NUM_THREADS': '1',
        'MKL_NUM_THREADS': '1',
        'CUDA_VISIBLE_DEVICES': '-1',
        **variables,
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, done.stdout[-6000:]
    return done.stdout


def in_process(name, *arguments):
    """Run a tool in this process: starting one costs more than the tiny run."""
    load_tool(name).main([str(argument) for argument in arguments])


def last_value(output, name):
    """The last ``name: 12.34`` that a log names."""
    found = re.findall(rf'\b{re.escape(name)}: (\d+\.\d+)', output)
    assert found, f'{name} is nowhere in:\n{output[-3000:]}'
    return found[-1]


@pytest.fixture(scope='module')
def segmentation(tmp_path_factory):
    """A segmentation config with 4 images of three horizontal bands in noise."""
    root = tmp_path_factory.mktemp('segmentation')
    rng = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        (root / folder).mkdir()
    for index in range(4):
        label = np.repeat(np.sort(rng.integers(0, 3, 32)), 32).reshape(32, 32).astype(np.uint8)
        image = label[..., None] * 80 + rng.integers(0, 60, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(root / 'images' / f'{index}.png')
        Image.fromarray(label).save(root / 'labels' / f'{index}.png')
    config = root / 'tiny_seg.py'
    config.write_text(SEGMENTATION.replace('{root}', root.as_posix()))
    return config


@pytest.fixture(scope='module')
def classification(tmp_path_factory):
    """A classification config with 2 images of each of three brightnesses."""
    root = tmp_path_factory.mktemp('classification')
    rng = np.random.default_rng(0)
    for level, name in enumerate(('dark', 'grey', 'light')):
        (root / 'data' / name).mkdir(parents=True)
        for index in range(2):
            image = level * 90 + rng.integers(0, 60, (32, 32, 3))
            Image.fromarray(image.astype(np.uint8)).save(
                root / 'data' / name / f'{name}{index}.png'
            )
    config = root / 'tiny_cls.py'
    config.write_text(CLASSIFICATION.replace('{root}', (root / 'data').as_posix()))
    return config


@pytest.fixture(scope='module')
def trained_segmentor(segmentation, tmp_path_factory):
    """The work dir and the log of a training on two processes, on CPU."""
    work_dir, logs = (tmp_path_factory.mktemp(name) for name in ('seg_work_dir', 'logs'))
    command = (segmentation, '--work-dir', work_dir, '--launcher', 'pytorch')
    assert run_ranks(lambda: in_process('train', *command), logs) == [0, 0]
    return work_dir, ''.join((logs / f'rank{rank}.log').read_text() for rank in (1, 0))


# --- the command line ------------------------------------------------------------


@pytest.mark.parametrize('name, given', [('train', ['c.py']), ('test', ['c.py', 'a.pth'])])
def test_has_every_flag_of_both_toolboxes(name, given, capsys):
    def is_known(flag):
        """Whether the parser knows a flag, be it that it then asks for the flag's value."""
        try:
            parse_args([*given, flag])
        except SystemExit:
            return 'unrecognized arguments' not in capsys.readouterr().err
        return True

    parse_args = load_tool(name).parse_args
    for toolbox in ('mmseg', 'mmpretrain'):
        package = Path(importlib.util.find_spec(toolbox).origin).parent
        theirs = (package / '.mim' / 'tools' / f'{name}.py').read_text()
        flags = set(re.findall(r"'(--[a-z_-]+)'", theirs))
        assert len(flags) > 5
        for flag in flags:
            assert is_known(flag), f'{toolbox}: {flag}'
    assert not is_known('--no-such-flag')


def test_flags_are_parsed():
    train = load_tool('train').parse_args
    assert train(['c.py']).resume is None
    assert train(['c.py', '--resume']).resume == 'auto'
    assert train(['c.py', '--resume', 'a.pth']).resume == 'a.pth'
    assert train(['c.py', '--cfg-options', 'a.b=[1,2]']).cfg_options == {'a.b': [1, 2]}
    args = load_tool('test').parse_args(['c.py', 'a.pth', '--tta', '--interval', '3'])
    assert (args.config, args.checkpoint, args.tta, args.interval) == ('c.py', 'a.pth', True, 3)


def test_out_item_needs_out(capsys):
    with pytest.raises(SystemExit):
        load_tool('test').parse_args(['c.py', 'a.pth', '--out-item', 'pred'])
    assert '--out-item needs --out' in capsys.readouterr().err


def merged(config, *flags):
    """The config that train.py would run."""
    train = load_tool('train')
    args = train.parse_args([str(config), *flags])
    cfg, toolbox = train.load_run_config(args)
    train.merge_flags(cfg, args)
    train.set_dataloaders(
        cfg,
        toolbox,
        ('train_dataloader', 'val_dataloader'),
        args.no_pin_memory,
        args.no_persistent_workers,
    )
    return cfg


def test_train_flags_reach_the_config(classification, tmp_path):
    checkpoint = tmp_path / 'a.pth'
    checkpoint.touch()
    workers = ('--cfg-options', 'train_dataloader.num_workers=2')
    plain = merged(classification, *workers)
    assert plain.work_dir == os.path.join('work_dirs', 'tiny_cls')
    assert plain.train_dataloader.pin_memory and plain.train_dataloader.persistent_workers
    assert plain.train_dataloader.collate_fn.type == 'default_collate'
    assert plain.val_dataloader.persistent_workers is False, 'PyTorch refuses it without workers'
    assert plain.optim_wrapper.type == 'OptimWrapper'

    changed = merged(
        classification,
        *('--work-dir', 'here', '--amp', '--no-validate', '--auto-scale-lr', '--no-pin-memory'),
        *('--no-persistent-workers', '--resume', str(checkpoint), *workers),
    )
    assert changed.work_dir == 'here'
    assert changed.optim_wrapper.type == 'AmpOptimWrapper'
    assert changed.optim_wrapper.loss_scale == 'dynamic'
    assert changed.val_cfg is changed.val_dataloader is changed.val_evaluator is None
    assert changed.auto_scale_lr.enable is True
    assert changed.train_dataloader.pin_memory is False
    assert changed.train_dataloader.persistent_workers is False
    assert (changed.resume, changed.load_from) == (True, str(checkpoint))


def test_segmentation_dataloaders_keep_their_own_settings(segmentation):
    loader = merged(segmentation).train_dataloader
    assert 'pin_memory' not in loader and 'collate_fn' not in loader
    assert merged(segmentation, '--no-pin-memory').val_dataloader.pin_memory is False


@pytest.mark.parametrize(
    'flags, error, message',
    [
        (['--resume', 'no/such.pth'], FileNotFoundError, "no checkpoint 'no/such.pth'"),
        (['--auto-scale-lr'], ValueError, 'base_batch_size'),
        (['--amp', '--cfg-options', 'optim_wrapper.type=Mine'], ValueError, 'not Mine'),
        (['--cfg-options', 'default_scope=mmrotate'], ValueError, "is 'mmrotate'; it must be"),
    ],
)
def test_bad_train_flags(segmentation, flags, error, message):
    with pytest.raises(error, match=message):
        merged(segmentation, *flags)


def test_missing_config():
    with pytest.raises(FileNotFoundError, match=r"no config file 'nowhere\.py'"):
        merged('nowhere.py')


def test_missing_checkpoint_names_those_that_are_there(tmp_path):
    check = load_tool('test').check_checkpoint
    with pytest.raises(FileNotFoundError, match='holds none either'):
        check('gone.pth', str(tmp_path))
    (tmp_path / 'iter_10.pth').touch()
    with pytest.raises(FileNotFoundError, match=r'In the work dir: .*iter_10\.pth'):
        check('gone.pth', str(tmp_path))
    torch.save({}, tmp_path / 'iter_10.pth')
    check(str(tmp_path / 'iter_10.pth'), 'anywhere')
    check('https://example.org/a.pth', 'anywhere')


@pytest.mark.parametrize(
    'flags, toolbox, allowed',
    [
        (['--out', 'a.json'], 'mmpretrain', r'\.pkl'),
        (['--out', 'folder', '--out-item', 'metrics'], 'mmseg', r'\.json'),
    ],
)
def test_bad_out(flags, toolbox, allowed):
    test = load_tool('test')
    args = test.parse_args(['c.py', 'a.pth', *flags])
    with pytest.raises(ValueError, match=allowed):
        test.check_out(args, toolbox)


# --- whole runs ------------------------------------------------------------


def test_two_processes_on_cpu(trained_segmentor):
    work_dir, log = trained_segmentor
    assert log.count('2 processes on CPU, backend gloo instead of nccl, BN instead of SyncBN') == 1
    title, *closing, _ = log.strip().splitlines()[-4:]
    assert ' mmaselect ' in title
    closing = [line.strip('| ') for line in closing]
    assert closing[0].startswith('last validation: aAcc')
    assert closing[1] == f'checkpoint: {work_dir / "iter_10.pth"}'


@pytest.mark.parametrize('processes', [1, 2])
def test_segmentor_tests_as_it_validated(segmentation, trained_segmentor, tmp_path, processes):
    work_dir, log = trained_segmentor
    metrics = tmp_path / 'metrics.json'
    inputs = (segmentation, work_dir / 'iter_10.pth')
    flags = ('--work-dir', tmp_path, '--out', metrics, '--out-item', 'metrics')
    if processes == 1:
        output = run_script(TOOLS / 'test.py', *inputs, *flags, log=tmp_path / 'log')
    else:
        command = (*inputs, *flags, '--launcher', 'pytorch')
        assert run_ranks(lambda: in_process('test', *command), tmp_path) == [0, 0]
        output = (tmp_path / 'rank0.log').read_text()
    validated = {name: last_value(log, name) for name in ('aAcc', 'mIoU', 'mAcc')}
    assert {name: last_value(output, name) for name in validated} == validated
    written = json.loads(metrics.read_text())
    assert {name: f'{written[name]:.4f}' for name in validated} == validated


def test_segmentor_writes_predictions_pictures_and_tta(segmentation, trained_segmentor, tmp_path):
    out, shown = tmp_path / 'predictions', tmp_path / 'shown'
    in_process(
        'test',
        *(segmentation, trained_segmentor[0] / 'iter_10.pth', '--work-dir', tmp_path / 'test'),
        *('--out', out, '--show-dir', shown, '--tta'),
    )
    maps = sorted(out.glob('*.png'))
    assert [path.name for path in maps] == [f'{index}.png' for index in range(4)]
    assert np.asarray(Image.open(maps[0])).shape == (32, 32)
    assert len(list(shown.rglob('test_*.png'))) == 4


@pytest.mark.parametrize('flag', ['--show-dir', '--out'])
def test_images_in_memory_cannot_be_painted_on(flag, segmentation, trained_segmentor, tmp_path):
    config = tmp_path / 'collages.py'
    config.write_text(
        f'_base_ = {str(segmentation)!r}\n'
        'test_dataloader = dict(dataset=dict(\n'
        "    _delete_=True, type='mmaselect.PhotoCollageDataset', split='val', num_collages=2,\n"
        "    pipeline=[dict(type='LoadImageFromNDArray'), dict(type='PackSegInputs')]))\n"
    )
    flags = ('--work-dir', tmp_path / 'test', flag, tmp_path / 'painted')
    with pytest.raises(ValueError, match='images of PhotoCollageDataset are in memory'):
        in_process('test', config, trained_segmentor[0] / 'iter_10.pth', *flags)
    assert not list(tmp_path.rglob('*.png'))


def test_classifier_trains_and_tests_the_same(classification, tmp_path):
    flags = ('--work-dir', tmp_path, '--auto-scale-lr')
    log = run_script(TOOLS / 'train.py', classification, *flags, log=tmp_path / 'train.log')
    predictions, metrics, shown = (tmp_path / name for name in ('pred.pkl', 'm.json', 'shown'))
    flags = (classification, tmp_path / 'epoch_1.pth', '--work-dir', tmp_path / 'test')
    in_process('test', *flags, '--out', metrics, '--out-item', 'metrics', '--show-dir', shown)
    assert json.loads(metrics.read_text())['accuracy/top1'] == pytest.approx(
        float(last_value(log, 'accuracy/top1')), abs=5e-5
    )
    assert len(list(shown.glob('*.png'))) == 6

    in_process('test', *flags, '--out', predictions)
    scores = [sample['pred_score'] for sample in pickle.loads(predictions.read_bytes())]
    assert torch.stack(scores).shape == (6, 3)
    in_process('test', *flags, '--out', predictions, '--tta')
    mirrored = [sample['pred_score'] for sample in pickle.loads(predictions.read_bytes())]
    assert torch.stack(mirrored).shape == (6, 3)
    assert not torch.equal(torch.stack(mirrored), torch.stack(scores))


def test_resume_goes_on_where_training_stopped(segmentation, trained_segmentor, tmp_path):
    shutil.copytree(trained_segmentor[0], tmp_path, dirs_exist_ok=True)
    longer = ('--cfg-options', 'train_cfg.max_iters=11', '--no-validate', '--resume')
    in_process('train', segmentation, '--work-dir', tmp_path, *longer)
    saved = torch.load(tmp_path / 'iter_11.pth', map_location='cpu', weights_only=False)
    assert saved['message_hub']['runtime_info']['iter'] == 10, 'the eleventh iteration, from 0'
    log = max(tmp_path.glob('*/*.log'), key=os.path.getmtime).read_text()
    assert 'resumed epoch: 0, iter: 10' in log


@pytest.mark.parametrize(
    'script, needed',
    [
        ('dist_train.sh', 'CONFIG GPUS'),
        ('dist_test.sh', 'CONFIG CHECKPOINT GPUS'),
        ('slurm_train.sh', 'PARTITION JOB_NAME CONFIG'),
        ('slurm_test.sh', 'PARTITION JOB_NAME CONFIG CHECKPOINT'),
    ],
)
def test_launch_scripts_say_what_they_need(script, needed):
    assert needed in run('bash', TOOLS / script, code=2)


@pytest.mark.thorough
def test_launch_scripts_train_and_test(segmentation, tmp_path):
    """What the tests above run in forks, from the shell."""
    trained, metrics = tmp_path / 'trained', tmp_path / 'metrics.json'
    script = ('bash', TOOLS / 'dist_train.sh', segmentation, 2)
    log = run(*script, '--work-dir', trained, PORT=free_port())
    assert log.count('2 processes on CPU') == 1
    script = ('bash', TOOLS / 'dist_test.sh', segmentation, trained / 'iter_10.pth', 2)
    run(*script, '--work-dir', tmp_path, '--out', metrics, '--out-item', 'metrics',
        PORT=free_port())  # fmt: skip
    assert f'{json.loads(metrics.read_text())["mIoU"]:.4f}' == last_value(log, 'mIoU')


@pytest.mark.parametrize('name', ['train', 'test'])
def test_launched_command(name, tmp_path):
    """What the launch scripts start; a program that prints its arguments stands for Python."""
    positional = ['a config.py', *(['a.pth'] if name == 'test' else [])]
    script = ('bash', TOOLS / f'dist_{name}.sh', *positional, 4, '--amp', '--work-dir', 'a b')
    (tmp_path / 'python').write_text('#!/bin/bash\necho "$PYTHONPATH"; printf "%s\\n" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    path, *call = run(*script, PYTHON=tmp_path / 'python', PORT='1234', NNODES='2').splitlines()
    assert Path(path.split(':')[0]).resolve() == ROOT
    launcher = call.index(str(TOOLS / f'{name}.py'))
    assert call[:launcher] == [
        *('-m', 'torch.distributed.run', '--nnodes=2', '--node_rank=0', '--master_addr=127.0.0.1'),
        *('--master_port=1234', '--nproc_per_node=4'),
    ]
    assert call[launcher + 1 :] == [
        *positional, '--launcher', 'pytorch', '--amp', '--work-dir', 'a b'
    ]  # fmt: skip


@pytest.mark.parametrize('script', ['slurm_train.sh', 'slurm_test.sh'])
def test_slurm_command(script, tmp_path):
    """What srun would be called with: without one on the path, the shell's trace of the call."""
    for program in ('bash', 'dirname'):
        (tmp_path / program).symlink_to(shutil.which(program))
    positional = ['a config.py'] + (['a.pth'] if 'test' in script else [])
    trace = run(
        'bash',
        *(TOOLS / script, 'gpu', 'job', *positional, '--amp'),
        code=127,
        PATH=str(tmp_path),
        GPUS='4',
        SRUN_ARGS='--time=1 --quiet',
    )
    call = shlex.split(next(line for line in trace.splitlines() if line.startswith('+ srun')))
    assert {'--partition=gpu', '--job-name=job', '--ntasks=4', '--gres=gpu:4'} <= set(call)
    assert {'--time=1', '--quiet'} <= set(call)
    tool_call = call[call.index(sys.executable) :]
    assert tool_call[3 : 3 + len(positional)] == positional
    assert tool_call[-3:] == ['--launcher', 'slurm', '--amp']
