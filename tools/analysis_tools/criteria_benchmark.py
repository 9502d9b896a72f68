# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Judge criteria on many cases: models, data sets, corruptions, tasks and blocks.

Each case measures linear probes of the features at every timestep of a grid, and scores the same
features by every criterion. A criterion is judged by its regret: the probe's result at the best
timestep minus that at the criterion's pick. Controls that always say one timestep are judged as
well, next to it, and the Fisher score, which sees labels.

Killed or stopped, the same command resumes: each timestep of each case is a file.

Examples:
  python tools/analysis_tools/criteria_benchmark.py benchmarks/criteria_cases.py
  # some cases only; the same command without --cases shows the table of all that is there
  python tools/analysis_tools/criteria_benchmark.py benchmarks/criteria_cases.py --cases 'digits*'
  # the table of what was measured so far, nothing is run
  python tools/analysis_tools/criteria_benchmark.py benchmarks/criteria_cases.py --report-only

Written to --out:
  CASE/timesteps/  what was measured, a file for each timestep
  rows.csv         a row for each case, block and criterion: pick, best, regret, rank correlation
  summary.csv      a row for each criterion, the best first; summary.md is the same as Markdown
  regret.png       the mean regret of each criterion, with its interval
  curves.png       the probe's curve of every case, with the criteria's picks
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from mmaselect.analysis.criteria_benchmark import (
    benchmark_figure,
    benchmark_rows,
    load_cases,
    regret_figure,
    run_case,
    summarize,
)
from mmaselect.files import write_atomically
from mmaselect.launch.flags import add_cfg_options
from mmaselect.report.plot import save_figure
from mmaselect.terminal.tables import markdown_table, write_csv
from mmaselect.terminal.tool import make_tool_parser, run_tool, user_path


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_tool_parser(__doc__)
    parser.add_argument('config', help='a config with `cases` and `criteria`')
    parser.add_argument(
        '--out', type=user_path, help='folder for results; default: work_dirs/CONFIG_NAME'
    )
    parser.add_argument(
        '--cases', nargs='+', metavar='PATTERN', help="names of cases, such as 'cifar10*'"
    )
    parser.add_argument(
        '--report-only', action='store_true', help='show the table of what was measured already'
    )
    parser.add_argument('--device', default='cpu', help='where models run; default: cpu')
    add_cfg_options(parser, 'override settings of the config')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then make the tables."""
    args = parse_args(argv)
    config, cases = load_cases(args.config, args.cfg_options)
    out = Path(args.out or Path('work_dirs') / Path(args.config).stem)
    if args.cases:
        cases = [case for case in cases if any(fnmatch(case.name, p) for p in args.cases)]
        if not cases:
            raise ValueError(f'no case matches --cases {args.cases}')
    results = []
    for number, case in enumerate(cases, 1):
        done = out / case.name / 'timesteps'
        if args.report_only and len(list(done.glob('t*.json'))) < len(case.timesteps):
            print(f'{case.name}: not measured yet')
            continue
        print(f'case {number} of {len(cases)}: {case.name}', flush=True)
        results += run_case(case, [c.to_dict() for c in config.criteria], out, args.device)
    if not results:
        raise ValueError('nothing was measured yet: run without --report-only')
    rows = benchmark_rows(results)
    summary = summarize(rows)
    write_csv(out / 'rows.csv', rows)
    write_csv(out / 'summary.csv', summary)
    write_atomically(out / 'summary.md', markdown_table(summary))
    shown = [name for name in config.get('shown', []) if name in results[0].scores]
    save_figure(regret_figure(summary), out / 'regret.png')
    save_figure(benchmark_figure(results, shown), out / 'curves.png')
    print(markdown_table(summary))
    interior = {(r['case'], r['block']) for r in rows if r['best'] >= 25}
    every = {(r['case'], r['block']) for r in rows}
    print(
        f'{len({r["case"] for r in rows})} cases, {len(every)} blocks; the best timestep is 25 or '
        f'above in {len(interior)} blocks'
    )
    print(f'written to {out}')


if __name__ == '__main__':
    run_tool(main)
