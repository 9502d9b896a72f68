# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``leaderboard.html``."""

import re

from browser import dom_of

from mmaselect.report import save_leaderboard_page

ROWS = [
    {'data set': 'A', 'metric': 'mIoU', 'model': '<b>', 'mean': 9.5, 'deviation': None},
    {'data set': 'A', 'metric': 'mIoU', 'model': 'two', 'mean': 41.0, 'deviation': 0.3},
    {'data set': 'B', 'metric': 'mIoU', 'model': 'one', 'mean': 10.25},
]


def test_rows_and_the_best_of_each_data_set(tmp_path):
    html = save_leaderboard_page(ROWS, tmp_path / 'leaderboard.html').read_text(encoding='utf-8')
    assert '&lt;b&gt;' in html and html.count('<tr class="best">') == 2
    assert html.count('<td class="number" data-value="">-</td>') == 2
    assert not re.search(r'(src|href)="', html)


def test_pages_of_runs_and_what_is_the_same(tmp_path):
    pages = ', '.join(str(tmp_path / 'runs' / name / 'selection.html') for name in 'ab')
    rows = [dict(ROWS[1], page=pages), ROWS[2]]
    path = save_leaderboard_page(rows, tmp_path / 'board' / 'leaderboard.html', dict(head='FCN'))
    html = path.read_text(encoding='utf-8')
    for name in 'ab':
        assert f'<a href="../runs/{name}/selection.html">' in html
    assert 'The same in all rows: head FCN.' in html


def test_a_click_sorts_numbers_as_numbers(tmp_path):
    page = save_leaderboard_page(ROWS, tmp_path / 'leaderboard.html')
    click = 'document.querySelectorAll("thead button")[3].click();'
    for clicks, expected in ((1, [41.0, 10.25, 9.5]), (2, [9.5, 10.25, 41.0])):
        dom = dom_of(page, tmp_path, script=click * clicks)
        assert 'data-error' not in dom
        body = dom[dom.index('<tbody>') :]
        rows = [re.findall(r'data-value="([^"]*)"', row) for row in body.split('<tr')[1:]]
        assert [float(row[3]) for row in rows] == expected
