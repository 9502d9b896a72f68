# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One table of trained models: tests those that were not tested yet, and sets the paper's numbers
next to ours where the data set is the paper's.

A row is a setting: data set, model, criterion, block, feature, the picked timestep with its
interval, the metric's mean and standard deviation over runs (configs that differ in nothing but
seed and folder), the difference to the best row over seeds, schedule, image size, GFLOPs and
seconds of an image, trained parameters, what the selection cost, and peak memory. Columns that say
the same in all rows stand below the table; the CSV file has all of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.markup import escape
from rich.table import Table

from mmaselect.files import write_atomically, write_json
from mmaselect.launch.cli import build_runner, get_toolbox, load_config, set_dataloaders
from mmaselect.launch.flags import add_cfg_options
from mmaselect.leaderboard.runs import (
    Run,
    check_run,
    dataset_name,
    find_run,
    result_key,
    schedule_of,
    selection_facts,
    setting_of,
    training_memory,
)
from mmaselect.leaderboard.table import PRIMARY_METRICS, failed_rows, group_runs, hide_constants
from mmaselect.report.leaderboard_page import save_leaderboard_page
from mmaselect.terminal.progress import progress_bar
from mmaselect.terminal.tables import markdown_table, write_csv
from mmaselect.terminal.tool import make_tool_parser, run_tool, user_path
from mmaselect.terminal.width import console

