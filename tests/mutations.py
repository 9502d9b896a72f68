# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Does the suite find mistakes? The package is changed in one place at a time, and tests are run.

Mutants are drawn by a seed, in turn from every room of the package: a comparison that is off by
its bound, a condition that is negated, a constant that is one too high, a call that is dropped,
arguments that are swapped. A mutant is caught if a test fails that passes without the mutant.

    python tests/mutations.py --count 30                       # the daily tests
    python tests/mutations.py --count 30 --marks ""            # all tests
    python tests/mutations.py --count 30 --before ../old       # the rest in an older tree, too
    python tests/mutations.py --count 30 --list                # the mutants alone
"""

from __future__ import annotations

import argparse
import ast
import copy
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DAILY = 'not thorough'
#: Test files that reach a room through a tool or a config, without naming what is in it.
REACHED_BY = {
    'analysis': ['test_analysis_tools', 'test_criteria_benchmark'],
    'apis': ['test_apis', 'test_feature_files'],
    'cli': ['test_cli', 'test_select'],
    'datasets': ['test_configs'],
    'engine': ['test_toolbox_features', 'test_stop_and_resume'],
    'launch': ['test_train_test', 'test_stop_and_resume'],
    'leaderboard': ['test_leaderboard', 'test_leaderboard_tool'],
    'models': ['test_aselect_dit'],
    'openmmlab': ['test_checkpoints', 'test_train_test'],
    'pretraining': ['test_pieces', 'test_pretrain_dit'],
    'report': ['test_selection_page', 'test_look'],
}
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: The file, relative to the repository.
        kind: The kind of mistake.
        old: The lines that are changed; they stand once in the file.
        new: What stands there then.
    """

    path: str
    kind: str
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (
            next(line.strip() for line, other in pair if line != other)
            for pair in (
                list(itertools.zip_longest(one.splitlines(), two.splitlines(), fillvalue=''))
                for one, two in ((self.old, self.new), (self.new, self.old))
            )
        )
        return f'{self.path}: {self.kind}: {old}  ->  {new}'

    def file_in(self, tree: Path) -> Path | None:
        """The file of another tree that holds the same lines once; it may have been moved."""
        here = tree / self.path
        others = sorted((tree / 'mmaselect').rglob(here.name))
        for path in (here, *others):
            if path.is_file() and path.read_text().count(self.old) == 1:
                return path
        return None


