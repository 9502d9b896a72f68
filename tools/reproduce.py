# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Run what the paper reports, row by row, and fill the table of its numbers next to ours.

Each row is a config (docs/reproduce.md): it is trained on some seeds and tested; the figures are
drawn by the analysis tools. A row that has ended is not run again, and one that was stopped
resumes.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mmaselect.checks import whole_number
from mmaselect.files import write_atomically, write_json
from mmaselect.leaderboard.paper import FIGURE_ROW, Figure, Row
from mmaselect.leaderboard.reproduction import choose_rows, reproduction_table
from mmaselect.terminal.tool import make_tool_parser, run_tool

TOOLS = Path(__file__).resolve().parent
#: Written into a folder when its command has ended.
ENDED = 'ended.json'

EXAMPLES = """
examples:
  # what there is, and what has run
  python tools/reproduce.py --list

  # the commands of two data sets, without running them; then for real, on three seeds
  python tools/reproduce.py --only flowers,cub --dry-run
  python tools/reproduce.py --only flowers,cub --seeds 3

  # one row on eight GPUs; the figures
  python tools/reproduce.py --only 'imagenet/sd35-medium/paper' --gpus 8
  python tools/reproduce.py --only 'fig*'

writes, into --out:
  ROW/seedN/            work directory of each training, with its selection
  FIGURE/               what an analysis tool wrote
  leaderboard/          the tests of all trainings
  reproduce.md          the paper's numbers next to ours
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_tool_parser(__doc__, EXAMPLES)
    parser.add_argument(
        '--only',
        metavar='WORDS',
        help='rows by data set, model, form (paper or ours), name or pattern, with commas between '
        'them; default: all',
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument('--list', action='store_true', help='print rows and what has run, and stop')
    action.add_argument('--dry-run', action='store_true', help='print the commands, and stop')
    parser.add_argument('--seeds', type=int, default=1, help='seeds 0, 1, ... of each; default: 1')
    parser.add_argument('--gpus', type=int, default=1, help='of each training; default: 1')
    parser.add_argument('--out', default='work_dirs/reproduce', help='default: work_dirs/reproduce')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='override settings of all configs, such as a local copy of the model',
    )
    return parser.parse_args(argv)


def jobs_of(row: Row | Figure, args: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """The folder and the command of each training of a row, or of a figure."""
    root = TOOLS.parent
    folder = Path(args.out) / row.name.replace('/', '_')
    if isinstance(row, Figure):
        script = str(TOOLS / 'analysis_tools' / f'{row.tool}.py')
        command = [sys.executable, script, str(root / FIGURE_ROW.config), '--out', str(folder)]
        options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
        return [(folder, [*command, *row.flags, *options])]
    config = str(root / row.config)
    jobs = []
    for seed in range(args.seeds):
        work_dir = folder / f'seed{seed}'
        start = [sys.executable, str(TOOLS / 'train.py'), config]
        if args.gpus > 1:
            start = ['bash', str(TOOLS / 'dist_train.sh'), config, str(args.gpus)]
        planned = int(row.data.run.partition('xb')[0])
        scaled = ['--auto-scale-lr'] if planned > 1 and planned != args.gpus else []
        # Begins anew where there is no checkpoint.
        options = [f'randomness.seed={seed}', 'resume=True', *args.cfg_options]
        command = [*start, '--work-dir', str(work_dir), *scaled, '--cfg-options', *options]
        jobs.append((work_dir, command))
    return jobs


def run_row(row: Row | Figure, args: argparse.Namespace) -> str | None:
    """Run what is missing of a row; None, or what failed."""
    for folder, command in jobs_of(row, args):
        if (folder / ENDED).is_file():
            continue
        print(f'{row.name}: {shlex.join(command)}', flush=True)
        start = time.time()
        done = subprocess.run(command, check=False)
        if done.returncode:
            return f'{row.name}: {shlex.join(command)} ended with {done.returncode}'
        write_json(folder / ENDED, dict(command=command, seconds=round(time.time() - start, 1)))
    return None


def ended_trainings(args: argparse.Namespace) -> list[Path]:
    """Work directories of all trainings that have ended, of this call or of earlier ones."""
    return sorted(path.parent for path in Path(args.out).glob(f'*/seed*/{ENDED}'))


def fill_table(args: argparse.Namespace) -> Path:
    """Test what was trained, and write ``reproduce.md``.

    Raises:
        subprocess.CalledProcessError: If a test failed.
    """
    out = Path(args.out)
    folders = ended_trainings(args)
    found = {}
    if folders:
        board = out / 'leaderboard'
        tool = [sys.executable, str(TOOLS / 'leaderboard.py'), *map(str, folders)]
        subprocess.run([*tool, '--out', str(board), '--html'], check=True)
        with open(board / 'leaderboard.csv', newline='', encoding='utf-8') as file:
            found = {row['config']: row for row in csv.DictReader(file) if row['config']}
    return write_atomically(out / 'reproduce.md', reproduction_table(found, figures_of(out)))


def figures_of(out: Path) -> dict[str, str]:
    """What came of each figure that was made; of the first, how much cheaper a selection was."""
    made = {path.parent.name: 'drawn' for path in out.glob(f'*/{ENDED}')}
    if 'fig1' in made:
        cost = json.loads((out / 'fig1' / 'summary.json').read_text(encoding='utf-8'))['cost']
        made['fig1'] = (
            f'{cost["ratio_evaluations"]:.1f} times fewer passes, '
            f'{cost["ratio_seconds"]:.1f} times less time'
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """List, show, or run rows and fill the table.

    Raises:
        SystemExit: With what failed; the other rows have run.
    """
    args = parse_args(argv)
    whole_number('--seeds', args.seeds, 1)
    whole_number('--gpus', args.gpus, 1)
    rows = choose_rows(args.only)
    if args.list:
        for row in rows:
            jobs = jobs_of(row, args)
            ended = sum((folder / ENDED).is_file() for folder, _ in jobs)
            cost = f'{row.hours:9.1f} h' if isinstance(row, Row) else ' ' * 11
            what = row.config if isinstance(row, Row) else row.what
            print(f'{row.name:30} {ended}/{len(jobs)} {cost}  {what}')
        return
    if args.dry_run:
        for row in rows:
            for folder, command in jobs_of(row, args):
                done = '# has ended: ' if (folder / ENDED).is_file() else ''
                print(f'{done}{shlex.join(command)}')
        return
    failures = [failure for row in rows if (failure := run_row(row, args))]
    print(fill_table(args))
    if failures:
        raise SystemExit('\n'.join(['these rows failed:', *failures]))


if __name__ == '__main__':
    run_tool(main)
