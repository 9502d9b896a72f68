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
import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from variants import describe, variants

from mmaselect.analysis.figures import make_figure, save_all, styled
from mmaselect.analysis.probe_table import ProbeTable, read_steps, scores_over
from mmaselect.analysis.result_folder import ResultFolder, check_same_model, read_settings
from mmaselect.analysis.scores import score_grid, scores_table
from mmaselect.analysis.study import (
    add_calibration_arguments,
    make_parser,
    open_study,
)
from mmaselect.files import write_atomically, write_json
from mmaselect.selection.scoring import build_criteria
from mmaselect.terminal.tables import markdown_table, write_csv
from mmaselect.terminal.tool import run_tool

EXAMPLES = """
examples:
  # first the accuracies, then the definitions at the same timesteps, blocks and features
  python tools/analysis_tools/probe_timesteps.py CONFIG --timesteps 0:600:25 --out work_dirs/probe
  python projects/spectral_definitions/criteria_study.py CONFIG --probe work_dirs/probe

  # one table over two data sets: which definition is right on both?
  python projects/spectral_definitions/criteria_study.py CONFIG_B --probe work_dirs/probe_b \
      --also work_dirs/probe/criteria

  # all combinations of options (many more), of the cross spectrum over the token grid only
  python projects/spectral_definitions/criteria_study.py CONFIG --probe work_dirs/probe --full \\
      --only 'cross HFR 2d'

  # a criterion of your own, registered by the config's custom_imports
  python projects/spectral_definitions/criteria_study.py CONFIG --probe work_dirs/probe \\
      --add type=MyCriterion power=2 --only MyCriterion

writes, into --out (default: the folder `criteria` in that of --probe):
  criteria_study.md                  the table, best definition first
  criteria_study.csv                 a row for each definition, block and feature
  scores.csv                         every score, timestep by timestep
  criteria_study.png, .pdf, .svg     regret of each definition in each block and feature
  timesteps/                         what each timestep gave: the run resumes from these
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
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
    parser.add_argument(
        '--also',
        nargs='+',
        default=[],
        metavar='FOLDER',
        help='other studies (their --out): the table is then over all of them',
    )
    parser.add_argument('--case', help='name of this study in tables; default: that of the config')
    return parser.parse_args(argv)


def literal(text: str) -> Any:
    """A number, a bool, None, a list; or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_added(added: list[list[str]]) -> list[dict[str, Any]]:
    """``--add type=NAME key=value`` as configs.

    Raises:
        ValueError: If an entry has no type, or is not a KEY=VALUE.
    """
    configs = []
    for entry in added:
        pairs = [item.partition('=') for item in entry]
        config = {key: literal(value) for key, mark, value in pairs if mark}
        if len(config) != len(entry) or 'type' not in config:
            raise ValueError(f'--add takes type=NAME and KEY=VALUE, got {entry}')
        configs.append(config)
    return configs


def join(
    case: str, table: ProbeTable, steps: list[dict[str, Any]], names: list[str]
) -> list[dict[str, Any]]:
    """A row for each definition, block and feature: pick, regret, rank correlation."""
    details = []
    for name in names:
        for tap in table.curves:
            scores = scores_over(steps, name, tap)
            if any(score is not None for score in scores):
                found = table.agreement(tap, scores).to_dict()
                details.append(
                    dict(case=case, criterion=name, block=tap[0], feature=tap[1], **found)
                )
    return details


def read_others(folders: list[str], case: str) -> list[dict[str, Any]]:
    """Details of other studies.

    Raises:
        FileNotFoundError: If a folder holds no finished study.
        ValueError: If two studies have one name.
    """
    details, cases = [], {case}
    for folder in folders:
        path = Path(folder) / 'summary.json'
        if not path.is_file():
            raise FileNotFoundError(f'--also {folder!r}: no finished study is there ({path})')
        rows = json.loads(path.read_text(encoding='utf-8'))['details']
        mine = {row['case'] for row in rows}
        if mine & cases:
            raise ValueError(
                f'--also {folder!r}: a study named {sorted(mine & cases)} is there already; name '
                f'each with --case'
            )
        cases |= mine
        details += rows
    return details


