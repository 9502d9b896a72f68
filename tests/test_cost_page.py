# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``docs/cost.md`` is what ``benchmarks/cost.py`` writes."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load_script():
    path = ROOT / 'benchmarks' / 'cost.py'
    if not path.is_file():
        pytest.skip('benchmarks/ is not in an installed package')
    spec = importlib.util.spec_from_file_location('cost_script', path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_counted_figures():
    script = load_script()
    page = script.PAGE.read_text(encoding='utf-8')
    model = next(model for model in script.MODELS if model.name == 'DiT-XL/2-512')
    counted = script.table({model: script.count(model)})
    rows = [line for line in counted.splitlines() if line.startswith('| DiT-XL/2-512')]
    assert len(rows) == 6
    for row in rows:
        assert row in page, 'run `python benchmarks/cost.py --write`'
    # By hand: 17 blocks of 12 width^2 multiply-adds a token and attention's 2 N width, the query of
    # the next, and the patches; what is left out (conditions) is a few percent.
    tokens, width = 32 * 32, 1152
    block = 2 * tokens * (12 * width**2 + 2 * tokens * width)
    assert script.count(model).read == pytest.approx(17 * block + 2 * tokens * width**2, rel=0.03)
