# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The exhaustive search that A-SelecT replaces, next to A-SelecT (Fig. 1 of the paper).

At every timestep of a grid, for every block and feature: a linear probe's accuracy (MMPretrain) or
mIoU (MMSegmentation) with its 95 % interval, and the score of the config's criteria, which see no
labels. From both: each criterion's pick, its regret (best metric minus metric at the pick), the
rank correlation, and what the search and the selection cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from mmaselect.analysis.figures import draw_overlay, make_figure, panel_grid, save_all, styled
from mmaselect.analysis.head_probe import HeadSchedule, measure_head
from mmaselect.analysis.probe_table import ProbeTable, scores_over
from mmaselect.analysis.result_folder import ResultFolder
from mmaselect.analysis.scores import score_timestep, usable_criteria
from mmaselect.analysis.search import Search, SearchPlan
from mmaselect.analysis.study import (
    Encoded,
    Study,
    add_calibration_arguments,
    add_probe_arguments,
    make_parser,
    open_study,
)
from mmaselect.checks import whole_number
from mmaselect.diffusion import TapKey
from mmaselect.files import write_json
from mmaselect.launch.flags import add_timesteps
from mmaselect.selection import Criterion, parse_timesteps
from mmaselect.terminal.progress import progress_bar
from mmaselect.terminal.tables import write_csv
from mmaselect.terminal.tool import run_tool
from mmaselect.terminal.width import console

EXAMPLES = """
examples:
  # accuracy and criteria at 20 timesteps, for the block and feature of the config
  python tools/analysis_tools/probe_timesteps.py \\
      configs/classification/aselect_dit-tiny_linear_1xb128-10e_cifar10-32px.py

  # a quick look: 3,000 training and 2,000 test images, four blocks, queries and keys
  python tools/analysis_tools/probe_timesteps.py CONFIG --timesteps 0:500:25 \\
      --num-train 3000 --num-test 2000 --blocks 1 2 3 4 --feature query key --out work_dirs/fig1

  # stopped? the same command resumes. A finer grid only adds what is missing:
  python tools/analysis_tools/probe_timesteps.py CONFIG --timesteps 0:500:5 ... --out work_dirs/fig1

  # the paper's Fig. 1: its criterion and the Fisher score, and its head next to the linear probe
  python tools/analysis_tools/probe_timesteps.py \\
      configs/classification/aselect_dit-tiny_attnpool_1xb128-10e_cifar10-32px.py \\
      --others PaperHFR --head-epochs 10

  # segmentation: per-pixel probes, 64 pixels of each training image, whole images
  python tools/analysis_tools/probe_timesteps.py configs/segmentation/CONFIG --image-size 180 240 \\
      --pixels-per-image 64

writes, into --out:
  probe_timesteps.png, .pdf, .svg    metric and criteria over timesteps, a panel for each block and
                                     feature
  probe_timesteps.csv                a row for each timestep, block and feature
  summary.json                       picks, regrets, rank correlations, cost
  timesteps/                         what each timestep gave: the run resumes from these
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, EXAMPLES)
    add_timesteps(parser, '0:1000:50')
    add_probe_arguments(parser)
    add_calibration_arguments(parser)
    parser.add_argument(
        '--no-fisher',
        action='store_true',
        help='leave out the Fisher score, the label-aware check that is drawn next to the criteria',
    )
    parser.add_argument(
        '--others',
        nargs='+',
        metavar='CRITERION',
        help="criteria that are drawn next to the config's own, such as PaperHFR; default: the "
        "config's",
    )
    parser.add_argument(
        '--head-epochs',
        type=int,
        metavar='N',
        help="also train the config's classification head at each timestep, for N epochs on "
        'features that are read once (AdamW, learning rate 3e-3 on a cosine, weight decay 1e-3)',
    )
    return parser.parse_args(argv)


def measure(
    study: Study,
    folder: ResultFolder,
    timesteps: list[int],
    search: Search,
    calibration: Encoded,
    criteria: dict[str, Criterion],
    head: HeadSchedule | None,
) -> None:
    """Probe and score every timestep that has no stored result."""
    draws, views = (
        max(getattr(criterion, kind) for criterion in criteria.values())
        for kind in ('draws', 'views')
    )
    with progress_bar('timesteps') as bar:
        task = bar.add_task('probing', total=len(timesteps))
        for step in timesteps:
            if folder.find(step) is None:
                start = time.perf_counter()
                probes = search.measure(step)
                middle = time.perf_counter()
                scores = score_timestep(calibration.images, step, criteria)
                end = time.perf_counter()
                heads = {}
                if head is not None:
                    config = study.config.model
                    heads['heads'] = measure_head(config, search.train, search.test, step, head)
                folder.save(
                    step,
                    dict(
                        timestep=step,
                        **study.level(step, calibration.images.num_tokens),
                        metric=search.metric,
                        probes=probes,
                        criteria=scores,
                        **heads,
                        cost=dict(
                            search_seconds=middle - start,
                            search_evaluations=search.evaluations,
                            selection_seconds=end - middle,
                            selection_evaluations=len(calibration.images) * (draws + views),
                            head_seconds=time.perf_counter() - end,
                        ),
                    ),
                )
            bar.advance(task)


def summarize(
    study: Study,
    steps: list[dict[str, Any]],
    names: list[str],
    encoding: dict[str, float],
) -> dict[str, Any]:
    """Picks, regrets, rank correlations and cost."""
    table = ProbeTable.from_steps(steps)
    taps = []
    for tap, curve in table.curves.items():
        agreements = {
            name: table.agreement(tap, scores_over(steps, name, tap)).to_dict() for name in names
        }
        taps.append(
            dict(
                block=tap[0],
                feature=tap[1],
                best_timestep=table.timesteps[curve.values.index(max(curve.values))],
                best=max(curve.values),
                worst=min(curve.values),
                criteria=agreements,
            )
        )
    cost = {
        name: sum(step['cost'].get(name, 0) for step in steps)
        for name in (
            'search_seconds',
            'search_evaluations',
            'selection_seconds',
            'selection_evaluations',
            'head_seconds',
        )
    }
    cost['search_seconds'] += encoding['search']
    cost['selection_seconds'] += encoding['selection']
    cost['ratio_seconds'] = cost['search_seconds'] / cost['selection_seconds']
    cost['ratio_evaluations'] = cost['search_evaluations'] / cost['selection_evaluations']
    return dict(
        metric=table.metric,
        timesteps=table.timesteps,
        criteria=names,
        taps=taps,
        cost=cost,
        unconverged_probes=sum(not row['converged'] for step in steps for row in step['probes']),
        settings=study.settings(),
    )


def replaced_others(selection: Any, others: list[str]) -> dict[str, Any]:
    """A config's ``selection`` with other criteria that are scored and do not decide."""
    given = dict(preset=selection) if isinstance(selection, str) else dict(selection or {})
    return {**given, 'others': others}


