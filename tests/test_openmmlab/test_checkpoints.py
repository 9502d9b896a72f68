# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import importlib
import os
import pickle
import resource

import numpy as np
import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from mmengine.runner import save_checkpoint

import mmaselect.models
from mmaselect.launch.hooks.plain_checkpoint_hook import to_plain
from mmaselect.openmmlab.checkpoints import (
    WholeFileBackend,
    check_checkpoint_file,
    check_weights_fit,
    find_checkpoint,
    mmengine_globals,
    read_only_weights,
    write_whole_files,
)


def history():
    buffer = HistoryBuffer()
    for value in (1.0, 2.5, 4.0):
        buffer.update(value)
    return buffer


def one_cycle():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    return OneCycleLR(optimizer, eta_max=1.0, total_steps=10).state_dict()


def test_what_mmengine_writes_is_read(tmp_path):
    """Also by versions that know nothing of safe loads: the objects themselves are pickled."""
    written = dict(
        state_dict=dict(a=torch.ones(2)),
        log=history(),
        schedule=one_cycle(),
        score=np.float64(0.5),
        counts=np.arange(3),
        flags=np.array([True, False]),
    )
    torch.save(written, tmp_path / 'a.pth')
    with torch.serialization.safe_globals(mmengine_globals()):
        loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['log'].data[0].tolist() == [1.0, 2.5, 4.0]
    assert loaded['log'].mean() == 2.5
    assert loaded['schedule']['anneal_func'](0.0, 1.0, 0.5) == pytest.approx(0.5)
    assert loaded['score'] == 0.5
    assert loaded['counts'].tolist() == [0, 1, 2]


def test_a_process_with_a_model_of_ours_reads_what_mmengine_writes(tmp_path):
    """Also without our tools: mmengine 0.10.7 reads by the default, which refuses its own files."""
    torch.save(dict(log=history(), n=np.float64(1)), tmp_path / 'a.pth')
    torch.serialization.clear_safe_globals()
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        torch.load(tmp_path / 'a.pth', weights_only=True)
    importlib.reload(mmaselect.models)
    assert torch.load(tmp_path / 'a.pth', weights_only=True)['log'].mean() == 2.5


