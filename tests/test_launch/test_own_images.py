# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From a folder of images to predictions: ``mmaselect init``, ``train``, ``test``, ``predict``."""

import csv

import numpy as np
import pytest
from PIL import Image

from mmaselect.cli import main
from mmaselect.launch.config import load_config
from mmaselect.launch.layouts import look_into
from mmaselect.launch.predicting import image_files

TINY = 'mmaselect://dit_digits'


def save(path, seed=0, size=(28, 28)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def save_mask(path, labels=(0, 1, 255), size=(28, 28)):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.resize(np.array(labels, np.uint8), size)
    Image.fromarray(mask).save(path)


@pytest.fixture
def classes(tmp_path):
    for number in range(12):
        save(tmp_path / f'data/{"ab"[number % 2]}/{number}.png', number)
    return tmp_path / 'data'


@pytest.fixture
def street(tmp_path):
    for number in range(12):
        save(tmp_path / f'street/images/{number}.png', number)
        save_mask(tmp_path / f'street/masks/{number}.png')
    (tmp_path / 'street/classes.txt').write_text('road\nsky\n')
    return tmp_path / 'street'


def test_class_folders(classes):
    found = look_into(classes)
    assert (found.task, found.classes, found.count) == ('classification', ('a', 'b'), 12)
    assert (found.train, found.val, found.side) == ('', None, 28)


def test_class_folders_with_validation_images(tmp_path):
    for part in ('train', 'val'):
        for name in 'ab':
            save(tmp_path / part / name / '0.png')
    found = look_into(tmp_path)
    assert (found.train, found.val) == ('train', 'val')


def test_images_and_label_maps(street):
    found = look_into(street)
    assert (found.task, found.classes, found.masks) == (
        'segmentation',
        ('road', 'sky'),
        ('masks', None),
    )


def test_names_of_classes_are_numbers_where_none_are_given(street):
    (street / 'classes.txt').unlink()
    assert look_into(street).classes == ('class_0', 'class_1')


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (lambda root: (root / 'masks/3.png').unlink(), "1 of 12 images have no label map, '3.png'"),
        (lambda root: save(root / 'masks/3.png'), 'has the mode RGB, and a label map has one'),
        (lambda root: save_mask(root / 'masks/3.png', (0, 5)), 'has 2 names, and the label maps'),
        (lambda root: (root / 'images/3.png').rename(root / 'images/3.bmp'), 'of each: convert'),
    ],
)
def test_what_is_wrong_with_label_maps(street, spoil, message):
    spoil(street)
    with pytest.raises(ValueError, match=message):
        look_into(street)


def test_unknown_layout(tmp_path):
    with pytest.raises(ValueError, match='These layouts are known: a folder for each class'):
        look_into(tmp_path)
    save(tmp_path / 'only/0.png')
    with pytest.raises(ValueError, match="there is one class, 'only'"):
        look_into(tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no folder'):
        look_into(tmp_path / 'missing')


def init(folder, out, *flags):
    return main(['init', str(folder), '--pretrained', TINY, '--out', str(out), *flags])


def test_a_config_is_not_replaced_unasked(classes, tmp_path, capsys):
    assert init(classes, tmp_path / 'a.py') == 0
    (tmp_path / 'a.py').write_text('mine')
    assert init(classes, tmp_path / 'a.py') == 1
    assert 'exists: give another --out, or --overwrite' in capsys.readouterr().err
    assert (tmp_path / 'a.py').read_text() == 'mine'
    assert init(classes, tmp_path / 'a.py', '--overwrite') == 0


def test_held_out_images_are_not_trained_on(street, tmp_path):
    assert init(street, tmp_path / 'a.py') == 0
    train, val = (
        set((tmp_path / f'splits/{part}.txt').read_text().split()) for part in ('train', 'val')
    )
    assert len(train) == 11 and len(val) == 1 and not train & val
    config = load_config(tmp_path / 'a.py')
    assert config.model.decode_head.num_classes == 2
    head, backbone = config.model.decode_head, config.model.backbone
    assert head.in_channels == [96] * 4 and head.in_index == [0, 1, 2, 3]
    assert (backbone.blocks, backbone.feature, backbone.timestep) == ('auto:4', 'auto', 'auto')


SHORT = (
    *('--cfg-options', 'model.backbone.selection.timesteps=0,500'),
    *('model.backbone.selection.num_images=8', 'train_dataloader.num_workers=0'),
    *('val_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'),
    'val_dataloader.persistent_workers=False',
)


def test_from_class_folders_to_predictions(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    assert init(classes, 'mine.py', '--iterations', '1', '--batch-size', '8') == 0
    assert main(['train', 'mine.py', *SHORT]) == 0
    checkpoint = 'work_dirs/mine/epoch_1.pth'
    save(tmp_path / 'new/x.png')
    save(tmp_path / 'new/sub/x.png', 3)
    flags = ['--config', 'mine.py', '--checkpoint', checkpoint, '--out', 'out', '--device', 'cpu']
    assert main(['predict', 'new', *flags]) == 0
    with open('out/predictions.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and {row['label'] for row in rows} <= {'a', 'b'}
    with Image.open('out/overview.png') as sheet:
        assert sheet.height > 160


def test_from_label_maps_to_predictions(street, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    assert init(street, 'mine.py', '--iterations', '1') == 0
    assert main(['train', 'mine.py', *SHORT]) == 0
    flags = ['--config', 'mine.py', '--checkpoint', 'work_dirs/mine/iter_1.pth', '--out', 'out']
    assert main(['predict', 'street/images/0.png', *flags, '--device', 'cpu']) == 0
    with Image.open('out/masks/0.png') as mask:
        assert mask.size == (28, 28) and set(np.unique(np.asarray(mask))) <= {0, 1}


def test_images_to_predict(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="no image and no folder 'nowhere"):
        image_files(['nowhere.png'])
    with pytest.raises(ValueError, match='there are no images in'):
        image_files([str(tmp_path)])
    flags = ['--config', 'a.py', '--checkpoint', 'b.pth', '--out', str(tmp_path)]
    assert main(['predict', 'nowhere.png', *flags]) == 1
    assert 'mmaselect predict: error: there is no image' in capsys.readouterr().err


def test_tools_keep_their_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(['train', '--help'])
    assert stopped.value.code == 0
    assert '--auto-scale-lr' in capsys.readouterr().out
    assert main(['train', 'missing.py']) == 1
    assert "There is no config file 'missing.py'" in capsys.readouterr().err


def test_types_of_a_base_in_the_package_are_the_toolbox_s(tmp_path):
    """MMEngine puts the scope of the package into all that such a base has."""
    base = 'mmaselect::segmentation/aselect_dit-tiny_bnlinear_1xb8-2k_camvid-240x180.py'
    (tmp_path / 'a.py').write_text(f'_base_ = {base!r}\n')
    config = load_config(tmp_path / 'a.py')
    assert '_scope_' not in config.visualizer and '_scope_' not in config.train_dataloader.dataset
