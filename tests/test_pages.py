# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The code of the pages: real parsers take each command, configs are built, Python runs.

A page of commands is read by bash, in which each program is a function that writes down its words:
nothing is started. The words then go to the program's own parser.
"""

import argparse
import ast
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.registry import MODELS, OPTIM_WRAPPERS, RUNNERS, STRATEGIES

from mmaselect import ASelecTDiT, model_info
from mmaselect.cli.command import build_parser
from mmaselect.cli.toolbox import TOOLS
from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.families import TextFamily, known_families
from mmaselect.diffusion.timestep_plan import TimestepPlan
from mmaselect.launch.config import load_config
from mmaselect.models.backbones.frozen_cache import CacheOptions
from mmaselect.models.backbones.noise import NoiseOptions
from mmaselect.selection import SelectionOptions

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ('*.md', 'docs/**/*.md', 'projects/**/*.md', 'benchmarks/*.md', 'configs/*.md')
    for path in ROOT.glob(pattern)
) + sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('mmaselect/weights/*/README.md'))
#: Files that show commands under their flags.
HELP = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('mmaselect', 'tools', 'benchmarks', 'projects')
    for path in ROOT.glob(f'{folder}/**/*.py')
    if '.mim' not in path.parts
    and re.search(r'^EXAMPLES = ', path.read_text('utf-8'), re.MULTILINE)
)
PROGRAMS = ('python', 'mmaselect', 'bash', 'make', 'pip', 'mim', 'docker', 'conda', 'torchrun')
#: What `...` stands for in a command that leaves flags out.
LEFT_OUT = {'tools/pretrain_dit.py': ['--data', 'images', '--out', 'runs/dit']}


def code_blocks(text, *languages):
    """The code of a page, in order, with the indentation of a list taken away."""
    pattern = rf'^( *)```(?:{"|".join(languages)})\n(.*?)^ *```$'
    for indent, block in re.findall(pattern, text, re.MULTILINE | re.DOTALL):
        yield re.sub(f'^{indent}', '', block, flags=re.MULTILINE)


def commands_in(script):
    """The commands of a shell script, as lists of words; none of them runs."""
    written = r'printf "%s\0" {0} "$@"; printf "\n\0";'
    functions = ''.join(f'{name}() {{ {written.format(name)} }}\n' for name in PROGRAMS)
    script = script.replace('.venv/bin/python', 'python')
    done = subprocess.run(
        ['bash', '-eu', '-c', f'{functions}{script}'],
        capture_output=True,
        text=True,
        check=False,
        env={},
    )
    assert done.returncode == 0, f'{done.stderr}\n{script}'
    commands, words = [], []
    for word in done.stdout.split('\0')[:-1]:
        if word == '\n':
            commands.append(words)
            words = []
        else:
            words.append(word)
    return commands


class Parsed(Exception):
    """A program has parsed its command line."""


def parse_as(script, words, monkeypatch):
    """Have a script of ours parse some words with its own parser, and stop behind it."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise Parsed(parse(self, args, namespace))

    with monkeypatch.context() as patched:
        patched.setattr(sys, 'argv', [script, *words])
        patched.setattr(sys, 'path', [str(ROOT / script).rpartition('/')[0], *sys.path])
        names = runpy.run_path(str(ROOT / script))
        if 'parse_args' in names:
            return names['parse_args'](words)
        patched.setattr(argparse.ArgumentParser, 'parse_args', parse_and_stop)
        with pytest.raises(Parsed) as stopped:
            names['main']()
        return stopped.value.args[0]


def check_command(words, monkeypatch):
    program, *rest = words
    for word in rest:
        if word.startswith(('configs/', 'tools/', 'benchmarks/', 'requirements/', 'tests/')):
            stands_for_one = re.search('[A-Z]{4}', word)  # test_NAME.py, configs/CONFIG
            assert (ROOT / word).exists() or stands_for_one, f'there is no {word}: {words}'
    if program == 'torchrun':  # its own flags go first
        start = next(
            place for place, word in enumerate(rest) if re.search(r'\.py$|^mmaselect$', word)
        )
        program, *rest = rest[start:] if rest[start] == 'mmaselect' else ['python', *rest[start:]]
    if program == 'mmaselect' and rest[0] in TOOLS:
        program, rest = 'python', [f'tools/{rest[0]}.py', *rest[1:]]
    if program == 'mmaselect':
        build_parser().parse_args(rest)
    elif program == 'make':
        targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text('utf-8'), re.MULTILINE)
        assert {word for word in rest if '=' not in word} <= set(targets), words
    elif program == 'python' and rest[0] != '-m':
        script, *flags = rest
        if '...' in flags:
            place = flags.index('...')
            flags[place : place + 1] = LEFT_OUT.get(script, [])
        args = parse_as(script, flags, monkeypatch)
        options = getattr(args, 'cfg_options', None)
        config = getattr(args, 'config', '')
        if options and config.startswith('configs/'):
            config = load_config(str(ROOT / config), options)
            for key, value in options.items():
                assert value_at(config, key) == value, key
    elif program == 'bash':
        assert (ROOT / rest[0]).is_file(), words
    else:  # tests/test_packaging.py and tests/test_docs.py compare what is installed
        assert program in ('pip', 'mim', 'docker', 'conda', 'python'), words


