# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Accuracy by block and by query, key, value, attention and output (Fig. 5 of the paper).

Every block and feature is read at the timestep that the config's criterion picks for it (one sweep
scores them all), or at one given timestep; a linear probe measures it. Next to the accuracies
stands the map that a joint pick sees: the criterion's score of each block and feature, without
labels, with a star where it is highest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from rich.table import Table

from mmaselect.analysis.figures import make_figure, save_all, styled
from mmaselect.analysis.probe_table import ProbeTable, read_steps, scores_over
from mmaselect.analysis.result_folder import ResultFolder, check_same_model, read_settings
from mmaselect.analysis.scores import score_grid
from mmaselect.analysis.search import SearchPlan
from mmaselect.analysis.study import (
    Study,
    add_calibration_arguments,
    add_probe_arguments,
    make_parser,
    open_study,
)
from mmaselect.diffusion import TapKey
from mmaselect.files import write_atomically, write_json
from mmaselect.launch.flags import add_timesteps
from mmaselect.report.plot import COLORS
from mmaselect.selection import parse_timesteps
from mmaselect.terminal.progress import progress_bar
from mmaselect.terminal.tables import markdown_table, write_csv
from mmaselect.terminal.tool import run_tool
from mmaselect.terminal.width import console

EXAMPLES = """
examples:
  # all blocks, all five features, each at its own pick
  python tools/analysis_tools/block_feature_grid.py CONFIG --num-train 3000 --num-test 2000

  # all at timestep 50; queries and values of four blocks only
  python tools/analysis_tools/block_feature_grid.py CONFIG --at 50 \\
      --blocks 6 10 14 18 --feature query value

  # nothing is measured again: accuracies that probe_timesteps.py has, each at its best timestep
  python tools/analysis_tools/probe_timesteps.py CONFIG --blocks all --feature all --out runs/p
  python tools/analysis_tools/block_feature_grid.py CONFIG --probe runs/p --at best

writes, into --out:
  block_feature_grid.png, .pdf, .svg  heat map, and accuracy by block
  block_feature_grid.md, .csv         the same as tables
  summary.json                        the same with intervals and settings
  selection/, probes/                 what each timestep gave: the run resumes from these
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.set_defaults(blocks=['all'], feature=['all'])
    parser.add_argument(
        '--at',
        default='pick',
        metavar='pick|best|T',
        help="where a block and feature is read: 'pick', what the config's criterion picks for it; "
        "'best', where --probe found it best; or one timestep for all; default: pick",
    )
    add_timesteps(
        parser,
        '0:1000:50',
        'grid that the criterion picks from; default: %(default)s, or that of --probe',
    )
    parser.add_argument('--probe', help='folder that probe_timesteps.py wrote: nothing is measured')
    add_probe_arguments(parser)
    add_calibration_arguments(parser)
    args = parser.parse_args(argv)
    if args.at not in ('pick', 'best') and not args.at.isdigit():
        parser.error(f"--at takes pick, best or a timestep, got '{args.at}'")
    if args.at == 'best' and not args.probe:
        parser.error('--at best needs --probe: without accuracies at all timesteps none is best')
    return args


def best_step(timesteps: list[int], scores: list[float | None]) -> int:
    """The timestep with the highest score; the smallest of equals."""
    scored = [
        (score, -step) for score, step in zip(scores, timesteps, strict=True) if score is not None
    ]
    if not scored:
        raise ValueError(f'no score is defined at any of the timesteps {timesteps}')
    return -max(scored)[1]


class LabelFree(NamedTuple):
    """What a criterion says of a block and feature.

    Attributes:
        criterion: Its name.
        timestep: Where its score is highest.
        score: Its score there.
    """

    criterion: str
    timestep: int
    score: float

    @classmethod
    def of(cls, steps: list[dict[str, Any]], criterion: str, tap: TapKey) -> LabelFree:
        """From stored scores of timesteps."""
        timesteps = [step['timestep'] for step in steps]
        scores = scores_over(steps, criterion, tap)
        best = best_step(timesteps, scores)
        score = scores[timesteps.index(best)]
        assert score is not None  # as best_step takes none such
        return cls(criterion, best, score)


def picks_by_sweep(
    study: Study, args: argparse.Namespace
) -> tuple[dict[TapKey, int], dict[TapKey, LabelFree]]:
    """The timestep of each block and feature, and what the config's criterion says of it.

    A given timestep is taken for all of them, and then nothing is scored.
    """
    if args.at != 'pick':
        step = study.dit.process.check_timestep(int(args.at))
        return dict.fromkeys(study.dit.keys, step), {}
    timesteps = parse_timesteps(args.timesteps, study.dit.num_train_timesteps)
    name, criterion = next(iter(study.criteria(fisher=False).items()))
    images = study.calibration_images(args.num_images, {name: criterion})
    folder = ResultFolder(
        study.out / 'selection',
        dict(
            tool='block_feature_grid',
            **study.settings(),
            images=images.identity(),
            num_images=len(images),
            criteria=study.criteria_configs(fisher=False)[:1],
        ),
    )
    steps = score_grid(study, folder, images, timesteps, {name: criterion})
    said = {tap: LabelFree.of(steps, name, tap) for tap in study.dit.keys}
    return {tap: found.timestep for tap, found in said.items()}, said


def measure(
    study: Study,
    args: argparse.Namespace,
    picks: dict[TapKey, int],
    said: dict[TapKey, LabelFree],
) -> list[dict]:
    """Probe each block and feature at its timestep."""
    plan = SearchPlan.from_args(study, args)
    folder = ResultFolder(
        study.out / 'probes',
        dict(
            tool='block_feature_grid',
            **study.settings(),
            **plan.settings(),
            picks={f'{feature} {block}': step for (block, feature), step in picks.items()},
        ),
    )
    steps = sorted(set(picks.values()))
    todo = [step for step in steps if folder.find(step) is None]
    if todo:
        search, _ = plan.encode()
        with progress_bar('timesteps') as bar:
            task = bar.add_task('probing', total=len(todo))
            for step in todo:
                taps = [tap for tap, pick in picks.items() if pick == step]
                folder.save(step, dict(metric=search.metric, probes=search.measure(step, taps)))
                bar.advance(task)
    rows = []
    for step in steps:
        stored = folder.find(step)
        for row in stored['probes']:
            scored = said_of(said.get((row['block'], row['feature'])))
            rows.append(dict(timestep=step, metric=stored['metric'], **row, **scored))
    return rows


def said_of(found: LabelFree | None) -> dict[str, Any]:
    """What a criterion says, as columns of a row."""
    if found is None:
        return {}
    return dict(criterion=found.criterion, score=found.score, picked=found.timestep)


def look_up(study: Study, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same rows from what ``probe_timesteps.py`` stored."""
    settings = read_settings(args.probe)
    check_same_model(study.settings(), settings)
    steps = read_steps(args.probe)
    table = ProbeTable.from_steps(steps)
    picker = steps[0]['criteria'][0]['criterion']
    rows = []
    for tap in study.dit.keys:
        if tap not in table.curves:
            raise ValueError(
                f'--probe {args.probe!r} has no accuracies of {tap}: name --blocks and --feature '
                f'that it has, {sorted(table.curves)}'
            )
        curve = table.curves[tap]
        if args.at == 'best':
            step = best_step(table.timesteps, curve.values)
        elif args.at == 'pick':
            step = best_step(table.timesteps, scores_over(steps, picker, tap))
        else:
            step = int(args.at)
            if step not in table.timesteps:
                raise ValueError(f'--at {step} was not probed; timesteps: {table.timesteps}')
        index = table.timesteps.index(step)
        rows.append(
            dict(
                timestep=step,
                metric=table.metric,
                block=tap[0],
                feature=tap[1],
                value=curve.values[index],
                low=curve.lows[index],
                high=curve.highs[index],
                **said_of(LabelFree.of(steps, picker, tap)),
            )
        )
    return rows