def rows_for_csv(steps: list[dict[str, Any]], names: list[str]) -> list[dict[str, Any]]:
    """A row for each timestep, block and feature."""
    rows = []
    for step in steps:
        for probe in step['probes']:
            tap = probe['block'], probe['feature']
            row = dict(
                timestep=step['timestep'],
                noise_level=step['noise_level'],
                log_snr=step['log_snr'],
                block=tap[0],
                feature=tap[1],
                **{step['metric']: probe['value'], 'low': probe['low'], 'high': probe['high']},
                strength=probe['strength'],
                converged=probe['converged'],
            )
            for head in step.get('heads', ()):
                if same_tap(head, tap):
                    row['trained head'] = head['value']
            row.update({name: scores_over([step], name, tap)[0] for name in names})
            rows.append(row)
    return rows


def same_tap(row: dict[str, Any], tap: TapKey) -> bool:
    """Whether a row is of a block and feature."""
    return (row['block'], row['feature']) == tap


@styled
def draw(steps: list[dict[str, Any]], summary: dict[str, Any], stem: Any) -> list[Any]:
    """Figure 1: a panel for each block and feature."""
    table = ProbeTable.from_steps(steps)
    rows, columns = panel_grid(len(table.curves))
    figure, axes = make_figure(rows, columns, sharex=True)
    for axis, (tap, curve), entry in zip(
        axes.flat, table.curves.items(), summary['taps'], strict=False
    ):
        names = summary['criteria']
        draw_overlay(
            axis,
            table.timesteps,
            f'{table.metric} (%)' + (', linear probe' if 'heads' in steps[0] else ''),
            curve.values,
            curve.lows,
            curve.highs,
            {name: scores_over(steps, name, tap) for name in names},
            {name: entry['criteria'][name]['pick'] for name in names},
        )
        if 'heads' in steps[0]:
            mine = [row for step in steps for row in step['heads'] if same_tap(row, tap)]
            axis.plot(
                table.timesteps,
                [row['value'] for row in mine],
                color='#777777',
                marker='s',
                label='accuracy (%), trained head',
            )
            axis.set_ylabel('accuracy (%)')
        first = entry['criteria'][names[0]]
        axis.set_title(
            f'{tap[1]} of block {tap[0]}: regret {first["regret"]:.1f} points', loc='left'
        )
    for axis in axes.flat[len(table.curves) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=min(4, len(labels)))
    return save_all(figure, stem)


