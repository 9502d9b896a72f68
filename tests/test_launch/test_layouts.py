# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Folders as data sets have them: what `mmaselect init` makes of each."""

import json

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from mmaselect.cli import main
from mmaselect.launch.config import load_config
from mmaselect.launch.layouts import look_into
from mmaselect.openmmlab.registries import DATASETS

TINY = 'mmaselect://dit_digits'


def save(path, mode='RGB', values=(0, 1, 255)):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == 'RGB':
        pixels = np.random.default_rng(0).integers(0, 255, (28, 28, 3), np.uint8)
    else:
        pixels = np.resize(np.array(values, np.uint8), (28, 28))
    image = Image.fromarray(pixels)
    if mode == 'P':
        image.putpalette([7, 8, 9] * 256)
    image.save(path)


def config_of(folder, tmp_path, *flags):
    out = tmp_path / 'mine.py'
    given = ['--pretrained', TINY, '--out', str(out), '--overwrite', *flags]
    assert main(['init', str(folder), *given]) == 0
    return load_config(out)


def pairs(config, part):
    """Images and label maps of a part, as MMSegmentation lists them."""
    init_default_scope('mmseg')
    dataset = DATASETS.build(dict(config[f'{part}_dataloader'].dataset, pipeline=[]))
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [(item['img_path'], item['seg_map_path']) for item in items]


# -- label maps -----------------------------------------------------------------------------------
def make_voc(root):
    for number in range(6):
        save(root / f'JPEGImages/{number}.jpg')
    for number in range(4):
        save(root / f'SegmentationClass/{number}.png', 'P')
    lists = root / 'ImageSets/Segmentation'
    lists.mkdir(parents=True)
    (lists / 'train.txt').write_text('0\n1\n2\n')
    (lists / 'val.txt').write_text('3\n')


def make_ade(root):
    for part, numbers in (('training', range(4)), ('validation', range(4, 6))):
        for number in numbers:
            save(root / f'images/{part}/ADE_{number}.jpg')
            save(root / f'annotations/{part}/ADE_{number}.png', 'L')


def make_cityscapes(root):
    for part, cities in (('train', 'ab'), ('val', 'c')):
        for city in cities:
            for number in range(2):
                stem = f'{part}/{city}/{city}_{number:06}'
                save(root / f'leftImg8bit/{stem}_leftImg8bit.png')
                save(root / f'gtFine/{stem}_gtFine_labelTrainIds.png', 'L')
                save(root / f'gtFine/{stem}_gtFine_labelIds.png', 'L', (0, 33))
                save(root / f'gtFine/{stem}_gtFine_color.png')


def make_tails(root):
    for number in range(10):
        save(root / f'imgs/{number}_photo.jpg')
        save(root / f'mask/{number}_gt.png', 'L')


@pytest.mark.parametrize(
    ('make', 'train', 'val'),
    [(make_voc, 3, 1), (make_ade, 4, 2), (make_cityscapes, 4, 2), (make_tails, 9, 1)],
)
def test_label_maps_are_found(make, train, val, tmp_path):
    make(tmp_path / 'data')
    config = config_of(tmp_path / 'data', tmp_path)
    assert list(config.classes) == ['class_0', 'class_1']
    seen = set()
    for part, count in (('train', train), ('val', val)):
        found = pairs(config, part)
        assert len(found) == count
        for image, mask in found:
            with Image.open(image) as opened, Image.open(mask) as labels:
                assert opened.mode == 'RGB' and labels.mode in ('L', 'P')
            seen.add(image)
    assert len(seen) == train + val


# -- boxes ----------------------------------------------------------------------------------------
def save_boxes(path, images, offset=0, masks=True, categories=('cat', 'dog', 'unused')):
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = [
        dict(id=n + offset, file_name=name, width=28, height=28) for n, name in enumerate(images)
    ]
    objects = [
        dict(id=one['id'] + 1, image_id=one['id'], category_id=one['id'] % 2 + 3, iscrowd=0)
        | dict(bbox=[2, 2, 10, 8], area=80)
        | (dict(segmentation=[[2, 2, 12, 2, 12, 10]]) if masks else {})
        for one in listed
    ]
    named = [dict(id=n + 3, name=name) for n, name in enumerate(categories)]
    path.write_text(json.dumps(dict(images=listed, annotations=objects, categories=named)))


def make_coco(root, masks=True):
    for part, numbers in (('train2017', range(8)), ('val2017', range(8, 10))):
        for number in numbers:
            save(root / f'{part}/{number}.jpg')
        names = [f'{number}.jpg' for number in numbers]
        save_boxes(root / f'annotations/instances_{part}.json', names, numbers[0], masks)
        save_boxes(root / f'annotations/person_keypoints_{part}.json', names, numbers[0])
        (root / f'annotations/captions_{part}.json').write_text('{"images": [], "annotations": []}')


