# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Write the files that are made from others: the tables of models, the configs of the
paper's numbers, and MIM's metafiles.

``--models`` works out ``mmaselect/model_zoo.json`` anew from the ``published`` models of all
families, which takes a quarter of a minute. MIM reads ``configs/*/metafile.yml`` to list and to
download configs.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mmaselect.apis.verification import verified_table
from mmaselect.cli.command import build_parser
from mmaselect.cli.toolbox import TOOLS
from mmaselect.files import write_atomically
from mmaselect.launch.config import load_config
from mmaselect.leaderboard.paper import ROWS, config_text
from mmaselect.leaderboard.reproduction import reproduction_table
from mmaselect.model_zoo import TABLE, derive_models, families_table, read_table, table_json
from mmaselect.selection.caveats import caveats_table
from mmaselect.selection.option_flags import options_table, presets_table
from mmaselect.terminal.tool import make_tool_parser, run_tool

ROOT = Path(__file__).resolve().parents[2]

#: Words for what configs name: the frozen model, the head and the folder of the data.
BACKBONES = {
    'mmaselect://dit_cifar10': 'DiT, CIFAR-10',
    'facebook/DiT-XL-2-256': 'DiT-XL/2-256',
    'facebook/DiT-XL-2-512': 'DiT-XL/2-512',
    'stabilityai/stable-diffusion-3-medium-diffusers': 'Stable Diffusion 3 medium',
    'stabilityai/stable-diffusion-3.5-medium': 'Stable Diffusion 3.5 medium',
    'black-forest-labs/FLUX.1-dev': 'FLUX.1-dev',
}
HEADS = {
    'DepthwiseSeparableASPPHead': 'DeepLabV3+',
    'FCNHead': 'FCN',
    'LinearClsHead': 'linear',
    'Mask2FormerHead': 'Mask2Former',
    'MaskRCNN': 'Mask R-CNN',
    'SegformerHead': 'SegFormer',
    'UPerHead': 'UperNet',
    'mmaselect.AttentionPoolClsHead': 'attention pooling',
}
DATA = {
    'data/CUB_200_2011': 'CUB-200-2011',
    'data/Flowers102': 'Oxford Flowers 102',
    'data/Stanford_Cars': 'Stanford Cars',
    'data/ade/ADEChallengeData2016': 'ADE20K',
    'data/camvid11': 'CamVid',
    'data/cifar10': 'CIFAR-10',
    'data/coco': 'COCO 2017',
    'data/custom': 'image folder',
    'data/fgvc-aircraft-2013b': 'FGVC-Aircraft',
    'data/imagenet': 'ImageNet-1k',
    'data/nabirds': 'NABirds',
    'data/stanford_dogs': 'Stanford Dogs',
}
TASKS = {
    'classification': 'Image Classification',
    'detection': 'Instance Segmentation',
    'segmentation': 'Semantic Segmentation',
}
PAPER = {
    'Title': 'A-SelecT: Automatic Timestep Selection for Diffusion Transformer Representation '
    'Learning',
    'URL': 'https://arxiv.org/abs/2603.25758',
}


def page(path: str, **parts: Callable[[], str]) -> str:
    """A page with the parts between pairs of comments made anew.

    Args:
        path: The page, from the root of the repository.
        parts: What makes a part, by its name: it stands between ``<!-- NAME -->`` and
            ``<!-- /NAME -->``.

    Raises:
        ValueError: If the page does not have the two comments, once each.
    """
    text = (ROOT / path).read_text(encoding='utf-8')
    for name, make in parts.items():
        start, end = f'<!-- {name} -->\n\n', f'\n<!-- /{name} -->'
        if text.count(start) != 1 or text.count(end) != 1:
            raise ValueError(f'{path} must have {start!r} and {end!r}, once each')
        made = start + make() + end
        text = re.sub(f'{start}.*?{end}', lambda _, made=made: made, text, flags=re.S)
    return text


def metafile(task: str) -> str:
    """``metafile.yml`` of the configs of one task.

    Raises:
        KeyError: If a config names what the tables above have no words for.
    """
    collection = f'A-SelecT-{task.capitalize()}'
    models = []
    for path in sorted((ROOT / 'configs' / task).glob('*.py')):
        config = load_config(path)
        # A detector is more than its head.
        head = config.model.get('head') or config.model.get('decode_head') or config.model
        words = {
            'Backbone': (BACKBONES, config.model.backbone.pretrained),
            'Head': (HEADS, 'LinearClsHead' if is_linear(head) else head.type),
            'Training Data': (DATA, config.data_root),
        }
        models.append(
            {
                'Name': path.stem,
                'In Collection': collection,
                'Config': path.relative_to(ROOT).as_posix(),
                'Metadata': {
                    **{name: look_up(*word, path) for name, word in words.items()},
                    'Task': TASKS[task],
                },
            }
        )
    content = {
        'Collections': [
            {
                'Name': collection,
                'License': 'Apache License 2.0',
                'Metadata': {'Architecture': ['Diffusion Transformer']},
                'Paper': PAPER,
            }
        ],
        'Models': models,
    }
    return (
        '# Made from the configs by tools/dev/write_generated.py.\n'
        '# No trained heads are published, so no model lists weights or results.\n'
        + yaml.safe_dump(content, sort_keys=False, width=1000)
    )


def is_linear(head: Any) -> bool:
    """Whether an FCN head has no convolution but the classifier."""
    return head.type == 'FCNHead' and head.num_convs == 0


def look_up(table: dict[str, str], name: Any, path: Path) -> str:
    """The words for what a config names."""
    if name not in table:
        raise KeyError(
            f'{path.name} names {name!r}, which tools/dev/write_generated.py has no words for: '
            f'add it next to {", ".join(table)}'
        )
    return table[name]


def models_table() -> str:
    """``mmaselect/model_zoo.json``, worked out anew."""
    return table_json(derive_models())


def commands_reference() -> str:
    """What each command takes, as tables: argparse's help differs between versions of Python."""
    parser = build_parser()
    (commands,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    parts = []
    for name, command in commands.choices.items():
        if name not in TOOLS:  # these have parsers of their own, in tools/
            arguments = [one for one in command._actions if one.dest not in ('help', 'debug')]
            rows = ['| argument | what it is |', '|---|---|', *map(argument_row, arguments)]
            examples = f'```text\n{command.epilog.strip()}\n```'
            parts += [
                f'## {name}',
                ' '.join(command.description.split()),
                '\n'.join(rows),
                examples,
            ]
    return '\n\n'.join(parts) + '\n'


def argument_row(argument: argparse.Action) -> str:
    """An argument of a command as a row of a table in Markdown."""
    value = argument.metavar or ','.join(argument.choices or [argument.dest.upper()])
    words = list(argument.option_strings[:1]) + ([] if argument.nargs == 0 else [str(value)])
    if argument.nargs in ('+', '*'):
        words.append('...')
    name, what = (text.replace('|', r'\|') for text in (' '.join(words), str(argument.help)))
    return f'| `{name}` | {what} |'


def verified() -> str:
    """Tables of the files of ``mmaselect verify`` in ``benchmarks/verified``."""
    files = sorted((ROOT / 'benchmarks' / 'verified').glob('*.json'))
    return verified_table([json.loads(file.read_text(encoding='utf-8')) for file in files])


#: File, from the root of the repository, to what makes its text.
GENERATED: dict[str, Callable[[], str]] = {
    'docs/commands.md': partial(page, 'docs/commands.md', commands=commands_reference),
    'docs/families.md': partial(page, 'docs/families.md', models=families_table),
    'docs/api/selection.md': partial(
        page,
        'docs/api/selection.md',
        options=options_table,
        presets=presets_table,
        warnings=caveats_table,
    ),
    'docs/reproduce.md': partial(page, 'docs/reproduce.md', rows=partial(reproduction_table, {})),
    'docs/verified.md': partial(page, 'docs/verified.md', verified=verified),
    **{row.config: partial(config_text, row) for row in ROWS},
    **{f'configs/{task}/metafile.yml': partial(metafile, task) for task in TASKS},
}


def outdated(generated: dict[str, Callable[[], str]] | None = None) -> dict[str, str]:
    """Files that differ from what would be written, with the text that they should have."""
    texts = {name: make() for name, make in (generated or GENERATED).items()}
    return {
        name: text
        for name, text in texts.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding='utf-8') != text
    }


def write(stale: dict[str, str], check: bool) -> dict[str, str]:
    """Write files, or only say which; returns them."""
    for name, text in stale.items():
        print(f'{name} is out of date' if check else f'wrote {name}')
        if not check:
            write_atomically(ROOT / name, text)
    read_table.cache_clear()
    return stale


def main(argv: Sequence[str] | None = None) -> None:
    """Write what is outdated, or only say so."""
    parser = make_tool_parser(__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if stale')
    parser.add_argument(
        '--models', action='store_true', help='work out the facts of published models first'
    )
    args = parser.parse_args(argv)
    # The page is made from the table, and metafiles from configs, which come first.
    stages = [{TABLE.relative_to(ROOT).as_posix(): models_table}] if args.models else []
    stages += [{name: make for name, make in GENERATED.items() if name.endswith('.py')}]
    stale = {}
    for stage in (*stages, GENERATED):
        stale |= write(outdated(stage), args.check) if stage else {}
    sys.exit(1 if args.check and stale else 0)


if __name__ == '__main__':
    run_tool(main)
