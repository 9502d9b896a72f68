# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Pick the timestep of a config's backbone without training anything."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import ConfigDict, DictAction
from mmengine.dist import infer_launcher, is_main_process
from mmengine.registry import MODELS, init_default_scope

from mmaselect.cli.arguments import block, places
from mmaselect.launch.config import load_config, type_name
from mmaselect.launch.distributed import join_processes, leave_process_group
from mmaselect.launch.flags import add_cfg_options, add_device, add_launcher
from mmaselect.look import save_sweep_report
from mmaselect.report.table import print_selection
from mmaselect.selection.option_flags import add_option_flags, given_options
from mmaselect.terminal.tool import make_tool_parser, run_tool, user_path

EXAMPLES = """
examples:
  # the config's own settings; writes selection.json, .png and .html to work_dirs/CONFIG_NAME
  python tools/select_timestep.py configs/aselect_dit_ade20k.py

  # a finer grid around low noise, other blocks, the paper's own criterion to compare with
  python tools/select_timestep.py configs/aselect_dit_ade20k.py --timesteps 0:300:10 \\
      --blocks 10 14 18 --selection paper --out work_dirs/fine

  # two processes share the images and give the same pick
  torchrun --nproc_per_node 2 tools/select_timestep.py configs/aselect_dit_ade20k.py \\
      --launcher pytorch

The pick is cached: training with the same settings finds it and does not sweep again.
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config whose backbone is mmaselect.ASelecTDiT')
    parser.add_argument(
        '--out',
        type=user_path,
        help='folder for selection.json, .png and .html; default: the work directory of the '
        'config, else work_dirs/CONFIG_NAME',
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        type=block,
        help='blocks to score; negative ones count from the end; auto picks one, auto:4 four',
    )
    parser.add_argument(
        '--feature',
        '--feature',
        help="query, key, value, attention or output; default: the config's",
    )
    parser.add_argument(
        '--criterion-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='arguments of the criterion, such as cutoff=0.25 shape=square',
    )
    add_option_flags(parser.add_argument_group('selection'), otherwise="the config's, else ")
    parser.add_argument(
        '--no-cache', action='store_true', help='sweep even if a stored result fits'
    )
    add_device(parser)
    add_cfg_options(parser, 'override settings of the config, as in tools/train.py')
    add_launcher(parser)
    args = parser.parse_args(argv)
    if args.criterion_options and not args.criterion:
        parser.error('--criterion-options goes with --criterion')
    return args


def find_backbone(model: ConfigDict, path: str) -> ConfigDict:
    """The backbone's config, wherever the model keeps it.

    Raises:
        ValueError: If the config has no backbone of ours.
    """
    backbone = model.get('backbone')
    if type_name(backbone) != 'ASelecTDiT':
        raise ValueError(
            f'{path}: model.backbone is {type_name(backbone) or None!r}; timestep selection needs '
            f"type='mmaselect.ASelecTDiT'"
        )
    return backbone


def main(argv: Sequence[str] | None = None) -> None:
    """Build the backbone, sweep, write, report."""
    args = parse_args(argv)
    config = load_config(args.config, args.cfg_options)
    backbone = find_backbone(config.model, args.config)
    backbone.timestep = 'auto'
    if args.blocks:
        backbone.blocks = places(args)['blocks']
    if args.feature:
        backbone.feature = args.feature
    overrides = given_options(args)
    if args.criterion:
        overrides['criterion'] = dict(type=args.criterion, **(args.criterion_options or {}))

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.launcher != 'none' and infer_launcher() != 'none':
        join_processes(args.launcher, torch.device(device).type)
        if device == 'cuda':
            device = f'cuda:{os.environ.get("LOCAL_RANK", args.local_rank)}'

    init_default_scope(config.get('default_scope', 'mmengine'))
    if isinstance(backbone.type, str):
        backbone.type = 'mmaselect.ASelecTDiT'
    model = MODELS.build(backbone).to(device)
    sweep = model.build_sweep(**overrides)
    if args.no_cache:
        sweep.cache = None
    result = sweep.run()
    if is_main_process():
        out = args.out or config.get('work_dir') or Path('work_dirs') / Path(args.config).stem
        print_selection(result)
        for path in save_sweep_report(sweep, result, out, strict=True):
            print(path)
    leave_process_group()


if __name__ == '__main__':
    run_tool(main)
