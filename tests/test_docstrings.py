# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every example in a docstring of the package runs and gives what it says."""

import ast
import doctest
import inspect
import logging
import pkgutil
import re
from importlib import import_module

import pytest
import torch

import mmaselect

#: What cannot be imported here. Muon came with PyTorch 2.9.
ABSENT = set() if hasattr(torch.optim, 'Muon') else {'mmaselect.pretraining.muon'}
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(mmaselect.__path__, 'mmaselect.')
    if not module.name.endswith('__main__') and module.name not in ABSENT
)


def examples_of(name):
    """The examples of a module, docstring by docstring, without those of what it imports."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [test for test in finder.find(import_module(name)) if test.examples]


@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    logging.disable()  # whether messages are printed depends on what ran before
    try:
        for test in examples_of(name):
            runner.run(test)
    finally:
        logging.disable(logging.NOTSET)
    assert runner.summarize(verbose=False).failed == 0


def test_no_example_is_skipped():
    tests = [test for name in MODULES for test in examples_of(name)]
    assert len(tests) > 20
    skipped = [t.name for t in tests if any(e.options.get(doctest.SKIP) for e in t.examples)]
    assert not skipped, 'let the example read mmaselect://dit_cifar10, which needs no download'


@pytest.mark.parametrize('name', MODULES)
def test_one_style(name):
    """Google's, with types in the annotations; what `Args` names is in the signature."""
    for node in ast.walk(ast.parse(inspect.getsource(import_module(name)))):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        doc = ast.get_docstring(node) or ''
        assert 'Examples:' not in doc, f'{node.name}: the heading is `Example:`'
        section = re.search(r'^Args:\n((?:(?: .*)?\n?)*)', doc, re.MULTILINE)
        if section is None:
            continue
        lines = re.findall(r'^    (\*{0,2}\w+)( \(.*\))?:', section[1], re.MULTILINE)
        assert lines, f'{node.name}: `Args` lists `name: what it is`'
        typed = [argument for argument, brackets in lines if brackets]
        assert not typed, f'{node.name}: types of {typed} belong into the annotations'
        function = node
        if isinstance(node, ast.ClassDef):
            inits = [n for n in node.body if getattr(n, 'name', '') == '__init__']
            if not inits:
                continue  # a dataclass, or the arguments of the class it inherits from
            function = inits[0]
        every = function.args
        known = [a.arg for a in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
        known += [a.arg for a in (every.vararg, every.kwarg) if a is not None]
        unknown = [argument for argument, _ in lines if argument.lstrip('*') not in known]
        assert not unknown, f'{node.name} has no arguments {unknown}'
