# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import io
import tarfile
import zipfile

import pytest

from mmaselect.fetch.unpack import unpack


def make_tar(path, members, mode='w:gz', **fields):
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            file.addfile(info, io.BytesIO(content))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


FILES = {'top/a.txt': b'a', 'top/inner/b.bin': bytes(5000)}


@pytest.mark.parametrize('kind', ['tgz', 'tar', 'zip'])
def test_archives(tmp_path, kind):
    path = tmp_path / f'archive.{kind}'
    if kind == 'zip':
        make_zip(path, FILES)
    else:
        make_tar(path, FILES, 'w:gz' if kind == 'tgz' else 'w')
    unpack(path, tmp_path / 'out')
    assert {
        file.relative_to(tmp_path / 'out').as_posix(): file.read_bytes()
        for file in (tmp_path / 'out').rglob('*')
        if file.is_file()
    } == FILES


@pytest.mark.parametrize('kind', ['tgz', 'tar', 'zip'])
@pytest.mark.parametrize('name', ['../outside', 'top/../../outside'])
def test_nothing_is_written_outside(tmp_path, kind, name):
    path = tmp_path / f'archive.{kind}'
    if kind == 'zip':
        make_zip(path, {'inside': b'', name: b'bad'})
    else:
        make_tar(path, {'inside': b'', name: b'bad'}, 'w:gz' if kind == 'tgz' else 'w')
    with pytest.raises(ValueError, match=f'archive.{kind} would write outside of its folder'):
        unpack(path, tmp_path / 'out')
    assert not (tmp_path / 'outside').exists()


def test_absolute_names_and_links(tmp_path):
    target = tmp_path / 'target'
    with pytest.raises(ValueError, match='would write outside of its folder'):
        unpack(make_zip(tmp_path / 'a.zip', {str(target): b'bad'}), tmp_path / 'out')
    link = make_tar(
        tmp_path / 'link.tgz', {'link': b''}, type=tarfile.SYMTYPE, linkname='/etc/passwd'
    )
    with pytest.raises(ValueError, match='would write outside of its folder'):
        unpack(link, tmp_path / 'out')
    # tar's absolute names lose their slash: they land inside.
    unpack(make_tar(tmp_path / 'b.tgz', {str(target): b'x'}), tmp_path / 'inside')
    assert not target.exists()


@pytest.mark.parametrize('kind', ['tgz', 'tar', 'zip'])
def test_cut_short(tmp_path, kind):
    path = tmp_path / f'archive.{kind}'
    noise = {f'top/{i}': bytes((i * j) % 251 for j in range(9000)) for i in range(20)}
    if kind == 'zip':
        make_zip(path, noise)
    else:
        make_tar(path, noise, 'w:gz' if kind == 'tgz' else 'w')
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ValueError, match=r'damaged|neither a tar nor a zip'):
        unpack(path, tmp_path / 'out')


@pytest.mark.parametrize('kind', ['tgz', 'zip'])
def test_a_flipped_byte(tmp_path, kind):
    path = tmp_path / f'archive.{kind}'
    noise = {'top/a': bytes((7 * j * j) % 251 for j in range(60_000))}
    (make_zip if kind == 'zip' else make_tar)(path, noise)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match='damaged'):
        unpack(path, tmp_path / 'out')


def test_no_archive(tmp_path):
    path = tmp_path / 'page.tgz'
    path.write_text('<html>log in first</html>')
    with pytest.raises(ValueError, match=r'page\.tgz is neither a tar nor a zip archive'):
        unpack(path, tmp_path / 'out')
