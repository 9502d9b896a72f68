# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A stored result is used if it is sound, and is no reason to stop if it is not."""

import io
import json
import logging
import re
import resource
from contextlib import contextmanager

import pytest
from mmengine.logging import MMLogger

from mmaselect.selection import Curve, CurvePoint, SelectionCache, SelectionResult
from mmaselect.selection.caveats import Caveat
from mmaselect.selection.cost import SweepCost
from mmaselect.selection.result import CHECKSUM, settings_key


@contextmanager
def hear():
    """What is logged meanwhile."""
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


def make_result(**changes):
    points = tuple(
        CurvePoint(step, step / 1000, 1.5 - step, score, 0.1, 0.01)
        for step, score in ((0, 0.25), (100, 0.75), (200, 0.75), (300, None))
    )
    curve = Curve('InstanceSensitivity', 100, points)
    settings = dict(timesteps=[0, 100, 200, 300], seed=0)
    values = dict(
        timestep=100, noise_level=0.1, log_snr=-98.5, criterion='InstanceSensitivity',
        feature='query', blocks=[2], num_images=4, seconds=1.5, model_evaluations=16, curve=curve,
        others={'HighFrequencyRatio': Curve('HighFrequencyRatio', 100, points)},
        per_tap=[Curve('InstanceSensitivity', 100, points, 2, 'query')],
        warnings=[Caveat.of('flat', 'the curve is flat')],
        key=settings_key(settings), settings=settings, interval=(0, 200),
    )  # fmt: skip
    return SelectionResult(**{**values, **changes})


def test_a_stored_result_is_found_as_it_was(tmp_path):
    cache, result = SelectionCache(tmp_path), make_result()
    assert cache.find(result.key) is None
    path = cache.store(result)
    assert cache.find(result.key) == result
    assert list(tmp_path.iterdir()) == [path]


def test_a_selection_json_whose_warnings_are_texts_is_read(tmp_path):
    result = make_result()
    path = result.save(tmp_path / 'selection.json')
    data = json.loads(path.read_text())
    assert data['warnings'] == [vars(result.warnings[0])]
    del data[CHECKSUM]
    path.write_text(json.dumps({**data, 'warnings': ['the curve is flat']}))
    (warning,) = SelectionResult.load(path).warnings
    assert (str(warning), warning.code, warning.advice) == ('the curve is flat', '', '')


def test_a_selection_json_without_a_cost_is_read(tmp_path):
    result = make_result(cost=SweepCost(0.25, 4_000, 0.5, (3, 'query')))
    path = result.save(tmp_path / 'selection.json')
    assert SelectionResult.load(path) == result
    data = json.loads(path.read_text())
    assert data.pop('cost') == dict(of_full=0.25, flops=4000, of_default=0.5, default=[3, 'query'])
    del data[CHECKSUM]
    path.write_text(json.dumps(data))
    assert SelectionResult.load(path).cost is None
    assert (str(SweepCost(0.336)), str(SweepCost(0.5, 7))) == (
        '34 % of the passes of a full sweep',
        'in FLOPs 50 % of a full sweep of all places',
    )


def change(*where, to):
    def apply(data):
        *path, last = where
        for name in path:
            data = data[name]
        data[last] = to

    return apply


@pytest.mark.parametrize(
    'edit',
    [
        change('timestep', to=200),
        change('timestep', to='100'),
        change('timestep', to=True),
        change('curve', 0, 'score', to=0.9),
        change('curve', 0, 'score', to=float('nan')),
        change('curve', 0, 'score', to='0.2'),
        change('curve', to=[]),
        change('curve', to='0:1000'),
        change('curve', 3, 'timestep', to=1300),
        change('others', 'HighFrequencyRatio', 'timestep', to=0),
        change('others', to=[]),
        change('per_tap', 0, 'timestep', to=0),
        change('noise_level', to=0.5),
        change('num_images', to=0),
        change('blocks', to='2'),
        change('interval', to=[200, 100]),
        change('interval', to=7),
        change('seconds', to=-1),
        change('warnings', to=[3]),
        change('warnings', 0, 'code', to=3),
        change('warnings', 0, to=dict(text='flat')),
        change('contenders', to=[[2, 'query']]),
        change('contenders', to=[[2, 3, 100]]),
        change('cost', to=0.3),
        change('cost', to=dict(of_full=-1.0)),
        change('cost', to=dict(of_full='all')),
        change('cost', to=dict(of_full=0.5, flops=1.5)),
        change('settings', 'seed', to=1),
        change('settings', to=None),
        change('key', to='0' * 32),
        change('unknown', to=0),
        lambda data: data.pop('num_images'),
    ],
)
def test_an_entry_that_no_sweep_wrote_is_named_and_not_used(tmp_path, edit):
    cache, result = SelectionCache(tmp_path), make_result()
    path = cache.store(result)
    sealed = json.loads(path.read_text())
    edit(sealed)
    # Entries of versions that wrote no checksum are looked at as closely as can be.
    plain = {name: value for name, value in sealed.items() if name != CHECKSUM}
    for data in (sealed, plain):
        path.write_text(json.dumps(data))
        with hear() as heard:
            assert cache.find(result.key) is None
        assert str(path) in heard.getvalue() and 'selecting again' in heard.getvalue()
        assert ('it was edited or damaged' in heard.getvalue()) == (data is sealed)


