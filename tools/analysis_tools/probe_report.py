# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Linear probe of a pre-trained DiT over blocks and timesteps, next to its controls, as Markdown.

    python tools/analysis_tools/probe_report.py runs/dit/pipeline \
        --data cifar10/train --probe-data cifar10/test

Controls: the raw pixels, and the same network with random weights. A logistic regression is fitted
on the standardized mean query of each block (null class, one fixed draw of noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiTTransformer2DModel

from mmaselect.diffusion.devices import pick_device
from mmaselect.images import to_model_range
from mmaselect.pretraining.attention import attention_backend
from mmaselect.pretraining.clean import load_vae
from mmaselect.pretraining.images import ImageSet, read_images
from mmaselect.pretraining.objective import Objective
from mmaselect.pretraining.query_probe import ProbeImages, as_frozen, probe_table
from mmaselect.terminal.tool import make_tool_parser, run_tool


def report(
    pipeline: Path,
    fit: ImageSet,
    test: ImageSet,
    timesteps: list[int],
    control_timesteps: list[int],
    num_fit: int,
    num_test: int,
    device: torch.device,
) -> dict[str, dict[str, float] | float]:
    """Score a pipeline and its controls.

    Args:
        pipeline: Folder with ``transformer/`` and ``scheduler/``.
        fit: The probe is fitted on images of these.
        test: And scored on images of these.
        timesteps: At which the model is read.
        control_timesteps: At which the network with random weights is read.
        num_fit: Images of the first set.
        num_test: Images of the second set.
        device: Where to run.

    Returns:
        dict: ``pixels`` (best of four penalties), and the tables ``trained`` and ``random``, keyed
        ``'block@timestep'``.
    """
    vae = load_vae(pipeline).to(device) if (pipeline / 'vae').is_dir() else None
    images = ProbeImages.draw(fit, test, num_fit, num_test, vae)
    objective = Objective.from_pipeline(pipeline)
    trained = DiTTransformer2DModel.from_pretrained(str(pipeline / 'transformer'))
    torch.manual_seed(0)
    random = DiTTransformer2DModel.from_config(trained.config)
    # Half-precision weights are read in float32.
    models = {
        'trained': (trained.float(), timesteps),
        'random': (random, control_timesteps),
    }
    pixels = to_model_range(images.pixels).flatten(1).numpy()
    # Thousands of features want more penalty: the control gets the one that suits it best.
    scores: dict = {'pixels': max(images.accuracy(pixels, c) for c in (1e-4, 1e-3, 1e-2, 1e-1))}
    with attention_backend(device):
        for name, (model, times) in models.items():
            dit = as_frozen(model.to(device), objective, range(model.config.num_layers))
            scores[name] = probe_table(dit, images, times)
    return scores


def to_markdown(scores: dict) -> str:
    """The scores as a table: blocks down, timesteps across, in percent."""
    lines = []
    for name in ('trained', 'random'):
        cells = {tuple(map(int, key.split('@'))): v for key, v in scores[name].items()}
        times = sorted({t for _, t in cells})
        lines += [
            f'| {name} weights, block | ' + ' | '.join(f't = {t}' for t in times) + ' |',
            '|---' * (len(times) + 1) + '|',
        ]
        for block in sorted({b for b, _ in cells}):
            row = ' | '.join(f'{100 * cells[block, t]:.1f}' for t in times)
            lines.append(f'| {block} | {row} |')
        lines.append('')
    lines.append(f'Raw pixels: {100 * scores["pixels"]:.1f}')
    return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = make_tool_parser(__doc__)
    parser.add_argument('pipeline', type=Path, help='pipeline/ or snapshot/ of a run')
    parser.add_argument('--data', required=True, help='class folders to fit on')
    parser.add_argument('--probe-data', required=True, help='class folders to test on')
    parser.add_argument(
        '--timesteps', type=int, nargs='+', default=[0, 10, 25, 50, 100, 200, 400, 800]
    )
    parser.add_argument(
        '--control-timesteps', type=int, nargs='+', default=[0, 25, 100], help='of random weights'
    )
    parser.add_argument('--train', type=int, default=4000, help='images to fit on')
    parser.add_argument('--test', type=int, default=2000, help='images to test on')
    parser.add_argument('--device', help='default: cuda if there is one, else cpu')
    args = parser.parse_args(argv)
    fit = read_images(args.data)
    scores = report(
        args.pipeline,
        fit,
        read_images(args.probe_data, fit.images.shape[-1]),
        args.timesteps,
        args.control_timesteps,
        args.train,
        args.test,
        pick_device(args.device),
    )
    print(to_markdown(scores))


if __name__ == '__main__':
    run_tool(main)
