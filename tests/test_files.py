# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import multiprocessing
import os
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmaselect.files import write_atomically, written_aside


def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = write_atomically(tmp_path / 'results' / 'a.json', 'old')
    with pytest.raises(OSError, match='disk full'), written_aside(path) as aside:
        aside.write_text('half of the n')
        assert path.read_text() == 'old'
        raise OSError('disk full')
    assert path.read_text() == 'old'
    assert os.listdir(path.parent) == ['a.json']


def test_a_write_takes_the_place_of_the_old_file(tmp_path):
    path = tmp_path / 'a.svg'
    path.write_text('old')
    with written_aside(path) as aside:
        assert aside.suffix == '.svg'
        aside.write_text('new')
    assert path.read_text() == 'new'
    assert os.listdir(tmp_path) == ['a.svg']


def test_colleagues_may_read_what_the_umask_lets_them_read(tmp_path):
    tensors = tmp_path / 'a.safetensors'
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / 'selection.json', '{}')
        with written_aside(tensors) as aside:
            save_file({'x': np.zeros(3)}, aside)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == tensors.stat().st_mode & 0o777 == 0o640


def _killed_while_writing(path):
    with written_aside(path) as aside:
        aside.write_text('half of the n')
        os._exit(9)


def test_what_a_killed_process_left_is_cleared_by_the_next_write(tmp_path):
    path = tmp_path / 'a.json'
    writer = multiprocessing.get_context('fork').Process(target=_killed_while_writing, args=(path,))
    writer.start()
    writer.join()
    (left,) = os.listdir(tmp_path)
    # One of a process that runs, of another machine, of it a long time ago, and a user's file.
    running = left.replace(f'-{writer.pid}-', f'-{os.getppid()}-')
    machine = left.split('.')[2][:8]
    elsewhere, long_ago = (left.replace(machine, name) for name in ('0' * 8, '1' * 8))
    for name in (running, elsewhere, long_ago, '.a.json'):
        (tmp_path / name).touch()
    day_before = time.time() - 2 * 24 * 3600
    os.utime(tmp_path / long_ago, (day_before, day_before))
    write_atomically(path, 'new')
    assert sorted(os.listdir(tmp_path)) == sorted(['.a.json', 'a.json', running, elsewhere])


def test_a_long_name_leaves_room_for_the_name_aside(tmp_path):
    path = write_atomically(tmp_path / ('x' * 240 + '.json'), 'new')
    assert path.read_text() == 'new'