def raise_the_rest(data):
    """Another pick, and everything that `check` compares with it."""
    for curve in (data, data['others']['HighFrequencyRatio'], *data['per_tap']):
        curve['timestep'] = 200
        curve['curve'][2]['score'] = 9.0
    data['noise_level'] = data['curve'][2]['noise_level']


@pytest.mark.parametrize(
    'edit',
    [
        raise_the_rest,
        change('num_images', to=400),
        change('warnings', to=[]),
        change('interval', to=[100, 100]),
        change('curve', 3, 'score', to=-0.5),
    ],
)
def test_an_edit_that_agrees_with_itself_is_found_out(tmp_path, edit):
    cache, result = SelectionCache(tmp_path), make_result()
    path = cache.store(result)
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    with hear() as heard:
        assert cache.find(result.key) is None
    assert f'{path} cannot be used' in heard.getvalue() and 'edited' in heard.getvalue()
    with pytest.raises(ValueError, match=re.escape(str(path)) + r'.*it was edited or damaged'):
        SelectionResult.load(path)
    # What nobody could tell from an old entry.
    del data[CHECKSUM]
    path.write_text(json.dumps(data))
    assert cache.find(result.key) == SelectionResult.load(path) != result


def test_a_layout_of_the_file_does_not_matter(tmp_path):
    result = make_result()
    path = result.save(tmp_path / 'selection.json')
    data = json.loads(path.read_text())
    path.write_text(json.dumps(dict(sorted(data.items())), indent=7))
    assert SelectionResult.load(path) == result


@pytest.mark.parametrize('content', [b'', b'{"timestep": 1', b'[]', b'null', b'\xff\xfe', None])
def test_a_damaged_entry_is_named_and_not_used(tmp_path, content):
    cache, result = SelectionCache(tmp_path), make_result()
    path = cache.path(result.key)
    path.mkdir() if content is None else path.write_bytes(content)
    with hear() as heard:
        assert cache.find(result.key) is None
    assert str(path) in heard.getvalue()
    if content is None:
        with hear() as heard:
            assert cache.store(result) is None
        assert str(path) in heard.getvalue()
    else:
        cache.store(result)
        assert cache.find(result.key) == result


@pytest.mark.parametrize('trouble', ['file', 'long', 'nowhere', 'full'])
def test_a_cache_that_cannot_be_written_is_named_and_no_error(tmp_path, trouble):
    folder = {
        'file': tmp_path / 'file',
        'long': tmp_path / ('x' * 300),
        'nowhere': '/proc/mmaselect',  # nobody may write there, not even root
        'full': tmp_path / 'full',
    }[trouble]
    (tmp_path / 'file').touch()
    cache, result = SelectionCache(folder), make_result()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if trouble == 'full':
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with hear() as heard:
            assert cache.store(result) is None
            assert cache.find(result.key) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(cache.path(result.key)) in heard.getvalue()
    assert 'cannot be stored' in heard.getvalue()
    assert not list(tmp_path.glob('full/.*'))


def test_a_selection_json_from_before_there_were_intervals_is_read(tmp_path):
    data = make_result().to_dict()
    del data['interval']
    path = tmp_path / 'selection.json'
    path.write_text(json.dumps(data))
    assert SelectionResult.load(path) == make_result(interval=None)
