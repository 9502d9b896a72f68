# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The table of data sets: addresses, licenses, checksums, layouts and counts.

Checksums and sizes are those that torchvision or TensorFlow Datasets publish for the same address.
What no public source states is None here and "unknown" to a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmaselect.fetch import arrange, counts


@dataclass(frozen=True)
class Archive:
    """A file that a publisher offers.

    Attributes:
        name: Its name on disk.
        url: Its address (``https``, ``http`` or ``file``); None where it must be got by hand.
        size: In bytes; of an archive without a checksum, about.
        checksum: ``'sha256:...'`` or ``'md5:...'``; None if no public source states one.
        into: Folder, inside that of the data set, that it is unpacked to.
        unpack: Whether it is an archive; otherwise the file is taken as it is.
    """

    name: str
    url: str | None = None
    size: int | None = None
    checksum: str | None = None
    into: str = ''
    unpack: bool = True


@dataclass(frozen=True)
class DataSet:
    """A data set that a config of this package reads.

    Attributes:
        name: What ``mmaselect data get`` calls it.
        title: What its publisher calls it.
        folder: Where the config looks for it, below ``data/``.
        page: Its home page.
        license: What its publisher states; "none stated" or "unknown" otherwise.
        archives: Archives that it is made of.
        count: Counts what is in its folder.
        expected: What must be counted.
        top: Folder, of what the archives hold, that becomes the data set's; all of it if empty.
        arrange: Changes the unpacked folder into the layout that the config reads.
        by_hand: What a person must do first, where the files cannot be downloaded.
    """

    name: str
    title: str
    folder: str
    page: str
    license: str
    archives: tuple[Archive, ...]
    count: Callable[[Path], dict[str, int]]
    expected: Mapping[str, int]
    top: str = ''
    arrange: Callable[[Path], None] | None = None
    by_hand: str = ''

    @property
    def size(self) -> int | None:
        """Bytes of all archives; None if one of them is unknown."""
        sizes = [archive.size for archive in self.archives]
        return None if None in sizes else sum(size for size in sizes if size is not None)


_FLOWERS = 'https://www.robots.ox.ac.uk/~vgg/data/flowers/102/'
_DOGS = 'http://vision.stanford.edu/aditya86/ImageNetDogs/'
_CAMVID = 'http://web4.cs.ucl.ac.uk/staff/g.brostow/MotionSegRecData/'

