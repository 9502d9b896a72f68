# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import matplotlib
import numpy as np
import pytest
from PIL import Image

from mmaselect.analysis.figures import (
    STYLE,
    draw_overlay,
    make_figure,
    panel_grid,
    save_all,
    scale_to,
    styled,
)


@pytest.mark.parametrize('count, grid', [(1, (1, 1)), (2, (1, 2)), (5, (2, 3)), (9, (3, 3))])
def test_panels(count, grid):
    assert panel_grid(count) == grid


def test_scaled_curves_keep_their_shape():
    np.testing.assert_allclose(scale_to([1, None, 3, 2], 10, 20), [10, np.nan, 20, 15])
    np.testing.assert_allclose(scale_to([4, 4], 10, 20), [10, 10])


def test_overlay_is_written_thrice(tmp_path):
    figure, axes = make_figure(1, 2)
    lows, highs = [58, 68, 64], [62, 72, 66]
    for axis in axes.flat:
        draw_overlay(
            axis, [0, 50, 100], 'accuracy (%)', [60, 70, 65], lows, highs,
            {'HFR': [0.1, 0.3, 0.2]}, {'HFR': 50},
        )  # fmt: skip
    metric, criterion = axes[0, 0].get_lines()[:2]
    assert metric.get_ydata().tolist() == [60, 70, 65]
    np.testing.assert_allclose(criterion.get_ydata(), [60, 70, 65])
    paths = save_all(figure, tmp_path / 'figure.v1')
    assert [path.name for path in paths] == ['figure.v1.png', 'figure.v1.pdf', 'figure.v1.svg']
    assert Image.open(paths[0]).size[0] > 1000
    assert paths[1].read_bytes().startswith(b'%PDF')
    assert '>accuracy (%)<' in paths[2].read_text(), 'text stays text'


def test_style_ends_with_the_function():
    before = matplotlib.rcParams['axes.spines.top']

    @styled
    def inside():
        return matplotlib.rcParams['axes.spines.top']

    assert inside() is inside() is STYLE['axes.spines.top']
    assert matplotlib.rcParams['axes.spines.top'] == before
