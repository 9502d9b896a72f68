# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The ``mmaselect`` command, as a user who has no checkout calls it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest

from mmaselect import ASelecTDiT, FeatureExtractor, list_criteria, model_info, select
from mmaselect.apis import FeaturesOnly, load_features
from mmaselect.cli import main, toolbox
from mmaselect.logs import logger
from mmaselect.openmmlab.compat import multimodal_is_broken
from mmaselect.registry import CRITERIA
from mmaselect.selection import SelectionOptions, SelectionResult
from mmaselect.selection.defaults import PAPER_CRITERION
from mmaselect.selection.option_flags import default_in_words
from mmaselect.terminal.progress import hide_progress


def test_list(capsys):
    assert main(['list']) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ['model', 'family', 'width'] and len(rows) > 20
    assert main(['list', 'facebook/*', '--exclude', '512']) == 0
    (row,) = capsys.readouterr().out.splitlines()[1:]
    assert row.split() == [
        'facebook/DiT-XL-2-256', 'dit', '1152', '28', '14', '16', '0.75', 'B', '0.8', '1.4',
        'cc-by-nc-4.0',
    ]  # fmt: skip


def test_list_as_json(capsys):
    assert main(['list', '--family', 'sd3', '--family', 'flux', '--gated', '--json']) == 0
    models = json.loads(capsys.readouterr().out)
    assert {model['family'] for model in models} == {'sd3', 'flux'}
    assert all(model['gated'] and model['blocks'] == sum(model['stacks']) for model in models)
    assert main(['list', '--open', '--json', 'flux']) == 0
    assert not any(model['gated'] for model in json.loads(capsys.readouterr().out))


def test_list_criteria(capsys, monkeypatch):
    monkeypatch.delenv('COLUMNS', raising=False)  # pytest-xdist sets it
    assert main(['list', '--criteria']) == 0
    lines = [line.partition(' ') for line in capsys.readouterr().out.splitlines()[1:]]
    found = {name: words.strip() for name, _, words in lines}
    assert set(found) == set(list_criteria())
    # Other tests register criteria of their own.
    ours = [name for name in found if CRITERIA.get(name).__module__.startswith('mmaselect.')]
    rows = {name: found[name] for name in ours}
    assert len(rows) >= 9
    assert rows['FisherScore'].endswith('(needs labels)')
    assert all(row[0].isupper() and '`' not in row and len(row) > 30 for row in rows.values())
    assert main(['list', '--criteria', 'instance', '--exclude', '*Retrieval']) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ['InstanceDiscrimination', 'InstanceSensitivity']
    for wrong, message in (('nothing', 'no criterion fits'), ('--open', 'are for models')):
        assert main(['list', '--criteria', wrong]) == 1
        assert message in capsys.readouterr().err
    assert main(['list', '--criteria', '--json']) == 0
    assert json.loads(capsys.readouterr().out) == list_criteria()


def test_list_says_what_memory_is_needed(capsys):
    assert main(['list', 'FLUX.1-dev']) == 0
    head, row = capsys.readouterr().out.splitlines()
    model = model_info('black-forest-labs/FLUX.1-dev')
    assert head.index('GiB read') == row.index(f'{model.held:.1f} ')
    assert head.index('GiB whole') == row.index(f'{model.whole:.1f} ')


def test_a_shell_completes_commands_flags_and_models(tmp_path):
    def answers(line):
        answer = tmp_path / 'answer'
        environment = dict(
            os.environ, _ARGCOMPLETE='1', COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE='9',
            _ARGCOMPLETE_STDOUT_FILENAME=str(answer), _ARGCOMPLETE_IFS='\n',
        )  # fmt: skip
        command = [sys.executable, '-m', 'mmaselect']
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        return {one.strip() for one in answer.read_text().split('\n')}

    assert answers('mmaselect s') == {'select'}
    assert answers('mmaselect select photos --pretr') == {'--pretrained'}
    assert answers('mmaselect features x --pretrained facebook/D') == {
        'facebook/DiT-XL-2-256',
        'facebook/DiT-XL-2-512',
    }
    assert answers('mmaselect select x --method ') == {'race', 'full'}


