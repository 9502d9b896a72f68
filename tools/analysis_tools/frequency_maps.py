# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images, their features, and the features' low and high frequencies (Fig. 3 of the paper).

A row for each timestep: the feature map as a picture, its part below the cut-off frequency and its
part above, with the share of energy that is high. What the image put into a map stays recognizable
in its high-frequency part; where noise has covered it, that part is noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmaselect.analysis.figures import make_figure, save_all, styled
from mmaselect.analysis.frequency import (
    VIEWS,
    high_share,
    picture,
    principal_components,
    split_frequencies,
)
from mmaselect.analysis.result_folder import ResultFolder
from mmaselect.analysis.study import Study, make_parser, open_study
from mmaselect.diffusion import draw_noise
from mmaselect.files import write_json
from mmaselect.images import load_rgb, resize_and_crop
from mmaselect.launch.flags import add_timesteps
from mmaselect.selection import parse_timesteps
from mmaselect.selection.scoring import noise_seed
from mmaselect.terminal.progress import progress_bar
from mmaselect.terminal.tables import write_csv
from mmaselect.terminal.tool import run_tool

EXAMPLES = """
examples:
  # three validation images, five timesteps, the config's block and feature
  python tools/analysis_tools/frequency_maps.py CONFIG

  # photographs of your own at 512 pixels, values of block 18, a higher cut-off
  python tools/analysis_tools/frequency_maps.py CONFIG --files cat.jpg street.jpg \\
      --image-size 512 --blocks 18 --feature value --cutoff 0.25

  # mean over channels instead of principal components; the timesteps that you compare
  python tools/analysis_tools/frequency_maps.py CONFIG --view mean --timesteps 0,50,300,800

writes, into --out, for each image and each block and feature:
  IMAGE_FEATURE_BLOCK.png, .pdf, .svg  e.g. 0_query_14.png
  frequency_maps.csv, summary.json     share of energy above the cut-off
  timesteps/                           what each timestep gave: the run resumes from these
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, EXAMPLES)
    add_timesteps(
        parser,
        '0,50,150,400,800',
        'grid, or a comma-separated list; a row each; default: %(default)s',
    )
    parser.add_argument('--files', nargs='+', metavar='IMAGE', help='image files to show')
    parser.add_argument(
        '--split',
        choices=['train', 'val', 'test'],
        default='val',
        help='without --files: which dataloader of the config gives the images; default: val',
    )
    parser.add_argument(
        '--num-images', type=int, default=3, help='without --files: how many; default: 3'
    )
    parser.add_argument(
        '--cutoff',
        type=float,
        default=0.15,
        help='frequencies above it are high, in cycles per token (at most 0.5); default: 0.15',
    )
    parser.add_argument('--shape', choices=['radial', 'square'], default='radial')
    parser.add_argument(
        '--view',
        choices=VIEWS,
        default='pca',
        help='how channels become colors; default: pca, three principal components',
    )
    return parser.parse_args(argv)


def load_images(study: Study, args: argparse.Namespace) -> tuple[list[str], np.ndarray]:
    """Names, and (N, H, W, 3) uint8."""
    if args.files:
        arrays = [resize_and_crop(load_rgb(path), study.image_size) for path in args.files]
        return [str(path) for path in args.files], np.stack(arrays)
    images = study.images(args.split, args.num_images)
    names = [images.source.name(index) for index in images.chosen]
    return names, np.stack([images.image(position) for position in range(len(images))])


def analyze(study: Study, args: argparse.Namespace, latent: torch.Tensor, step: int) -> list[dict]:
    """Pictures and shares of every image, block and feature at a timestep."""
    seeds = [noise_seed(study.seed, position, 0) for position in range(len(latent))]
    noise = draw_noise(tuple(latent.shape[1:]), seeds, latent.device)
    rows = []
    for (block, feature), maps in study.dit.features(latent, step, noise).items():
        maps = maps.float().cpu()
        lows, highs = split_frequencies(maps, args.cutoff, args.shape)
        for position, (whole, low, high) in enumerate(zip(maps, lows, highs, strict=True)):
            # One basis for a map and its low part, so that colors compare; the high part, which is
            # small, gets its own.
            basis = principal_components(whole)
            rows.append(
                dict(
                    image=position,
                    block=block,
                    feature=feature,
                    high_share=high_share(low, high),
                    feature_map=picture(whole, args.view, basis).tolist(),
                    low=picture(low, args.view, basis).tolist(),
                    high=picture(high, args.view).tolist(),
                )
            )
    return rows


@styled
def draw(image: np.ndarray, rows: list[dict[str, Any]], stem: Path) -> None:
    """One image, block and feature: a row for each timestep."""
    figure, axes = make_figure(len(rows), 4, width=1.3, height=1.35)
    for number, (line, row) in enumerate(zip(axes, rows, strict=True)):
        panels = [image, *(np.array(row[key], np.uint8) for key in ('feature_map', 'low', 'high'))]
        titles = ('image', row['feature'], 'low', f'high ({100 * row["high_share"]:.0f} %)')
        for axis, panel, title in zip(line, panels, titles, strict=True):
            axis.imshow(panel, interpolation='nearest')
            axis.set_title(title, fontsize=6)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        if number:
            # Once is enough.
            line[0].images[0].set_visible(False)
            line[0].set_title('')
        line[0].set_ylabel(f't = {row["timestep"]}\nsigma {row["noise_level"]:.2f}')
    save_all(figure, stem)


def main(argv: Sequence[str] | None = None) -> None:
    """Extract, split, draw."""
    args = parse_args(argv)
    study = open_study(args, 'frequency_maps')
    timesteps = parse_timesteps(args.timesteps, study.dit.num_train_timesteps)
    names, images = load_images(study, args)
    folder = ResultFolder(
        study.out,
        dict(
            tool='frequency_maps',
            **study.settings(),
            images=names,
            cutoff=args.cutoff,
            shape=args.shape,
            view=args.view,
        ),
    )
    todo = [step for step in timesteps if folder.find(step) is None]
    if todo:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        latent = study.dit.encode(pixels.to(study.dit.device))
        height, width = study.dit.family.grid(latent)
        with progress_bar('timesteps') as bar:
            task = bar.add_task('frequency maps', total=len(todo))
            for step in todo:
                level = study.level(step, height * width)
                folder.save(
                    step, dict(timestep=step, **level, maps=analyze(study, args, latent, step))
                )
                bar.advance(task)
    rows = []
    for step in timesteps:
        stored = folder.find(step)
        level = dict(timestep=step, noise_level=stored['noise_level'])
        rows += [dict(**level, **row) for row in stored['maps']]
    facts = [
        {key: value for key, value in row.items() if key not in ('feature_map', 'low', 'high')}
        for row in rows
    ]
    write_csv(study.out / 'frequency_maps.csv', facts)
    write_json(
        study.out / 'summary.json', dict(images=names, rows=facts, settings=study.settings())
    )
    for position in range(len(images)):
        for block, feature in study.dit.keys:
            mine = [
                row
                for row in rows
                if (row['image'], row['block'], row['feature']) == (position, block, feature)
            ]
            draw(images[position], mine, study.out / f'{position}_{feature}_{block}')
    print(study.out)


if __name__ == '__main__':
    run_tool(main)
