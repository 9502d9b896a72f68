# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``mmaselect look``: a page that shows what a model sees in images of yours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmaselect.cli.arguments import (
    add_image_arguments,
    add_model_arguments,
    add_output_arguments,
    check_images,
    check_no_search,
    condition,
    model_source,
    new_parser,
    obey_output_arguments,
    one_or_all,
)
from mmaselect.selection.defaults import PRESET_HELP, PRESETS
from mmaselect.terminal.tool import user_path

if TYPE_CHECKING:
    from mmaselect.diffusion import FrozenDiT
    from mmaselect.diffusion.process import ForwardProcess
    from mmaselect.selection import SelectionResult

#: Images of a folder that are shown, unless more are asked for.
MAX_IMAGES = 8
#: Fewer images are too few for a pick: criteria that tell images apart are then always right.
ENOUGH_IMAGES = 16
#: A portrait (NASA, public domain) and a cat (Stefan van der Walt, CC0).
DEMO_PHOTOGRAPHS = ('astronaut.png', 'chelsea.png')
EXAMPLES = """
examples:
  # two photographs that scikit-image brings
  mmaselect look --demo --out look.html

  # the DiT that ships with the package: nothing is downloaded, seconds on a CPU
  mmaselect look photos/cat.jpg photos/dog.jpg --pretrained mmaselect://dit_cifar10 --out look.html

  # the timestep is picked on a whole folder, two blocks are shown
  mmaselect look cat.jpg dog.jpg --pretrained facebook/DiT-XL-2-256 --dtype fp16 --blocks 10 14 \\
      --calibration photos/ --out look.html

  # what a run sees: model, blocks, selection and calibration images of its config
  mmaselect look street.png --config work_dirs/run/config.py --out look.html

Open the file in a browser, and click a token to see where else it recurs.
"""


def add_parser(commands: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """The subcommand's parser."""
    parser = new_parser(
        commands,
        'look',
        help='show what a model sees in your images, as a page',
        description='Write a page that shows features of images as colors: a row for each '
        'timestep, a column for each block and feature. A click on a token shows where else it '
        'recurs. With enough images, a timestep is picked on them, and the page has its curve.',
        examples=EXAMPLES,
    )
    parser.add_argument(
        'images', nargs='*', metavar='IMAGE', help='image files; of a folder, its first images'
    )
    parser.add_argument(
        '--demo',
        action='store_true',
        help='look at two photographs that scikit-image brings (a portrait and a cat), with '
        'mmaselect://dit_cifar10 unless --pretrained names a model',
    )
    parser.add_argument(
        '--out', type=user_path, required=True, metavar='FILE.html', help='page to write'
    )
    parser.add_argument(
        '--config',
        metavar='CONFIG.py',
        help='take the model, its blocks and its selection from the backbone of this config, in '
        'place of --pretrained',
    )
    add_model_arguments(
        parser,
        required=False,
        searches=False,
        default_blocks='those of --config; else three over the depth, or the default block of the '
        "model's family if a timestep is picked",
    )
    add_image_arguments(parser)
    group = parser.add_argument_group('what is shown')
    group.add_argument(
        '--timesteps',
        metavar='START:STOP:STEP',
        help='rows, 0 = clean, STOP left out; or a comma-separated list. The pick is shown next to '
        'them. Default: 0:1000:125',
    )
    group.add_argument(
        '--calibration',
        nargs='+',
        metavar='IMAGES',
        help='images to pick the timestep on, as `mmaselect select` does; default: those of the '
        f'config, else all that are given, if they are {ENOUGH_IMAGES} or more',
    )
    group.add_argument(
        '--selection',
        metavar='FILE|paper|fast',
        help='a selection.json, whose pick and curve are shown; or a preset to pick by. '
        f'{PRESET_HELP}',
    )
    group.add_argument(
        '--no-selection', action='store_true', help='pick no timestep, show no curve'
    )
    group.add_argument(
        '--max-images',
        type=int,
        default=MAX_IMAGES,
        metavar='N',
        help=f'images to show at most; default: {MAX_IMAGES}',
    )
    add_output_arguments(parser, 'the page, its timesteps and the pick')
    group.add_argument(
        '--position-images',
        type=int,
        metavar='N',
        help='images of colored noise that are read at each timestep to estimate what depends on '
        'position alone, which the page subtracts; 0 subtracts nothing. Default: 16',
    )
    return parser


def find_images(given: list[str]) -> list[Path]:
    """Files, and those of folders.

    Raises:
        FileNotFoundError: If something is not there.
        ValueError: If a folder holds no images.
    """
    from mmaselect.images import ImageFolder

    found: list[Path] = []
    for name in given:
        path = Path(name).expanduser()
        if path.is_dir():
            found += ImageFolder(path).paths
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f'there is no image {name!r}: give files, or folders of images')
    return found