def test_timesteps_are_checked_before_weights_are_read(tiny_dit, photos, tmp_path, capsys):
    folder = tmp_path / 'no_weights'
    shutil.copytree(tiny_dit, folder)
    for weights in folder.rglob('*.safetensors'):
        weights.unlink()
    grid, number = r'leaves the training schedule: \[1000\]', 'timestep 1000 is out of range'
    for command, message in (
        ('select IMAGES --timesteps 0,1000', grid),
        ('look IMAGES --timesteps 0,1000 --no-selection --out OUT/look.html', grid),
        ('features IMAGES --timestep 1000 --out OUT/features', number),
        ('probe IMAGES --timesteps 0,1000', grid),
    ):
        given = command.replace('IMAGES', str(photos)).replace('OUT', str(tmp_path)).split()
        assert main([*given, '--pretrained', str(folder)]) == 1
        assert re.search(message, capsys.readouterr().err), command
    wide = dict(timesteps='0,1000')
    for build, message in (
        (lambda: FeatureExtractor(folder, 1000), number),
        (
            lambda: FeatureExtractor(folder, 'auto', calibration=photos, selection=wide),
            grid,
        ),
        (lambda: FeaturesOnly(folder, 1000), number),
        (lambda: ASelecTDiT(folder, timestep=1000), number),
        (lambda: ASelecTDiT(folder, selection=wide), grid),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_errors_are_one_line(capsys):
    assert main(['list', 'no-such-model']) == 1
    captured = capsys.readouterr()
    assert (
        captured.err == 'mmaselect list: error: no model fits; `mmaselect list` shows all of them\n'
    )
    with pytest.raises(ValueError, match='no model fits'):
        main(['list', 'no-such-model', '--debug'])


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as leave:
        main([*arguments, '--help'])
    assert leave.value.code == 0
    return capsys.readouterr().out


def test_help_teaches(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '60')
    page = help_of(capsys)
    commands = re.findall('^    ([a-z]+)  ', page, re.MULTILINE)
    assert commands[:2] == ['list', 'select'] and len(commands) == 11
    for name in [*commands, None]:
        if name in toolbox.TOOLS:  # these import the toolboxes first
            continue
        text = help_of(capsys, *([name] if name else []))
        head, described = text.split('\n\n')[:2]
        assert head.startswith('usage: mmaselect') and 'examples:\n' in text
        assert max(map(len, described.splitlines())) <= 60, name  # wrapped at words
        # A flag says what it is in words, not "of the files" or its default alone.
        assert not re.search(r'^  -.*  (of |default)', text, re.MULTILINE), name


def test_alone_the_command_shows_its_help(capsys):
    page = help_of(capsys)
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.err == page and not shown.out


def test_commands_that_search_no_place_say_so(photos, capsys):
    for command in ('look', 'probe'):
        assert 'auto:4' not in help_of(capsys, command)
        for flag, given in (('--blocks', 'auto:4'), ('--feature', 'auto')):
            model = ['--pretrained', 'mmaselect://dit_cifar10', flag, given]
            assert main([command, str(photos), *model, '--out', 'never.html']) == 1
            message = capsys.readouterr().err
            assert f'{flag} {given} is a search, which `mmaselect {command}` does not' in message
    assert 'auto:4' in help_of(capsys, 'select') and 'auto:4' in help_of(capsys, 'features')


def test_select(tiny_dit, photos, tmp_path, capsys):
    command = ['select', photos, '--pretrained', tiny_dit, '--timesteps', '0:900:300']
    options = ['--num-images', '4', '--image-size', '32', '--blocks', '2', '--out', str(tmp_path)]
    assert main([*command, *options]) == 0
    result = json.loads((tmp_path / 'selection.json').read_text())
    assert (tmp_path / 'selection.png').is_file()
    assert (result['num_images'], result['blocks']) == (4, [2])
    (pick,) = re.findall(r'^timestep (\d+)', capsys.readouterr().out, re.MULTILINE)
    assert int(pick) == result['timestep']


def test_python_writes_the_page_that_the_command_writes(tiny_dit, photos, tmp_path):
    options = dict(timesteps='0:900:300', num_images=4, image_size=32, blocks=[2])
    select(tiny_dit, photos, out=tmp_path / 'python', progress=False, **options)
    command = ['select', photos, '--pretrained', tiny_dit, '--timesteps', '0:900:300']
    flags = ['--num-images', '4', '--image-size', '32', '--blocks', '2']
    assert main([*command, *flags, '--out', str(tmp_path / 'command')]) == 0
    python, command = (
        (tmp_path / face / 'selection.html').read_text() for face in ('python', 'command')
    )
    assert '<img class="tokens"' in python and '<figcaption>' in python
    assert python == command


@pytest.mark.parametrize(
    ('flags', 'race'),
    [
        (['--confidence', '0.75'], dict(rounds=[16, 24], confidence=0.75)),
        (['--method', 'full'], None),
    ],
)
def test_select_races_unless_told_not_to(tiny_dit, photos, tmp_path, flags, race):
    command = ['select', photos, '--pretrained', tiny_dit, '--timesteps', '0,900', *flags]
    options = ['--criterion', 'HighFrequencyRatio', '--image-size', '32', '--blocks', '1']
    assert main([*command, *options, '--out', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'selection.json').read_text())
    assert result['settings'].get('race') == race
    assert result['method'] == ('full' if race is None else 'race')


def test_what_the_help_says_is_the_default(capsys):
    with pytest.raises(SystemExit):
        main(['select', '--help'])
    text = ' '.join(capsys.readouterr().out.split())
    for option in fields(SelectionOptions):
        default = f'{option.metadata["help"]}; default: {default_in_words(option)}'
        assert (default in text) is (option.metadata['flag'] is not None)
    assert 'default: 0:1000:25' in text and 'default: InstanceSensitivity' in text
    assert 'default: 0.999' in text and "default: the model's own training size" in text


def test_select_takes_every_option_of_a_selection(tiny_dit, photos, tmp_path):
    command = ['select', photos, '--pretrained', tiny_dit, '--out', str(tmp_path)]
    flags = '--selection paper --timesteps 0,900 --num-images 5 --image-size 24x32 --seed 3'
    flags += ' --batch-size 2 --method full --refine 300 --cache-dir ' + str(tmp_path / 'kept')
    assert main([*command, *flags.split(), '--others', 'CrossSpectrumHFR']) == 0
    settings = json.loads((tmp_path / 'selection.json').read_text())['settings']
    paper, other = settings['criteria']
    assert paper == PAPER_CRITERION and other['type'] == 'CrossSpectrumHFR'
    assert settings['timesteps'] == [0, 900] and settings['finer_steps'] == 300
    assert (settings['num_images'], settings['image_size'], settings['seed']) == (5, [24, 32], 3)
    assert len(list((tmp_path / 'kept').glob('*.json'))) == 1


def test_features(tiny_dit, photos, tmp_path, capsys):
    command = ['features', photos, '--pretrained', tiny_dit, '--out', str(tmp_path)]
    options = ['--blocks', '1', '2', '--feature', 'query', 'output', '--pool', 'mean']
    assert main([*command, '--timestep', '50', *options, '--condition', '3']) == 0
    out = capsys.readouterr().out
    assert '24 images at timestep 50' in out and 'block 2, output: (16,) each' in out
    stored = load_features(tmp_path)
    assert stored.stack(1, 'query').shape == (24, 16)
    assert main([*command, '--timestep', '60', *options]) == 1
    said = (
        f'mmaselect features: error: {str(tmp_path)!r} holds features of another model, '
        f'other settings or other images (timestep 50 -> 60; '
    )
    # MMEngine's logger may complain before: its stream is the one of an earlier test.
    assert said in capsys.readouterr().err
    assert main([*command, '--timestep', '1000', '--overwrite']) == 1
    assert 'timestep 1000 is out of range' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, '--timestep', 'soon'])
    assert "invalid timestep value: 'soon'" in capsys.readouterr().err


