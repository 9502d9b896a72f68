# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which definition of a criterion picks best: many of them, on measured features.

The paper does not say how its high-frequency ratio is computed. This scores the possible
definitions (transform, cut-off, band, power or amplitude, with or without the mean, how channels
and images are pooled, one or two noise draws) from the same features, and joins them with the
accuracies that probe_timesteps.py measured: regret and rank correlation of each definition in each
block and feature.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import DictAction
from rich.console import Console
from rich.table import Table

from mmaselect.analysis.figures import make_figure, save_all, styled
from mmaselect.analysis.probe_table import ProbeTable, read_steps, scores_over
from mmaselect.analysis.scores import score_grid, scores_table
from mmaselect.analysis.store import RunFolder, check_same_model, read_settings, write_json
from mmaselect.analysis.study import (
    add_calibration_arguments,
    make_parser,
    open_study,
)
from mmaselect.analysis.tables import markdown_table, write_csv
from mmaselect.analysis.variants import describe, variants
from mmaselect.selection.result import write_atomically
from mmaselect.selection.sweep import build_criteria

EXAMPLES = """
examples:
  # first the accuracies, then the definitions at the same timesteps, blocks and features
  python tools/analysis_tools/probe_timesteps.py CONFIG --timesteps 0:600:25 --out work_dirs/probe
  python tools/analysis_tools/criteria_study.py CONFIG --probe work_dirs/probe

  # all combinations of options (many more), of the cross spectrum over the token grid only
  python tools/analysis_tools/criteria_study.py CONFIG --probe work_dirs/probe --full \\
      --only 'cross HFR 2d'

  # a criterion of your own, registered by the config's custom_imports
  python tools/analysis_tools/criteria_study.py CONFIG --probe work_dirs/probe \\
      --add type=MyCriterion power=2 --only MyCriterion

writes, into --out (default: the folder `criteria` in that of --probe):
  criteria_study.md                  the table, best definition first
  criteria_study.csv                 a row for each definition, block and feature
  scores.csv                         every score, timestep by timestep
  criteria_study.png, .pdf, .svg     regret of each definition in each block and feature
  timesteps/                         what each timestep gave: the run resumes from these
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument(
        '--probe', required=True, help='folder that probe_timesteps.py wrote (its --out)'
    )
    add_calibration_arguments(parser)
    parser.add_argument(
        '--full', action='store_true', help='all combinations of options, not one change at a time'
    )
    parser.add_argument(
        '--only', metavar='REGEX', help='definitions whose name matches, such as "cross.* 0.25"'
    )
    parser.add_argument(
        '--add',
        nargs='+',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help='one more criterion: type=NAME and its arguments; may be given several times',
    )
    return parser.parse_args(argv)


def parse_added(added: list[list[str]]) -> list[dict[str, Any]]:
    """``--add type=NAME key=value`` as configs.

    Raises:
        ValueError: If an entry has no type, or is no KEY=VALUE.
    """
    configs = []
    for entry in added:
        pairs = [item.partition('=') for item in entry]
        config = {key: DictAction._parse_iterable(value) for key, mark, value in pairs if mark}
        if len(config) != len(entry) or 'type' not in config:
            raise ValueError(f'--add takes type=NAME and KEY=VALUE, got {entry}')
        configs.append(config)
    return configs


def summarize(
    table: ProbeTable, steps: list[dict[str, Any]], names: list[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each definition (best first), and one for each definition, block and feature."""
    details, overall = [], []
    for name in names:
        found = []
        for tap in table.curves:
            scores = scores_over(steps, name, tap)
            if all(score is None for score in scores):
                continue
            agreement = table.agreement(tap, scores)
            found.append(agreement)
            details.append(
                dict(criterion=name, block=tap[0], feature=tap[1], **agreement.to_dict())
            )
        if not found:
            continue
        regrets = [agreement.regret for agreement in found]
        rhos = [agreement.spearman for agreement in found if agreement.spearman is not None]
        overall.append(
            {
                'criterion': name,
                'mean regret': round(float(np.mean(regrets)), 2),
                'worst regret': round(max(regrets), 2),
                'mean rho': round(float(np.mean(rhos)), 3) if rhos else None,
                'worst rho': round(min(rhos), 3) if rhos else None,
                'within interval': f'{sum(a.within for a in found)}/{len(found)}',
                'picks': ' '.join(str(agreement.pick) for agreement in found),
            }
        )
    overall.sort(key=lambda row: (row['worst regret'], row['mean regret']))
    return overall, details


