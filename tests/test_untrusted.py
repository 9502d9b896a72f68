# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Files that are data run no code, and one reader serves all faces."""

import argparse
import ast
import collections
import importlib.util
import io
import os
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmaselect import select
from mmaselect.cli import main as command
from mmaselect.launch.config import load_config
from mmaselect.pretraining.run_folder import RunFolder
from mmaselect.terminal.tool import run_tool
from mmaselect.untrusted import ANYTHING, ONLY_WEIGHTS, load_plain, load_tensors, only_weights

ROOT = Path(__file__).resolve().parents[1]

#: Calls that read what could run code, by their last names, and those that are harmless where they
#: stand. A call of another object's method of the same name belongs into the second list.
READERS = {
    'load_checkpoint', '_load_checkpoint', 'load_state', 'full_load', 'unsafe_load', 'fromfile',
    'read_pickle', 'Unpickler', 'eval', 'exec', 'load_module', 'CheckpointLoader',
}  # fmt: skip
MODULES = {'torch', 'jit', 'hub', 'pickle', 'cloudpickle', 'dill', 'joblib', 'marshal', 'shelve'}
LOADS = {'load', 'loads', 'load_all', 'open'}
ALLOWED = {
    # The reader itself, with weights_only=True.
    ('mmaselect/untrusted.py', 'torch.load'),
    # The only way to configs: YAML goes through a loader of plain values.
    ('mmaselect/launch/config.py', 'Config.fromfile'),
    # What is handed to the run folder, which calls it within `only_weights`.
    ('mmaselect/pretraining/trainer.py', 'folder.load_state'),
}


def dotted(node):
    """``a.b.c`` of a name or an attribute; None of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return None if owner is None else f'{owner}.{node.attr}'
    return None


def readers(source):
    """The calls and imports of a source that could read a file as code: their names."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[-1] in (
            *MODULES,
            'yaml',
        ):
            found += [f'{node.module}.{a.name}' for a in node.names if a.name in LOADS | READERS]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name is None:
            continue
        owner, _, last = name.rpartition('.')
        pickles = any(
            word.arg == 'allow_pickle' and ast.unparse(word.value) != 'False'
            for word in node.keywords
        )
        module = owner.split('.')[-1]
        if (
            (last in LOADS and module in MODULES)
            or (last in LOADS and module == 'yaml')
            or (last in READERS and not (last in ('eval', 'exec') and owner))
            or module in READERS
            or pickles
        ):
            found.append(name)
    return found


SOURCES = sorted(
    path
    for folder in ('mmaselect', 'tools', 'benchmarks', 'configs', 'projects')
    for path in (ROOT / folder).rglob('*.py')
    if '.mim' not in path.parts
)


def test_nothing_else_reads_what_could_run_code():
    assert len(SOURCES) > 150
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in SOURCES
        for name in readers(path.read_text(encoding='utf-8'))
    }
    assert found == ALLOWED, 'read files of tensors through mmaselect.untrusted.load_tensors'


@pytest.mark.parametrize(
    'line',
    [
        'torch.load(path)',
        'torch.jit.load(path)',
        'torch.hub.load(a, b)',
        'pickle.loads(data)',
        'from pickle import loads',
        'mmengine.runner.load_checkpoint(model, path)',
        'CheckpointLoader.load_checkpoint(path)',
        'yaml.load(text, yaml.Loader)',
        'yaml.full_load(text)',
        'np.load(path, allow_pickle=True)',
        'np.load(path, allow_pickle=flag)',
        'joblib.load(path)',
        'pd.read_pickle(path)',
        'Config.fromfile(path)',
        'accelerator.load_state(path)',
        'eval(text)',
    ],
)
def test_the_walk_sees(line):
    assert readers(line)


@pytest.mark.parametrize(
    'line', ['json.load(file)', 'np.load(path)', 'model.eval()', 'load_tensors(path)']
)
def test_the_walk_passes(line):
    assert readers(line) == []


#: Scripts that import nothing of the package read no weights.
TOOLS = [
    path
    for path in SOURCES
    if path.is_relative_to(ROOT / 'tools')
    and '__main__' in path.read_text()
    and 'from mmaselect' in path.read_text()
]


@pytest.mark.parametrize('path', TOOLS, ids=lambda path: path.stem)
def test_each_tool_is_guarded(path):
    """By `run_tool`, which is all that it runs."""
    (start,) = (
        node
        for node in ast.parse(path.read_text(encoding='utf-8')).body
        if isinstance(node, ast.If) and '__main__' in ast.unparse(node.test)
    )
    assert [ast.unparse(line) for line in start.body] == ['run_tool(main)']


