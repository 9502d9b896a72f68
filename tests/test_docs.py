# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The pages: install lines that work as typed, a README that is short, a linter for words."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from diffusers import AutoencoderKL, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
EXTRAS = PROJECT['optional-dependencies']
TEXTS = sorted(
    path
    for pattern in ('*.md', 'docs/**/*.md', 'configs/*.md', 'benchmarks/*.md', 'notebooks/*.ipynb')
    for path in ROOT.glob(pattern)
) + sorted(path for path in (ROOT / 'mmaselect').rglob('*.py') if '.mim' not in path.parts)


def install_lines():
    for path in TEXTS:
        for line in re.findall(r'pip install [^\n`)]*', path.read_text(encoding='utf-8')):
            yield f'{path.relative_to(ROOT)}: {line}'


def test_no_line_installs_the_package_from_an_index():
    """No index has the package: whoever took its name there would own our users."""
    lines = list(install_lines())
    assert len(lines) > 10
    assert not [line for line in lines if re.search(r'install [^#]*["\' ]mmaselect\b', line)]


def test_addresses_of_the_repository_are_the_one_of_the_project():
    """A badge or an install line that leads to another repository runs the code of others."""
    pattern = r'colab\.research\.google\.com/github/[\w.-]+/[\w.-]+|git\+https?://[\w./-]+'
    texts = {path.name: path.read_text(encoding='utf-8') for path in TEXTS}
    named = {name: link for name, text in texts.items() for link in re.findall(pattern, text)}
    address = PROJECT.get('urls', {}).get('Repository')
    if address is None:
        assert not named, 'pyproject.toml has no [project.urls] Repository'
    else:
        owner_and_name = '/'.join(address.removesuffix('.git').split('/')[-2:])
        assert all(owner_and_name in link for link in named.values()), named
        assert any('colab' in link for link in named.values()), 'the badge leads to no notebook'


def test_extras_of_install_lines_exist():
    named = {
        extra.strip()
        for line in install_lines()
        for group in re.findall(r'-e \\?"\.\[([a-z,]+)\]', line)
        for extra in group.split(',')
    }
    assert {'onedl', 'text', 'analysis'} <= named <= set(EXTRAS)


def test_extras_are_explained():
    """But for the stacks, which have sections of their own, and what contributors need."""
    page = (ROOT / 'docs' / 'install.md').read_text(encoding='utf-8')
    listed = re.findall(r'^\| `(\w+)` \|', page, re.MULTILINE)
    assert {*listed, 'onedl', 'openmmlab', 'test', 'docs'} == EXTRAS.keys()
    assert len(listed) == len(set(listed))


def texts_of_the_code():
    """Strings of the package and the tools; what is formatted into them is left out."""
    for path in [*(ROOT / 'mmaselect').rglob('*.py'), *(ROOT / 'tools').rglob('*.py')]:
        if '.mim' in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    one.value if isinstance(one, ast.Constant) else '\0' for one in node.values
                )
                yield ''.join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_of_the_troubleshooting_page_are_those_of_the_code():
    page = (ROOT / 'docs' / 'troubleshooting.md').read_text(encoding='utf-8')
    code = '\n'.join(texts_of_the_code())
    messages = [
        message
        for row in re.findall(r'^\| (`.*?) \| ', page, re.MULTILINE)
        for message in re.findall(r'`([^`]+)`', row)
    ]
    assert len(messages) > 25
    # One is a toolbox's. Numbers, file names and the word before a verb are formatted in.
    for message in set(messages) - {'both backbone and segmentor set pretrained weight'}:
        text = message.removeprefix('A-SelecT: ').replace('transformer/config.json ...', '...')
        text = text.replace('pixels span', '... span')
        for part in re.split(r'\.\.\.|\b\d+\b', text):
            assert part.strip(' ,:') in code, message


def test_requirements_of_install_lines_exist():
    for line in install_lines():
        for name in re.findall(r'-r (\S+\.txt)', line):
            assert (ROOT / name).is_file(), line


def test_readme_is_read_in_a_minute():
    words = (ROOT / 'README.md').read_text(encoding='utf-8').split()
    assert len(words) < 900
    text = ' '.join(words)
    assert 'make demo' in text and 'make test' in text