@styled
def draw(
    table: ProbeTable, overall: list[dict[str, Any]], details: list[dict[str, Any]], stem: Path
) -> None:
    """Regret of each definition in each block and feature, best definition on top."""
    names = [row['criterion'] for row in overall]
    taps = list(table.curves)
    regrets = np.full((len(names), len(taps)), np.nan)
    for row in details:
        regrets[names.index(row['criterion']), taps.index((row['block'], row['feature']))] = row[
            'regret'
        ]
    figure, axes = make_figure(width=4.6 + 0.35 * len(taps), height=0.9 + 0.13 * max(len(names), 8))
    axis = axes[0, 0]
    image = axis.imshow(regrets, aspect='auto', cmap='magma_r', vmin=0)
    axis.set_yticks(range(len(names)), names, fontsize=5)
    axis.set_xticks(range(len(taps)), [f'{feature[0].upper()}{block}' for block, feature in taps])
    axis.set_xlabel('feature and block')
    figure.colorbar(image, ax=axis, label=f'regret (points of {table.metric})', shrink=0.6)
    save_all(figure, stem)


def report(table: ProbeTable, overall: list[dict[str, Any]], rows: int = 25) -> None:
    """The best definitions, on the terminal; all of them are in the Markdown table."""
    console = Console()
    shown = Table(title=f'{len(overall)} definitions, {table.metric}; best {rows}')
    columns = ('mean regret', 'worst regret', 'mean rho')
    shown.add_column('criterion', no_wrap=True)
    for column in columns:
        shown.add_column(column, justify='right')
    for row in overall[:rows]:
        numbers = (row[column] for column in columns)
        shown.add_row(row['criterion'], *('-' if x is None else str(x) for x in numbers))
    console.print(shown)


def main(argv: list[str] | None = None) -> None:
    """Score, join, write, report."""
    args = parse_args(argv)
    probe_settings = read_settings(args.probe)
    probe = ProbeTable.from_steps(read_steps(args.probe))
    args.blocks = args.blocks or [str(block) for block in probe_settings['blocks']]
    args.features = args.features or probe_settings['features']
    args.image_size = args.image_size or np.atleast_1d(probe_settings['image_size']).tolist()
    args.out = args.out or str(Path(args.probe) / 'criteria')
    study = open_study(args, 'criteria_study')
    check_same_model(study.settings(), probe_settings)
    absent = [tap for tap in study.dit.keys if tap not in probe.curves]
    if absent:
        raise ValueError(f'--probe has no accuracies of {absent}; it has {list(probe.curves)}')

    configs = [*variants(study.num_classes, args.full), *parse_added(args.add)]
    named = {describe(config): config for config in configs}
    if args.only:
        named = {name: config for name, config in named.items() if re.search(args.only, name)}
        if not named:
            raise ValueError(f'--only {args.only!r} matches none of the {len(configs)} definitions')
    criteria = dict(zip(named, build_criteria(list(named.values())).values(), strict=True))
    images = study.calibration_images(args.num_images)
    folder = RunFolder(
        study.out,
        dict(
            tool='criteria_study',
            **study.settings(),
            images=images.identity(),
            num_images=len(images),
            criteria=named,
        ),
    )
    steps = score_grid(study, folder, images, probe.timesteps, criteria)
    names = list(dict.fromkeys(row['criterion'] for row in steps[0]['criteria']))
    kept = ProbeTable(
        probe.metric, probe.timesteps, {tap: probe.curves[tap] for tap in study.dit.keys}
    )
    overall, details = summarize(kept, steps, names)
    write_csv(study.out / 'criteria_study.csv', details)
    write_csv(study.out / 'scores.csv', scores_table(steps))
    write_json(study.out / 'summary.json', dict(overall=overall, details=details))
    write_atomically(study.out / 'criteria_study.md', markdown_table(overall))
    draw(kept, overall, details, study.out / 'criteria_study')
    report(kept, overall)
    print(study.out)


if __name__ == '__main__':
    main()