def report(summary: dict[str, Any]) -> None:
    """The summary on the terminal."""
    screen = console()
    table = Table(title=f'linear probe, {summary["metric"]} in percent')
    for column in ('block', 'feature', 'best', 'at t'):
        table.add_column(column, justify='left' if column == 'feature' else 'right')
    table.add_column('criterion', no_wrap=True)
    for column in ('pick', 'there', 'regret', 'rho'):
        table.add_column(column, justify='right')
    for entry in summary['taps']:
        for position, (name, found) in enumerate(entry['criteria'].items()):
            head = [
                str(entry['block']),
                entry['feature'],
                f'{entry["best"]:.1f}',
                str(entry['best_timestep']),
            ]
            rho = '-' if found['spearman'] is None else f'{found["spearman"]:.2f}'
            table.add_row(
                *(head if position == 0 else [''] * 4),
                name,
                str(found['pick']),
                f'{found["value"]:.1f}',
                f'{found["regret"]:.1f}',
                rho,
                end_section=position == len(entry['criteria']) - 1,
            )
    screen.print(table)
    cost = summary['cost']
    screen.print(
        f'search: {cost["search_seconds"]:.1f} s, {cost["search_evaluations"]} model evaluations; '
        f'selection (all {len(summary["criteria"])} criteria): {cost["selection_seconds"]:.1f} s, '
        f'{cost["selection_evaluations"]}; {cost["ratio_seconds"]:.1f} times the seconds, '
        f'{cost["ratio_evaluations"]:.1f} times the evaluations'
    )
    if cost['head_seconds']:
        screen.print(f'trained heads: {cost["head_seconds"]:.0f} s for all timesteps')
    if summary['unconverged_probes']:
        screen.print(
            f'{summary["unconverged_probes"]} probes ran out of iterations', style='yellow'
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Probe, score, write, report."""
    args = parse_args(argv)
    study = open_study(args, 'probe_timesteps')
    timesteps = parse_timesteps(args.timesteps, study.dit.num_train_timesteps)
    plan = SearchPlan.from_args(study, args)
    if args.others:
        study.backbone.selection = replaced_others(study.backbone.get('selection'), args.others)
    head = None
    if args.head_epochs is not None:
        if study.task != 'classification':
            raise ValueError('--head-epochs trains a classification head: give such a config')
        head = HeadSchedule(whole_number('--head-epochs', args.head_epochs, 1), seed=args.seed)
    criteria = study.criteria(fisher=not args.no_fisher)
    calibration = study.calibration_images(args.num_images, criteria)
    folder = ResultFolder(
        study.out,
        dict(
            tool='probe_timesteps',
            **study.settings(),
            **plan.settings(),
            calibration=calibration.identity(),
            num_images=len(calibration),
            criteria=study.criteria_configs(fisher=not args.no_fisher),
            **({} if head is None else {'head': asdict(head)}),
        ),
    )
    encoding_path = study.out / 'encoding.json'
    if any(folder.find(step) is None for step in timesteps):
        encoded = study.encode(calibration, title='encoding calibration')
        _, unusable = usable_criteria(encoded.images, criteria)
        if unusable:
            raise ValueError('; '.join(f'{name}: {why}' for name, why in unusable.items()))
        search, seconds = plan.encode()
        write_json(encoding_path, dict(search=seconds, selection=encoded.seconds))
        measure(study, folder, timesteps, search, encoded, criteria, head)

    steps = [folder.find(step) for step in timesteps]
    encoding = json.loads(encoding_path.read_text(encoding='utf-8'))
    summary = summarize(study, steps, list(criteria), encoding)
    write_csv(study.out / 'probe_timesteps.csv', rows_for_csv(steps, list(criteria)))
    write_json(study.out / 'summary.json', summary)
    draw(steps, summary, study.out / 'probe_timesteps')
    report(summary)
    print(study.out)


if __name__ == '__main__':
    run_tool(main)