def make_next_to_images(root, masks=False):
    for part in ('train', 'valid', 'test'):
        for number in range(3):
            save(root / f'{part}/{number}.jpg')
        names = [f'{number}.jpg' for number in range(3)]
        save_boxes(root / part / '_annotations.coco.json', names, masks=masks)


def make_one_file(root, masks=True):
    for number in range(10):
        save(root / f'images/{number}.jpg')
    save_boxes(root / 'boxes.json', [f'{number}.jpg' for number in range(10)], masks=masks)


@pytest.mark.parametrize(
    ('make', 'masks', 'train', 'val'),
    [
        (make_coco, True, 8, 2),
        (make_coco, False, 8, 2),
        (make_next_to_images, False, 3, 3),
        (make_one_file, True, 9, 1),
    ],
)
def test_boxes_are_found(make, masks, train, val, tmp_path, capsys):
    make(tmp_path / 'data', masks)
    config = config_of(tmp_path / 'data', tmp_path)
    assert 'detection: ' in capsys.readouterr().out
    assert list(config.classes) == ['cat', 'dog']
    model = config.model
    assert model.type == ('MaskRCNN' if masks else 'FasterRCNN')
    assert (model.roi_head.mask_head is not None) == masks
    assert model.roi_head.bbox_head.num_classes == 2
    # The stride of the maps is 4: the pyramid's finest level is the map itself.
    assert model.neck[1].rescales == [1, 0.5, 0.25, 0.125] and model.neck[0].in_channels == [96]
    assert config.val_evaluator.metric == (['bbox', 'segm'] if masks else ['bbox'])
    ids = []
    for part, count in (('train', train), ('val', val)):
        dataset = config[f'{part}_dataloader'].dataset
        boxes = tmp_path / 'data' / dataset.ann_file
        content = json.loads(boxes.read_text())
        assert len(content['images']) == count
        folder = tmp_path / 'data' / dataset.data_prefix.img
        assert all((folder / one['file_name']).is_file() for one in content['images'])
        assert {o['image_id'] for o in content['annotations']} == {
            one['id'] for one in content['images']
        }
        ids.append([one['id'] for one in content['images']])
    assert json.loads((tmp_path / 'data' / config.val_evaluator.ann_file).read_text()) == content
    assert make is make_next_to_images or not set(ids[0]) & set(ids[1])


# -- what is wrong --------------------------------------------------------------------------------
def yolo(root):
    save(root / 'images/0.jpg')
    (root / 'labels').mkdir()
    (root / 'labels/0.txt').write_text('0 0.5 0.5 0.1 0.1\n')


def images_alone(root):
    save(root / '0.jpg')
    save(root / '1.jpg')


def other_names(root):
    save(root / 'images/img_1.jpg')
    save(root / 'masks/lab_1.png', 'L')


def voc_boxes(root):
    save(root / 'JPEGImages/0.jpg')
    (root / 'Annotations').mkdir()
    (root / 'Annotations/0.xml').write_text('<annotation/>')


def two_files(root):
    make_one_file(root)
    (root / 'more.json').write_bytes((root / 'boxes.json').read_bytes())


def images_are_elsewhere(root):
    save_boxes(root / 'annotations/instances_train.json', ['0.jpg'])


def some_are_missing(root):
    make_one_file(root)
    (root / 'images/4.jpg').unlink()


def not_json(root):
    images_alone(root)
    (root / 'boxes.json').write_text('{')


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda root: root.mkdir(), "there is no image in '.*data'"),
        (images_alone, r"2 images in \['.'\] and no labels .* read features alone, no labels are"),
        (yolo, "1 of 1 images have no label map, '0.jpg' for one; names of label maps, such as No"),
        (voc_boxes, r"no labels that are known.*and \.xml files. Of Pascal VOC's boxes, make COCO"),
        (other_names, "'img_1.jpg' for one; names of label maps, such as 'lab_1.png', must begin"),
        (two_files, r"is open: found \['boxes.json', 'more.json'\]. Leave one with \"train\""),
        (images_are_elsewhere, "names '0.jpg', and there is no such file in"),
        (some_are_missing, r'names 10 images, and 1 are not there, .*4\.jpg'),
        (not_json, "'.*boxes.json' cannot be read as JSON"),
        (lambda root: root.write_text('a,b'), 'is a file, and a folder is wanted: unpack'),
    ],
)
def test_what_is_wrong_is_named(make, message, tmp_path):
    make(tmp_path / 'data')
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        look_into(tmp_path / 'data')
