# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every data set of the table, made of miniature archives with the published names and layouts."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from scipy.io import savemat

from mmaselect.cli import main
from mmaselect.fetch import DATA_SETS, check_data, find_data_set, get_data
from mmaselect.openmmlab.registries import DATASETS

BASES = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'


def image(seed=0, suffix='JPEG'):
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, suffix)
    return file.getvalue()


def mat(**entries):
    file = io.BytesIO()
    savemat(file, entries)
    return file.getvalue()


def tar(members, mode='w:gz'):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def lines(*rows):
    return ''.join(f'{row}\n' for row in rows).encode()


def table(keys, values):
    return lines(*(f'{key} {value}' for key, value in zip(keys, values, strict=True)))


def birds(top, ids):
    """Three images of two classes, the last one to test on."""
    files = ['0817/a.jpg', '0817/b.jpg', '0925/c.jpg']
    return tar(
        {
            **{f'{top}/images/{name}': image(n) for n, name in enumerate(files)},
            f'{top}/images.txt': lines(
                *(f'{i} {name}' for i, name in zip(ids, files, strict=True))
            ),
            f'{top}/image_class_labels.txt': lines(
                *(f'{i} {label}' for i, label in zip(ids, (1, 1, 2), strict=True))
            ),
            f'{top}/train_test_split.txt': lines(
                *(f'{i} {n}' for i, n in zip(ids, (1, 1, 0), strict=True))
            ),
            f'{top}/classes.txt': lines('0 Birds', '1 Snow Goose', '2 Common Loon'),
        }
    )


def entries(names, key='fname'):
    """MATLAB's array of structs, as the development kit of Stanford Cars has it."""
    array = np.zeros((1, len(names)), [(key, 'O'), ('class', 'O')])
    for place, (name, label) in enumerate(names.items()):
        array[0, place] = (name, label)
    return array


def cells(names):
    array = np.empty((len(names), 1), object)
    array[:, 0] = names
    return array


def cifar_batch(labels, seed):
    data = np.random.default_rng(seed).integers(0, 255, (len(labels), 3072), np.uint8)
    return pickle.dumps({b'data': data, b'labels': labels, b'batch_label': b'x'}, protocol=2)


def imagenet_synsets():
    array = np.zeros(3, [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('num_children', 'O')])
    array[:] = [(1, 'n01', 0), (2, 'n02', 0), (3, 'n03', 2)]
    return array


CIFAR_TOP = 'cifar-10-batches-py'
CIFAR_NAMES = [
    'airplane',
    'automobile',
    'bird',
    'cat',
    'deer',
    'dog',
    'frog',
    'horse',
    'ship',
    'truck',
]
FRAMES = ('0001TP_006690', '0016E5_07959', 'Seq05VD_f00000')