def run(args: argparse.Namespace) -> None:
    """Read, select if asked to, write the page, and say where it is."""
    check_images(args.images)
    obey_output_arguments(args)
    from mmaselect.checks import whole_number
    from mmaselect.look import look_at, save_look_page

    if args.demo:
        if args.images:
            raise ValueError('--demo brings images of its own: leave out yours, or --demo')
        args.images = [str(path) for path in demo_photographs()]
        if args.config is None:
            args.pretrained = args.pretrained or 'mmaselect://dit_cifar10'
    elif not args.images:
        raise ValueError('no images: name files or folders, or give --demo for two photographs')
    if (args.config is None) == (args.pretrained is None):
        raise ValueError('give either --pretrained MODEL or --config FILE')
    check_no_search(args)
    check_flags(args)
    limit = whole_number('--max-images', args.max_images, 1)
    images = find_images(args.images)
    dit, name, selection, notes = (from_config if args.config else from_model)(args, images)
    shown: dict[str, Any] = {} if args.timesteps is None else {'timesteps': args.timesteps}
    if args.position_images is not None:
        shown['position_images'] = args.position_images
    shown_images = images[:limit]
    look = look_at(
        shown_images,
        dit,
        image_size=args.image_size,
        selection=selection,
        batch_size=args.batch_size,
        seed=args.seed,
        name=name,
        **shown,
    )
    path = save_look_page(look, args.out, notes=notes)
    if args.json:
        pick = None if selection is None else selection.timestep
        found = dict(page=str(path), images=len(shown_images), timesteps=look.timesteps, pick=pick)
        print(json.dumps(found))
        return
    picked = '' if selection is None else f', picked: {selection}'
    print(f'{len(shown_images)} images at timesteps {", ".join(map(str, look.timesteps))}{picked}')
    print(path)


def demo_photographs() -> list[Path]:
    """Two photographs of scikit-image's own data: free of charge, and in its wheel.

    Raises:
        ModuleNotFoundError: If scikit-image is not installed.
    """
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            '--demo shows photographs of scikit-image, which is not installed: pip install '
            'scikit-image, or name images of yours'
        ) from error
    folder = Path(data.__file__).parent
    return [folder / name for name in DEMO_PHOTOGRAPHS]