EXAMPLES = """
examples:
  # all runs of a folder; those that were tested before are not tested again
  python tools/leaderboard.py work_dirs/*/

  # as a page that can be sorted
  python tools/leaderboard.py work_dirs/*/ --html

  # three seeds of one setting become one row, with mean and deviation: train, test, tabulate
  bash tools/run_seeds.sh CONFIG 3

  # a config and a checkpoint that lie elsewhere; the data are elsewhere, too
  python tools/leaderboard.py --pair CONFIG CHECKPOINT --pair CONFIG CHECKPOINT \\
      --cfg-options test_dataloader.dataset.data_root=/data/ade

writes, into --out:
  leaderboard.md, leaderboard.csv    the table; with --html, leaderboard.html
  results/                           what each test gave: a second start reads these
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_tool_parser(__doc__, EXAMPLES)
    parser.add_argument(
        'work_dirs', nargs='*', help='work directories of trainings: config and checkpoint in one'
    )
    parser.add_argument(
        '--pair',
        nargs=2,
        action='append',
        default=[],
        metavar=('CONFIG', 'CHECKPOINT'),
        help='a config and a checkpoint; may be given several times',
    )
    parser.add_argument(
        '--checkpoint',
        choices=['best', 'last'],
        default='best',
        help='of a work directory: the one that validated best, if the training kept it, or the '
        'last one; default: best',
    )
    parser.add_argument(
        '--out',
        type=user_path,
        default='work_dirs/leaderboard',
        help='default: work_dirs/leaderboard',
    )
    parser.add_argument(
        '--html', action='store_true', help='write leaderboard.html too, a table that can be sorted'
    )
    add_cfg_options(parser, 'override settings of all configs')
    # One process for each test: its memory is then its own, and so are a toolbox's registries.
    parser.add_argument('--worker', metavar='JSON', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.work_dirs and not args.pair:
        parser.error('name work directories, or --pair CONFIG CHECKPOINT')
    return args


def describe(config: Config) -> dict[str, Any]:
    """What a row says of the model, from its config."""
    backbone = config.model.backbone
    # A detector is more than its head.
    head = config.model.get('head') or config.model.get('decode_head') or config.model
    head = head[-1] if isinstance(head, (list, tuple)) else head
    name = str(backbone.get('pretrained') or backbone.type)
    if Path(name).is_dir():
        name = Path(name).name
    return dict(
        dataset=dataset_name(config),
        model=name,
        head=str(head.type).rpartition('.')[2],
        feature=backbone.get('feature'),
        schedule=schedule_of(config),
        seed=(config.get('randomness') or {}).get('seed'),
    )


def test_one(run: Run, config: Config, work_dir: Path) -> dict[str, Any]:
    """Test a checkpoint in this process.

    Returns:
        Metrics, and what is known of the built model.
    """
    import torch

    from mmaselect.models import ASelecTDiT

    toolbox = get_toolbox(config)
    config.work_dir = str(work_dir)
    config.load_from = str(run.checkpoint)
    config.resume = False
    config.launcher = 'none'
    set_dataloaders(config, toolbox, ('test_dataloader',))
    runner = build_runner(config)
    start = time.perf_counter()
    metrics = {key: float(value) for key, value in runner.test().items()}
    seconds = time.perf_counter() - start
    dataset = runner.test_dataloader.dataset
    trained = sum(p.numel() for p in runner.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in runner.model.parameters())
    place = dict(block=None, timestep=None)
    for module in runner.model.modules():
        if isinstance(module, ASelecTDiT):
            total += sum(p.numel() for p in module.dit.parameters())
            place = dict(**place_in_words(sum(module.dit.maps, ())), timestep=module.timestep)
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated() / 2**20
    else:
        import resource  # not on Windows

        # In kilobytes on Linux, in bytes on macOS.
        scale = 2**20 if sys.platform == 'darwin' else 2**10
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
    return dict(
        metrics=metrics,
        metric=PRIMARY_METRICS[toolbox],
        **place,
        trained=trained,
        total=total,
        test_memory=round(memory),
        test_seconds=round(seconds, 2),
        seconds_per_image=seconds / len(dataset),
        **image_cost(runner.model, dataset, toolbox),
    )


def place_in_words(maps: Sequence[tuple[int, str]]) -> dict[str, str]:
    """Blocks and features of the maps that a backbone returns; what is alike is told once.

    Example:
        >>> place_in_words([(3, 'key'), (5, 'key')])
        {'block': '3, 5', 'feature': 'key'}
    """
    blocks, features = zip(*maps, strict=True)
    if len(set(features)) == 1:
        blocks, features = tuple(dict.fromkeys(blocks)), features[:1]
    return dict(block=', '.join(map(str, blocks)), feature=', '.join(features))


def image_cost(model: Any, dataset: Any, toolbox: str) -> dict[str, Any]:
    """Size of a test image, and GFLOP of a pass of it.

    Args:
        model: The tested model.
        dataset: Data set that it was tested on; the first image stands for all.
        toolbox: Where the model is from. Detectors have no pass without annotations.
    """
    import torch

    from mmaselect.launch.complexity import model_complexity

    height, width = dataset[0]['inputs'].shape[-2:]
    size = f'{width}x{height}'
    if toolbox == 'mmdet':
        return dict(image_size=size, gflops=None)
    device = next(model.parameters()).device
    found = model_complexity(model, torch.zeros(1, 3, height, width, device=device))
    return dict(image_size=size, gflops=round(found['flops'] / 1e9, 3))


def test_in_process(run: Run, args: argparse.Namespace, path: Path) -> str | None:
    """Test in a process of its own; None, or the end of its output if it failed."""
    command = [sys.executable, __file__, '--pair', str(run.config), str(run.checkpoint)]
    command += ['--out', args.out, '--worker', str(path)]
    if args.debug:
        command += ['--debug']
    if args.cfg_options:
        command += ['--cfg-options', *args.raw_options]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return None if done.returncode == 0 and path.is_file() else done.stdout[-3000:]


def named_runs(args: argparse.Namespace) -> list[tuple[str, Callable[[], Run]]]:
    """What the command line names: how it is called, and what finds it.

    Raises:
        FileNotFoundError: If a name leads nowhere: it is a slip, not a damaged run.
    """
    named: list[tuple[str, Callable[[], Run]]] = []
    for work_dir in args.work_dirs:
        if not Path(work_dir).is_dir():
            raise FileNotFoundError(f'work directory {work_dir!r} does not exist')
        named.append((work_dir, partial(find_run, work_dir, args.checkpoint)))
    for config, checkpoint in args.pair:
        folder = Path(checkpoint).resolve().parent
        run = check_run(Run(Path(config), Path(checkpoint), folder))
        named.append((checkpoint, partial(check_run, run)))
    return named


def result_of(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What is known of a run, which is tested unless it was before.

    Raises:
        RuntimeError: If the test fails.
        Exception: Whatever a damaged config, selection or log leads to.
    """
    config = load_config(run.config, args.cfg_options)
    get_toolbox(config)
    path = Path(args.out) / 'results' / f'{result_key(run, config)}.json'
    found = stored_result(path)
    if found is None:
        failure = test_in_process(run, args, path)
        if failure is not None:
            raise RuntimeError(f'the test of {run.checkpoint} failed:\n{failure}')
        found = json.loads(path.read_text(encoding='utf-8'))
    return {
        'setting': setting_of(config),
        **describe(config),
        **selection_facts(run.work_dir),
        'config': run.config.stem,
        'train_memory': training_memory(run.work_dir),
        'value': found['metrics'][found['metric']],
        **found,
    }


