# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Features by several processes, of images wherever they are, in files of other kinds."""

import functools
import http.server
import io
import json
import multiprocessing
import os
import shutil
import signal
import socketserver
import subprocess
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
import torch

from mmaselect.apis import FeatureExtractor, load_features, save_features
from mmaselect.apis.extraction import CLAIMS, lock, rank_and_world
from mmaselect.images.units import image_units

OPTIONS = dict(timestep=30, blocks=2, features='query', image_size=32, progress=False)
OPTIONS |= dict(shard_size=2, batch_size=2)
FORK = multiprocessing.get_context('fork')


@pytest.fixture
def images(photos, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for number in range(10):
        shutil.copy(f'{photos}/{number:02d}.png', folder / f'{number}.png')
    return folder


@pytest.fixture
def expected(tiny_dit, images, tmp_path):
    """What one process writes."""
    save_features(images, tmp_path / 'expected', tiny_dit, **OPTIONS)
    return everything(tmp_path / 'expected')


def everything(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def process(rank, world, images, out, model, trouble=None):
    """One of the ranks."""

    def run():
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
        torch.set_num_threads(1)
        call, calls = FeatureExtractor.__call__, []

        def slow(self, pixels):
            calls.append(1)
            if trouble == 'dies' and len(calls) == 2:
                (out.parent / 'died').touch()
                os.kill(os.getpid(), signal.SIGKILL)
            while trouble == 'waits' and not (out.parent / 'died').exists():
                time.sleep(0.01)
            return call(self, pixels)

        FeatureExtractor.__call__ = slow
        save_features(images, out, model, **OPTIONS)
        (out.parent / f'passes{rank}').write_text(str(len(calls)))

    child = FORK.Process(target=run)
    child.start()
    return child


@pytest.mark.parametrize('world', [2, 3])
def test_ranks_share_the_work_and_write_the_same(tiny_dit, images, expected, tmp_path, world):
    out = tmp_path / 'out'
    children = [process(rank, world, images, out, tiny_dit) for rank in range(world)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * world
    assert everything(out) == expected
    passes = [int((tmp_path / f'passes{rank}').read_text()) for rank in range(world)]
    assert sum(passes) == 5, 'each file is computed once'
    assert not (out / '.claims').exists()


def test_a_rank_that_dies_loses_its_file_alone(tiny_dit, images, expected, tmp_path):
    out = tmp_path / 'out'
    children = [
        process(rank, 2, images, out, tiny_dit, 'dies' if rank else 'waits') for rank in range(2)
    ]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, -signal.SIGKILL]
    assert everything(out) == expected
    assert int((tmp_path / 'passes0').read_text()) == 4, 'the fifth is of the one that died'


def test_a_run_resumes_with_another_number_of_ranks(tiny_dit, images, expected, tmp_path):
    out = tmp_path / 'out'
    process(0, 1, images, out, tiny_dit, 'dies').join()
    assert len(list(out.glob('features-*'))) == 1
    children = [process(rank, 3, images, out, tiny_dit) for rank in range(3)]
    for child in children:
        child.join()
    assert everything(out) == expected
    passes = [int((tmp_path / f'passes{rank}').read_text()) for rank in range(3)]
    assert sum(passes) == 4


def test_a_claim_outlives_its_folder(tmp_path, monkeypatch):
    """A process that begins while the last one ends finds no folder for its lock."""
    opened, create = [], os.open

    def goes(path, *args, **kwargs):
        if str(path).endswith('index.lock') and not opened:
            opened.append(path)
            shutil.rmtree(tmp_path / CLAIMS)
        return create(path, *args, **kwargs)

    monkeypatch.setattr(os, 'open', goes)
    with lock(tmp_path, 'index') as held:
        assert held.is_locked and opened and (tmp_path / CLAIMS).is_dir()


def command(images, model, out):
    """Of a user, with the options that the other tests use."""
    return [
        *('-m', 'mmaselect', 'features', str(images), '--pretrained', model, '--out', str(out)),
        *('--timestep', '30', '--blocks', '2', '--image-size', '32', '--shard-size', '2'),
        *('--batch-size', '2'),
    ]


#: Kills the process that writes the third file, once.
KILLER = """
import os, runpy, signal, sys
from mmaselect.apis import extraction
write, marker = extraction.Extraction._write, sys.argv[1]

def killing(self, path, tensors, about):
    write(self, path, tensors, about)
    if about.unit == 2 and not os.path.exists(marker):
        open(marker, 'w').close()
        os.kill(os.getpid(), signal.SIGKILL)

extraction.Extraction._write = killing
sys.argv[1:] = sys.argv[2:]
runpy.run_module('mmaselect', run_name='__main__', alter_sys=True)
"""


@pytest.mark.thorough
def test_torchrun_with_a_rank_that_is_killed(tiny_dit, images, expected, tmp_path):
    """The agent ends the other one, starts both anew, and they resume."""
    out = tmp_path / 'out'
    script = tmp_path / 'killer.py'
    script.write_text(KILLER)
    agent = ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2')
    options = command(images, tiny_dit, out)[2:]
    run = subprocess.run(
        [sys.executable, *agent, '--max-restarts=1', script, tmp_path / 'killed', *options],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / 'killed').exists()
    assert everything(out) == expected
    assert run.stdout.count('10 images at timestep 30') == 1, 'the first process alone says it'
    assert 'features: 10 of 10 images' in run.stderr
    assert 'over 2 processes' in run.stderr


@pytest.mark.thorough
@pytest.mark.parametrize(
    'options', [('--to', 'webdataset', '--pool', 'mean', '--store', 'fp16'), ('--to', 'parquet'),
                ('--pool', 'mean', '--store', 'bf16'), ('--store', 'bf16')], ids=' '.join,
)  # fmt: skip
def test_slurm_writes_the_same_in_any_form(tiny_dit, images, tmp_path, options):
    """Tasks of srun, as their variables say it; a task that is not there is not waited for."""
    outs = []
    for world in (1, 2):
        outs.append(tmp_path / f'out{world}')
        tasks = [
            FORK.Process(target=task, args=(rank, world, images, tiny_dit, outs[-1], options))
            for rank in range(world)
        ]
        for one in tasks:
            one.start()
        for one in tasks:
            one.join()
        assert [one.exitcode for one in tasks] == [0] * world
    assert everything(outs[0]) == everything(outs[1])
    # The second of three tasks alone.
    alone = FORK.Process(target=task, args=(1, 3, images, tiny_dit, tmp_path / 'alone', options))
    alone.start()
    alone.join()
    assert everything(tmp_path / 'alone') == everything(outs[0])


def task(rank, world, images, model, out, options):
    """One of srun's."""
    from mmaselect.cli import main

    os.environ.update(SLURM_PROCID=str(rank), SLURM_NTASKS=str(world), SLURM_LOCALID=str(rank))
    torch.set_num_threads(1)
    sys.exit(main([*command(images, model, out)[2:], *options]))


def test_the_ranks_of_launchers(monkeypatch):
    assert rank_and_world() == (0, 1, 0)
    for name, value in (('PROCID', 5), ('NTASKS', 8), ('LOCALID', 1)):
        monkeypatch.setenv(f'SLURM_{name}', str(value))
    assert rank_and_world() == (5, 8, 1)
    for name, value in (('RANK', 2), ('WORLD_SIZE', 4), ('LOCAL_RANK', 0)):
        monkeypatch.setenv(name, str(value))
    assert rank_and_world() == (2, 4, 0)


def test_loader_workers_change_nothing(tiny_dit, images, expected, tmp_path):
    save_features(images, tmp_path / 'out', tiny_dit, workers=2, **OPTIONS)
    assert everything(tmp_path / 'out') == expected


def write_tars(images, folder):
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f'{number:03d}.tar', 'w') as tar:
            for path in sorted(images.iterdir())[number * 5 : number * 5 + 5]:
                tar.add(path, path.name)
                label = io.BytesIO(b'7')
                entry = tarfile.TarInfo(f'{path.stem}.cls')
                entry.size = 1
                tar.addfile(entry, label)
    return folder


def maps_of(folder):
    return load_features(folder).stack(2)


def test_tar_shards(tiny_dit, images, expected, tmp_path):
    tars = write_tars(images, tmp_path / 'tars')
    stored = save_features(str(tars / '{000..001}.tar'), tmp_path / 'out', tiny_dit, **OPTIONS)
    assert stored.paths[0] == '000.tar/0.png' and stored.paths[5] == '001.tar/5.png'
    assert len(list((tmp_path / 'out').glob('*.safetensors'))) == 6, 'parts of 2, 2 and 1'
    # Batches are cut elsewhere, so values are equal up to rounding.
    torch.testing.assert_close(maps_of(tmp_path / 'out'), maps_of(tmp_path / 'expected'))
    before = everything(tmp_path / 'out')
    part = tmp_path / 'out' / 'features-00001-00002.safetensors'
    part.unlink()
    save_features(str(tars / '*.tar'), tmp_path / 'out', tiny_dit, **OPTIONS)
    assert everything(tmp_path / 'out') == before
    children = [
        process(rank, 2, str(tars / '*.tar'), tmp_path / 'two', tiny_dit) for rank in range(2)
    ]
    for child in children:
        child.join()
    assert everything(tmp_path / 'two') == before
    (tars / '001.tar').write_bytes(b'no tar')
    with pytest.raises(ValueError, match=r"001\.tar' is not a tar shard"):
        save_features(str(tars / '*.tar'), tmp_path / 'x', tiny_dit, **OPTIONS)


def test_tables(tiny_dit, images, expected, tmp_path):
    pyarrow = pytest.importorskip('pyarrow')
    parquet = pytest.importorskip('pyarrow.parquet')

    data = [path.read_bytes() for path in sorted(images.iterdir())]
    table = pyarrow.table(
        dict(
            image=[dict(bytes=one, path=f'{number}.png') for number, one in enumerate(data)],
            label=list(range(10)),
            other=data,
        )
    )
    file = tmp_path / 'a.parquet'
    parquet.write_table(table, file, row_group_size=4)
    with pytest.raises(ValueError, match=r"\['image', 'other'\].*--column"):
        save_features(file, tmp_path / 'out', tiny_dit, **OPTIONS)
    stored = save_features(file, tmp_path / 'out', tiny_dit, column='image', **OPTIONS)
    assert stored.paths[3] == '000000003/3.png'
    torch.testing.assert_close(maps_of(tmp_path / 'out'), maps_of(tmp_path / 'expected'))
    file.write_bytes(b'PAR1')
    with pytest.raises(ValueError, match=r"a\.parquet' is not a parquet file"):
        save_features(file, tmp_path / 'x', tiny_dit, **OPTIONS)


def test_data_sets_of_hugging_face(tiny_dit, images, expected, tmp_path):
    datasets = pytest.importorskip('datasets')
    paths = [str(path) for path in sorted(images.iterdir())]
    dataset = datasets.Dataset.from_dict(dict(photo=paths)).cast_column('photo', datasets.Image())
    dataset.save_to_disk(tmp_path / 'saved')
    for number, given in enumerate((dataset, tmp_path / 'saved')):
        save_features(given, tmp_path / f'out{number}', tiny_dit, **OPTIONS)
        torch.testing.assert_close(
            maps_of(tmp_path / f'out{number}'), maps_of(tmp_path / 'expected')
        )


@pytest.fixture
def server(tmp_path):
    """A file server on the loopback, in the place of an object store."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    with socketserver.ThreadingTCPServer(('127.0.0.1', 0), handler) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{started.server_address[1]}'
        started.shutdown()


def test_addresses(tiny_dit, images, expected, tmp_path, server):
    pytest.importorskip('aiohttp')
    write_tars(images, tmp_path / 'tars')
    for number, address in enumerate((f'{server}/images', f'file://{images}')):
        stored = save_features(address, tmp_path / f'out{number}', tiny_dit, **OPTIONS)
        assert stored.paths[0] == '0.png'
        assert torch.equal(maps_of(tmp_path / f'out{number}'), maps_of(tmp_path / 'expected'))
    tars = f'{server}/tars/{{000..001}}.tar'
    stored = save_features(tars, tmp_path / 'tar', tiny_dit, workers=1, **OPTIONS)
    torch.testing.assert_close(maps_of(tmp_path / 'tar'), maps_of(tmp_path / 'expected'))


@pytest.mark.thorough
def test_an_object_store(tiny_dit, images, tmp_path, monkeypatch):
    """S3's own protocol on the loopback, where moto and s3fs are installed."""
    moto_server = pytest.importorskip('moto.server')
    boto3 = pytest.importorskip('boto3')
    pytest.importorskip('s3fs')
    store = moto_server.ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    store.start()
    try:
        monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{store.get_host_and_port()[1]}')
        for name in ('AWS_ACCESS_KEY_ID', 'AWS_SECRET_ACCESS_KEY'):
            monkeypatch.setenv(name, 'any')
        monkeypatch.setenv('AWS_DEFAULT_REGION', 'us-east-1')
        client = boto3.client('s3')
        client.create_bucket(Bucket='photos')
        tars = write_tars(images, tmp_path / 'tars')
        for tar in sorted(tars.iterdir()):
            client.upload_file(str(tar), 'photos', tar.name)
        address = 's3://photos/*.tar'
        save_features(address, tmp_path / 'one', tiny_dit, **OPTIONS)
        # Processes of their own: a client of S3 does not outlive a fork.
        ranks = [
            subprocess.Popen(
                [sys.executable, *command(address, tiny_dit, tmp_path / 'two')],
                env={**os.environ, 'RANK': str(r), 'WORLD_SIZE': '2', 'LOCAL_RANK': str(r)},
            )
            for r in range(2)
        ]
        assert [rank.wait() for rank in ranks] == [0, 0]
    finally:
        store.stop()
    assert everything(tmp_path / 'two') == everything(tmp_path / 'one')
    save_features(str(tars / '*.tar'), tmp_path / 'local', tiny_dit, **OPTIONS)
    assert torch.equal(maps_of(tmp_path / 'one'), maps_of(tmp_path / 'local'))


def test_an_automatic_timestep_of_tar_shards(tiny_dit, images, tmp_path):
    tars = write_tars(images, tmp_path / 'tars')
    stored = save_features(
        str(tars / '*.tar'), tmp_path / 'out', tiny_dit, **{**OPTIONS, 'timestep': 'auto'}
    )
    told = json.loads((tmp_path / 'out' / 'selection.json').read_text())
    assert stored.timestep == told['timestep']


@pytest.mark.parametrize('pool', ['none', 'mean'])
def test_as_tar_shards_and_tables(tiny_dit, images, tmp_path, pool):
    webdataset = pytest.importorskip('webdataset')
    parquet = pytest.importorskip('pyarrow.parquet')
    options = dict(OPTIONS, pool=pool)
    stored = save_features(images, tmp_path / 'a', tiny_dit, **options)
    save_features(images, tmp_path / 'tar', tiny_dit, to='webdataset', **options)
    save_features(images, tmp_path / 'table', tiny_dit, to='parquet', **options)
    shards = [str(path) for path in sorted((tmp_path / 'tar').glob('*.tar'))]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    files = sorted((tmp_path / 'table').glob('*.parquet'))
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    for index in range(10):
        value = stored[index][2, 'query'].numpy()
        assert samples[index]['json']['path'] == rows[index]['path'] == stored.paths[index]
        assert np.array_equal(samples[index]['block2.query.npy'], value)
        row = np.array(rows[index]['block2.query'], np.float32)
        assert np.array_equal(row.reshape(value.shape), value)
    with pytest.raises(ValueError, match='holds webdataset files'):
        load_features(tmp_path / 'tar')
    for kind in ('tar', 'table'):
        before = everything(tmp_path / kind)
        damaged = sorted((tmp_path / kind).glob('features-00001*'))[0]
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data)
        to = {'tar': 'webdataset', 'table': 'parquet'}[kind]
        save_features(images, tmp_path / kind, tiny_dit, to=to, **options)
        assert everything(tmp_path / kind) == before


def test_what_is_no_set_of_images(images, tmp_path):
    (tmp_path / 'a.tar').touch()
    with pytest.raises(ValueError, match='of one kind'):
        image_units([str(images), str(tmp_path / 'a.tar')], 2)
    with pytest.raises(FileNotFoundError, match=r"no images at .*'\*\.tar'"):
        image_units('*.tar', 2)
    with pytest.raises(ValueError, match='datasets://NAME/SPLIT'):
        image_units('datasets://mnist', 2)