def colors():
    pixels = np.full((6, 8, 3), (64, 128, 192), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    return file.getvalue()


#: Name of a data set to its archives (in the table's order) and what is to be counted in them.
MINIATURES = {
    'cub': ([birds('CUB_200_2011', '123')], (2, 1, 2)),
    'flowers': (
        [
            tar({f'jpg/image_{n:05d}.jpg': image(n) for n in range(1, 7)}),
            mat(labels=[[1, 1, 2, 2, 1, 2]]),
            mat(trnid=[[1, 3]], valid=[[5, 6]], tstid=[[2, 4]]),
        ],
        (6, 2, 2, 2, 2),
    ),
    'cars': (
        [
            tar({f'cars_train/0000{n}.jpg': image(n) for n in (1, 2)}),
            tar({f'cars_test/0000{n}.jpg': image(n) for n in (1, 2)}),
            tar(
                {
                    'devkit/cars_train_annos.mat': mat(
                        annotations=entries({'00001.jpg': 1, '00002.jpg': 2})
                    )
                }
            ),
            mat(annotations=entries({'00001.jpg': 2, '00002.jpg': 1})),
        ],
        (2, 2, 2, 2, 2),
    ),
    'dogs': (
        [
            tar({f'Images/n0{n}-Breed{n}/n0{n}_{n}.jpg': image(n) for n in range(1, 5)}, 'w'),
            tar(
                {
                    'train_list.mat': mat(
                        file_list=cells(['n01-Breed1/n01_1.jpg', 'n02-Breed2/n02_2.jpg']),
                        labels=[[1], [2]],
                    ),
                    'test_list.mat': mat(
                        file_list=cells(['n03-Breed3/n03_3.jpg', 'n04-Breed4/n04_4.jpg']),
                        labels=[[3], [4]],
                    ),
                },
                'w',
            ),
        ],
        (4, 2, 2, 4),
    ),
    'aircraft': (
        [
            tar(
                {
                    **{f'fgvc-aircraft-2013b/data/images/{n}.jpg': image(n) for n in (7, 8, 9)},
                    **{
                        f'fgvc-aircraft-2013b/data/images_variant_{part}.txt': lines(text)
                        for part, text in (
                            ('train', '7 737-700'),
                            ('val', '8 DC-10'),
                            ('test', '9 DC-10'),
                        )
                    },
                    'fgvc-aircraft-2013b/data/variants.txt': lines('737-700', 'DC-10'),
                }
            )
        ],
        (3, 1, 1, 1, 2),
    ),
    'nabirds': ([birds('nabirds', ('0a', '0b', '0c'))], (2, 1, 2)),
    'ade20k': (
        [
            zipped(
                {
                    f'ADEChallengeData2016/{kind}/{part}/x{n}.{suffix}': image(n, name)
                    for part, count in (('training', 2), ('validation', 1))
                    for n in range(count)
                    for kind, suffix, name in (
                        ('images', 'jpg', 'JPEG'),
                        ('annotations', 'png', 'PNG'),
                    )
                }
            )
        ],
        (2, 2, 1, 1),
    ),
    'camvid': (
        [
            zipped({f'701_StillsRaw_full/{name}.png': image(0, 'PNG') for name in FRAMES}),
            zipped({f'{name}_L.png': colors() for name in FRAMES}),
        ],
        (1,) * 6,
    ),
    'cifar10': (
        [
            tar(
                {
                    **{f'{CIFAR_TOP}/data_batch_{n}': cifar_batch([n, 0], n) for n in range(1, 6)},
                    f'{CIFAR_TOP}/test_batch': cifar_batch([9, 8, 7], 9),
                    f'{CIFAR_TOP}/batches.meta': pickle.dumps(
                        {b'label_names': [name.encode() for name in CIFAR_NAMES]}, protocol=2
                    ),
                }
            )
        ],
        (10, 3, 10),
    ),
    'imagenet': (
        [
            tar(
                {
                    f'{synset}.tar': tar({f'{synset}_1.JPEG': image(n)}, 'w')
                    for n, synset in enumerate(('n01', 'n02'))
                },
                'w',
            ),
            tar({f'ILSVRC2012_val_0000000{n}.JPEG': image(n) for n in (1, 2, 3)}, 'w'),
            tar(
                {
                    'ILSVRC2012_devkit_t12/data/meta.mat': mat(synsets=imagenet_synsets()),
                    'ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt': lines(
                        2, 1, 2
                    ),
                }
            ),
        ],
        (2, 3, 2),
    ),
}


def miniature(name, folder, by_url=True, checksums=False):
    """A data set of the table, on miniature archives in a folder."""
    data = find_data_set(name)
    contents, expected = MINIATURES[name]
    folder.mkdir(parents=True, exist_ok=True)
    archives = []
    for archive, content in zip(data.archives, contents, strict=True):
        (folder / archive.name).write_bytes(content)
        archives.append(
            replace(
                archive,
                url=(folder / archive.name).as_uri() if by_url else None,
                size=len(content),
                checksum=f'md5:{hashlib.md5(content).hexdigest()}' if checksums else None,
            )
        )
    counts = dict(zip(data.expected, expected, strict=True))
    return replace(data, archives=tuple(archives), expected=counts)


def test_every_data_set_has_a_miniature():
    assert MINIATURES.keys() == DATA_SETS.keys()


@pytest.mark.parametrize('name', MINIATURES)
def test_from_archives_to_counts(name, tmp_path):
    data = miniature(name, tmp_path / 'server', checksums=True)
    root = tmp_path / 'data'
    folder = get_data(data, root, progress=False)
    assert folder == root / data.folder
    assert check_data(data, root) == data.expected
    # Nothing else is left: no archive, no lock that matters, nothing half-unpacked.
    left = {path.name for path in root.iterdir()} - {Path(data.folder).parts[0]}
    assert left <= {f'.{name}.lock', '.archives'} and not list((root / '.archives').iterdir())
    assert get_data(data, root, progress=False) == folder, 'what is complete stays'


#: Base config, data set and split to what its class must count.
LAYOUTS = {
    'cub_512': ('cub', ('train_dataloader', 'test_dataloader'), (2, 1)),
    'nabirds_512': ('nabirds', ('train_dataloader', 'test_dataloader'), (2, 1)),
    'flowers102_512': (
        'flowers',
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        (2, 2, 2),
    ),
    'stanford_cars_512': ('cars', ('train_dataloader', 'test_dataloader'), (2, 2)),
    'stanford_dogs_512': ('dogs', ('train_dataloader', 'test_dataloader'), (2, 2)),
    'fgvc_aircraft_512': (
        'aircraft',
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        (1, 1, 1),
    ),
    'ade20k_512x512': ('ade20k', ('train_dataloader', 'val_dataloader'), (2, 1)),
    'camvid_480x360': (
        'camvid',
        ('train_dataloader', 'val_dataloader', 'test_dataloader'),
        (1, 1, 1),
    ),
    'cifar10_folders_32': ('cifar10', ('train_dataloader', 'test_dataloader'), (10, 3)),
    'imagenet_256': ('imagenet', ('train_dataloader', 'val_dataloader'), (2, 3)),
}


@pytest.mark.parametrize('base', LAYOUTS)
def test_configs_read_what_was_gotten(base, tmp_path, monkeypatch):
    """The class that the config names finds the images in the folder that the config names."""
    name, loaders, counts = LAYOUTS[base]
    monkeypatch.chdir(tmp_path)
    get_data(miniature(name, tmp_path / 'server'), progress=False)
    config = Config.fromfile(BASES / f'{base}.py')
    found = []
    with DefaultScope.overwrite_default_scope('mmseg' if 'mIoU' in str(config) else 'mmpretrain'):
        for loader in loaders:
            dataset = config[loader].dataset
            if dataset.type == 'mmaselect.HoldOut':
                dataset = dataset.dataset  # the miniature is too small to hold images out
            if dataset.type == 'ImageNet':
                dataset = dict(dataset, classes=['a', 'b'])
            built = DATASETS.build({**dataset, 'pipeline': []})
            found.append(len(built))
    assert tuple(found) == counts


def test_archives_that_a_form_gave(tmp_path):
    root, given = tmp_path / 'data', tmp_path / 'given'
    data = miniature('nabirds', given, by_url=False)
    with pytest.raises(FileNotFoundError) as error:
        get_data(data, root, progress=False)
    for part in ('cannot be downloaded by a program', 'consent', data.page, 'Put nabirds.tar.gz',
                 str(root / '.archives')):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match='there is no folder of archives'):
        get_data(data, root, tmp_path / 'nowhere', progress=False)
    get_data(data, root, given, progress=False)
    assert (given / 'nabirds.tar.gz').is_file(), 'what the user brought stays'
    assert check_data(data, root) == data.expected