def test_features_say_what_is_suspect_of_a_pick(tiny_dit, photos, tmp_path, capsys):
    command = ['features', str(photos), '--pretrained', tiny_dit, '--out', str(tmp_path)]
    assert main([*command, '--timestep', 'auto', '--selection', 'fast']) == 0
    result = SelectionResult.load(tmp_path / 'selection.json')
    out = ' '.join(capsys.readouterr().out.split())
    assert result.warnings and all(f'warning: {warning}' in out for warning in result.warnings)


@pytest.mark.skipif(
    multimodal_is_broken(), reason='MMPretrain 1.2 has to be told to leave out its own models'
)
def test_list_imports_no_torch():
    code = (
        'import sys; from mmaselect.cli import main; main(["list", "sana"])\n'
        'try: main(["select", "--help"])\n'
        'except SystemExit: print("torch" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.count('Sana_') == 2 and done.stdout.splitlines()[-1] == 'False'


def test_look(tiny_dit, photos, tmp_path, capsys):
    page = tmp_path / 'look.html'
    options = ['--pretrained', tiny_dit, '--out', str(page), '--timesteps', '0:900:300']
    few = ['look', f'{photos}/00.png', f'{photos}/01.png', *options, '--image-size', '32']
    assert main([*few, '--blocks', '2', '--feature', 'query', 'key']) == 0
    assert capsys.readouterr().out.startswith('2 images at timesteps 0, 300, 600\n')
    html = page.read_text()
    assert '2 images are too few' in html and 'block 2, key' in html
    assert 'How the timestep was picked' not in html
    # Of a folder, some are shown, and all are selected on.
    assert main(['look', photos, *options, '--max-images', '3', '--blocks', '2']) == 0
    out = capsys.readouterr().out
    assert out.startswith('3 images at timesteps 0, ') and ', picked: ' in out
    assert 'own 32 pixels; shown are 128' in page.read_text()
    # A selection that is there already.
    selected = ['--timesteps', '0,450', '--num-images', '4', '--out', str(tmp_path)]
    assert main(['select', photos, '--pretrained', tiny_dit, *selected]) == 0
    assert (tmp_path / 'selection.html').is_file()
    assert main([*few, '--selection', str(tmp_path / 'selection.json')]) == 0
    assert 'How the timestep was picked' in page.read_text()
    page.unlink()
    capsys.readouterr()
    other = [*few, '--pretrained', 'mmaselect://dit_digits']
    assert main([*other, '--selection', str(tmp_path / 'selection.json')]) == 1
    said = capsys.readouterr().err
    assert 'the selection was made with another model (its transformer_config' in said
    assert not page.exists()
    assert main([*few, '--calibration', photos, '--no-selection']) == 1
    assert '--calibration would not be used with --no-selection' in capsys.readouterr().err
    assert main(['look', photos, *options, '--no-selection', '--blocks', '2']) == 0
    assert 'How the timestep was picked' not in page.read_text()


def test_look_at_photographs_that_come_along(tiny_dit, tmp_path, capsys):
    page = tmp_path / 'look.html'
    options = ['--out', str(page), '--timesteps', '0,300', '--image-size', '32']
    command = ['look', '--demo', '--pretrained', tiny_dit, *options, '--position-images', '4']
    assert main(command) == 0
    html = page.read_text()
    # Blocks over the whole depth, as no pick is made in one of them.
    assert html.count('<th>block') == 3 and 'without position' in html
    assert 'astronaut.png' in html and 'chelsea.png' in html
    assert main([*command[:-1], '0']) == 0
    assert 'without position' not in page.read_text()
    assert main([*command, 'cat.jpg']) == 1
    assert '--demo brings images of its own' in capsys.readouterr().err
    assert main(['look', '--pretrained', tiny_dit, *options]) == 1
    assert 'give --demo for two photographs' in capsys.readouterr().err


def test_look_from_a_config(tiny_dit, photos, tmp_path, capsys):
    config = tmp_path / 'config.py'
    backbone = dict(
        type='ASelecTDiT', pretrained=tiny_dit, blocks=[1, 3], calibration=photos,
        selection=dict(timesteps=[0, 400], num_images=4, image_size=32),
    )  # fmt: skip
    config.write_text(f'model = dict(backbone={backbone!r})\n')
    command = ['look', f'{photos}/00.png', '--config', str(config)]
    page = ['--out', str(tmp_path / 'look.html'), '--timesteps', '200']
    assert main([*command, *page]) == 0
    (pick,) = re.findall(r', picked: (\d+)', capsys.readouterr().out)
    assert int(pick) in (0, 400) and 'block 3, query' in (tmp_path / 'look.html').read_text()
    assert main([*command, *page, '--pretrained', tiny_dit]) == 1
    assert 'give either --pretrained MODEL or --config FILE' in capsys.readouterr().err
    assert main(['look', 'no/such.png', '--pretrained', tiny_dit, *page]) == 1
    assert "there is no image 'no/such.png'" in capsys.readouterr().err
    config.write_text("model = dict(backbone=dict(type='ResNet'))\n")
    assert main([*command, *page]) == 1
    assert "model.backbone is 'ResNet'" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_a_failure(tiny_dit, photos, tmp_path, capsys):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'selection.html').mkdir()
    command = ['select', photos, '--pretrained', tiny_dit, '--out', str(tmp_path / 'out')]
    assert main([*command, '--timesteps', '0,100']) == 1
    assert 'selection.html could not be written' in capsys.readouterr().err
    assert (tmp_path / 'out' / 'selection.json').is_file()


