# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a look gathers, its figures, and its page."""

import base64
import io
import re
import urllib.parse
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from browser import dom_of
from matplotlib.figure import Figure
from PIL import Image

from mmaselect.apis import select_timestep
from mmaselect.look import (
    colors_figure,
    look_at,
    look_page,
    save_look_page,
    similarity,
    similarity_figure,
    token_colors,
)
from mmaselect.look.colors import token_scores, turned_to
from mmaselect.look.gathering import look_size
from mmaselect.look.position import colored_noise, position_map
from mmaselect.look.similarity import pack_tokens
from mmaselect.report.plot import figure_pixels


@pytest.fixture(scope='module')
def look(tiny_dit, photos):
    """Three images, two blocks, three timesteps and the pick."""
    images = [f'{photos}/{n:02d}.png' for n in range(3)]
    selection = select_timestep(
        tiny_dit, photos, timesteps=[150, 450], num_images=4, image_size=32, cache=False,
        progress=False,
    )  # fmt: skip
    return look_at(
        images, tiny_dit, timesteps=[0, 300, 900], blocks=[1, 3], image_size=(32, 48),
        selection=selection, progress=False,
    )  # fmt: skip


def test_a_selection_of_another_model_is_refused(look, photos):
    for model, options in (
        ('mmaselect://dit_digits', {}),
        ('mmaselect://dit_cifar10', dict(blocks=[1])),
    ):
        with pytest.raises(ValueError, match='the selection was made with another model'):
            look_at(f'{photos}/00.png', model, selection=look.selection, **options, progress=False)


def test_colors_are_those_of_the_main_directions():
    """Two kinds of tokens in two images: two colors, the same in both images."""
    kinds = torch.randn(2, 16)
    where = torch.randint(0, 2, (2, 5, 6))
    maps = kinds[where].permute(0, 3, 1, 2)
    colors = token_colors(maps)
    for kind in (0, 1):
        (color,) = np.unique(colors[where.numpy() == kind].reshape(-1, 3), axis=0)
        assert color[0] in (0, 255) and color[1:].tolist() == [128, 128]
    assert not np.array_equal(colors[where.numpy() == 0][0], colors[where.numpy() == 1][0])
    # No information, no color.
    assert np.ptp(token_colors(torch.ones(1, 4, 3, 3))) == 0
    with pytest.raises(ValueError, match=r'\(images, C, h, w\)'):
        token_colors(torch.ones(4, 3, 3))


def test_scores_are_pca_and_turning_restores_colors():
    from sklearn.decomposition import PCA

    torch.manual_seed(3)
    maps = torch.randn(2, 8, 6, 5) * torch.linspace(5, 0.1, 8)[:, None, None]
    scores = token_scores(maps)
    tokens = maps.permute(0, 2, 3, 1).reshape(-1, 8).numpy()
    expected = PCA(3, whiten=True).fit_transform(tokens)
    found = scores.reshape(-1, 3).numpy()
    for axis in range(3):
        assert abs(np.corrcoef(expected[:, axis], found[:, axis])[0, 1]) > 0.999
    assert np.allclose(found.std(0), 1, atol=1e-3)
    mixed = scores[..., [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0])
    assert torch.allclose(turned_to(mixed, scores), scores, atol=1e-4)


def test_similarity_is_the_cosine():
    maps = torch.randn(2, 7, 3, 4)
    found = similarity(maps, image=1, row=2, column=0)
    expected = torch.cosine_similarity(maps, maps[1, :, 2, 0][None, :, None, None], dim=1)
    assert torch.allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match='row must be from 0 to 2'):
        similarity(maps, 0, 3, 0)


@pytest.mark.parametrize('dimensions', [64, 4])
def test_packed_tokens_say_how_exact_they_are(dimensions):
    maps = torch.randn(2, 24, 6, 6) + 1
    packed = pack_tokens(maps, dimensions)
    values = packed.values.astype(np.float64)
    found = np.einsum('nhwd,d->nhw', values, values[0, 1, 2]) * packed.scale
    error = np.abs(found - similarity(maps, 0, 1, 2).numpy()).mean()
    assert packed.values.shape == (2, 6, 6, min(dimensions, 24))
    if dimensions == 64:
        assert error < 0.01 and packed.error < 0.01
    else:
        assert 0.02 < packed.error < 0.3 and error < 3 * packed.error


