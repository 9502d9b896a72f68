# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``selection.html``."""

import re
from dataclasses import replace

import numpy as np
from browser import dom_of

from mmaselect.diffusion import FrozenDiT
from mmaselect.images import CalibrationSet, ImageArrays, ImageFolder, resize_and_crop
from mmaselect.images.thumbnails import Thumbnail, thumbnails, try_thumbnails
from mmaselect.look import selection_strip, try_strip
from mmaselect.look.strip import strip_timesteps
from mmaselect.report import save_selection_page, selection_page
from mmaselect.selection import Curve, CurvePoint, PaperHFR, SelectionResult
from mmaselect.selection.caveats import KINDS
from mmaselect.selection.conclude import (
    warn_of_disagreement,
    warn_of_flat_curve,
    warn_of_grid_end,
    warn_of_images,
    warn_of_indecision,
    warn_of_nonfinite_features,
    warn_of_place,
)
from mmaselect.selection.decision import Decision
from mmaselect.selection.place import Place
from mmaselect.selection.scoring import StepScores


def curve(name, scores):
    points = tuple(
        CurvePoint(100 * n, n / 10, None, score, 0.1, 0.01) for n, score in enumerate(scores)
    )
    best = max((p for p in points if p.score is not None), key=lambda p: p.score)
    return Curve(name, best.timestep, points)


def make_result():
    main, other = curve('Mine', [0.1, 0.4, None, 0.2]), curve('Other<i>', [0.3, 0.2, 0.1, 0.9])
    return SelectionResult(
        100, 0.1, 2.0, 'Mine', 'query', [3, 3], 64, 1.25, 512, main, {'Other<i>': other},
        warnings=warn_of_disagreement(main, {'Other': other}, main.timesteps),
        settings={'transformer': 'DiTTransformer2DModel'}, interval=(0, 100),
    )  # fmt: skip


def test_page_has_everything(tmp_path):
    seen = [Thumbnail('a "cat".png', np.zeros((72, 72, 3), np.uint8))]
    path = save_selection_page(make_result(), tmp_path, seen)
    html = path.read_text(encoding='utf-8')
    assert path.name == 'selection.html'
    for part in (
        't = 100', '95 % interval: 0 to 100', 'DiTTransformer2DModel', 'query of block 3</dd>',
        '512 model evaluations, 1.2 s', 'Other disagrees: it would pick timestep 300',
        'Compare the curves. The first', 'title="a &#34;cat&#34;.png"', 'Other&lt;i&gt;',
        '1 of the 64 that were used',
    ):  # fmt: skip
        assert part in html, part
    assert len(re.findall(r'<tr( class="best")?><td>', html)) == 4
    assert html.count('<tr class="best">') == 1 and '<td>-</td>' in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert selection_page(make_result(), seen) == html


def test_all_images_are_there_with_their_names(photos):
    images = CalibrationSet(ImageFolder(photos), 32, num_images=24)
    seen = thumbnails(images) * 3
    few = replace(make_result(), num_images=24)
    html = selection_page(few, seen[:24])
    assert 'The 24 that were used' in html and 'The other' not in html
    assert re.findall(r'<figcaption>(.*?)</figcaption>', html) == [
        f'{n:02d}.png' for n in range(24)
    ]
    many = selection_page(make_result(), seen[:64])
    assert 'The 64 that were used' in many and 'The other 40' in many
    assert many.count('<figcaption>') == 64


