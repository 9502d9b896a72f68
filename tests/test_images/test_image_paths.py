# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images are where people have them: lists, patterns, archives and tables, as well as folders."""

import io
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_dit import save_tiny_dit

from mmaselect import ASelecTDiT, FeatureExtractor, select
from mmaselect.apis import save_features
from mmaselect.images import ImageFolder, UnreadableImageError
from mmaselect.images.sources import build_image_source, check_calibration

SMALL = dict(criterion='HighFrequencyRatio', others=(), timesteps=[0, 500], image_size=32)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder of photos, and the same photos in every other form."""
    here = tmp_path_factory.mktemp('photos')
    photos = here / 'photos'
    (photos / 'cats').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        rough = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        rough.resize((36, 30)).save(photos / 'cats' / f'{number}.png')
    files = sorted((photos / 'cats').iterdir())
    (here / 'plain.txt').write_text('\n'.join(f'photos/cats/{f.name}' for f in files) + '\n\n')
    (here / 'labeled.txt').write_text('\n'.join(f'photos/cats/{f.name} 3' for f in files))
    (here / 'absolute.lst').write_text('\n'.join(map(str, files)))
    with zipfile.ZipFile(here / 'photos.zip', 'w', zipfile.ZIP_DEFLATED) as packed:
        packed.writestr('__MACOSX/cats/._0.png', b'Mac OS X')
        packed.writestr('notes.txt', 'notes')
        for file in files:
            packed.write(file, f'cats/{file.name}')
    with tarfile.open(here / 'photos.tar', 'w') as packed:
        for file in files:
            packed.add(file, f'./cats/{file.name}')
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({'image': [{'bytes': f.read_bytes(), 'path': f.name} for f in files]})
    pyarrow.parquet.write_table(table, here / 'photos.parquet', row_group_size=2)
    return here


def hugging_face(place):
    import datasets

    return datasets.Dataset.from_dict(
        {'image': [str(f) for f in sorted(place.rglob('*.png'))]},
        features=datasets.Features({'image': datasets.Image()}),
    )


FORMS = {
    'a folder': lambda place: place / 'photos',
    'a list of paths': lambda place: place / 'plain.txt',
    'a list with labels': lambda place: place / 'labeled.txt',
    'a list of absolute paths': lambda place: str(place / 'absolute.lst'),
    'a pattern': lambda place: str(place / 'photos' / 'cats' / '*'),
    'a pattern of folders': lambda place: str(place / 'pho*' / 'c[a]ts'),
    'braces': lambda place: str(place / 'photos/cats/{0..4}.png'),
    'files': lambda place: [str(file) for file in sorted(place.rglob('*.png'))],
    'a zip': lambda place: place / 'photos.zip',
    'a tar': lambda place: place / 'photos.tar',
    'a parquet file': lambda place: place / 'photos.parquet',
    'a data set of Hugging Face': hugging_face,
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_has_the_same_pixels(place, form):
    source, folder = build_image_source(FORMS[form](place)), ImageFolder(place / 'photos')
    assert len(source) == len(folder) == 5
    for index in (4, 0, 2, 3, 1):
        assert np.array_equal(source.load(index), folder.load(index))
        assert f'{index}.png' in source.name(index)
    assert check_calibration(FORMS[form](place)) is None


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return save_tiny_dit(tmp_path_factory.mktemp('model') / 'dit', latent=False)


@pytest.mark.parametrize('form', ['a list of paths', 'a pattern', 'files', 'a zip'])
def test_every_face_takes_every_form(place, model, form, tmp_path, monkeypatch):
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    images = FORMS[form](place)
    given = dict(blocks=[2], feature='query')
    right = select(model, place / 'photos', **given, **SMALL, cache=False, progress=False)
    found = select(model, images, **given, **SMALL, cache=False, progress=False)
    assert found.curve == right.curve
    options = dict(blocks=[2], calibration=images, selection=SMALL)
    backbone = ASelecTDiT(model, **options)
    backbone.init_weights()
    assert backbone.selection_result.curve == right.curve
    extract = FeatureExtractor(model, 'auto', **options)
    assert extract.selection_result.curve == right.curve
    stored = save_features(images, tmp_path / 'out', model, timestep=0, blocks=[2], progress=False)
    whole = save_features(
        place / 'photos', tmp_path / 'all', model, timestep=0, blocks=[2], progress=False
    )
    assert (stored.stack(2, 'query') == whole.stack(2, 'query')).all() and len(stored) == 5


def test_what_cannot_be_read_is_named(place, tmp_path):
    (tmp_path / 'half.zip').write_bytes((place / 'photos.zip').read_bytes()[:-200])
    (tmp_path / 'x.tar').write_bytes(b'x' * 2000)
    (tmp_path / 'empty.txt').write_text('\n')
    (tmp_path / 'names.txt').write_text('2007_000032\n2007_000033\n')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
    np.save(tmp_path / 'x.npy', np.zeros(3))
    with zipfile.ZipFile(tmp_path / 'notes.zip', 'w') as packed:
        packed.writestr('notes.txt', 'notes')
    for given, words in {
        'half.zip': 'half.zip.*is not a zip file, or is damaged',
        'x.tar': 'x.tar.*is not a tar shard',
        'empty.txt': 'empty.txt.*lists no images',
        'names.txt': "names.txt.*no file '2007_000032'.*the config of that dataset",
        'binary.txt': 'binary.txt.*is not a text file of paths',
        'x.npy': r"x.npy.*kind '.npy', from which no images.*\.zip",
        'notes.zip': 'there are no images in',
    }.items():
        with pytest.raises(ValueError, match=words):
            build_image_source(str(tmp_path / given))
    with pytest.raises(FileNotFoundError, match=r'there are no images at .*\*\.jpeg'):
        build_image_source(str(tmp_path / '*.jpeg'))
    with pytest.raises(ValueError, match=r'of one kind.*folder.*zip'):
        build_image_source([place / 'photos', place / 'photos.zip'])


def test_an_image_that_is_damaged_is_named_wherever_it_is(place, tmp_path):
    photo = io.BytesIO()
    Image.open(place / 'photos/cats/0.png').save(photo, 'png')
    half = photo.getvalue()[:100]
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as packed:
        packed.writestr('cats/half.png', half)
    with tarfile.open(tmp_path / 'x.tar', 'w') as packed:
        entry = tarfile.TarInfo('cats/half.png')
        entry.size = len(half)
        packed.addfile(entry, io.BytesIO(half))
    (tmp_path / 'half.png').write_bytes(half)
    (tmp_path / 'x.txt').write_text('half.png\ngone.png')
    for given, name in (
        ('x.zip', 'x.zip/cats/half.png'),
        ('x.tar', 'x.tar/cats/half.png'),
        ('x.txt', str(tmp_path / 'half.png')),
    ):
        with pytest.raises(UnreadableImageError, match=name):
            build_image_source(str(tmp_path / given)).load(0)
    with pytest.raises(UnreadableImageError, match=r'gone.png.*it is gone'):
        build_image_source(str(tmp_path / 'x.txt')).load(1)
    damaged = tmp_path / 'bits.zip'
    shutil.copy(place / 'photos.zip', damaged)
    data = bytearray(damaged.read_bytes())
    at = data.index(b'cats/0.png') + 60
    data[at : at + 40] = bytes(40)
    damaged.write_bytes(data)
    with pytest.raises(UnreadableImageError, match=r'bits.zip/cats/0.png'):
        build_image_source(damaged).load(0)


def test_a_wrong_calibration_is_found_before_anything_is_loaded(tmp_path):
    (tmp_path / 'x.csv').write_text('a,b')
    for wrong in (5, [5], dict(data_root='x'), [], '', str(tmp_path / 'x.csv'), b'x'):
        with pytest.raises(ValueError, match=r'calibration|images'):
            ASelecTDiT('./no/such/model', calibration=wrong)