def test_what_is_gathered(look, tiny_dit, photos):
    assert look.timesteps == tuple(sorted({0, 300, 900, look.pick}))
    assert look.noise_levels[0] < look.noise_levels[-1] <= 1
    assert look.images.shape == (3, 32, 48, 3) and look.names[2] == '02.png'
    for values, colors in zip(look.maps.values(), look.colors.values(), strict=True):
        assert values.shape == (3, 16, 8, 12) and colors.shape == (3, 8, 12, 3)
    # As the extractor reads them, for an image with the first noise.
    from mmaselect import FeatureExtractor

    extract = FeatureExtractor(tiny_dit, 300, blocks=[1, 3])
    alone = extract(look.images[0])[3, 'query']
    assert torch.allclose(alone[0], look.maps[300, (3, 'query')][0], atol=1e-5)
    # Each image has noise of its own: two copies of an image differ.
    twice = look_at([look.images[0]] * 2, extract.dit, timesteps=[900], progress=False)
    assert not torch.allclose(*twice.maps[900, (3, 'query')])
    assert look_size(extract.dit) == 128  # its own 32 pixels are 8 tokens
    with pytest.raises(ValueError, match='images is empty'):
        look_at([], extract.dit)


def test_what_depends_on_position_alone_is_found():
    """Maps of content and a pattern of positions: the mean over images leaves the pattern."""
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(6, 5, 7, generator=generator)
    content = torch.randn(4000, 6, 5, 7, generator=generator)
    found = position_map(content + pattern + 3)
    expected = pattern - pattern.mean((1, 2), keepdim=True)
    assert (found - expected).abs().max() < 5 / 4000**0.5
    assert found.mean((1, 2)).abs().max() < 1e-6


def test_images_of_noise_have_the_spectrum_of_photographs():
    images = colored_noise(32, (64, 64), seed=1)
    assert images.dtype == np.uint8 and images.shape == (32, 64, 64, 3)
    assert np.array_equal(images[:4], colored_noise(32, (64, 64), seed=1)[:4])
    power = np.abs(np.fft.fft2(images.astype(float).mean(-1))) ** 2
    power = power.mean(0)
    # Power falls with the square of the frequency: 4 -> 16 cycles is a factor of 16.
    assert 8 < power[0, 4] / power[0, 16] < 32
    # Nothing stands at a place of its own.
    assert images.mean((0, 3)).std() < images.std() / 3


def test_positions_are_taken_out(look, photos, tiny_dit):
    """From images of noise where few are given, from the given ones where they are many."""
    for where, values in look.maps.items():
        assert look.positions[where].shape == values.shape[1:]
        assert torch.equal(look.content(*where), values - look.positions[where])
        assert not np.array_equal(look.content_colors[where], look.colors[where])
    none = look_at(
        [f'{photos}/00.png'], tiny_dit, timesteps=[0], position_images=0, progress=False
    )  # fmt: skip
    assert none.positions == {} and none.content_colors == {}
    assert torch.equal(none.content(*next(iter(none.maps))), next(iter(none.maps.values())))
    given = [f'{photos}/{number:02d}.png' for number in range(4)]
    many = look_at(given, tiny_dit, timesteps=[0], position_images=4, progress=False)
    for where, values in many.maps.items():
        assert torch.equal(many.positions[where], position_map(values))
    with pytest.raises(ValueError, match='position_images must be at least 0'):
        look_at(given, tiny_dit, position_images=-1)


def test_the_noisy_input_is_shown(look, tiny_dit):
    clean, noisy = look.inputs[0].astype(int), look.inputs[900].astype(int)
    assert set(look.inputs) == set(look.timesteps)
    assert clean.shape[0] == 3 and clean.shape[-1] == 3
    assert (
        np.abs(clean[..., 1:, :] - clean[..., :-1, :]).mean()
        < np.abs(noisy[..., 1:, :] - noisy[..., :-1, :]).mean()
    )


def test_figures(look):
    figure = colors_figure(look)
    assert isinstance(figure, Figure) and len(figure.axes) == (1 + len(look.timesteps)) * 6
    assert f't = {look.pick} (pick)' in [axis.get_ylabel() for axis in figure.axes]
    assert np.ptp(figure_pixels(figure)) == 255
    kept = colors_figure(look, position=True)
    shown = [one.axes[6].images[0].get_array() for one in (kept, figure)]
    assert not np.array_equal(*shown)
    figure = similarity_figure(look, image=1, row=7, column=11, key=(3, 'query'))
    assert len(figure.axes) == (1 + len(look.timesteps)) * 3
    with pytest.raises(ValueError, match=r'key must be one of \[\(1'):
        similarity_figure(look, 0, 0, 0, key=(2, 'query'))
    with pytest.raises(ValueError, match='images must be from 0 to 2'):
        colors_figure(look, [3])