def value_at(config, key):
    """The entry of a config under a dotted key."""
    for name in key.split('.'):
        config = config[int(name)] if name.isdigit() else config[name]
    return config


@pytest.mark.parametrize('page', PAGES)
def test_commands_of_pages(page, monkeypatch, capsys):
    for script in code_blocks((ROOT / page).read_text('utf-8'), 'sh', 'bash'):
        for words in commands_in(script):
            try:
                check_command(words, monkeypatch)
            except SystemExit:
                pytest.fail(f'{" ".join(words)}\n{capsys.readouterr().err}')


@pytest.mark.parametrize('file', HELP)
def test_commands_of_help(file, monkeypatch, capsys):
    tree = ast.parse((ROOT / file).read_text('utf-8'))
    (text,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'EXAMPLES'
    )
    examples = re.search(r'^examples:\n((?:  .*\n|\n)*)', text, re.MULTILINE)[1]
    for words in commands_in(examples.replace('%(prog)s', f'python {file}')):
        try:
            check_command(words, monkeypatch)
        except SystemExit:
            pytest.fail(f'{" ".join(words)}\n{capsys.readouterr().err}')


SPAN = re.compile(r'`((?:mmaselect|python|bash|tools/|benchmarks/)[^`\n]*)`')


def parser_of(script, monkeypatch):
    """The parser that a script makes, as it is when a command line arrives."""

    def stop(self, args=None, namespace=None):
        raise Parsed(self)

    with monkeypatch.context() as patched:
        patched.setattr(sys, 'path', [str(ROOT / script).rpartition('/')[0], *sys.path])
        names = runpy.run_path(str(ROOT / script))
        patched.setattr(argparse.ArgumentParser, 'parse_args', stop)
        with pytest.raises(Parsed) as stopped:
            names.get('parse_args', names.get('main'))()
        return stopped.value.args[0]


@pytest.fixture(scope='module')
def flags():
    """Flags by program: ``mmaselect COMMAND`` and scripts, whose parsers are asked once."""
    (commands,) = (
        action.choices
        for action in build_parser()._actions
        if hasattr(action, 'choices') and isinstance(action.choices, dict)
    )
    known = {f'mmaselect {name}': set(one._option_string_actions) for name, one in commands.items()}
    return known


@pytest.mark.parametrize('page', PAGES)
def test_flags_in_sentences(page, flags, monkeypatch):
    """Words between backticks that begin with a program: its flags exist."""
    text = re.sub(r'^( *)```.*?^ *```$', '', (ROOT / page).read_text('utf-8'), flags=re.M | re.S)
    for span in SPAN.findall(text):
        words = span.split()
        if words[0] in ('python', 'bash'):
            words = words[1:]
        if words[0] == 'mmaselect' and words[1:2] and words[1] in TOOLS:
            words = [f'tools/{words[1]}.py', *words[2:]]
        program = ' '.join(words[:2]) if words[0] == 'mmaselect' else words[0]
        named = [word.partition('=')[0] for word in words if word.startswith('--')]
        if not named or (not program.startswith('mmaselect ') and not program.endswith('.py')):
            continue
        if program not in flags:
            assert (ROOT / program).is_file(), f'{page}: `{span}`'
            flags[program] = set(parser_of(program, monkeypatch)._option_string_actions)
        assert set(named) <= flags[program], f'{page}: `{span}`'


#: Pages with Python that is not the entries of a config: tests below, and in test_docs.py, run it.
SCRIPTS = {
    'README.md',
    'docs/look.md',
    'docs/own_domain.md',
    'docs/pretraining.md',
    'docs/tutorials/first_pick.md',
    'docs/tutorials/segment.md',
}
#: Entries of a config that pages show.
ENTRIES = {
    'backbone',
    'cache',
    'custom_imports',
    'model',
    'neck',
    'optim_wrapper',
    'runner_type',
    'strategy',
}
SHIPPED = 'mmaselect://dit_digits'
#: Where hub ids do not stand for a model of the list: folders of a user, and VAEs.
OF_A_USER = re.compile(r'(runs|work_dirs|checkpoints)/|my_lora|sd-vae-ft-ema$')


