# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``tools/pretrain_dit.py`` as a user calls it, on folders of tiny images."""

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from forks import exit_code, forked
from PIL import Image
from safetensors.torch import load_file, save_file

from mmaselect.diffusion import FrozenDiT
from mmaselect.pretraining.run_folder import RunFolder
from mmaselect.terminal.tool import run_tool

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'pretrain_dit.py'
SMALL = shlex.split(
    '--patch 2 --width 16 --depth 2 --heads 2 --batch 8 --log-every 1 --sample-every 0 '
    '--lr 0.01 --warmup-steps 2 --schedule constant_with_warmup --ema-decay 0.5'
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def tool():
    return load(TOOL)


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    """Accelerate keeps the precision of the first run of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def write_images(folder: Path, count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data')
    for seed, name in enumerate(('cat', 'dog')):
        write_images(root / 'train' / name, 10, seed=seed)
        write_images(root / 'test' / name, 5, seed=10 + seed)
    return root


def weights(out: Path, name: str = 'pipeline') -> dict[str, torch.Tensor]:
    return load_file(out / name / 'transformer' / 'diffusion_pytorch_model.safetensors')


def assert_equal(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def losses(out: Path) -> list[tuple[int, float]]:
    return [(r['step'], r['loss']) for r in RunFolder(out).read_log() if 'loss' in r]


def test_log_samples_and_probe(tool, data, tmp_path):
    argv = [*SMALL, '--data', f'{data}/train', '--out', str(tmp_path), '--steps', '4']
    argv += [
        '--save-every',
        '2',
        '--sample-every',
        '4',
        '--sample-steps',
        '2',
        '--probe-every',
        '4',
    ]
    argv += ['--probe-data', f'{data}/test', '--probe-timesteps', '0', '999']
    tool.main(argv)
    *steps, probe = RunFolder(tmp_path).read_log()
    assert [r['step'] for r in steps] == [1, 2, 3, 4]
    assert all(np.isfinite(r['loss']) for r in steps)
    assert set(probe['probe']) == {'1@0', '1@999'}
    with Image.open(tmp_path / 'samples' / 'step_00000004.png') as grid:
        assert grid.size == (6 * 8, 3 * 8)  # six columns; two classes and the null class
    assert (tmp_path / 'loss.png').exists()
    assert sorted(p.name for p in (tmp_path / 'states').iterdir()) == [
        'step_00000002',
        'step_00000004',
    ]


@pytest.mark.parametrize(
    ('target', 'scheduler', 'prediction'),
    [
        ('epsilon', diffusers.DDPMScheduler, 'epsilon'),
        ('v_prediction', diffusers.DDPMScheduler, 'v_prediction'),
        ('flow', diffusers.FlowMatchEulerDiscreteScheduler, None),
    ],
)
def test_stock_diffusers_loads_the_pipeline(tool, data, tmp_path, target, scheduler, prediction):
    tool.main(
        [
            *SMALL,
            '--data',
            f'{data}/train',
            '--out',
            str(tmp_path),
            '--steps',
            '1',
            '--target',
            target,
            '--export-dtype',
            'fp16',
        ]
    )
    # A model of pixels has no vae/, and DiTPipeline wants to be told so.
    pipeline = diffusers.DiTPipeline.from_pretrained(tmp_path / 'pipeline', vae=None)
    assert isinstance(pipeline.scheduler, scheduler)
    assert pipeline.scheduler.config.get('prediction_type') == prediction
    assert pipeline.labels == {'cat': 0, 'dog': 1}
    assert pipeline.transformer.config.num_embeds_ada_norm == 2
    assert {w.dtype for w in weights(tmp_path).values()} == {torch.float16}
    dit = FrozenDiT.from_pretrained(str(tmp_path / 'pipeline'), blocks=[1])
    latent = dit.encode(torch.zeros(1, 3, 8, 8))
    (query,) = dit.features(latent, 100, torch.zeros_like(latent)).values()
    assert query.shape == (1, 16, 4, 4) and query.dtype == torch.float32


def test_pipeline_holds_the_average_of_the_weights(tool, data, tmp_path):
    tool.main(
        [
            *SMALL,
            '--data',
            f'{data}/train',
            '--out',
            str(tmp_path),
            '--steps',
            '2',
            '--save-every',
            '1',
        ]
    )
    first, second = (
        load_file(tmp_path / 'states' / f'step_0000000{step}' / 'model.safetensors')
        for step in (1, 2)
    )
    # EMAModel's warm-up: the first weights as they are, then a decay of (1 + 1) / (10 + 1).
    for name, average in weights(tmp_path).items():
        torch.testing.assert_close(average, 2 / 11 * first[name] + 9 / 11 * second[name])


@pytest.mark.parametrize(
    'extra',
    [
        ['--optimizer', 'adamw'],
        pytest.param(
            [
                '--optimizer',
                'muon',
                '--token-keep',
                '0.5',
                '--accumulate',
                '2',
                '--precision',
                'no',
            ],
            marks=pytest.mark.skipif(
                not hasattr(torch.optim, 'Muon'), reason='Muon came with PyTorch 2.9'
            ),
        ),
    ],
)
def test_stopped_and_resumed_is_bit_equal(tool, data, tmp_path, monkeypatch, extra):
    """SIGTERM between two checkpoints: the run saves, and goes on as if nothing had happened."""
    argv = [*SMALL, *extra, '--data', f'{data}/train', '--steps', '6', '--save-every', '4']
    tool.main([*argv, '--out', str(tmp_path / 'whole')])

    log = RunFolder.log

    def log_and_stop(self, record):
        log(self, record)
        if record['step'] == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(RunFolder, 'log', log_and_stop)
        tool.main([*argv, '--out', str(tmp_path / 'cut')])
    assert stopped.value.code == 128 + signal.SIGTERM
    assert RunFolder(tmp_path / 'cut').newest().name == 'step_00000004'
    assert not (tmp_path / 'cut' / 'pipeline').exists()
    tool.main([*argv, '--out', str(tmp_path / 'cut'), '--resume'])
    assert_equal(weights(tmp_path / 'whole'), weights(tmp_path / 'cut'))
    assert losses(tmp_path / 'whole') == losses(tmp_path / 'cut')


def test_killed_and_resumed_is_bit_equal(tool, data, tmp_path):
    """SIGKILL: the last checkpoint is whole, and the steps after it are done again."""
    argv = [*SMALL, '--data', f'{data}/train', '--steps', '30', '--save-every', '10']
    cut = tmp_path / 'cut'
    child = forked(lambda: tool.main([*argv, '--out', str(cut)]), tmp_path / 'printed')
    while RunFolder(cut).newest() is None:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), (tmp_path / 'printed').read_text()
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL
    assert RunFolder(cut).newest().name < 'step_00000030'
    tool.main([*argv, '--out', str(cut), '--resume'])
    tool.main([*argv, '--out', str(tmp_path / 'whole')])
    assert_equal(weights(tmp_path / 'whole'), weights(cut))
    assert losses(tmp_path / 'whole') == losses(cut)


def test_a_resumed_run_takes_its_new_plan(tool, data, tmp_path):
    argv = [*SMALL, '--data', f'{data}/train', '--out', str(tmp_path), '--schedule', 'wsd']
    tool.main([*argv, '--steps', '3'])
    tool.main([*argv, '--steps', '7', '--decay-steps', '4', '--resume', '--lr', '0.002'])
    factors = [r['lr_factor'] for r in RunFolder(tmp_path).read_log()]
    assert factors == [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    state = torch.load(tmp_path / 'states' / 'step_00000007' / 'optimizer.bin', weights_only=True)
    assert state['param_groups'][0]['lr'] == pytest.approx(0.002 * 0.25)


def test_a_model_is_trained_on(tool, data, tmp_path, capsys):
    """Weights and their average start from the pipeline; a resumed run keeps its own."""
    argv = [*SMALL, '--data', f'{data}/train', '--save-every', '1']
    tool.main([*argv, '--out', str(tmp_path / 'first'), '--steps', '3'])
    argv += ['--init', str(tmp_path / 'first' / 'pipeline'), '--seed', '1']
    still = ['--lr', '1e-12', '--weight-decay', '0', '--steps', '2']
    tool.main([*argv, *still, '--out', str(tmp_path / 'still')])
    start, end = weights(tmp_path / 'first'), weights(tmp_path / 'still')
    assert all(torch.allclose(start[name], end[name], atol=1e-9) for name in start)

    tool.main([*argv, '--steps', '2', '--out', str(tmp_path / 'whole')])
    capsys.readouterr()
    for steps in ('1', '2'):
        tool.main([*argv, '--steps', steps, '--out', str(tmp_path / 'cut'), '--resume'])
    printed = capsys.readouterr().out
    assert printed.count('starting from the weights') == 1
    assert printed.count('going on after step 1') == 1
    assert_equal(weights(tmp_path / 'whole'), weights(tmp_path / 'cut'))
    assert RunFolder(tmp_path / 'cut').read_log()[0]['init'] == f'{tmp_path}/first/pipeline'
    with pytest.raises(ValueError, match='num_layers is 2 there and 3 here'):
        tool.main([*argv, '--steps', '1', '--out', str(tmp_path / 'deeper'), '--depth', '3'])
    assert not (tmp_path / 'deeper').exists()


def test_time_limit_saves_and_can_be_resumed(tool, data, tmp_path, capsys):
    argv = [*SMALL, '--data', f'{data}/train', '--out', str(tmp_path), '--steps', '100000']
    tool.main([*argv, '--max-minutes', '0.001'])
    assert 'time is up' in capsys.readouterr().out
    done = int(RunFolder(tmp_path).newest().name.removeprefix('step_'))
    tool.main([*argv[:-1], str(done + 1), '--resume'])
    assert (tmp_path / 'pipeline' / 'model_index.json').exists()


def test_folder_without_classes(tool, tmp_path):
    """All training is on the null class: the row of the one nominal class keeps its weights."""
    images = write_images(tmp_path / 'images', 9)
    out = tmp_path / 'out'
    tool.main(
        [*SMALL, '--data', str(images), '--out', str(out), '--steps', '2', '--weight-decay', '0']
    )
    assert json.loads((out / 'settings.json').read_text())['classes'] == []
    pipeline = diffusers.DiTPipeline.from_pretrained(out / 'pipeline', vae=None)
    assert pipeline.labels == {}
    name = 'transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight'
    moments = torch.load(out / 'states' / 'step_00000002' / 'optimizer.bin', weights_only=True)
    names = [n for n, _ in pipeline.transformer.named_parameters()]
    squares = moments['state'][names.index(name)]['exp_avg_sq']
    assert squares.shape[0] == 2
    assert not squares[0].any()


def test_latents_of_a_vae(tool, data, tmp_path):
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
    )
    vae.save_pretrained(tmp_path / 'vae')
    out = tmp_path / 'out'
    tool.main(
        [
            *SMALL,
            '--data',
            f'{data}/train',
            '--out',
            str(out),
            '--steps',
            '2',
            '--size',
            '16',
            '--vae',
            str(tmp_path / 'vae'),
            '--sample-every',
            '2',
            '--sample-steps',
            '2',
        ]
    )
    pipeline = diffusers.DiTPipeline.from_pretrained(out / 'pipeline')
    assert pipeline.transformer.config.sample_size == 8
    assert not pipeline.scheduler.config.clip_sample
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline([0, 1], guidance_scale=1.0, num_inference_steps=2, output_type='np').images
    assert images.shape == (2, 16, 16, 3)
    with Image.open(out / 'samples' / 'step_00000002.png') as grid:
        assert grid.size == (6 * 16, 3 * 16)


def test_probe_report(tool, tmp_path, capsys):
    """Classes that differ in brightness alone: what a random network sees, and the table shows."""
    for split, seed in (('train', 0), ('test', 1)):
        random = np.random.default_rng(seed)
        for name, low in (('dark', 0), ('light', 128)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(low, low + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f'{i}.png')
    argv = ['--data', f'{tmp_path}/train']
    tool.main([*SMALL, *argv, '--out', str(tmp_path / 'out'), '--steps', '1'])
    capsys.readouterr()
    argv += ['--probe-data', f'{tmp_path}/test', '--device', 'cpu']
    probe_report = load(ROOT / 'tools' / 'analysis_tools' / 'probe_report.py')
    probe_report.main([str(tmp_path / 'out' / 'pipeline'), *argv, '--timesteps', '0', '999'])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == '| trained weights, block | t = 0 | t = 999 |'
    assert lines[3].split(' | ')[1] == '100.0'  # block 1, clean
    assert lines[5] == '| random weights, block | t = 0 | t = 25 | t = 100 |'
    assert lines[-1] == 'Raw pixels: 100.0'
    with pytest.raises(FileNotFoundError, match='give a pipeline/ or snapshot/'):
        probe_report.main([str(tmp_path), *argv])


BAD = {
    'missing folder': ('--data {tmp}/nowhere', 'no folder'),
    'empty folder': ('--data {tmp}/empty', 'no image in'),
    'corrupt image': ('--data {tmp}/corrupt', 'broken.png'),
    'loose and in classes': ('--data {tmp}/mixed', 'mixes 1 loose images'),
    'sizes differ': ('--data {tmp}/uneven', 'Give --size'),
    'patch': ('--data {tmp}/good --patch 3', 'patch 3 does not divide the side 8'),
    'heads': ('--data {tmp}/good --heads 5', '5 heads do not divide width 16'),
    'batch': ('--data {tmp}/good --accumulate 3', 'multiple of 3'),
    'precision': ('--data {tmp}/good --precision fp16', 'needs a GPU'),
    'no labels to probe': (
        '--data {tmp}/good --probe-every 1 --probe-data {tmp}/good',
        'a probe needs class folders',
    ),
}


@pytest.mark.parametrize(('flags', 'message'), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line(tool, tmp_path, flags, message):
    (tmp_path / 'empty').mkdir()
    write_images(tmp_path / 'good', 2)
    write_images(tmp_path / 'mixed', 1)
    write_images(tmp_path / 'mixed' / 'cat', 1)
    write_images(tmp_path / 'uneven', 1)
    write_images(tmp_path / 'uneven', 2, size=(8, 9))
    write_images(tmp_path / 'corrupt', 2)
    (tmp_path / 'corrupt' / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\nnothing')
    argv = [*SMALL, *flags.format(tmp=tmp_path).split(), '--out', str(tmp_path / 'out')]
    with pytest.raises(SystemExit, match=message) as stopped:
        run_tool(tool.main, [*argv, '--steps', '1'])
    assert '\n' not in stopped.value.code
    assert not (tmp_path / 'out' / 'states').exists()


def test_processes_that_did_not_join_are_refused(tool, monkeypatch):
    """Each would train the whole run by itself, in the same folder."""
    args = tool.parse_args([*SMALL, '--data', 'x', '--out', 'y'])
    accelerator = Accelerator()
    tool.check_processes(args, accelerator)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='2 processes were started, and accelerate joins 1'):
        tool.check_processes(args, accelerator)


def test_a_run_is_not_overwritten_nor_continued_with_another_network(tool, data, tmp_path):
    argv = [*SMALL, '--data', f'{data}/train', '--out', str(tmp_path), '--steps', '1']
    tool.main(argv)
    with pytest.raises(FileExistsError, match='add --resume'):
        tool.main(argv)
    with pytest.raises(ValueError, match='depth: 2 before, 3 now'):
        tool.main([*argv, '--resume', '--depth', '3'])


@pytest.fixture(scope='module')
def stopped(tool, tmp_path_factory):
    """A run after its first step, and its images."""
    # Module fixtures come before those of a test; tools of other tests set these.
    AcceleratorState._reset_state(reset_partial_state=True)
    for name in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE'):
        os.environ.pop(name, None)
    root = tmp_path_factory.mktemp('stopped')
    for number, name in enumerate('ab'):
        write_images(root / 'images' / name, 4, seed=number)
    argv = [*SMALL, '--data', str(root / 'images'), '--precision', 'no']
    tool.main([*argv, '--out', str(root / 'run'), '--steps', '1'])
    return root


def resume(tool, root, steps=2):
    argv = [*SMALL, '--data', str(root / 'images'), '--precision', 'no', '--steps', str(steps)]
    tool.main([*argv, '--out', str(root / 'run'), '--resume'])


def _replace_a_picture(images):
    Image.new('RGB', (8, 8), 'red').save(images / 'a' / '2.png')


def _swap_classes(images):
    (images / 'a' / '1.png').rename(images / 'x.png')
    (images / 'b' / '1.png').rename(images / 'a' / '1.png')
    (images / 'x.png').rename(images / 'b' / '1.png')


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (_replace_a_picture, r'a/2\.png \(other content\)'),
        (_swap_classes, r'a/1\.png, b/1\.png \(other content\)'),
        (lambda f: (f / 'b' / '3.png').unlink(), r'b/3\.png \(missing\)'),
        (lambda f: shutil.copy(f / 'b' / '3.png', f / 'b' / '9.png'), r'b/9\.png \(new\)'),
        (
            lambda f: (f / 'b' / '3.png').rename(f / 'b' / '4.png'),
            r'b/3\.png \(missing\); b/4\.png \(new\)',
        ),
    ],
)
def test_other_images_are_named_on_resume(tool, stopped, tmp_path, change, named):
    root = Path(shutil.copytree(stopped, tmp_path / 'copy'))
    change(root / 'images')
    with pytest.raises(ValueError, match=f'cannot resume with other images: {named}. Give those'):
        resume(tool, root)
    assert RunFolder(root / 'run').newest().name == 'step_00000001'


def test_images_may_move_and_older_runs_resume(tool, stopped, tmp_path):
    root = Path(shutil.copytree(stopped, tmp_path / 'copy'))
    resume(tool, root)
    run = RunFolder(root / 'run')
    settings = json.loads(run.settings_file.read_text())
    del settings['content']
    run.settings_file.write_text(json.dumps(settings))
    run.images_file.unlink()
    progress = run.newest() / 'progress.json'
    told = json.loads(progress.read_text())
    del told['checksums']
    progress.write_text(json.dumps(told))
    resume(tool, root, 3)
    assert run.newest().name == 'step_00000003' and run.images_file.is_file()


def test_another_vae_is_found_on_resume(tool, data, tiny_latent_dit, tmp_path):
    vae = Path(shutil.copytree(Path(tiny_latent_dit) / 'vae', tmp_path / 'vae'))
    argv = [*SMALL, '--data', f'{data}/train', '--vae', str(vae), '--out', str(tmp_path / 'run')]
    tool.main([*argv, '--steps', '1'])
    (file,) = vae.glob('*.safetensors')
    weights = load_file(file)
    weights['encoder.conv_in.bias'] += 0.1
    save_file(weights, file)
    with pytest.raises(ValueError, match=r'vae_weights: .* before, .* now'):
        tool.main([*argv, '--steps', '2', '--resume'])


@pytest.mark.parametrize(
    'name', ['model.safetensors', 'optimizer.bin', 'custom_checkpoint_0.pkl', 'progress.json']
)
def test_a_damaged_state_is_named(tool, stopped, tmp_path, name):
    root = Path(shutil.copytree(stopped, tmp_path / 'copy'))
    state = RunFolder(root / 'run').newest()
    data = bytearray((state / name).read_bytes())
    data[len(data) // 2] ^= 0x40
    data = data[: len(data) // 2] if name == 'progress.json' else data
    (state / name).write_bytes(data)
    with pytest.raises(
        ValueError,
        match=rf'step_00000001.*{name if "json" not in name else ""}.*'
        rf"Remove '.*step_00000001'.*--resume",
    ):
        resume(tool, root)
    # The way out that the message tells.
    shutil.rmtree(state)
    resume(tool, root)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--probe-every 5', 'needs --probe-data'),
        ('--schedule cosine --decay-steps 5', 'belongs to --schedule wsd'),
        ('--label-dropout 2', '2 is not from 0 to 1'),
        ('--target noise', "invalid choice: 'noise'"),
        ('--probe-blocks 2', r'--probe-blocks \[2\] are not blocks'),
    ],
)
def test_flags_that_make_no_sense(tool, capsys, flags, message):
    with pytest.raises(SystemExit):
        tool.parse_args([*SMALL, '--data', 'x', '--out', 'y', *flags.split()])
    assert re.search(message, capsys.readouterr().err)