def test_page_is_whole_and_safe(look, tiny_dit):
    html = look_page(look)
    assert not re.search(r'(src|href)="(?!data:|#|\$)', html) and 'http' not in html.replace(
        'http://www.w3.org', ''
    )
    assert f't = {look.pick} &#9733;' in html
    named = look_at(
        [Image.new('RGB', (32, 32))], tiny_dit, timesteps=[0], progress=False,
        name='</script><b>x</b>',
    )  # fmt: skip
    assert '<b>x</b>' not in look_page(named)


def test_a_click_shows_where_a_token_recurs(look, tmp_path):
    """In a browser: colors first; a click gives each cell's best match, as computed here."""
    page = save_look_page(look, tmp_path / 'look.html')
    assert 'data-state="colors"' in dom_of(page, tmp_path)
    click = (
        'const tile = document.querySelector(\'.map[data-row="0"][data-slot="0"]\');'
        'const box = tile.getBoundingClientRect();'
        'tile.querySelector("canvas").dispatchEvent(new MouseEvent("click", {bubbles: true, '
        'clientX: box.left + box.width * 7.5 / 12, clientY: box.top + box.height * 2.5 / 8}));'
    )
    address = 'first=0&second=1&image=0&row=2&column=7'
    for fragment, script in (('', click), (address, ''), (address + '&view=raw', '')):
        dom = dom_of(page, tmp_path, fragment, script)
        assert 'data-error' not in dom and 'data-state="similarity"' in dom
        tiles = re.findall(
            r'<div class="tile map second" data-row="(\d+)" data-column="(\d+)" data-slot="1" '
            r'data-best="(\d+),(\d+)" data-cosine="([-.\d]+)">',
            dom,
        )
        assert len(tiles) == len(look.timesteps) * 2
        for row, column, best_row, best_column, cosine in tiles:
            where = look.timesteps[int(row)], look.keys[int(column)]
            values = look.maps[where] if 'view=raw' in fragment else look.content(*where)
            found = similarity(values, 0, 2, 7)[1]
            # 8-bit tokens: what the browser found is as good as the best, to their precision.
            assert found[int(best_row), int(best_column)] > found.max() - 0.02
            assert abs(float(cosine) - found.max()) < 0.02


def test_matches_sizes_and_pictures(look, tmp_path):
    """In a browser: lines between mutual best matches, and files of what is shown."""
    page = save_look_page(look, tmp_path / 'look.html')
    dom = dom_of(page, tmp_path, 'matched=0,1')
    assert 'data-error' not in dom
    pairs = int(re.search(r"(\d+) pairs of tokens are each other's best match", dom)[1])
    lines = re.search(r'<svg id="lines".*?</svg>', dom, re.S)[0]
    assert pairs > 0 and lines.count('<line') == pairs and lines.count('<circle') == 2 * pairs
    # As found here.
    values = look.content(look.timesteps[0], look.keys[1])[:2]
    tokens = torch.nn.functional.normalize(values, dim=1).flatten(2)
    cosines = tokens[0].T @ tokens[1]
    mutual = (cosines.argmax(0)[cosines.argmax(1)] == torch.arange(len(cosines))).sum()
    assert pairs <= mutual + 2

    # A headless browser waits for a download that nobody takes: the address is enough.
    kept = 'HTMLAnchorElement.prototype.click = () => {};'
    dom = dom_of(page, tmp_path, script=kept + "byId('svg').click();")
    saved = urllib.parse.unquote(re.search(r'data-saved="data:image/svg[^,]*,([^"]+)"', dom)[1])
    drawing = ElementTree.fromstring(saved)
    tiles = drawing.findall('{http://www.w3.org/2000/svg}image')
    assert len(tiles) == len(look.timesteps) * 3 * 2
    texts = [one.text for one in drawing.findall('{http://www.w3.org/2000/svg}text')]
    assert f't = {look.pick} \u2605' in texts
    dom = dom_of(page, tmp_path, script=kept + "byId('inputs').click(); byId('png').click();")
    encoded = re.search(r'data-saved="data:image/png;base64,([^"]+)"', dom)[1]
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.height == 28 + len(look.timesteps) * (4 * 12 + 6)