def stored_result(path: Path) -> dict[str, Any] | None:
    """What a test before wrote; None if it wrote nothing that can be used."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        return found if found['metric'] in found['metrics'] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def report(rows: list[dict[str, Any]]) -> None:
    """The table's first columns on the terminal."""
    texts = ('data set', 'model', 'head', 'criterion', 'block', 'feature', 'pick', 'schedule')
    there = {column for row in rows for column in row}
    columns = [column for column in (*texts, 'problem') if column in there]
    numbers = [c for c in ('mean', 'deviation', 'to the best', 'runs', 'paper') if c in there]
    table = Table(title='leaderboard')
    for column in (*columns, *numbers):
        table.add_column(column, justify='right' if column in numbers else 'left')
    for row in rows:
        cells = (row.get(column) for column in (*columns, *numbers))
        table.add_row(*('-' if cell is None else escape(str(cell)) for cell in cells))
    console().print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Test what is missing, tabulate.

    Raises:
        SystemExit: With 1 if a run is damaged or its test failed; the table has a row that says so.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(argv)
    args.raw_options = raw_options(argv)
    out = Path(args.out)
    named = named_runs(args)
    if args.worker:
        ((_, find),) = named
        run = find()
        config = load_config(run.config, args.cfg_options)
        write_json(args.worker, test_one(run, config, out / 'tests' / Path(args.worker).stem))
        return

    results, failures = [], {}
    with progress_bar('models') as bar:
        task = bar.add_task('testing', total=len(named))
        for name, find in named:
            try:
                results.append(result_of(find(), args))
            except Exception as error:  # one damaged run is not the end of the table
                failures[name] = f'{type(error).__name__}: {error}'
            bar.advance(task)
    rows = [*group_runs(results), *failed_rows(failures)]
    if rows:
        write_csv(out / 'leaderboard.csv', rows)
        shown, same = hide_constants(rows)
        alike = ''.join(f'- {column}: {cell}\n' for column, cell in same.items())
        note = f'\nThe same in all rows:\n\n{alike}' if alike else ''
        write_atomically(out / 'leaderboard.md', markdown_table(shown) + note)
        report(shown)
        print(out / 'leaderboard.md')
        if args.html:
            print(save_leaderboard_page(shown, out / 'leaderboard.html', same))
    if failures:
        told = [f'{name}:\n{failure}' for name, failure in failures.items()]
        raise SystemExit('\n\n'.join(['these runs have no result:', *told]))


def raw_options(argv: Sequence[str]) -> list[str]:
    """``--cfg-options`` as they were typed, to hand on."""
    if '--cfg-options' not in argv:
        return []
    rest = argv[argv.index('--cfg-options') + 1 :]
    end = next((i for i, word in enumerate(rest) if word.startswith('--')), len(rest))
    return rest[:end]


if __name__ == '__main__':
    run_tool(main)
