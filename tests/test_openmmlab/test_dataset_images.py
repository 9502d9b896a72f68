# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import mmcv
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmengine.dataset import BaseDataset, ConcatDataset, RepeatDataset
from PIL import Image

from mmaselect.images import ImageFolder, UnreadableImageError
from mmaselect.images.sources import build_image_source
from mmaselect.openmmlab.dataset_images import DatasetImages


class Entries(BaseDataset):
    """A dataset of the entries it is given."""

    def __init__(self, entries):
        self.entries = entries
        super().__init__()

    def load_data_list(self):
        return list(self.entries)  # MMEngine empties the list that it gets


PIXELS = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)


def test_files_and_arrays_are_rgb(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'x.png')
    entries = [dict(img_path=str(tmp_path / 'x.png'), gt_label=3), dict(img=PIXELS, gt_label=[1])]
    for order, array in (('rgb', PIXELS), ('bgr', PIXELS[..., ::-1])):
        images = DatasetImages(Entries(entries), order)
        assert np.array_equal(images.load(0), PIXELS), 'files have an order of their own'
        assert np.array_equal(images.load(1), array)
    assert [images.name(i) for i in (0, 1)] == [str(tmp_path / 'x.png'), 'image 1 of Entries']
    assert [images.label(i) for i in (0, 1)] == [3, None], 'several classes are no class'


def test_what_cannot_serve_is_said():
    with pytest.raises(ValueError, match="array_order must be one of rgb, bgr, got 'gbr'"):
        DatasetImages(Entries([dict(img=PIXELS)]), 'gbr')
    with pytest.raises(ValueError, match=r"neither img_path nor img \(they have \['points'"):
        DatasetImages(Entries([dict(points=1)])).load(0)


def test_whatever_a_config_names(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'x.png')
    folder = build_image_source(str(tmp_path))
    assert isinstance(folder, ImageFolder)
    assert build_image_source(folder) is folder
    built = build_image_source(dict(type=Entries, entries=[dict(img=PIXELS)], pipeline=['unused']))
    assert np.array_equal(built.load(0), PIXELS)
    both = build_image_source([str(tmp_path), tmp_path])
    assert [both.name(i) for i in range(len(both))] == [str(tmp_path / 'x.png')] * 2
    with pytest.raises(ValueError, match='needs calibration images'):
        build_image_source(None)
    with pytest.raises(ValueError, match=r'Entries.* found no images'):
        build_image_source(dict(type=Entries, entries=[]))
    for wrong in (5, [5], {}, dict(data_root='x'), [[]]):
        with pytest.raises(ValueError, match=r"must be a folder of images, .* with its 'type'"):
            build_image_source(wrong)
    with pytest.raises(ValueError, match=r"dataset 'NoSuch' \(of calibration.*cannot be built"):
        build_image_source(dict(type='NoSuch'))


# -- a config's own loading ----------------------------------------------------------------------
class Piped(Entries):
    """A dataset of the entries it is given, with a pipeline, as the toolboxes' have."""

    def __init__(self, entries, pipeline=(), backend_args=None):
        self.entries, self.backend_args = entries, backend_args
        BaseDataset.__init__(self, pipeline=pipeline)


class LoadImageFromText(BaseTransform):
    """A custom one: the pixels are in a text file, BGR."""

    def transform(self, results):
        numbers = np.loadtxt(results['img_path']).astype(np.uint8)
        return dict(results, img=numbers.reshape(2, 2, 3))