class Attribute:
    """Pickles as ``getattr(owner, name)``."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize('owner, name', [(HistoryBuffer, '__init__'), (np.ndarray, 'tofile')])
def test_getattr_gives_nothing_else(tmp_path, owner, name):
    torch.save(dict(a=Attribute(owner, name)), tmp_path / 'a.pth')
    with (
        torch.serialization.safe_globals(mmengine_globals()),
        pytest.raises(
            pickle.UnpicklingError, match='is not among the functions that MMEngine stores'
        ),
    ):
        torch.load(tmp_path / 'a.pth', weights_only=True)


def test_plain_types_need_no_list(tmp_path):
    refused = set()
    plain = to_plain(
        dict(
            schedule=one_cycle(),
            score=np.float32(0.5),
            flag=np.True_,
            classes=('sky', 'sea'),
            palette=np.arange(3),
            ids={1, 2},
            weights=torch.ones(2),
            version=torch.__version__,  # a class of its own
        ),
        refused,
    )
    assert refused == set()
    torch.save(plain, tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert 'anneal_func' not in loaded['schedule']
    assert loaded['schedule']['total_steps'] == 10
    assert (loaded['score'], loaded['flag']) == (0.5, True)
    assert loaded['classes'] == ('sky', 'sea')
    assert loaded['palette'] == [0, 1, 2]
    assert loaded['ids'] == {1, 2}
    to_plain(dict(a=object()), refused)
    assert refused == {'builtins.object'}


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(dict(a=torch.ones(1000)), path)
    check_checkpoint_file(path)
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r'a\.pth is cut off'):
        check_checkpoint_file(path)
    path.write_bytes(b'')
    with pytest.raises(ValueError, match=r'a\.pth is empty'):
        check_checkpoint_file(path)
    path.write_text('<html>404</html>')
    with pytest.raises(
        ValueError, match=r"a\.pth is not a checkpoint of PyTorch: it begins with b'<h'"
    ):
        check_checkpoint_file(path)
    torch.save(dict(a=1), path, _use_new_zipfile_serialization=False)
    check_checkpoint_file(path)


def test_only_names_that_could_run_code_are_refused(tmp_path):
    read_only_weights()
    torch.save(dict(log=history(), schedule=one_cycle(), n=np.float64(1)), tmp_path / 'a.pth')
    check_checkpoint_file(tmp_path / 'a.pth')
    torch.save(dict(a=os.getcwd), tmp_path / 'b.pth')
    with pytest.raises(ValueError, match=r'posix\.getcwd'):
        check_checkpoint_file(tmp_path / 'b.pth')
    read_only_weights(trust=True)
    check_checkpoint_file(tmp_path / 'b.pth')
    assert torch.load(tmp_path / 'b.pth')['a'] is os.getcwd


def test_the_newest_whole_checkpoint(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for number in (1, 2):
        torch.save(dict(a=torch.ones(1000)), tmp_path / f'iter_{number}.pth')
        os.utime(tmp_path / f'iter_{number}.pth', (number, number))
    assert find_checkpoint(tmp_path) == str(tmp_path / 'iter_2.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_1.pth'))
    assert find_checkpoint(tmp_path) == str(tmp_path / 'iter_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_2.pth'))
    data = (tmp_path / 'iter_2.pth').read_bytes()
    (tmp_path / 'iter_2.pth').write_bytes(data[:500])
    assert find_checkpoint(tmp_path) == str(tmp_path / 'iter_1.pth')
    (tmp_path / 'iter_1.pth').unlink()
    with pytest.raises(ValueError, match=r'no checkpoint in .* is whole: .*iter_2\.pth'):
        find_checkpoint(tmp_path)


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / 'iter_1.pth'
    torch.save(dict(a=1), path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk: OSError midway
    try:
        with pytest.raises(OSError, match='too large'):
            WholeFileBackend().put(bytes(200_000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ['iter_1.pth']


def test_an_old_checkpoint_goes_when_the_next_is_there(tmp_path):
    backend, soft_hard = WholeFileBackend(), resource.getrlimit(resource.RLIMIT_FSIZE)
    old, new = tmp_path / 'iter_1.pth', tmp_path / 'iter_2.pth'
    backend.put(b'old', old)
    get_file_backend(str(old))  # MMEngine's own instance may be another
    WholeFileBackend().remove(old)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, soft_hard[1]))
    try:
        with pytest.raises(OSError, match='too large'):
            backend.put(bytes(200_000), new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
    assert [entry.name for entry in tmp_path.iterdir()] == ['iter_1.pth']
    backend.put(b'new', new)
    assert [entry.name for entry in tmp_path.iterdir()] == ['iter_2.pth']
    assert WholeFileBackend.outdated == []
    (tmp_path / 'a.txt').touch()
    backend.remove(tmp_path / 'a.txt')
    assert [entry.name for entry in tmp_path.iterdir()] == ['iter_2.pth']


def test_mmengine_writes_through_it(tmp_path):
    write_whole_files()
    assert isinstance(get_file_backend(str(tmp_path / 'a.pth')), WholeFileBackend)
    save_checkpoint(dict(a=torch.ones(2)), str(tmp_path / 'a.pth'))
    assert torch.load(tmp_path / 'a.pth', weights_only=True)['a'].tolist() == [1, 1]


# -- weights that fit -----------------------------------------------------------------------------
def saved(path, change):
    model = torch.nn.Linear(3, 2)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    change(state)
    torch.save(dict(state_dict=state, meta={}), path)
    return model


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda state: state.update(weight=torch.ones(5, 3)), r'weight is \(5, 3\) there and \(2'),
        (lambda state: state.pop('bias'), 'lacks bias'),
        (lambda state: state['weight'].fill_(torch.nan), 'not finite .*: weight'),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    model = saved(tmp_path / 'a.pth', change)
    with pytest.raises(ValueError, match=message):
        check_weights_fit(model, tmp_path / 'a.pth')


def test_weights_that_fit(tmp_path):
    model = saved(tmp_path / 'a.pth', lambda state: None)
    check_weights_fit(model, tmp_path / 'a.pth')


def test_a_bit_that_has_flipped(tmp_path):
    path = tmp_path / 'a.pth'
    model = saved(path, lambda state: state['weight'].fill_(1.25))
    data = bytearray(path.read_bytes())
    place = data.index(b'\x00\x00\xa0\x3f')  # 1.25
    data[place + 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'the checksum of its entry .* does not match'):
        check_weights_fit(model, path)
