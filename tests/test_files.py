# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import os

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