def test_run_tool_guards_and_lifts_the_guard(monkeypatch):
    monkeypatch.setenv(ANYTHING, '1')
    seen = []
    run_tool(lambda argv: seen.append((os.environ.get(ONLY_WEIGHTS), os.environ.get(ANYTHING))), [])
    assert seen == [('1', None)]
    assert (os.environ.get(ONLY_WEIGHTS), os.environ.get(ANYTHING)) == (None, '1')


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_tensors_and_plain_values(tmp_path):
    torch.save(dict(a=torch.ones(2), n=1, args=argparse.Namespace(x=3)), tmp_path / 'a.pt')
    with pytest.raises(pickle.UnpicklingError, match='Namespace'):
        load_tensors(tmp_path / 'a.pt')
    content = load_tensors(tmp_path / 'a.pt', mmap=True, allowed=[argparse.Namespace])
    assert content['a'].tolist() == [1, 1] and content['args'].x == 3
    torch.save(dict(a=Payload(tmp_path / 'ran')), tmp_path / 'b.pt')
    for read in (load_tensors, only_weights()(lambda path: torch.load(path, weights_only=False))):
        with pytest.raises(pickle.UnpicklingError, match='mkdir'):
            read(tmp_path / 'b.pt')
    assert not (tmp_path / 'ran').exists()


def test_a_checkpoint_in_somebodys_work_dir(tmp_path, tiny_dit):
    """The leaderboard tests it in a process of its own, through MMEngine's loader."""
    spec = importlib.util.spec_from_file_location(
        'tiny_configs', ROOT / 'tests' / 'test_analysis' / 'tiny_configs.py'
    )
    tiny_configs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_configs)
    work = tmp_path / 'theirs'
    work.mkdir()
    tiny_configs.write_classification(tmp_path, tiny_dit).rename(work / 'config.py')
    ran = tmp_path / 'ran'
    torch.save(dict(state_dict={}, meta=Payload(ran)), work / 'epoch_1.pth')
    (work / 'last_checkpoint').write_text('epoch_1.pth')
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'leaderboard.py', work, '--out', tmp_path / 'board'],
        env=dict(os.environ, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='-1'),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and 'mkdir' in done.stderr
    assert not ran.exists()


def test_a_state_of_a_pretraining(tmp_path):
    """As accelerate reads what was registered with it: with ``weights_only=False``."""
    from accelerate import Accelerator

    accelerator, registered = Accelerator(cpu=True), torch.nn.Linear(1, 1)
    accelerator.register_for_checkpointing(registered)
    state = tmp_path / 'states' / 'step_00000001'
    accelerator.save_state(str(state))
    (state / 'progress.json').write_text('{"step": 1, "images": 1, "seconds": 1}')
    with torch.no_grad():
        registered.weight.fill_(9)
    RunFolder(tmp_path).load_state(state, accelerator.load_state)
    assert registered.weight.item() != 9
    torch.save(Payload(tmp_path / 'ran'), state / 'custom_checkpoint_0.pkl')
    with pytest.raises(ValueError, match=r'step_00000001.*could run code.*mkdir.*--resume'):
        RunFolder(tmp_path).load_state(state, accelerator.load_state)
    (state / 'custom_checkpoint_0.pkl').write_bytes(b'PK')
    with pytest.raises(ValueError, match=r'step_00000001.* is damaged'):
        RunFolder(tmp_path).load_state(state, accelerator.load_state)
    assert not (tmp_path / 'ran').exists()


def test_a_config_in_yaml(tmp_path, capsys):
    ran = tmp_path / 'ran'
    trap, plain = tmp_path / 'trap.yaml', tmp_path / 'plain.yaml'
    trap.write_text(f'model: !!python/object/apply:os.mkdir ["{ran}"]\n')
    image = ROOT / 'mmaselect' / 'weights' / 'dit_cifar10' / 'samples.png'
    code = command(['look', str(image), '--config', str(trap), '--out', str(tmp_path / 'a.html')])
    assert code == 1 and 'not a YAML of plain values' in capsys.readouterr().err
    plain.write_text('a: !!python/tuple [1, 2]\n')
    assert load_config(plain).a == (1, 2)
    base = tmp_path / 'base.py'
    base.write_text(f'_base_ = {str(trap)!r}\n')
    with pytest.raises(ValueError, match='not a YAML of plain values'):
        load_config(base)
    assert not ran.exists()


