# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Small curves of all places that a search compared."""

import io
import math
import re
from dataclasses import replace

from rich.console import Console

from mmaselect.report import save_selection_page, selection_figure, selection_page
from mmaselect.report.notice import pick_notice
from mmaselect.report.places import HEIGHT, MARGIN, WIDTH, spark_rows, spark_text
from mmaselect.report.table import print_selection
from mmaselect.selection import Curve, CurvePoint, SelectionResult

GRID = [0, 100, 300]


def curve(block, feature, scores, images=64, grid=GRID):
    points = tuple(
        CurvePoint(step, step / 1000, None, score, 0.1, 0.01, images)
        for step, score in zip(grid, scores, strict=True)
    )
    best = max((p for p in points if p.score is not None), key=lambda p: p.score)
    return Curve('Mine', best.timestep, points, block, feature)


def make_result():
    per_tap = [
        curve(0, 'query', [0.0, 0.5, 0.25], images=32),
        curve(0, 'output', [1.0, None, 0.0]),
        curve(1, 'query', [0.25, 1.0, 0.75]),
    ]
    return SelectionResult(
        100, 0.1, 2.0, 'Mine', 'query', [1], 64, 1.25, 512, per_tap[2], per_tap=per_tap,
        settings={'transformer': 'X', 'timesteps': GRID, 'search': {}}, method='race',
        cells=[(1, 'query')], contenders=[(1, 'query', 100), (0, 'output', 0)],
    )  # fmt: skip


def test_each_place_has_its_curve_in_one_scale():
    (first, (query, output)), (second, (picked, missing)) = spark_rows(make_result())
    assert (first, second) == (0, 1) and missing is None
    left, right, low, high = MARGIN, WIDTH - MARGIN, HEIGHT - MARGIN, MARGIN
    assert query.path.startswith(f'M{left:g} {low:g}L') and not query.in_race
    # Where there is no score the line is broken: two points that no line joins.
    assert output.path == f'M{left:g} {high:g}M{right:g} {low:g}' and output.in_race
    assert output.dots == ((left, high),) and output.star is None
    assert picked.star == picked.dots[0] and picked.star[1] == high
    assert (picked.score, picked.timestep) == (1.0, 100)
    assert picked.words.splitlines() == [
        'query of block 1', 't = 0: 0.250, 64 images', 't = 100: 1.000, 64 images',
        't = 300: 0.750, 64 images',
    ]  # fmt: skip


def test_a_place_that_is_picked_with_others_shows_the_picked_timestep():
    several = replace(make_result(), cells=[(0, 'query'), (1, 'query')], timestep=300)
    (_, (query, _)), _ = spark_rows(several)
    assert (query.score, query.timestep) == (0.25, 300)


def test_one_timestep_and_equal_scores_lie_in_the_middle():
    alike = [curve(block, 'query', [0.5], grid=[300]) for block in (0, 1)]
    result = replace(make_result(), per_tap=alike, curve=alike[1], timestep=300)
    assert spark_rows(result)[0][1][0].path == f'M{WIDTH / 2:g} {HEIGHT / 2:g}'
    assert spark_text([0.5], 0.5, 0.5, 9) == '▅'


def test_curves_of_characters():
    assert spark_text([0.0, 0.2, 1.0, math.nan, -3.0], 0.0, 1.0, 9) == '▁▂█ ▁'
    assert spark_text([0.0, 1.0, 0.0, 0.0], 0.0, 1.0, 2) == '█▁'


def test_the_page_has_a_row_for_each_block(tmp_path):
    html = save_selection_page(make_result(), tmp_path).read_text(encoding='utf-8')
    table = html[html.index('<table class="places">') :]
    table = table[: table.index('</table>')]
    assert re.findall(r'<th>(.*?)</th>', table) == ['block', 'query', 'output', '0', '1']
    assert re.findall(r'<td class="(.*?)">', table) == [' out', '', 'best', '']
    assert table.count('<title>') == 3 and table.count('<circle') == 2
    assert table.count('&#9733;') == 1 and '<i>at 100</i>' in table
    assert 'one of 2 places and timesteps that the' in html
    assert '<div class="where">query of block 1</div>' in html
    # One place alone has no such table.
    single = replace(make_result(), settings={'transformer': 'X', 'timesteps': GRID})
    assert 'class="places"' not in selection_page(single)


def test_the_maps_show_what_may_be_the_best():
    figure = selection_figure(make_result())
    maps = [axis for axis in figure.axes if axis.get_ylabel().endswith('\nblock')]
    marks = [[(line.get_marker(), *line.get_xydata()[0]) for line in axis.lines] for axis in maps]
    assert marks == [[('o', 100, 1), ('*', 100, 1)], [('o', 0, 0)]]
    (legend,) = figure.legends
    assert 'in a map: may be the best' in [text.get_text() for text in legend.get_texts()]


def test_a_map_of_one_timestep_or_one_block_has_cells_that_are_seen():
    alone = [curve(2, feature, [0.5], grid=[300]) for feature in ('query', 'output')]
    result = replace(
        make_result(), per_tap=alone, curve=alone[0], timestep=300, cells=[(2, 'query')]
    )
    figure = selection_figure(result)
    meshes = [axis.collections[0] for axis in figure.axes if axis.get_ylabel().endswith('\nblock')]
    assert len(meshes) == 2
    for mesh in meshes:
        corners = mesh.get_coordinates()
        assert corners[..., 0].tolist() == [[299.5, 300.5]] * 2
        assert corners[..., 1].tolist() == [[-0.5, -0.5], [0.5, 0.5]]
    # Of several, cells end half way between them.
    several = selection_figure(make_result()).axes[1].collections[0].get_coordinates()
    assert several[0, :, 0].tolist() == [-50, 50, 200, 400]


def test_other_places_that_may_be_as_good_are_named():
    result = make_result()
    assert result.places_as_good == 'output of block 0'
    console = Console(file=io.StringIO(), width=100)
    print_selection(result, console, table=False)
    assert 'may be as good: output of block 0\n' in console.file.getvalue()
    assert 'may be as good: output of block 0' in pick_notice(result, 1000)
    assert 'for all that these images tell: output of block 0</dd>' in selection_page(result)
    many = replace(result, contenders=[(block, 'key', 0) for block in range(7)])
    assert many.places_as_good.endswith('key of block 2, key of block 3, 3 more')
    alone = replace(result, contenders=[(1, 'query', 100), (1, 'query', 0)])
    assert alone.places_as_good == '' and 'as good' not in pick_notice(alone, 1000)


def printed(width):
    console = Console(file=io.StringIO(), width=width)
    print_selection(make_result(), console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    return lines[-2:]


def test_the_table_of_a_search_has_a_row_for_each_block():
    assert [line.split() for line in printed(100)] == [
        ['0', '▁▅▃', '0.50', '█', '▁', '1.00'],
        ['1', '▃█▇', '1.00', '-'],
    ]
    # Where the line has no room for scores, curves stand alone.
    assert [line.split() for line in printed(26)] == [['0', '▁▅▃', '█', '▁'], ['1', '▃█▇', '-']]