def blocks_over_depth(args: argparse.Namespace) -> list[int]:
    """Three blocks over the whole depth, the family's default among them."""
    from mmaselect.diffusion import PipelineSource
    from mmaselect.diffusion.families import family_of

    family = family_of(PipelineSource(model_source(args)))
    depth = family.num_blocks
    return sorted({depth // 4, family.default_block, 3 * depth // 4})


def check_flags(args: argparse.Namespace) -> None:
    """Check that no flag is given that another one makes void.

    Raises:
        ValueError: If one is; the message names both.
    """
    of_model = ('base', 'vae', 'original', 'lora', 'lora_scale', 'revision', 'variant')
    is_file = args.selection is not None and preset(args) is None
    for flag, is_set, void in (
        ('--config', args.config is not None, of_model),
        ('--no-selection', args.no_selection, ('selection', 'calibration')),
        ('--selection FILE', is_file, ('calibration',)),
    ):
        given = [f'--{n.replace("_", "-")}' for n in void if getattr(args, n) is not None]
        if is_set and given:
            raise ValueError(f'{", ".join(given)} would not be used with {flag}: leave out either')


Found = tuple['FrozenDiT', str, 'SelectionResult | None', list[str]]


def from_model(args: argparse.Namespace, images: list[Path]) -> Found:
    """Model, its name, selection, and what is to be said of it, as the flags have it."""
    from mmaselect.apis import select_timestep
    from mmaselect.diffusion import FrozenDiT
    from mmaselect.diffusion.devices import pick_device
    from mmaselect.images import load_rgb
    from mmaselect.look import look_size
    from mmaselect.selection import parse_timesteps

    nothing_to_pick_on = args.calibration is None and len(images) < ENOUGH_IMAGES
    shows_no_pick = args.no_selection or (args.selection is None and nothing_to_pick_on)
    blocks = args.blocks
    if blocks is None and shows_no_pick:
        # A pick is of the blocks that are read, and is looked for in the default one.
        blocks = blocks_over_depth(args)

    def in_schedule(process: ForwardProcess) -> None:
        parse_timesteps(args.timesteps, process.num_train_timesteps)

    dit = FrozenDiT.from_pretrained(
        model_source(args),
        blocks=blocks,
        feature=args.feature or 'query',
        dtype=args.dtype or 'auto',
        condition=condition(args),
        check=None if args.timesteps is None else in_schedule,
    ).follow(pick_device(args.device))
    if args.no_selection:
        return dit, args.pretrained, None, []
    selection = stored_selection(args)
    if selection is not None:
        return dit, args.pretrained, selection, []
    if nothing_to_pick_on:
        note = (
            f'No timestep was picked: {len(images)} images are too few for it. Give --calibration '
            f'FOLDER to have one picked on your images.'
        )
        return dit, args.pretrained, None, [note]
    selection = select_timestep(
        dit,
        one_or_all(args.calibration) if args.calibration else [load_rgb(image) for image in images],
        selection=preset(args),
        image_size=args.image_size,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    notes = []
    if args.image_size is None and look_size(dit) != dit.native_size:
        notes = [
            f"The timestep was picked at the model's own {dit.native_size} pixels; shown are "
            f'{look_size(dit)}. --image-size sets both.'
        ]
    return dit, args.pretrained, selection, notes


def from_config(args: argparse.Namespace, images: list[Path]) -> Found:
    """Model, its name, selection, and what is to be said of it, as a config has it."""
    from mmengine.registry import init_default_scope

    from mmaselect.diffusion.devices import pick_device
    from mmaselect.launch.config import load_config, type_name
    from mmaselect.openmmlab.registries import MODELS

    config = load_config(args.config)
    backbone = (config.get('model') or {}).get('backbone')
    if backbone is None or type_name(backbone) != 'ASelecTDiT':
        raise ValueError(
            f'{args.config}: model.backbone is {type_name(backbone) or None!r}; `mmaselect look` '
            f"needs type='mmaselect.ASelecTDiT'"
        )
    for flag, key in (('blocks', 'blocks'), ('condition', 'condition'), ('dtype', 'dtype')):
        if getattr(args, flag) is not None:
            backbone[key] = getattr(args, flag)
    if args.feature is not None:
        backbone.feature = args.feature[0] if len(args.feature) == 1 else args.feature
        if args.blocks is None and any('.' in name for name in args.feature):
            backbone.pop('blocks', None)  # the names have blocks of their own
    if args.calibration is not None:
        backbone.update(calibration=one_or_all(args.calibration), timestep='auto')
    if isinstance(backbone.type, str):
        backbone.type = 'mmaselect.ASelecTDiT'
    init_default_scope(config.get('default_scope', 'mmengine'))
    model = MODELS.build(backbone).to(pick_device(args.device))
    name = str(model.pretrained)
    args.image_size = args.image_size or model.selection.image_size
    if args.no_selection:
        return model.dit, name, None, []
    selection = stored_selection(args)
    if selection is not None:
        return model.dit, name, selection, []
    if not model.is_automatic:
        return model.dit, name, None, [f'The config reads at timestep {model.timestep}.']
    model.selection = model.selection.replaced(preset(args))
    return model.dit, name, model.select_timestep(), []


def stored_selection(args: argparse.Namespace) -> SelectionResult | None:
    """The file that ``--selection`` names; None without one."""
    from mmaselect.selection import SelectionResult

    if args.selection is None or preset(args) is not None:
        return None
    return SelectionResult.load(args.selection)


def preset(args: argparse.Namespace) -> str | None:
    """The preset that ``--selection`` names; None without one."""
    return args.selection if args.selection in PRESETS else None