DATA_SETS: dict[str, DataSet] = {
    data.name: data
    for data in (
        DataSet(
            name='cub',
            title='CUB-200-2011',
            folder='CUB_200_2011',
            page='https://www.vision.caltech.edu/datasets/cub_200_2011/',
            license='unknown',
            archives=(
                Archive(
                    'CUB_200_2011.tgz',
                    'https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz',
                    1150585339,
                    'md5:97eceeb196236b17998738112f37df78',
                ),
            ),
            top='CUB_200_2011',
            count=counts.listed_birds,
            expected={'training images': 5994, 'test images': 5794, 'classes': 200},
        ),
        DataSet(
            name='flowers',
            title='Oxford 102 Flowers',
            folder='Flowers102',
            page=_FLOWERS,
            license='none stated',
            archives=(
                Archive(
                    '102flowers.tgz',
                    f'{_FLOWERS}102flowers.tgz',
                    344862509,
                    'sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246',
                ),
                Archive(
                    'imagelabels.mat',
                    f'{_FLOWERS}imagelabels.mat',
                    502,
                    'sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d',
                    unpack=False,
                ),
                Archive(
                    'setid.mat',
                    f'{_FLOWERS}setid.mat',
                    14989,
                    'sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd',
                    unpack=False,
                ),
            ),
            count=counts.flowers,
            expected={
                'images': 8189,
                'training images': 1020,
                'validation images': 1020,
                'test images': 6149,
                'classes': 102,
            },
        ),
        DataSet(
            name='cars',
            title='Stanford Cars',
            folder='Stanford_Cars',
            page='https://ai.stanford.edu/~jkrause/cars/car_dataset.html',
            license='unknown',
            archives=(
                Archive(
                    'cars_train.tgz',
                    None,
                    979269282,
                    'sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288',
                ),
                Archive(
                    'cars_test.tgz',
                    None,
                    977350468,
                    'sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243',
                ),
                Archive(
                    'car_devkit.tgz',
                    None,
                    330960,
                    'sha256:b97deb463af7d58b6bfaa18b2a4de9829f0f79e8ce663dfa9261bf7810e9accd',
                ),
                Archive(
                    'cars_test_annos_withlabels.mat',
                    None,
                    185758,
                    'sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05',
                    into='devkit',
                    unpack=False,
                ),
            ),
            count=counts.cars,
            expected={
                'training images': 8144,
                'test images': 8041,
                'labelled training images': 8144,
                'labelled test images': 8041,
                'classes': 196,
            },
            by_hand="The authors' page has been gone since 2023. "
            'https://github.com/pytorch/vision/issues/7545 tells where people found the original '
            'files; their checksums are known and are checked.',
        ),
        DataSet(
            name='dogs',
            title='Stanford Dogs',
            folder='stanford_dogs',
            page=_DOGS,
            license='none stated (images of ImageNet)',
            archives=(
                Archive(
                    'images.tar',
                    f'{_DOGS}images.tar',
                    793579520,
                    'sha256:a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58',
                ),
                Archive(
                    'lists.tar',
                    f'{_DOGS}lists.tar',
                    481280,
                    'sha256:34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c',
                ),
            ),
            count=counts.dogs,
            expected={
                'images': 20580,
                'training images': 12000,
                'test images': 8580,
                'classes': 120,
            },
        ),
        DataSet(
            name='aircraft',
            title='FGVC-Aircraft',
            folder='fgvc-aircraft-2013b',
            page='https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/',
            license='non-commercial research only',
            archives=(
                # Public sources disagree about the bytes of this archive: no checksum here.
                Archive(
                    'fgvc-aircraft-2013b.tar.gz',
                    'https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/'
                    'fgvc-aircraft-2013b.tar.gz',
                    2_750_000_000,
                ),
            ),
            top='fgvc-aircraft-2013b',
            count=counts.aircraft,
            expected={
                'images': 10000,
                'training images': 3334,
                'validation images': 3333,
                'test images': 3333,
                'classes': 100,
            },
        ),
        DataSet(
            name='nabirds',
            title='NABirds',
            folder='nabirds',
            page='https://dl.allaboutbirds.org/nabirds',
            license='terms of use of the Cornell Lab of Ornithology, agreed to on its page',
            archives=(Archive('nabirds.tar.gz'),),
            top='nabirds',
            count=counts.listed_birds,
            expected={'training images': 23929, 'test images': 24633, 'classes': 555},
            by_hand='The page asks for a name and for consent to its terms of use, and then gives '
            'the archive.',
        ),
        DataSet(
            name='ade20k',
            title='ADE20K (scene parsing challenge 2016)',
            folder='ade/ADEChallengeData2016',
            page='http://sceneparsing.csail.mit.edu',
            license='annotations BSD-3-Clause; images unknown',
            archives=(
                Archive(
                    'ADEChallengeData2016.zip',
                    'http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
                    967382037,
                    'sha256:7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29',
                ),
            ),
            top='ADEChallengeData2016',
            count=counts.ade20k,
            expected={
                'training images': 20210,
                'training annotations': 20210,
                'validation images': 2000,
                'validation annotations': 2000,
            },
        ),
        DataSet(
            name='camvid',
            title='CamVid, eleven classes',
            folder='camvid11',
            page='http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/',
            license='unknown',
            archives=(
                Archive(
                    '701_StillsRaw_full.zip',
                    f'{_CAMVID}files/701_StillsRaw_full.zip',
                    557_000_000,
                    into='frames',
                ),
                Archive(
                    'LabeledApproved_full.zip',
                    f'{_CAMVID}data/LabeledApproved_full.zip',
                    16_000_000,
                    into='labels',
                ),
            ),
            arrange=arrange.camvid,
            count=counts.camvid,
            expected={
                f'{split} {kind}': number
                for split, number in (('train', 367), ('val', 101), ('test', 233))
                for kind in ('images', 'annotations')
            },
        ),
        DataSet(
            name='cifar10',
            title='CIFAR-10',
            folder='cifar10',
            page='https://www.cs.toronto.edu/~kriz/cifar.html',
            license='none stated',
            archives=(
                Archive(
                    'cifar-10-python.tar.gz',
                    'https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz',
                    170498071,
                    'md5:c58f30108f718f92721af3b95e74349a',
                ),
            ),
            arrange=arrange.cifar10,
            count=counts.folders_of_classes,
            expected={'train images': 50000, 'test images': 10000, 'classes': 10},
        ),
        DataSet(
            name='imagenet',
            title='ImageNet-1k (ILSVRC 2012)',
            folder='imagenet',
            page='https://www.image-net.org/download.php',
            license='terms of access of ImageNet: non-commercial research and education',
            archives=(
                Archive(
                    'ILSVRC2012_img_train.tar',
                    None,
                    147897477120,
                    'sha256:b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb',
                    into='train',
                ),
                Archive(
                    'ILSVRC2012_img_val.tar',
                    None,
                    6744924160,
                    'sha256:c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0',
                    into='val',
                ),
                Archive(
                    'ILSVRC2012_devkit_t12.tar.gz',
                    None,
                    None,
                    'md5:fa75699e90414af021442c21a62c3abf',
                ),
            ),
            arrange=arrange.imagenet,
            count=counts.folders_of_classes,
            expected={'train images': 1281167, 'val images': 50000, 'classes': 1000},
            by_hand='ImageNet gives an account to researchers who accept its terms of access. '
            'Get the three archives of ILSVRC 2012, task 1 and 2.',
        ),
    )
}


def find_data_set(name: str) -> DataSet:
    """A data set by its name.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> find_data_set('cub').expected['classes']
        200
    """
    if name not in DATA_SETS:
        raise ValueError(f'there is no data set {name!r}: choose from {", ".join(DATA_SETS)}')
    return DATA_SETS[name]
