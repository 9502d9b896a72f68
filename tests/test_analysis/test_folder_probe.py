# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect probe``: what it measures is what scikit-learn measures on the same features."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

from mmaselect import FrozenDiT
from mmaselect.analysis.folder_probe import PROBE, probe_folder
from mmaselect.analysis.linear_probe import fit_probe
from mmaselect.cli import main
from mmaselect.images.class_folders import ClassFolders, split_folders
from mmaselect.images.reading import to_model_range
from mmaselect.selection import SelectionOptions
from mmaselect.selection.scoring import draw_readings

TINY = 'mmaselect://dit_digits'
OPTIONS = SelectionOptions(timesteps=[0, 400], num_images=16, batch_size=8)


def save(path, bright, seed):
    """A noisy square; one class has it on the left, the other on the right."""
    pixels = np.random.default_rng(seed).integers(0, 60, (28, 28), np.uint8)
    pixels[8:20, slice(2, 12) if bright else slice(16, 26)] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes')
    for number in range(48):
        save(root / ('right' if number % 2 else 'left') / f'{number:02d}.png', number % 2, number)
    return root


@pytest.fixture(scope='module')
def dit():
    return FrozenDiT.from_pretrained(TINY, blocks=[1, 2])


def test_accuracies_are_those_of_the_features(folder, dit):
    found = probe_folder(dit, folder, OPTIONS)
    assert (found.num_train, found.num_test, found.classes) == (32, 16, ('left', 'right'))
    source = ClassFolders(folder)
    parts = train_test_split(np.arange(48), test_size=1 / 3, random_state=0, stratify=source.labels)
    features, labels, first = [], [], 0
    for part in map(sorted, parts):
        pixels = np.stack([source.load(index) for index in part]).transpose(0, 3, 1, 2)
        images = to_model_range(torch.from_numpy(pixels.copy()))
        latent = dit.encode(images)
        (reading,) = draw_readings(latent, range(first, first + len(part)), 1, 0)
        maps = dit.features(reading.latent, 400, reading.noise)
        features.append(maps[2, 'query'].mean((-2, -1)).numpy())
        labels.append(np.array([source.labels[index] for index in part]))
        first += len(part)
    probe = fit_probe(features[0], labels[0], 2, PROBE)
    expected = 100 * (probe.predict(features[1]) == labels[1]).mean()
    (point,) = [p for p in found.points if (p.block, p.timestep) == (2, 400)]
    assert point.accuracy == pytest.approx(expected)
    assert point.low < point.accuracy or point.accuracy == 0
    assert found.best.accuracy == max(p.accuracy for p in found.points) > 90
    assert found.at_pick((1, 'query')).timestep == found.selection.timestep


def test_a_split_that_is_there_is_used(tmp_path):
    for part, count in (('train', 4), ('test', 2)):
        for number in range(count):
            save(tmp_path / part / 'ab'[number % 2] / f'{number}.png', number % 2, number)
    train, test = split_folders(tmp_path)
    assert (train.name, test.name) == ('train', 'test')
    assert len(ClassFolders(train)) == 4 and len(ClassFolders(test)) == 2
    assert split_folders(train) == (train, None)


def test_what_is_no_folder_of_classes(tmp_path, dit):
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        ClassFolders(tmp_path / 'missing')
    save(tmp_path / 'a/0.png', 0, 0)
    with pytest.raises(ValueError, match=r"two or more classes .* it has \['a'\]"):
        ClassFolders(tmp_path)
    save(tmp_path / 'b/0.png', 1, 1)
    with pytest.raises(ValueError, match='each class needs three images or more'):
        probe_folder(dit, tmp_path, OPTIONS)
    with pytest.raises(ValueError, match=r"class folders that the training images lack: \['b'\]"):
        ClassFolders(tmp_path, ('a', 'c'))


def test_command(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    flags = ['--timesteps', '0,400', '--num-images', '16', '--out', str(tmp_path / 'out')]
    assert main(['probe', str(folder), '--pretrained', TINY, '--blocks', '2', *flags]) == 0
    assert 'label-free pick: timestep' in capsys.readouterr().out
    stored = json.loads((tmp_path / 'out/probe.json').read_text())
    assert [point['timestep'] for point in stored['points']] == [0, 400]
    assert 'best t' in (tmp_path / 'out/probe.html').read_text()
    with Image.open(tmp_path / 'out/probe.png') as figure:
        assert figure.width > 500
    assert main(['probe', str(folder), '--pretrained', TINY, '--num-train', '1']) == 1
    assert '--num-train must be at least 2' in capsys.readouterr().err


def test_command_names_a_missing_folder(capsys: pytest.CaptureFixture[str]) -> None:
    from mmaselect.cli.command import main

    assert main(['probe', '/no/such', '--pretrained', 'mmaselect://dit_digits']) == 1
    assert "there is no folder '/no/such'" in capsys.readouterr().err