def test_every_kind_of_warning_is_one_that_is_made():
    broken = StepScores(0, 0.0, None, {((1, 'query'), 'A'): dict(nonfinite=1.0)})
    whole = StepScores(9, 0.1, None, {((1, 'query'), 'A'): dict(nonfinite=0.0)})
    made = [
        *warn_of_nonfinite_features([broken, whole], 'torch.float16'),
        *warn_of_grid_end(curve('Mine', [0.9, 0.4, 0.2])),
        *warn_of_grid_end(curve('Mine', [0.1, 0.4, 0.5])),
        *warn_of_flat_curve(curve('Mine', [0.1, 0.1000001, 0.1])),
        *warn_of_indecision(Decision(False, (0, 300), 900), curve('Mine', [0.1, 0.4, 0.5, 0.4])),
        *warn_of_place(Place(3, 'query', 0, 1.0, (((4, 'key'), 50), ((3, 'query'), 0)), False)),
        *warn_of_images(3, 2, PaperHFR())[::-1],
        *make_result().warnings,
    ]
    assert [warning.code for warning in made] == list(KINDS)
    for warning in made:
        said, advice = KINDS[warning.code]
        assert warning.advice == advice
        assert all(part.strip() in warning.text for part in said.split('...'))


def test_thumbnails(photos, tmp_path):
    images = CalibrationSet(ImageFolder(photos), 32)
    seen = thumbnails(images, count=5, side=16)
    assert [one.name for one in seen] == ['00.png', '06.png', '12.png', '17.png', '23.png']
    assert all(one.pixels.shape == (16, 16, 3) for one in seen)
    assert len(thumbnails(CalibrationSet(ImageArrays(np.zeros((2, 8, 8, 3), np.uint8)), 8))) == 2
    # A race that ended after five images has scored the first five of the set's order.
    scored = sorted(f'{images.chosen[place]:02d}.png' for place in images.order[:5])
    assert [one.name for one in thumbnails(images, scored=5)] == scored
    (tmp_path / 'x.png').touch()
    assert try_thumbnails(CalibrationSet(ImageFolder(tmp_path), 32)) == []
    assert 'were not at hand' in selection_page(make_result())


def test_the_figure_is_part_of_the_page(tmp_path):
    """It takes the page's colors, says what each point is, and is followed by what to copy."""
    path = save_selection_page(make_result(), tmp_path)
    html = path.read_text(encoding='utf-8')
    figure = html[html.index('<svg') : html.index('</svg>')]
    assert '#000000' not in figure and 'var(--ink)' in figure and 'var(--accent)' in figure
    assert '>timestep (0 = clean)</text>' in figure
    dom = dom_of(path, tmp_path)
    assert 'data-error' not in dom
    spoken = re.findall(r'<circle [^>]*class="hit"[^>]*><title>(.*?)</title>', dom)
    assert len(spoken) == 3 + 4  # a point without a score is not drawn
    assert spoken[1] == 't = 100: 0.4000 ± 0.0200 (sigma 0.10)'
    for part in ('blocks=[3]', "feature='query'", 'timestep=100', '--timestep 100 --blocks 3'):
        assert part in html.replace('&#39;', "'"), part


def test_images_around_the_pick(tiny_dit, photos, tmp_path):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[1, 3])
    images = CalibrationSet(ImageFolder(photos), 32, num_images=12)
    result = replace(make_result(), cells=[(3, 'query')], timestep=300, num_images=12)
    strip = selection_strip(dit, images, result)
    assert strip.timesteps == (0, 150, 300, 400, 500) and strip.pick == 300
    assert strip.title == 'query of block 3' and len(strip.images) == 3
    # They are the first three that were scored, as the model was given them.
    first = resize_and_crop(images.image(images.order[0]), 32).astype(int)
    assert np.array_equal(strip.images[0], first)
    html = selection_page(result, strip=strip)
    assert html.count('<img class="tokens"') == 15 and 't = 300 &#9733;' in html
    assert try_strip(dit, CalibrationSet(ImageFolder(photos), 32), result) is not None
    assert strip_timesteps(0, 1000) == (0, 125, 250, 500)
    assert strip_timesteps(999, 1000) == (0, 499, 500, 999)
    broken = tmp_path / 'x.png'
    broken.touch()
    assert try_strip(dit, CalibrationSet(ImageFolder(tmp_path), 32), result) is None