def summarize(details: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each definition over all cases, blocks and features; the best first.

    A definition that is undefined somewhere comes after those that are defined everywhere.
    """
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in details:
        by_name.setdefault(row['criterion'], []).append(row)
    overall = []
    for name, rows in by_name.items():
        regrets = [row['regret'] for row in rows]
        rhos = [row['spearman'] for row in rows if row['spearman'] is not None]
        overall.append(
            {
                'criterion': name,
                'mean regret': round(float(np.mean(regrets)), 2),
                'worst regret': round(max(regrets), 2),
                'mean rho': round(float(np.mean(rhos)), 3) if rhos else None,
                'worst rho': round(min(rhos), 3) if rhos else None,
                'within interval': f'{sum(row["within"] for row in rows)}/{len(rows)}',
                'picks': ' '.join(str(row['pick']) for row in rows),
            }
        )
    count = {name: len(rows) for name, rows in by_name.items()}
    overall.sort(
        key=lambda row: (-count[row['criterion']], row['worst regret'], row['mean regret'])
    )
    return overall


@styled
def draw(overall: list[dict[str, Any]], details: list[dict[str, Any]], stem: Path) -> None:
    """Regret of each definition in each case, block and feature, best definition on top."""
    names = [row['criterion'] for row in overall]
    places = list(dict.fromkeys((row['case'], row['feature'], row['block']) for row in details))
    regrets = np.full((len(names), len(places)), np.nan)
    for row in details:
        place = places.index((row['case'], row['feature'], row['block']))
        regrets[names.index(row['criterion']), place] = row['regret']
    figure, axes = make_figure(
        width=4.6 + 0.35 * len(places), height=0.9 + 0.13 * max(len(names), 8)
    )
    axis = axes[0, 0]
    image = axis.imshow(regrets, aspect='auto', cmap='magma_r', vmin=0)
    axis.set_yticks(range(len(names)), names, fontsize=5)
    several = len({place[0] for place in places}) > 1
    labels = [
        f'{feature} {block}' + (f', {case}' if several else '') for case, feature, block in places
    ]
    axis.set_xticks(range(len(places)), labels, rotation=90)
    figure.colorbar(image, ax=axis, label='regret (points)', shrink=0.6)
    save_all(figure, stem)


def report(overall: list[dict[str, Any]], rows: int = 25) -> None:
    """The best definitions, on the terminal; all of them are in the Markdown table."""
    console = Console()
    shown = Table(title=f'the best of {len(overall)} definitions')
    columns = ('mean regret', 'worst regret', 'mean rho')
    shown.add_column('criterion', no_wrap=True)
    for column in columns:
        shown.add_column(column, justify='right')
    for row in overall[:rows]:
        numbers = (row[column] for column in columns)
        shown.add_row(row['criterion'], *('-' if x is None else str(x) for x in numbers))
    console.print(shown)


def main(argv: Sequence[str] | None = None) -> None:
    """Score, join, write, report."""
    args = parse_args(argv)
    case = args.case or Path(args.config).stem
    others = read_others(args.also, case)
    probe_settings = read_settings(args.probe)
    probe = ProbeTable.from_steps(read_steps(args.probe))
    args.blocks = args.blocks or [str(block) for block in probe_settings['blocks']]
    args.feature = args.feature or probe_settings['features']
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
    images = study.calibration_images(args.num_images, criteria)
    folder = ResultFolder(
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
    mine = join(case, kept, steps, names)
    details = mine + others
    overall = summarize(details)
    write_csv(study.out / 'criteria_study.csv', details)
    write_csv(study.out / 'scores.csv', scores_table(steps))
    write_json(study.out / 'summary.json', dict(overall=overall, details=mine))
    write_atomically(study.out / 'criteria_study.md', markdown_table(overall))
    draw(overall, details, study.out / 'criteria_study')
    report(overall)
    print(study.out)


if __name__ == '__main__':
    run_tool(main)