def test_paths_are_checked_before_anything_is_loaded():
    """In a process of its own: neither PyTorch nor a model is imported for a wrong path."""
    code = (
        'import sys; from mmaselect.cli.command import main; code = main(sys.argv[1:]); '
        "print(code, 'torch' in sys.modules)"
    )
    for command in (
        ['select', '/no/such', '--pretrained', 'x'],
        ['features', '/no/such', '--pretrained', 'x', '--out', 'o', '--timestep', '5'],
        ['look', '/no/such.png', '--pretrained', 'x', '--out', 'o.html'],
    ):
        done = subprocess.run(
            [sys.executable, '-c', code, *command], capture_output=True, text=True
        )
        assert "'/no/such" in done.stderr and 'does not exist' in done.stderr
        assert done.stdout.split() == ['1', 'False']


def test_every_command_has_its_answer_as_json(tiny_dit, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logger, 'handlers', [*logger.handlers])
    monkeypatch.setattr(logger, 'propagate', logger.propagate)
    model = ['--pretrained', tiny_dit, '--json', '--quiet', '--image-size', '32']
    page = tmp_path / 'look.html'
    look = ['look', f'{photos}/00.png', f'{photos}/01.png', '--out', str(page), '--blocks', '1']
    assert main([*look, '--timesteps', '0,300', '--position-images', '0', *model]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == dict(
        page=str(page), images=2, timesteps=[0, 300], pick=None
    )  # fmt: skip
    assert 'reading features' not in found.err
    files = tmp_path / 'features'
    assert main(['features', photos, '--out', str(files), '--timestep', '5', *model]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found['images'] == 24 and found['timestep'] == 5
    assert found['shapes'] == {'3 query': [16, 8, 8]}
    hide_progress(False)