@styled
def draw(rows: list[dict[str, Any]], stem: Path) -> None:
    """Figure 5: accuracies as a heat map, the label-free map, and lines with intervals."""
    blocks = sorted({row['block'] for row in rows})
    features = list(dict.fromkeys(row['feature'] for row in rows))
    found = {(row['feature'], row['block']): row for row in rows}
    metric = rows[0]['metric']
    scored = all('score' in row for row in rows)
    figure, axes = make_figure(1, 2 + scored, width=max(3.3, 0.45 * len(blocks) + 1.2), height=2.6)
    panels = list(axes[0])

    def table(column: str) -> np.ndarray:
        return np.array(
            [[found[feature, block][column] for block in blocks] for feature in features]
        )

    values = table('value')
    draw_heat(panels[0], values, blocks, features, [f'{value:.1f}' for value in values.flat])
    panels[0].set_title(f'{metric} (%), linear probe with labels', loc='left')
    if scored:
        scores = table('score')
        words = [
            f'{score:.2f}\nt={step}'
            for score, step in zip(scores.flat, table('picked').flat, strict=True)
        ]
        draw_heat(panels[1], scores, blocks, features, words)
        row, column = np.unravel_index(scores.argmax(), scores.shape)
        for panel in panels[:2]:
            panel.add_patch(
                Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, edgecolor='red')
            )
        there, best = values[row, column], values.max()
        panels[1].set_title(f'{rows[0]["criterion"]}, without labels', loc='left')
        panels[0].set_xlabel(f'block (red: the joint pick, {there:.1f}; best {best:.1f})')
    lines = panels[-1]
    for number, feature in enumerate(features):
        mine = [found[feature, block] for block in blocks]
        color = COLORS[number % len(COLORS)]
        lines.plot(blocks, [row['value'] for row in mine], marker='o', color=color, label=feature)
        lines.fill_between(
            blocks,
            [row['low'] for row in mine],
            [row['high'] for row in mine],
            color=color,
            alpha=0.1,
            linewidth=0,
        )
    lines.set_xticks(blocks)
    lines.set_xlabel('block')
    lines.set_ylabel(f'{metric} (%)')
    lines.legend()
    save_all(figure, stem)


