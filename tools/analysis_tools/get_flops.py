# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FLOPs and parameters of a config's model for one image, the frozen part included.

The toolboxes' own tools/analysis_tools/get_flops.py sees the heads alone: the frozen transformer is
no submodule of the model. The cost is the same at every timestep; no selection runs.
"""

import argparse
from collections.abc import Sequence

import torch
from mmengine.registry import MODELS, init_default_scope

from mmaselect.launch.complexity import model_complexity
from mmaselect.launch.config import get_toolbox, load_config
from mmaselect.launch.flags import add_cfg_options
from mmaselect.models import ASelecTDiT
from mmaselect.terminal.tool import make_tool_parser, run_tool

EXAMPLES = """
examples:
  python tools/analysis_tools/get_flops.py configs/demo/aselect_dit-tiny_fcn_demo.py --shape 64 64
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_tool_parser(__doc__, EXAMPLES)
    parser.add_argument('config', help='config of a segmentor or classifier')
    parser.add_argument(
        '--shape',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help="default: the model's own training size",
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the model, count, print."""
    args = parse_args(argv)
    config = load_config(args.config, args.cfg_options)
    init_default_scope(get_toolbox(config))
    model = MODELS.build(config.model)
    backbones = [module for module in model.modules() if isinstance(module, ASelecTDiT)]
    if not backbones:
        raise ValueError(f"{args.config}: the model has no backbone 'mmaselect.ASelecTDiT'")
    for backbone in backbones:
        if backbone.pick.found is None:
            backbone.timestep = 0
    height, width = args.shape or (backbones[0].dit.native_size,) * 2
    counted = model_complexity(model, torch.zeros(1, 3, height, width))
    print(f'input: {height} x {width}')
    print(f'FLOPs (two per multiply-add): {counted["flops"]:,}')
    print(f'parameters: {counted["params"]:,}, of them frozen: {counted["frozen_params"]:,}')


if __name__ == '__main__':
    run_tool(main)