class Darken(BaseTransform):
    """Augmentation."""

    def transform(self, results):
        return dict(results, img=results['img'] // 2)


@pytest.fixture
def png(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / 'x.png')
    return str(tmp_path / 'x.png')


def load(config, **options):
    return build_image_source(config, **options).load(0)


def test_loading_is_that_of_the_pipeline_and_augmentation_is_not(tmp_path, png):
    pipeline = [dict(type='LoadImageFromFile'), dict(type=Darken), dict(type='PackSegInputs')]
    assert np.array_equal(
        load(dict(type=Piped, entries=[dict(img_path=png)], pipeline=pipeline)), PIXELS
    )
    np.savetxt(tmp_path / 'x.txt', PIXELS[..., ::-1].reshape(-1, 3))
    entries = [dict(img_path=str(tmp_path / 'x.txt'))]
    pipeline = [dict(type=LoadImageFromText), dict(type=Darken)]
    assert np.array_equal(load(dict(type=Piped, entries=entries, pipeline=pipeline)), PIXELS)
    in_file = dict(type='LoadImageFromFile', to_float32=True, color_type='grayscale')
    grey = load(dict(type=Piped, entries=[dict(img_path=png)], pipeline=[in_file]))
    assert np.array_equal(grey, mmcv.imread(png, flag='grayscale')[..., None].repeat(3, 2))


@pytest.mark.parametrize('name', ['backend_args', 'file_client_args'])
@pytest.mark.filterwarnings('ignore:"file_client_args" will be deprecated')
def test_files_come_from_the_backend_that_the_config_names(tmp_path, png, name):
    """``path_mapping``: paths of a cluster's storage, mapped to a disk."""
    entries = [dict(img_path='cluster:/data/x.png')]
    backend = dict(backend=Mapped.__name__, path_mapping={'cluster:/data': str(tmp_path)})
    step = dict(type='LoadImageFromFile', **{name: backend})
    assert np.array_equal(load(dict(type=Piped, entries=entries, pipeline=[step])), PIXELS)
    if name == 'backend_args':  # of the dataset itself, for files that no transform loads
        assert np.array_equal(load(dict(type=Piped, entries=entries, backend_args=backend)), PIXELS)
    with pytest.raises(UnreadableImageError, match=r"cluster:/data/x\.png' cannot be read"):
        load(dict(type=Piped, entries=entries, pipeline=[dict(type='LoadImageFromFile')]))


@fileio.register_backend('Mapped')
class Mapped(fileio.LocalBackend):
    """Stands for Petrel and the like: the same argument, and bytes from elsewhere."""

    def __init__(self, path_mapping):
        self.path_mapping = path_mapping

    def get(self, filepath):
        for there, here in self.path_mapping.items():
            filepath = str(filepath).replace(there, here)
        return super().get(filepath)


fileio.FileClient.register_backend('Mapped', Mapped)


def test_images_in_a_database_of_lmdb(tmp_path):
    """Keys instead of files, as the toolboxes' configs of large data sets have it."""
    import lmdb

    Image.fromarray(PIXELS).save(tmp_path / 'x.png')
    with lmdb.open(str(tmp_path / 'images.lmdb')) as base, base.begin(write=True) as written:
        written.put(b'train/x.png', (tmp_path / 'x.png').read_bytes())
    backend = dict(backend='lmdb', db_path=str(tmp_path / 'images.lmdb'))
    step = dict(type='LoadImageFromFile', backend_args=backend)
    entries = [dict(img_path='train/x.png')]
    assert np.array_equal(load(dict(type=Piped, entries=entries, pipeline=[step])), PIXELS)
    missing = [dict(img_path='train/y.png')]
    with pytest.raises(UnreadableImageError, match=r"train/y\.png' cannot be read"):
        load(dict(type=Piped, entries=missing, pipeline=[step]))


def test_wrappers_keep_each_dataset_s_loading(tmp_path, png):
    from mmseg.datasets import MultiImageMixDataset

    np.savetxt(tmp_path / 'x.txt', PIXELS[..., ::-1].reshape(-1, 3))
    files = dict(
        type=Piped, entries=[dict(img_path=png)], pipeline=[dict(type='LoadImageFromFile')]
    )
    texts = dict(
        type=Piped,
        entries=[dict(img_path=str(tmp_path / 'x.txt'))],
        pipeline=[dict(type=LoadImageFromText)],
    )
    plain = dict(type=Entries, entries=[dict(img=PIXELS)], pipeline=[dict(type=Darken)])
    wrapped = dict(
        type=MultiImageMixDataset,
        dataset=dict(
            type=ConcatDataset,
            datasets=[dict(type=RepeatDataset, dataset=files, times=2), texts, plain],
        ),
        pipeline=[dict(type='NoSuchMosaic')],
    )
    source = build_image_source(wrapped)
    assert len(source) == 4
    assert all(np.array_equal(source.load(i), PIXELS) for i in range(4))
    built = MultiImageMixDataset(ConcatDataset([Entries([dict(img=PIXELS, gt_label=3)])]), [])
    assert np.array_equal(build_image_source(built).load(0), PIXELS)
    assert build_image_source(built).label(0) == 3


def test_arrays_of_other_shapes():
    grey = PIXELS[..., 0]
    assert np.array_equal(
        load(dict(type=Entries, entries=[dict(img=grey)])), grey[..., None].repeat(3, 2)
    )
    five = np.zeros((4, 4, 5), np.uint8)
    with pytest.raises(
        ValueError, match=r'\(4, 4, 5\) uint8: the frozen model sees RGB, not 5 chan'
    ):
        load(dict(type=Entries, entries=[dict(img=five)]))


def test_mnist_of_the_toolbox(tmp_path):
    """Its images are grey, (28, 28), as torch tensors or arrays."""
    from mmpretrain.datasets import MNIST

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for part in ('train', 't10k'):
        for kind, array in (('images-idx3', pixels), ('labels-idx1', np.arange(3, dtype=np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>i4').tobytes()
            (tmp_path / f'{part}-{kind}-ubyte').write_bytes(header + array.tobytes())
    source = build_image_source(dict(type=MNIST, data_root=str(tmp_path), split='train'))
    assert np.array_equal(source.load(2), pixels[2][..., None].repeat(3, 2))
    assert source.label(2) == 2


def test_loading_that_fails_or_gives_no_image_is_said(png):
    float_text = dict(type='LoadImageFromFile', ignore_empty=True)
    with pytest.raises(
        UnreadableImageError, match=r'nowhere\.png.*LoadImageFromFile gave no image'
    ):
        load(dict(type=Piped, entries=[dict(img_path='nowhere.png')] * 2, pipeline=[float_text]))
    with pytest.raises(ValueError, match='numbers from 0 to 1100, and images of 0 to 255'):
        load(dict(type=Piped, entries=[dict(img_path=png)], pipeline=[dict(type=TimesHundred)]))


class TimesHundred(BaseTransform):
    to_float32 = True

    def transform(self, results):
        return dict(results, img=PIXELS.astype(np.float32) * 100)


TimesHundred.__name__ = 'LoadImageFromSatellite'