def draw_heat(
    axis: Axes, values: np.ndarray, blocks: list[int], features: list[str], words: list[str]
) -> None:
    """A table in colors: a row for each feature, a column for each block, the highest bold."""
    axis.imshow(values, aspect='auto', cmap='viridis')
    axis.set_xticks(range(len(blocks)), [str(block) for block in blocks])
    axis.set_yticks(range(len(features)), features)
    axis.set_xlabel('block')
    middle = (values.min() + values.max()) / 2
    for ((row, column), value), text in zip(np.ndenumerate(values), words, strict=True):
        axis.text(
            column,
            row,
            text,
            ha='center',
            va='center',
            fontsize=6,
            color='black' if value > middle else 'white',
            fontweight='bold' if value == values.max() else 'normal',
        )


def table_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each block, a column for each feature: the value, and where it was read."""
    found = {(row['block'], row['feature']): row for row in rows}
    features = list(dict.fromkeys(row['feature'] for row in rows))
    table = []
    for block in sorted({row['block'] for row in rows}):
        cells = {
            feature: f'{found[block, feature]["value"]:.1f} (t={found[block, feature]["timestep"]})'
            for feature in features
        }
        table.append(dict(block=block, **cells))
    return table


def report(rows: list[dict[str, Any]]) -> None:
    """The table on the terminal."""
    cells = table_rows(rows)
    table = Table(title=f'linear probe, {rows[0]["metric"]} in percent (timestep)')
    for column in cells[0]:
        table.add_column(column, justify='right')
    for row in cells:
        table.add_row(*map(str, row.values()))
    console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Pick, probe, write, report."""
    args = parse_args(argv)
    if args.probe:
        settings = read_settings(args.probe)
        if args.blocks == ['all']:
            args.blocks = [str(block) for block in settings['blocks']]
        if args.feature == ['all']:
            args.feature = settings['features']
        args.image_size = args.image_size or np.atleast_1d(settings['image_size']).tolist()
    study = open_study(args, 'block_feature_grid')
    rows = (
        look_up(study, args) if args.probe else measure(study, args, *picks_by_sweep(study, args))
    )
    write_csv(study.out / 'block_feature_grid.csv', rows)
    write_json(study.out / 'summary.json', dict(at=args.at, rows=rows, settings=study.settings()))
    write_atomically(study.out / 'block_feature_grid.md', markdown_table(table_rows(rows)))
    draw(rows, study.out / 'block_feature_grid')
    report(rows)
    print(study.out)


if __name__ == '__main__':
    run_tool(main)