def mistakes(node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """Kinds of mistakes at a node: the kind, the node that is replaced, and its new source."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        changed = copy.deepcopy(node)
        changed.ops[0] = COMPARISONS[type(node.ops[0])]()
        yield 'comparison', node, f'({ast.unparse(changed)})'
    elif isinstance(node, ast.BoolOp):
        changed = copy.deepcopy(node)
        changed.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield 'and, or', node, f'({ast.unparse(changed)})'
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        if not any(
            isinstance(side, texts) or isinstance(getattr(side, 'value', None), str)
            for side in (node.left, node.right)
        ):
            changed = copy.deepcopy(node)
            changed.op = ARITHMETIC[type(node.op)]()
            yield 'arithmetic', node, f'({ast.unparse(changed)})'
    elif isinstance(node, ast.Constant) and type(node.value) in (int, bool):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield 'constant', node, repr(value)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield 'dropped call', node, 'pass'
    elif isinstance(node, ast.Call) and len(node.args) > 1:
        first, second, *rest = node.args
        if not any(isinstance(argument, ast.Starred) for argument in (first, second)):
            changed = copy.deepcopy(node)
            changed.args = [second, first, *rest]
            yield 'swapped arguments', node, ast.unparse(changed)
    if isinstance(node, (ast.If, ast.IfExp, ast.While)) and 'TYPE_CHECKING' not in ast.dump(
        node.test
    ):
        yield 'negated condition', node.test, f'(not ({ast.unparse(node.test)}))'


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run: no annotations, no docstrings, and no parts of f-strings."""
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in ('annotation', 'returns') or isinstance(value, ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, (ast.JoinedStr, ast.Raise)):
                yield from nodes_of(child)


def mutants_of(tree: Path, path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for node in nodes_of(ast.parse(text)):
        for kind, place, source in mistakes(node):
            part = lines[place.lineno - 1 : place.end_lineno]
            old = ''.join(part)
            if text.count(old) != 1:
                continue
            # Columns count bytes.
            start = part[0].encode()[: place.col_offset].decode()
            end = part[-1].encode()[place.end_col_offset :].decode()
            yield Mutant(str(path.relative_to(tree)), kind, old, start + source + end)


def draw(tree: Path, count: int, seed: int, also_in: Path | None = None) -> list[Mutant]:
    """Mutants of a tree, in turn from each folder, each of another file where there are enough.

    Args:
        tree: The repository.
        count: How many.
        seed: Seed of the draw.
        also_in: Another tree that must hold the same lines.
    """
    chance = random.Random(seed)
    rooms: dict[str, list[Path]] = {}
    for path in sorted((tree / 'mmaselect').rglob('*.py')):
        parts = path.relative_to(tree / 'mmaselect').parts
        if parts[0] != '.mim' and path.stem not in ('__init__', '__main__'):
            rooms.setdefault('/'.join(parts[:-1]), []).append(path)
    for files in rooms.values():
        chance.shuffle(files)
    drawn: list[Mutant] = []
    for room in itertools.cycle(sorted(rooms)):
        if len(drawn) == count:
            return drawn
        path = rooms[room].pop(0)
        rooms[room].append(path)
        found = [
            mutant
            for mutant in mutants_of(tree, path)
            if also_in is None or mutant.file_in(also_in) is not None
        ]
        if found:
            # A kind first: constants outnumber the others.
            kind = chance.choice(sorted({mutant.kind for mutant in found}))
            drawn.append(chance.choice([mutant for mutant in found if mutant.kind == kind]))
    raise AssertionError('the cycle has no end')


def tests_for(tree: Path, file: Path, limit: int) -> list[Path]:
    """The test files that most often name what a file defines, or are named after it."""
    names = {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and len(node.name) > 3
    }
    pattern = re.compile(r'\b(' + '|'.join([*names, re.escape(file.stem)]) + r')\b')
    room = file.relative_to(tree / 'mmaselect').parts[0]
    ranks = {}
    for path in (tree / 'tests').rglob('test_*.py'):
        score = len(set(pattern.findall(path.read_text())))
        score += 100 * (path.stem == f'test_{file.stem}') + 50 * (
            path.stem in REACHED_BY.get(room, [])
        )
        same = f'test_{room}' in path.parts
        if score or (same and room != 'diffusion'):
            # Of equals, that of the same room, and the shorter one.
            ranks[path] = (score, same, -path.stat().st_size)
    return sorted(ranks, key=ranks.__getitem__, reverse=True)[:limit]


def _child(tree: Path, log: Path, arguments: list[str]) -> None:
    os.setsid()
    os.chdir(tree)
    os.environ['PYTHONPATH'] = str(tree)
    sys.path[:0] = [str(tree), str(tree / 'tests')]
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    import pytest

    code = pytest.main(['-q', '-x', '-p', 'no:cacheprovider', *arguments])
    sys.stdout.flush()
    os._exit(int(code))


def run_tests(tree: Path, log: Path, arguments: list[str], seconds: float) -> str | None:
    """Run pytest in a fork of this process; the test that failed first, if one did."""
    process = multiprocessing.get_context('fork').Process(
        target=_child, args=(tree, log, arguments)
    )
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return f'no end within {seconds:.0f} s'
    if process.exitcode in (0, 5):  # 5: every test is deselected
        return None
    failed = re.search(r'^(?:FAILED|ERROR) (\S+)', log.read_text(errors='replace'), re.MULTILINE)
    return failed[1] if failed else f'pytest ended with {process.exitcode}'


def hunt(
    mutant: Mutant,
    tree: Path,
    marks: str,
    limit: int,
    seconds: float,
    without: tuple[str, ...] = (),
) -> str | None:
    """The test of a tree that catches a mutant; the tree's file is put back.

    Args:
        mutant: What to change.
        tree: A copy that may be changed.
        marks: Marks of pytest.
        limit: Test files to run.
        seconds: That they may take.
        without: Tests that fail without a mutant.
    """
    file = mutant.file_in(tree)
    assert file is not None, f'{tree} has no such lines: {mutant}'
    text = file.read_text()
    log = tree / 'mutation.log'
    flags = [*(['-m', marks] if marks else []), *(f'--deselect={name}' for name in without)]
    files = [str(path.relative_to(tree)) for path in tests_for(tree, file, limit)]
    file.write_text(text.replace(mutant.old, mutant.new))
    os.utime(file, (time.time() - 3600,) * 2)  # no stored bytecode is of that time
    try:
        caught = run_tests(tree, log, [*flags, *files], seconds) if files else None
    finally:
        file.write_text(text)
    if caught is None or '::' not in caught or run_tests(tree, log, [caught], seconds) is None:
        return caught
    print(f'     {caught} fails without a mutant, too', flush=True)
    return hunt(mutant, tree, marks, limit, seconds, (*without, caught))


def working_copy(tree: Path, folder: Path) -> Path:
    """A copy whose files may be changed."""
    ignored = ('.git', '.venv*', '__pycache__', '.*_cache', 'work_dirs', 'site', 'build')
    ignore = shutil.ignore_patterns(*ignored)
    return Path(shutil.copytree(tree, folder, ignore=ignore, symlinks=True))


def main() -> int:
    """Run as a script; the exit code says whether a mutant was caught before and is not now."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=30)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--marks', default=DAILY, help=f'of pytest; default: "{DAILY}"')
    parser.add_argument('--before', type=Path, help='an older tree, all of whose tests are run')
    parser.add_argument('--limit', type=int, default=6, help='test files for each mutant')
    parser.add_argument('--seconds', type=float, default=600, help='bound for each mutant')
    parser.add_argument('--only', type=int, nargs='+', help='numbers of mutants')
    parser.add_argument('--list', action='store_true', help='run nothing')
    args = parser.parse_args()
    mutants = draw(ROOT, args.count, args.seed, args.before)
    numbered = [pair for pair in enumerate(mutants) if not args.only or pair[0] in args.only]
    if args.list:
        for number, mutant in numbered:
            print(number, mutant)
            file = mutant.file_in(ROOT)
            print('    ', *(path.stem for path in tests_for(ROOT, file, args.limit)))
        return 0
    os.environ.setdefault('MMASELECT_DATA', str(ROOT.parent / 'shared' / 'data'))
    # Once for all forks; nothing of the package itself.
    import diffusers  # noqa: F401
    import mmengine.runner  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    trees = {'now': (ROOT, args.marks)}
    if args.before:
        trees['before'] = (args.before.resolve(), '')
    survived, lost = [], []
    with tempfile.TemporaryDirectory() as folder:
        copies = {name: working_copy(tree, Path(folder, name)) for name, (tree, _) in trees.items()}
        for number, mutant in numbered:
            print(f'{number:2} {mutant}', flush=True)
            for name, (_, marks) in trees.items():
                start = time.time()
                by = hunt(mutant, copies[name], marks, args.limit, args.seconds)
                print(f'     {name:6} {time.time() - start:4.0f} s  {by or "SURVIVED"}', flush=True)
                if name == 'now' and by:
                    break  # an older tree cannot have lost it
                (survived if name == 'now' else lost if by else []).append(number)
    print(f'{len(numbered) - len(survived)} of {len(numbered)} caught; survived: {survived}')
    if args.before:
        print(f'caught by the older tree alone: {lost}')
    return min(1, len(lost))


if __name__ == '__main__':
    sys.exit(main())