def test_links_lead_somewhere():
    for page in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]:
        for link in re.findall(r'\]\(([^)#:]+)[^):]*\)', page.read_text(encoding='utf-8')):
            assert (page.parent / link).exists(), f'{page.name}: {link}'


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with the images that the snippets of the pages name, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMASELECT_CACHE', str(tmp_path / 'cache'))
    random = np.random.default_rng(0)
    names = ['photo.jpg', 'cat.jpg', 'dog.jpg', *(f'photos/{number}.png' for number in range(4))]
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((32, 32)).save(name)
    return tmp_path


def run_snippets(page, given=None, blocks=slice(None), **swapped):
    """Run the Python of a page as one script, with some literals replaced; return its names.

    Args:
        page: Its path.
        given: Names that the page does not define.
        blocks: Which of its blocks; some pages show configs, too.
        swapped: What stands there once, and what stands for it here.
    """
    text = (ROOT / page).read_text(encoding='utf-8')
    found = re.findall(r'^```python\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    source = '\n'.join(found[blocks])
    for option, (printed, here) in swapped.items():
        assert source.count(printed) == 1, f'{page} names {option} {source.count(printed)} times'
        source = source.replace(printed, here)
    names = dict(given or {})
    exec(compile(source, page, 'exec'), names)
    return names


@pytest.mark.filterwarnings('ignore')
def test_snippet_of_the_readme(desk):
    """As it stands but for the gated model and the GPU, which README says how to do without."""
    names = run_snippets(
        'README.md',
        model=("'stabilityai/stable-diffusion-3.5-medium'", "'mmaselect://dit_cifar10'"),
        dtype=("'bf16'", "'fp32'"),
        device=("'cuda'", "'cpu'"),
    )
    assert [place[1] for place in names['maps']] == ['query']
    assert names['extract'].timestep == names['extract'].selection_result.timestep


@pytest.mark.thorough  # a pick of block, feature and timestep
@pytest.mark.filterwarnings('ignore')
def test_snippets_of_the_first_tutorial(desk, capsys):
    names = run_snippets('docs/tutorials/first_pick.md')
    ((place, vectors),) = names['vectors'].items()
    assert vectors.shape[0] == 2 and vectors.shape[1] == names['maps'][place].shape[1]
    assert names['again'].timestep == names['extract'].timestep
    assert "type='mmaselect.ASelecTDiT'" in capsys.readouterr().out
    assert {path.name for path in Path('pick').iterdir()} >= {'config.json', 'selection.json'}


def test_snippet_of_the_segmentation_tutorial(desk, capsys):
    Path('predictions/masks').mkdir(parents=True)
    Image.fromarray(np.uint8([[0, 0], [2, 1]])).save('predictions/masks/photo.png')
    Path('street').mkdir()
    Path('street/classes.txt').write_text('sky\nbuilding\nroad\n')
    run_snippets('docs/tutorials/segment.md')
    assert capsys.readouterr().out == 'photo.png sky 50% building 25% road 25%\n'


@pytest.mark.thorough  # a pick on the default grid
@pytest.mark.filterwarnings('ignore')
def test_snippets_of_the_look_page(desk):
    """As they stand but for a published model, and the hub: the pick is read from its folder."""
    names = run_snippets(
        'docs/look.md',
        model=("'facebook/DiT-XL-2-256'", "'mmaselect://dit_cifar10'"),
        push=("extract.push_to_hub('somebody/pick')", 'assert callable(extract.push_to_hub)'),
        pull=("'somebody/pick'", "'pick'"),
    )
    assert len(names['look'].maps[100, (3, 'query')]) == 2 and Path('look.html').is_file()
    assert names['again'].timestep == names['extract'].timestep
    assert names['again'].selection_result == names['extract'].selection_result


@pytest.mark.filterwarnings('ignore')
def test_snippet_of_the_domain_page(desk, capsys):
    random = np.random.default_rng(0)
    labels = [0, 1] * 25
    images = [
        np.uint8(random.integers(0, 60, (28, 28, 3)) + 150 * label * (np.arange(28) > 14)[:, None])
        for label in labels
    ]
    run_snippets(
        'docs/own_domain.md',
        dict(paths=images, labels=labels),
        slice(1),
        model=("'facebook/DiT-XL-2-256', dtype='fp16'", "'mmaselect://dit_digits', dtype='fp32'"),
    )
    linear, nearest = map(float, capsys.readouterr().out.split()[-2:])  # behind messages
    assert linear > 0.9 and nearest > 0.9  # a bright half is easy to see


@pytest.mark.filterwarnings('ignore')
def test_snippet_of_the_pretraining_page(desk, tiny_latent_dit):
    """A model that was trained here is a pipeline of diffusers; the tiny ones are, too."""
    pixels = ROOT / 'mmaselect' / 'weights' / 'dit_cifar10'
    latents = DiTPipeline(
        DiTTransformer2DModel.from_pretrained(tiny_latent_dit, subfolder='transformer'),
        AutoencoderKL.from_pretrained(tiny_latent_dit, subfolder='vae'),
        DDPMScheduler.from_pretrained(tiny_latent_dit, subfolder='scheduler'),
    )
    latents.register_to_config(id2label={'0': 'forest', '1': 'river'})
    latents.save_pretrained(desk / 'latents')
    names = run_snippets(
        'docs/pretraining.md',
        None,
        slice(1, None),
        pixels=("'runs/slides/pipeline'", repr(str(pixels))),
        latents=("'runs/tiles/pipeline'", repr(str(desk / 'latents'))),
    )
    assert [image.size for image in names['images']] == [(32, 32)] * 2


PROSE = ROOT / 'tools' / 'dev' / 'prose.py'


@pytest.mark.parametrize(
    ('bad', 'good'),
    [
        ('        seed: Of the noise.', '        seed: Seed of the noise.'),
        ("f'{path} is no pipeline folder'", "f'{path} is not a pipeline folder'"),
        ('a file that is none', 'there are none'),
        ('scored beside it', 'scored next to it'),
        ('See that a file can be read.', 'Check that a file can be read.'),
        ('it goes on where it was', 'it resumes'),
        ('scale: What it is multiplied by.', 'scale: Factor applied to the weights.'),
        ('is nothing that a graph can hold', 'cannot be held by a graph'),
    ],
)
def test_linter_for_words(bad, good, tmp_path):
    for name, text, status in (('bad.md', bad, 1), ('good.md', good, 0)):
        (tmp_path / name).write_text(f'{text}\n')
        done = subprocess.run(
            [sys.executable, PROSE, tmp_path / name], capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stdout


def test_table_of_words_in_contributing():
    done = subprocess.run(
        [sys.executable, PROSE, '--table'], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() in (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')


def test_check_of_the_api_pages():
    """``make docs`` runs it on the built site: a name that stands twice, or nowhere, is named."""
    code = (ROOT / 'tools' / 'dev' / 'check_api.py').read_text(encoding='utf-8')
    names = {'__name__': 'check_api', '__file__': str(ROOT / 'tools' / 'dev' / 'check_api.py')}
    exec(compile(code, 'check_api.py', 'exec'), names)
    heading = '<div class="doc doc-object doc-{}">\n<h3 id="{}" class="doc doc-heading">'
    signature = '<div class="doc-signature highlight"><b>{}</b></div>'
    public = names['public_names']()
    assert len(public) > 90 and {'FeatureExtractor', 'select', 'ASelecTDiT', 'Sweep'} <= public
    page = ''.join(heading.format('class', f'mmaselect.here.{name}') for name in public)

    def said(text):
        return list(names['problems']({'page.html': text}))

    assert said(page + signature.format('x' * 100)) == []
    method = heading.format('function', 'mmaselect.here.Sweep.select')
    assert said(page + method) == []
    again = heading.format('class', 'mmaselect.there.Sweep')
    (twice,) = said(page + again)
    assert twice == 'Sweep stands 2 times and not once: mmaselect.here.Sweep, mmaselect.there.Sweep'
    (missing,) = said(page.replace('mmaselect.here.Sweep"', 'mmaselect.here.Swept"'))
    assert missing == 'Sweep stands 0 times and not once: nowhere'
    assert 'page.html: 101 characters in a line' in said(page + signature.format('x' * 101))[0]
    assert said(page + 'see :func:`select`') == ['page.html: :func: is not a link']
