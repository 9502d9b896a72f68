# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import json

import pytest

from mmaselect.analysis.result_folder import ResultFolder, check_same_model, read_settings


def test_results_come_back(tmp_path):
    folder = ResultFolder(tmp_path / 'run', dict(seed=0, size=(32, 48)))
    assert folder.find(50) is None
    folder.save(50, dict(score=1.5))
    again = ResultFolder(tmp_path / 'run', dict(seed=0, size=[32, 48]))
    assert again.find(50) == dict(score=1.5)
    assert read_settings(tmp_path / 'run') == dict(seed=0, size=[32, 48])


def test_other_settings_are_refused(tmp_path):
    ResultFolder(tmp_path, dict(seed=0, name='a'))
    with pytest.raises(ValueError, match=r'other settings \(name: "a" there, "b" now; new: "\(no'):
        ResultFolder(tmp_path, dict(seed=0, name='b', new=1))
    assert json.loads((tmp_path / 'settings.json').read_text()) == dict(seed=0, name='a')


def test_no_run_folder(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r'not a folder of results: it has no settings\.json'
    ):
        read_settings(tmp_path)


def test_accuracies_of_another_model_are_refused():
    mine = dict(weights='a', image_size=(32, 48), task='classification', dtype='x', condition=None)
    check_same_model(mine, {**mine, 'image_size': [32, 48]})
    with pytest.raises(ValueError, match="weights='b', but this command has 'a'"):
        check_same_model(mine, {**mine, 'weights': 'b'})
