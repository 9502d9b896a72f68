# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The paper's criterion by its one name, on every face: the same pick everywhere."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from mmaselect import ASelecTDiT, FeatureExtractor, select_timestep
from mmaselect.apis import save_features
from mmaselect.apis.huggingface import TransformersBackbone
from mmaselect.apis.sklearn import DiTFeatures
from mmaselect.apis.timm import FeaturesOnly
from mmaselect.cli import main
from mmaselect.diffusion import FrozenDiT
from mmaselect.selection.defaults import PRESET_NOTES

ROOT = Path(__file__).parents[1]
SIZE = 32

CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmaselect'])
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmaselect.ASelecTDiT', pretrained={folder!r}, blocks=[2], calibration={photos!r},
        selection=dict(criterion='InstanceSensitivity', image_size=32)))
"""


@pytest.fixture(scope='module')
def expected(tiny_dit, photos):
    """By the classes, without any preset."""
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    result = select_timestep(
        dit, photos, criterion='PaperHFR', others=(), image_size=SIZE, cache=False, progress=False
    )
    plain = select_timestep(
        dit, photos, criterion=dict(type='HighFrequencyRatio'), image_size=SIZE, cache=False,
        progress=False,
    )  # fmt: skip
    assert result.curve.scores != plain.curve.scores, 'the plain ratio over the grid is another one'
    assert list(plain.others) == ['PaperHFR'], 'both stand in one table by their names'
    return result


def check(found, expected):
    assert (found['criterion'], found['timestep']) == ('PaperHFR', expected.timestep)
    scores = [point['score'] for point in found['curve']]
    assert scores == pytest.approx(expected.curve.scores, abs=1e-6)
    assert found['others'] == {}


def test_commands(tiny_dit, photos, tmp_path, expected, capsys):
    flags = ['--pretrained', tiny_dit, '--blocks', '2', '--image-size', str(SIZE)]
    assert main(['select', photos, *flags, '--selection', 'paper', '--out', f'{tmp_path}/a']) == 0
    check(json.loads((tmp_path / 'a' / 'selection.json').read_text()), expected)
    features = ['features', photos, *flags, '--timestep', 'auto', '--selection', 'paper']
    assert main([*features, '--out', f'{tmp_path}/b']) == 0
    check(json.loads((tmp_path / 'b' / 'selection.json').read_text()), expected)
    look = ['look', *sorted(map(str, Path(photos).rglob('*.png')))[:2], *flags]
    look += ['--calibration', photos, '--timesteps', '0,500', '--selection', 'paper']
    capsys.readouterr()
    assert main([*look, '--out', f'{tmp_path}/look.html']) == 0
    assert f'picked: {expected.timestep} ' in capsys.readouterr().out


def test_probe(tiny_dit, photos, tmp_path):
    """The command has training images of its own: the pick is that on these."""
    paths = sorted(Path(photos).rglob('*.png'))
    for part, some in (('train', paths[:16]), ('test', paths[16:])):
        for number, path in enumerate(some):
            folder = tmp_path / 'photos' / part / f'class{number % 2}'
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).symlink_to(path)
    flags = ['--pretrained', tiny_dit, '--blocks', '2', '--image-size', str(SIZE)]
    flags += ['--timesteps', '0,500', '--selection', 'paper', '--out', f'{tmp_path}/out']
    assert main(['probe', f'{tmp_path}/photos', *flags]) == 0
    found = json.loads((tmp_path / 'out' / 'probe.json').read_text())['selection']
    result = select_timestep(
        tiny_dit, f'{tmp_path}/photos/train', blocks=[2], selection='paper', image_size=SIZE,
        timesteps='0,500', cache=False,
    )  # fmt: skip
    check(found, result)


@pytest.mark.parametrize('command', ['select', 'features', 'look', 'probe'])
def test_what_it_loses_is_in_the_help(command, capsys):
    with pytest.raises(SystemExit):
        main([command, '--help'])
    assert PRESET_NOTES['paper'] in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    'page',
    ['README.md', 'configs/README.md', 'docs/api/selection.md', 'docs/backbone.md',
     'docs/criteria.md', 'docs/reproduce.md', 'mmaselect/selection/criteria/paper_hfr.py'],
)  # fmt: skip
def test_what_it_loses_is_on_the_page(page):
    text = ' '.join((ROOT / page).read_text(encoding='utf-8').split())
    lost, at_zero = re.findall(r'\d+\.\d+', PRESET_NOTES['paper'])
    assert re.search(rf'loses\S* {lost}\b', text)
    assert re.search(rf'loses {at_zero}\b', text)
    assert re.search('[Nn]o published model (was|and)', text)


def test_tools(tiny_dit, photos, tmp_path, expected):
    """By a flag, and by --cfg-options; the config's other options stay."""
    spec = importlib.util.spec_from_file_location('tool', ROOT / 'tools' / 'select_timestep.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = tmp_path / 'config.py'
    path.write_text(CONFIG.format(folder=tiny_dit, photos=photos))
    ways = (['--selection', 'paper'], ['--cfg-options', 'model.backbone.selection=paper'])
    for place, flags in enumerate(ways):
        out = tmp_path / str(place)
        tool.main([str(path), '--out', str(out), '--device', 'cpu', *flags])
        check(json.loads((out / 'selection.json').read_text()), expected)


def test_python(tiny_dit, photos, tmp_path, expected):
    preset = dict(preset='paper', image_size=SIZE)
    options = dict(selection=preset, calibration=photos)
    backbone = ASelecTDiT(tiny_dit, blocks=[2], **options)
    backbone.init_weights()
    check(backbone.selection_result.to_dict(), expected)
    extract = FeatureExtractor(tiny_dit, 'auto', blocks=[2], **options)
    check(extract.selection_result.to_dict(), expected)
    result = select_timestep(tiny_dit, photos, blocks=[2], selection='paper', image_size=SIZE)
    check(result.to_dict(), expected)
    paths = sorted(map(str, Path(photos).rglob('*.png')))
    fitted = DiTFeatures(tiny_dit, blocks=[2], image_size=SIZE, selection='paper').fit(paths)
    check(fitted.selection_.to_dict(), expected)
    timm = FeaturesOnly(tiny_dit, 'auto', out_indices=[2], **options)
    check(timm.selection_result.to_dict(), expected)
    face = TransformersBackbone(tiny_dit, 'auto', out_indices=[2], **options)
    check(face.selection_result.to_dict(), expected)
    assert face.timestep == expected.timestep
    with torch.no_grad():
        assert face(torch.zeros(1, 3, SIZE, SIZE)).feature_maps


def test_a_preset_goes_with_auto(tiny_dit, photos, tmp_path):
    with pytest.raises(ValueError, match=r"selection says how timestep='auto' is selected, and"):
        save_features(photos, tmp_path, tiny_dit, timestep=50, selection='paper')
    with pytest.raises(ValueError, match="'book' is not a preset: choose from paper"):
        select_timestep(tiny_dit, photos, selection='book')