PLAIN = dict(
    text='a',
    numbers=[1, 2.5, True, None, 1 + 2j],
    array=np.arange(6, dtype=np.uint8).reshape(2, 3),
    scalar=np.float32(0.5),
    names=np.array(['a', 'b'], dtype=object),
    bytes=b'\xff\x00',
    more=(collections.OrderedDict(a={1, 2}), collections.defaultdict(list, b=[3])),
    path=Path('images/a.png'),
)


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles(protocol):
    found = load_plain(io.BytesIO(pickle.dumps(PLAIN, protocol)))
    assert repr(found) == repr(PLAIN)


@pytest.mark.parametrize(
    'thing',
    [os.system, argparse.Namespace(), torch.ones(1), np.load, getattr, eval, print, Path.unlink],
    ids=lambda thing: getattr(thing, '__qualname__', type(thing).__name__),
)
def test_pickles_of_anything_else(thing):
    with pytest.raises(pickle.UnpicklingError, match=r'holds .*\..* in place of plain values'):
        load_plain(io.BytesIO(pickle.dumps([thing])))
    codec = b'c_codecs\nencode\n(Vabc\nVrot13\ntR.'
    with pytest.raises(pickle.UnpicklingError, match='rot13'):
        load_plain(io.BytesIO(codec))


@DATASETS.register_module(force=True)
class AnnotatedImages(BaseDataset):
    """Any data set of MMEngine."""


def test_a_pickled_annotation_file(tmp_path, tiny_dit, photos, monkeypatch, capsys):
    """MMEngine reads it for any data set, in the tools and where images are calibration."""
    monkeypatch.delenv(ANYTHING, raising=False)
    monkeypatch.delenv(ONLY_WEIGHTS, raising=False)
    names = sorted(path.name for path in Path(photos).iterdir())[:6]
    plain = dict(metainfo={}, data_list=[dict(img_path=name) for name in names])
    ran = tmp_path / 'ran'
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps(plain))
    (tmp_path / 'trap.pkl').write_bytes(pickle.dumps({**plain, 'metainfo': Payload(ran)}))

    def data(name):
        return dict(
            type='AnnotatedImages',
            ann_file=str(tmp_path / name),
            data_prefix=dict(img_path=str(photos)),
            pipeline=[dict(type='LoadImageFromFile')],
        )

    options = dict(timesteps=[0, 500], num_images=6, image_size=32, cache=False)
    assert select(tiny_dit, data('plain.pkl'), blocks=[2], **options).num_images == 6
    with pytest.raises(ValueError, match=r"'AnnotatedImages'.*trap\.pkl.*mkdir.*as JSON"):
        select(tiny_dit, data('trap.pkl'), blocks=[2], **options)
    assert not ran.exists()

    tool = runpy.run_path(str(ROOT / 'tools' / 'select_timestep.py'))
    for name in ('plain.pkl', 'trap.pkl'):
        config = tmp_path / 'config.py'
        backbone = dict(
            type='mmaselect.ASelecTDiT',
            pretrained=tiny_dit,
            blocks=[2],
            calibration=data(name),
            selection=dict(timesteps=[0, 500], num_images=6, image_size=32),
        )
        config.write_text(f'model = dict(backbone={backbone!r})\n')
        flags = [str(config), '--out', str(tmp_path / 'out')]
        if name == 'plain.pkl':
            run_tool(tool['main'], flags)
            assert (tmp_path / 'out' / 'selection.json').is_file()
        else:
            with pytest.raises(SystemExit, match='mkdir'):
                run_tool(tool['main'], flags)
    assert not ran.exists()


def test_a_data_set_of_a_run_is_read_by_the_guard(tmp_path, monkeypatch):
    """Not the calibration's: what a dataloader of any tool reads."""
    ran, trap = tmp_path / 'ran', tmp_path / 'trap.pkl'
    trap.write_bytes(pickle.dumps(dict(metainfo={}, data_list=[Payload(ran)])))
    with only_weights(), pytest.raises(pickle.UnpicklingError, match='mkdir'):
        BaseDataset(ann_file=str(trap))
    assert not ran.exists()
    # Whoever trusts a file says so, as with a checkpoint.
    monkeypatch.setenv(ANYTHING, '1')
    monkeypatch.delenv(ONLY_WEIGHTS, raising=False)
    with pytest.raises(TypeError):
        BaseDataset(ann_file=str(trap))
    assert ran.exists()