def python_of(page):
    """Blocks of Python of a page, and what a diff makes of the config that it shows."""
    text = (ROOT / page).read_text('utf-8')
    yield from code_blocks(text, 'python')
    for diff in code_blocks(text, 'diff'):
        lines = [line[1:] for line in diff.splitlines() if not line.startswith('-')]
        yield '\n'.join(lines)


def is_config(block):
    return set(re.findall(r'^(\w+) ?=', block, re.MULTILINE)) <= ENTRIES | {'_base_'}


def entries_of(block):
    """Names and values that a piece of a config assigns; `...` stands for further entries."""
    block = re.sub(r',\s*\.\.\.(?=\s*\))', '', re.sub(r'\.\.\.,\s*', '', block))
    for node in ast.parse(block).body:
        assert isinstance(node, ast.Assign), ast.unparse(node)
        yield ast.unparse(node.targets[0]), eval(ast.unparse(node.value))


def published(name):
    """The facts of a model that a page names; None for a folder or file of a user."""
    if name.startswith('mmaselect://') or OF_A_USER.search(name):
        return None
    return model_info(name)  # raises where the list has no such model


def check_backbone(given, folders):
    """Build a backbone as a page has it, but for weights and prompts: a small model has its own."""
    given = {**given}
    assert given.pop('type', 'mmaselect.ASelecTDiT') == 'mmaselect.ASelecTDiT'
    given.pop('_delete_', None)
    source = ModelSource.parse(given.pop('pretrained', SHIPPED))
    model = published(str(source.model))
    if source.base is not None:
        assert published(str(source.base)), source
    if model is not None and isinstance(given.get('blocks'), list):
        assert max(given['blocks']) < sum(model.stacks), (source, given['blocks'])
        given['blocks'] = list(range(len(given['blocks'])))
    if 'condition' in given:
        assert issubclass(known_families()[model.transformer_class], TextFamily), source
        del given['condition']
    small = folders['latent'] if given.get('cache') == 'latents' else SHIPPED
    ASelecTDiT(small, **{'calibration': folders['photos'], **given, 'dtype': 'fp32'})
    return model


def check_entry(name, value, folders):
    """One entry of a config."""
    if name == 'backbone':
        check_backbone(value, folders)
    elif name == 'cache':
        check_backbone(dict(cache=value, noise='fixed'), folders)
    elif name == 'model':
        model = check_backbone(value['backbone'], folders)
        for head in ('decode_head', 'auxiliary_head'):
            for width in np.atleast_1d(value.get(head, {}).get('in_channels', [])):
                assert model is None or width == model.width, (head, width)
    elif name == 'neck':
        assert [MODELS.build(one) for one in value]
    elif name == 'custom_imports':
        assert [importlib.import_module(one) for one in value['imports']]
    else:
        registry = dict(runner_type=RUNNERS, strategy=STRATEGIES, optim_wrapper=OPTIM_WRAPPERS)[
            name
        ]
        kind = value if name == 'runner_type' else value['type']
        assert registry.get(kind) is not None, f'{name} {kind}'


WITH_PYTHON = [page for page in PAGES if page != 'CONTRIBUTING.md' and list(python_of(page))]


@pytest.mark.parametrize('page', WITH_PYTHON)
def test_configs_of_pages(page, photos, tiny_latent_dit, tmp_path):
    """Entries are built; a whole config, with a base, is loaded."""
    assert len(WITH_PYTHON) > 12
    folders = dict(photos=photos, latent=tiny_latent_dit)
    for number, block in enumerate(python_of(page)):
        if not is_config(block):
            assert page in SCRIPTS, f'no test runs this Python of {page}:\n{block}'
        elif '_base_ = ' in block:
            path = tmp_path / f'{number}.py'
            path.write_text(block.replace('mmaselect::', f'{ROOT}/configs/'))  # without installing
            check_entry('model', load_config(path).model, folders)
        else:
            for name, value in entries_of(block):
                check_entry(name, value, folders)


#: Arguments of the backbone that sentences show, and what reads each.
READERS = dict(
    pretrained=ModelSource.parse,
    selection=SelectionOptions.parse,
    timestep=TimestepPlan.parse,
    noise=NoiseOptions.parse,
    cache=CacheOptions.parse,
)


def test_arguments_in_sentences():
    """Such as `selection=dict(top=3)` between backticks: the option exists and takes the value."""
    seen = set()
    for page in PAGES:
        for name, value in re.findall(r'`(\w+)=([^`\n]+)`', (ROOT / page).read_text('utf-8')):
            # Values that are left out, and the message of an error that begins alike.
            if name in READERS and not re.search(r'\w=\.\.\.|\[\.\.\.\]|\(\.\.\.\)| needs ', value):
                given = eval(re.sub(r', \.\.\.', '', value))
                if given is not None:  # `pretrained=None` is of a model's config
                    READERS[name](given)
                    seen.add((name, str(given)))
    assert len(seen) > 15