@pytest.mark.parametrize('fault', ['cut', 'other', 'evil', 'few', 'flipped'])
def test_nothing_half_unpacked_stays(fault, tmp_path):
    root, server = tmp_path / 'data', tmp_path / 'server'
    data = miniature('cub', server)
    archive = server / 'CUB_200_2011.tgz'
    content = archive.read_bytes()
    if fault == 'cut':
        archive.write_bytes(content[: len(content) // 2])
    elif fault == 'flipped':
        archive.write_bytes(content[:900] + bytes([content[900] ^ 0xFF]) + content[901:])
    elif fault == 'other':
        archive.write_bytes(tar({'Other/readme.txt': b'?'}))
    elif fault == 'evil':
        archive.write_bytes(tar({'CUB_200_2011/a': b'', '../../evil': b'?'}))
    else:
        data = replace(data, expected={**data.expected, 'training images': 5994})
    message = {
        'cut': 'damaged or cut short',
        'flipped': 'damaged or cut short|neither a tar nor',
        'other': "hold no folder 'CUB_200_2011'",
        'evil': 'would write outside',
        'few': 'do not hold what they should: 2 of 5994 training images',
    }[fault]
    with pytest.raises(ValueError, match=message):
        get_data(data, root, progress=False)
    assert not (root / data.folder).exists() and not (tmp_path / 'evil').exists()
    assert {path.name for path in root.iterdir()} <= {'.archives', '.cub.lock'}


def test_a_wrong_archive_is_told_by_its_checksum(tmp_path):
    data = miniature('flowers', tmp_path / 'given', checksums=True)
    (tmp_path / 'given' / 'setid.mat').write_bytes(b'x' * data.archives[2].size)
    with pytest.raises(ValueError, match=r'setid\.mat is not the published file: its md5 is'):
        get_data(data, tmp_path / 'data', tmp_path / 'given', progress=False)


def test_a_folder_that_is_not_complete_is_left_alone(tmp_path):
    data = miniature('aircraft', tmp_path / 'server')
    folder = get_data(data, tmp_path, progress=False)
    (folder / 'data' / 'images' / '8.jpg').unlink()
    with pytest.raises(FileExistsError, match=r'0 of 1 validation images\. Move it away'):
        get_data(data, tmp_path, progress=False)
    assert (folder / 'data' / 'images' / '7.jpg').is_file()


def test_pickles_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ('run',))

    data = miniature('cifar10', tmp_path / 'server')
    content = {
        f'{CIFAR_TOP}/batches.meta': pickle.dumps({b'label_names': [b'a']}),
        f'{CIFAR_TOP}/data_batch_1': pickle.dumps({b'data': Evil()}),
    }
    (tmp_path / 'server' / 'cifar-10-python.tar.gz').write_bytes(tar(content))
    with pytest.raises(
        ValueError, match=r'data_batch_1 is not a batch of CIFAR-10: .*builtins.*print'
    ):
        get_data(data, tmp_path / 'data', progress=False)


def test_cifar10_pixels(tmp_path):
    folder = get_data(miniature('cifar10', tmp_path / 'server'), tmp_path, progress=False)
    first = np.random.default_rng(1).integers(0, 255, (2, 3072), np.uint8)[0]
    with Image.open(folder / 'train' / 'automobile' / '0000.png') as opened:
        assert (np.asarray(opened) == first.reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert (folder / CIFAR_TOP / 'test_batch').is_file(), "MMPretrain's class reads the batches"


def test_imagenet_validation_images_go_to_their_synsets(tmp_path):
    folder = get_data(miniature('imagenet', tmp_path / 'server'), tmp_path, progress=False)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob('*.JPEG')} == {
        *('train/n01/n01_1.JPEG', 'train/n02/n02_1.JPEG', 'val/n01/ILSVRC2012_val_00000002.JPEG'),
        *(f'val/n02/ILSVRC2012_val_0000000{n}.JPEG' for n in (1, 3)),
    }


def test_the_table_says_only_what_can_be_so():
    for data in DATA_SETS.values():
        assert data.license and data.page.startswith('http')
        for archive in data.archives:
            assert archive.url or data.by_hand, archive.name
            if archive.checksum:
                kind, _, digest = archive.checksum.partition(':')
                assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['data', 'list']) == 0
    listed = capsys.readouterr().out
    assert all(f'\n{name} ' in f'\n{listed}' for name in DATA_SETS)
    assert main(['data', 'list', 'cub', 'aircraft']) == 0
    listed = capsys.readouterr().out
    assert DATA_SETS['cub'].archives[0].checksum in listed and 'checksum unknown' in listed
    assert '5994 training images' in listed

    monkeypatch.setitem(DATA_SETS, 'cub', miniature('cub', tmp_path / 'server'))
    assert main(['data', 'get', 'cub', '--root', 'there']) == 0
    output = capsys.readouterr().out
    assert 'license: unknown' in output
    assert 'CUB-200-2011: 2 training images, 1 test images, 2 classes' in output
    assert main(['data', 'check', 'cub', '--root', 'there']) == 0
    (tmp_path / 'there' / 'CUB_200_2011' / 'images' / '0817' / 'a.jpg').unlink()
    assert main(['data', 'check', 'cub', '--root', 'there']) == 1
    assert 'not complete: 1 of 2 training images' in capsys.readouterr().err
    assert main(['data', 'check', 'dogs']) == 1
    assert '`mmaselect data get dogs` gets it' in capsys.readouterr().err
    assert main(['data', 'get']) == 1
    assert 'needs a name: cub, flowers' in capsys.readouterr().err
    assert main(['data', 'get', 'mnist']) == 1
    assert "there is no data set 'mnist': choose from cub" in capsys.readouterr().err
