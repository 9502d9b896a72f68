# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Label-free criteria next to the Fisher score, which sees labels (Fig. 4 of the paper).

No head is trained. Where the curves agree, a criterion that never saw a label found what labels
would have found. With --joint the Fisher score chooses timestep, block and feature together, which
the same pass over the images gives for nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from mmaselect.analysis.figures import draw_overlay, make_figure, panel_grid, save_all, styled
from mmaselect.analysis.probe_table import ProbeTable, read_steps, scores_over
from mmaselect.analysis.result_folder import ResultFolder, check_same_model, read_settings
from mmaselect.analysis.scores import score_grid, scores_table
from mmaselect.analysis.stats import agreement
from mmaselect.analysis.study import (
    Study,
    add_calibration_arguments,
    make_parser,
    open_study,
)
from mmaselect.diffusion import TapKey
from mmaselect.files import write_atomically, write_json
from mmaselect.launch.flags import add_timesteps
from mmaselect.selection import parse_timesteps
from mmaselect.terminal.tables import markdown_table, write_csv
from mmaselect.terminal.tool import run_tool
from mmaselect.terminal.width import console

FISHER = 'FisherScore'
EXAMPLES = """
examples:
  # the config's block and feature, at 40 timesteps, 512 labeled training images
  python tools/analysis_tools/fisher_score.py CONFIG --num-images 512

  # which timestep, block and feature? All at once, with labels
  python tools/analysis_tools/fisher_score.py CONFIG --blocks all --feature all --joint

  # ... and was it worth it? Beside accuracies that were measured at the same places
  python tools/analysis_tools/probe_timesteps.py CONFIG --blocks all --feature all --out runs/p
  python tools/analysis_tools/fisher_score.py CONFIG --blocks all --feature all --joint \\
      --timesteps 0:1000:50 --probe runs/p

writes, into --out:
  fisher_score.png, .pdf, .svg       curves, a panel for each block and feature
  scores.csv                         every score, timestep by timestep
  summary.json                       picks, rank correlation with the Fisher score
  joint.md, joint.csv                with --joint: the best timestep of each block and feature, best
                                     first
  timesteps/                         what each timestep gave: the run resumes from these
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, EXAMPLES)
    add_timesteps(parser, '0:1000:25')
    add_calibration_arguments(parser)
    parser.add_argument(
        '--joint',
        action='store_true',
        help='let the Fisher score choose timestep, block and feature together',
    )
    parser.add_argument(
        '--probe',
        help='with --joint: folder that probe_timesteps.py wrote; its accuracies are shown as well',
    )
    args = parser.parse_args(argv)
    if args.probe and not args.joint:
        parser.error('--probe goes with --joint')
    return args


def compare(steps: list[dict[str, Any]], taps: list[TapKey], names: list[str]) -> list[dict]:
    """Each criterion against the Fisher score, for each block and feature."""
    timesteps = [step['timestep'] for step in steps]
    rows = []
    for tap in taps:
        fisher = scores_over(steps, FISHER, tap)
        if any(score is None for score in fisher):
            raise ValueError(
                f'the Fisher score of {tap} is undefined: every class needs labeled images, and '
                f'one of them two; use a larger --num-images'
            )
        for name in names:
            found = agreement(timesteps, scores_over(steps, name, tap), fisher, fisher)
            rows.append(
                dict(
                    block=tap[0],
                    feature=tap[1],
                    criterion=name,
                    pick=found.pick,
                    fisher_pick=found.best_timestep,
                    fisher_share=found.value / found.best if found.best > 0 else None,
                    spearman=found.spearman,
                )
            )
    return rows


def joint(
    steps: list[dict[str, Any]], taps: list[TapKey], picker: str, probe: ProbeTable | None
) -> list[dict[str, Any]]:
    """The best timestep of each block and feature by the Fisher score, highest score first.

    Args:
        steps: Stored scores.
        taps: Blocks and features.
        picker: The label-free criterion, whose pick is shown as well.
        probe: Measured accuracies, if there are any.
    """
    timesteps = [step['timestep'] for step in steps]
    rows = []
    for tap in taps:
        fisher = scores_over(steps, FISHER, tap)
        best = max(range(len(fisher)), key=lambda i: (fisher[i], -timesteps[i]))
        scores = scores_over(steps, picker, tap)
        found = agreement(timesteps, scores, fisher, fisher)
        row = dict(
            block=tap[0],
            feature=tap[1],
            timestep=timesteps[best],
            fisher=round(fisher[best], 4),
        )
        row[f'{picker} pick'] = found.pick
        if probe is not None:
            curve = dict(zip(probe.timesteps, probe.curves[tap].values, strict=True))
            row[f'{probe.metric} there'] = round(curve[timesteps[best]], 2)
            row[f'{probe.metric} at {picker} pick'] = round(curve[found.pick], 2)
            row[f'best {probe.metric}'] = round(max(curve.values()), 2)
        rows.append(row)
    return sorted(rows, key=lambda row: -row['fisher'])


def read_probe(study: Study, folder: str | Path, timesteps: list[int]) -> ProbeTable:
    """Accuracies at the same places.

    Raises:
        ValueError: If they are of another model, or lack a timestep, block or feature.
    """
    check_same_model(study.settings(), read_settings(folder))
    steps = [step for step in read_steps(folder) if step['timestep'] in timesteps]
    missing = sorted(set(timesteps) - {step['timestep'] for step in steps})
    advice = 'give probe_timesteps.py and this tool the same --timesteps, --blocks and --feature'
    if missing:
        raise ValueError(f'--probe {str(folder)!r} lacks timesteps {missing}: {advice}')
    table = ProbeTable.from_steps(steps)
    absent = [tap for tap in study.dit.keys if tap not in table.curves]
    if absent:
        raise ValueError(f'--probe {str(folder)!r} lacks blocks and features {absent}: {advice}')
    return table


@styled
def draw(steps: list[dict[str, Any]], rows: list[dict], taps: list[TapKey], stem: Path) -> None:
    """Figure 4: a panel for each block and feature."""
    lines, columns = panel_grid(len(taps))
    figure, axes = make_figure(lines, columns, sharex=True)
    timesteps = [step['timestep'] for step in steps]
    for axis, tap in zip(axes.flat, taps, strict=False):
        mine = [row for row in rows if (row['block'], row['feature']) == tap]
        draw_overlay(
            axis,
            timesteps,
            'Fisher score',
            scores_over(steps, FISHER, tap),
            None,
            None,
            {row['criterion']: scores_over(steps, row['criterion'], tap) for row in mine},
            {row['criterion']: row['pick'] for row in mine},
        )
        axis.set_title(f'{tap[1]} of block {tap[0]}', loc='left')
    for axis in axes.flat[len(taps) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(3, len(labels)))
    save_all(figure, stem)


def report(title: str, rows: list[dict[str, Any]], limit: int = 20) -> None:
    """Rows on the terminal."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify='right')
    for row in rows[:limit]:
        cells = (f'{v:.3f}' if isinstance(v, float) else v for v in row.values())
        table.add_row(*('-' if cell is None else str(cell) for cell in cells))
    console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Score, compare, write, report."""
    args = parse_args(argv)
    study = open_study(args, 'fisher_score')
    timesteps = parse_timesteps(args.timesteps, study.dit.num_train_timesteps)
    probe = read_probe(study, args.probe, timesteps) if args.probe else None
    criteria = study.criteria(fisher=True)
    images = study.calibration_images(args.num_images, criteria)
    folder = ResultFolder(
        study.out,
        dict(
            tool='fisher_score',
            **study.settings(),
            images=images.identity(),
            num_images=len(images),
            criteria=study.criteria_configs(fisher=True),
        ),
    )
    steps = score_grid(study, folder, images, timesteps, criteria)
    present = dict.fromkeys(row['criterion'] for row in steps[0]['criteria'])
    names = [name for name in present if name != FISHER]
    if not names:
        raise ValueError(
            "the config's selection scores nothing next to the Fisher score: set its criterion, or "
            'others, to one that sees no labels, such as HighFrequencyRatio'
        )
    taps = list(study.dit.keys)
    rows = compare(steps, taps, names)
    write_csv(study.out / 'scores.csv', scores_table(steps))
    write_json(study.out / 'summary.json', dict(comparisons=rows, settings=study.settings()))
    draw(steps, rows, taps, study.out / 'fisher_score')
    report(f'{len(images)} labeled images', rows)
    if args.joint:
        ranking = joint(steps, taps, names[0], probe)
        write_csv(study.out / 'joint.csv', ranking)
        write_atomically(study.out / 'joint.md', markdown_table(ranking))
        report('timestep, block and feature by the Fisher score', ranking)
    print(study.out)


if __name__ == '__main__':
    run_tool(main)
