# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import contextlib
import multiprocessing
import os
import socket
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from mmaselect.diffusion.condition import cache_folder
from mmaselect.files import (
    cache_root,
    check_regular,
    clear_leftovers,
    write_atomically,
    written_aside,
)
from mmaselect.selection import SelectionCache


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
    assert left.startswith('.mmaselect-a.')
    # One of a process that runs, of another machine, of it a long time ago, of another file, and
    # two of the user's, of which one has the form that earlier versions cleared.
    running = left.replace(f'-{writer.pid}-', f'-{os.getppid()}-')
    machine = left.split('.')[2][:8]
    elsewhere, long_ago = (left.replace(machine, name) for name in ('0' * 8, '1' * 8))
    another = left.replace('-a.', '-b.')
    mine = ('.a.json', '.notes.' + 32 * 'a' + '.txt')
    for name in (running, elsewhere, long_ago, another, *mine):
        (tmp_path / name).touch()
    day_before = time.time() - 2 * 24 * 3600
    for name in (long_ago, *mine):
        os.utime(tmp_path / name, (day_before, day_before))
    write_atomically(path, 'new')
    assert sorted(os.listdir(tmp_path)) == sorted(['a.json', running, elsewhere, another, *mine])
    clear_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(['a.json', running, elsewhere, *mine])


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / 'there').mkdir()
    target = tmp_path / 'there' / 'real.json'
    target.write_text('old')
    link, dangling = tmp_path / 'a.json', tmp_path / 'b.json'
    link.symlink_to(target)
    dangling.symlink_to(tmp_path / 'there' / 'later.json')
    for path in (link, dangling):
        write_atomically(path, 'new')
        assert path.is_symlink() and path.resolve().read_text() == 'new'
    assert sorted(os.listdir(tmp_path / 'there')) == ['later.json', 'real.json']


def test_pipes_and_devices_stay_what_they_are(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    with pytest.raises(OSError, match=r"pipe' cannot be written .*give another path"):
        write_atomically(pipe, 'nobody reads')
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(pipe.read_text)
        while True:  # until it has opened the pipe; once, or the text would be there twice
            with contextlib.suppress(OSError):
                write_atomically(pipe, 'x' * 100_000)
                break
        assert found.result() == 'x' * 100_000
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    write_atomically('/dev/null', 'x')
    assert stat.S_ISCHR(os.stat('/dev/null').st_mode)
    with pytest.raises(OSError, match='No space left'):
        write_atomically('/dev/full', 'x')
    with pytest.raises(OSError, match='is a folder, and cannot be written'):
        write_atomically(tmp_path, 'x')
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 's'))
        with pytest.raises(OSError, match='is a socket or a disk'):
            write_atomically(tmp_path / 's', 'x')


def test_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write_atomically('~/a/b.json', 'x')
    assert (tmp_path / 'a' / 'b.json').read_text() == 'x'


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('MMASELECT_CACHE', '~/own')
    assert cache_root() == tmp_path / 'own' and cache_folder() == tmp_path / 'own' / 'conditions'
    monkeypatch.delenv('MMASELECT_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'shared'))
    assert cache_root() == tmp_path / 'shared' / 'mmaselect'
    for ignored in ('', 'relative'):
        monkeypatch.setenv('XDG_CACHE_HOME', ignored)
        assert cache_root() == tmp_path / '.cache' / 'mmaselect'
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(os, 'getuid', lambda: 987_654_321)
    with pytest.raises(OSError, match=r'no home directory .*set MMASELECT_CACHE'):
        cache_root()


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zeros').symlink_to('/dev/zero')
    for name in ('pipe', 'zeros'):
        with pytest.raises(OSError, match='a pipe, a socket or a device'):
            check_regular(tmp_path / name)
    key = 'a' * 32
    cache = SelectionCache(tmp_path)
    for target in ('pipe', 'zeros'):
        (tmp_path / f'{key}.json').symlink_to(tmp_path / target)
        assert cache.find(key) is None
        (tmp_path / f'{key}.json').unlink()


def test_a_long_name_leaves_room_for_the_name_aside(tmp_path):
    path = write_atomically(tmp_path / ('x' * 240 + '.json'), 'new')
    assert path.read_text() == 'new'
