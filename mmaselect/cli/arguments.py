# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Arguments that several subcommands have. Knows no torch, so that ``--help`` is there at once."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmaselect.model_zoo import list_models
from mmaselect.terminal.width import wrapped

if TYPE_CHECKING:
    from mmaselect.diffusion import ModelSource

#: Help of the images that a subcommand reads.
IMAGES_HELP = (
    'folder of images, searched recursively; image files; a .txt file with the path of an image on '
    'each line; .zip files, tar shards or parquet files (* or {000..099} for several); a data set '
    'of Hugging Face: datasets://NAME/SPLIT, or a folder that its save_to_disk wrote; any path '
    'with a scheme that fsspec knows, such as s3://'
)

DEVICE_HELP = (
    'where to compute, such as cuda, cuda:1 or cpu; default: cuda if there is one, else cpu'
)
REVISION_HELP = 'branch, tag or commit of the model on the hub'
VARIANT_HELP = 'variant of the weight files on the hub, such as fp16'


def new_parser(
    commands: argparse._SubParsersAction, name: str, help: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A subcommand's parser, with examples below its help."""
    return commands.add_parser(
        name,
        help=help,
        description=wrapped(description),
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_model_arguments(
    parser: argparse.ArgumentParser,
    required: bool = True,
    searches: bool = True,
    default_blocks: str = "the default block of the model's family",
) -> None:
    """What is read: the model, its blocks and features, and how it computes.

    Args:
        parser: The subcommand's.
        required: Whether a model must be named. If not, what was not given is None.
        searches: Whether ``auto`` picks blocks and features; if not, see `check_no_search`.
        default_blocks: The blocks that are read by default, for the help.
    """
    if searches:
        blocks_auto = (
            '; auto picks the best one on the images, auto:4 the best four together, auto:<=30 the '
            'best one up to block 30'
        )
        feature_auto = '; auto picks one'
    else:
        blocks_auto = feature_auto = ''
    group = parser.add_argument_group('model')
    pretrained = group.add_argument(
        '--pretrained',
        required=required,
        metavar='MODEL',
        help='hub id, such as facebook/DiT-XL-2-256 (`mmaselect list` has more); folder in '
        "diffusers' pipeline layout; file of weights; or mmaselect://dit_cifar10, a small model "
        'that ships with the package',
    )
    pretrained.completer = model_names  # type: ignore[attr-defined]
    group.add_argument(
        '--blocks',
        nargs='+',
        type=block,
        metavar='N',
        help='blocks to read, counted from 0; negative numbers count from the end'
        f'{blocks_auto}. Default: {default_blocks}',
    )
    group.add_argument(
        '--feature',
        '--features',
        nargs='+',
        default=['query'] if required else None,
        metavar='NAME',
        help='query, key, value, attention or output; query_post and key_post in some families'
        f'{feature_auto}; 2.attention, without --blocks, is the attention of block 2. '
        'Default: query',
    )
    group.add_argument(
        '--condition',
        metavar='PROMPT',
        help='prompt or class label that goes with every image; default: the empty one',
    )
    group.add_argument(
        '--dtype',
        default='auto' if required else None,
        help='precision: fp32, fp16, bf16, or auto: as the weights were published, but fp32 on '
        'most CPUs. Default: auto',
    )
    group.add_argument('--device', help=DEVICE_HELP)
    group.add_argument(
        '--base',
        metavar='PIPELINE',
        help='hub id or folder with scheduler and VAE, if MODEL is a transformer alone',
    )
    group.add_argument(
        '--vae', metavar='VAE', help="hub id or folder of a VAE to use in place of the model's own"
    )
    group.add_argument(
        '--original',
        metavar='KIND',
        help="dit, sit or repa: the kind of model in a file of weights in its authors' layout, if "
        'neither its name nor its content says so',
    )
    group.add_argument('--lora', metavar='LORA', help='file, folder or hub id of a LoRA to fuse')
    group.add_argument(
        '--lora-scale', type=float, metavar='X', help='factor applied to the LoRA; default: 1'
    )
    group.add_argument('--revision', help=REVISION_HELP)
    group.add_argument('--variant', help=VARIANT_HELP)


def model_names(prefix: str, **_: Any) -> list[str]:
    """Published models, for a shell that completes a name."""
    return [name for name in list_models() if name.startswith(prefix)]


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """At what size images are read, and how many at once."""
    group = parser.add_argument_group('images')
    group.add_argument(
        '--image-size',
        type=int,
        metavar='PIXELS',
        help="side that images are scaled and cropped to; default: the model's own",
    )
    group.add_argument(
        '--batch-size',
        type=int,
        default=16,
        metavar='N',
        help='images per transformer pass; default: 16',
    )
    group.add_argument(
        '--seed', type=int, default=0, metavar='N', help='seed of the noise; default: 0'
    )


def one_or_all(given: list[str]) -> str | list[str]:
    """What ``nargs='+'`` gives, as functions take it: one path alone, several as a list."""
    return given[0] if len(given) == 1 else given


def check_images(given: list[str]) -> None:
    """Check paths before anything heavy is imported: what is plainly a local one must be there.

    Patterns, addresses and names are left to those that read them.

    Raises:
        FileNotFoundError: If a path is not there.
    """
    for name in given:
        is_path = name.startswith(('/', './', '../', '~')) and '://' not in name
        if is_path and not set(name) & set('*?[]{}') and not Path(name).expanduser().exists():
            raise FileNotFoundError(
                f'{name!r} does not exist: give image files, or folders of them'
            )


def add_output_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """``--json`` and ``--quiet``.

    Args:
        parser: The subcommand's.
        what: What the JSON document holds.
    """
    parser.add_argument(
        '--json', action='store_true', help=f'print {what} to stdout as JSON, and nothing else'
    )
    parser.add_argument('--quiet', action='store_true', help='show no progress bar')


def obey_output_arguments(args: argparse.Namespace) -> None:
    """Have messages on stderr for ``--json``, and no progress bars for ``--quiet``."""
    from mmaselect.logs import logger, messages_to_stderr
    from mmaselect.terminal.progress import hide_progress

    if args.json or not logger.handlers:  # without MMEngine, nothing else shows them
        messages_to_stderr()
    hide_progress(args.quiet)


def block(text: str) -> int | str:
    """The number of a block, or a search such as ``auto`` or ``auto:4``."""
    return text if text.startswith('auto') else int(text)


def places(args: argparse.Namespace) -> dict[str, Any]:
    """``blocks`` and ``feature`` as functions take them: a search stands alone.

    Raises:
        ValueError: If a search stands among names.
    """
    found = {'blocks': args.blocks, 'feature': args.feature}
    for name, given in found.items():
        if given and any(str(one).startswith('auto') for one in given):
            if len(given) > 1:
                raise ValueError(f'--{name} {given[0]} leaves the choice open: give it alone')
            found[name] = given[0]
    return found


def check_no_search(args: argparse.Namespace) -> None:
    """Check that blocks and features are named, for a command that does not search them.

    Raises:
        ValueError: If ``--blocks`` or ``--feature`` is ``auto``.
    """
    for flag in ('blocks', 'feature'):
        for given in getattr(args, flag) or ():
            if str(given).startswith('auto'):
                raise ValueError(
                    f'--{flag} {given} is a search, which `mmaselect {args.command}` does not do: '
                    f'name what to read, such as what `mmaselect select --{flag} {given}` picks'
                )


def model_source(args: argparse.Namespace) -> ModelSource:
    """Which model the flags describe.

    Raises:
        ValueError: If ``--lora-scale`` is given without ``--lora``.
    """
    from mmaselect.diffusion import ModelSource

    names = ('base', 'vae', 'original', 'revision', 'variant')
    given = {name: getattr(args, name) for name in names}
    if args.lora_scale is not None and args.lora is None:
        raise ValueError('--lora-scale is of a LoRA: give --lora too')
    if args.lora is not None:
        scale = 1.0 if args.lora_scale is None else args.lora_scale
        given['lora'] = dict(path=args.lora, scale=scale)
    return ModelSource(args.pretrained, **given)


def condition(args: argparse.Namespace) -> int | str | None:
    """The class label or the prompt that ``--condition`` gives."""
    given = args.condition
    return int(given) if given is not None and given.isdecimal() else given
