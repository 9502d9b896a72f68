# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Block, feature and timestep picked together."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping import stop_after

from mmaselect import FeatureExtractor, select
from mmaselect.apis import FeaturesOnly
from mmaselect.cli import main
from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.families import Family
from mmaselect.diffusion.pass_cost import count_flops
from mmaselect.diffusion.place_search import BlockSearch
from mmaselect.registry import CRITERIA
from mmaselect.report import selection_page
from mmaselect.report.plot import selection_figure
from mmaselect.selection import (
    CalibrationSet,
    ImageFolder,
    SelectionCache,
    SelectionResult,
    Sweep,
)
from mmaselect.selection.arms import Places
from mmaselect.selection.criteria import PerImageCriterion

GRID = [0, 100, 300, 600, 900]
FEATURES = ('query', 'key', 'value', 'attention', 'output')
#: The tiny model has six blocks, and its middle one is the fourth.
CELLS = [(block, name) for block in range(6) for name in FEATURES]


@CRITERIA.register_module()
class MeanOfSquares(PerImageCriterion):
    """Differs by orders of magnitude from feature to feature, so that places are told apart."""

    race_from = 4

    def per_image(self, feature):
        return feature.float().square().mean((1, 2, 3))


@CRITERIA.register_module()
class Alike(PerImageCriterion):
    """The same number for an image, whatever was read."""

    def per_image(self, feature):
        return torch.arange(len(feature), device=feature.device).float()


OPTIONS = dict(criterion='MeanOfSquares', others=['PaperHFR'], batch_size=3, timesteps=GRID)


def make_sweep(folder, photos, blocks='auto', features='auto', cache=None, **options):
    dit = FrozenDiT.from_pretrained(folder, blocks=blocks, features=features)
    images = CalibrationSet(ImageFolder(photos), 32, num_images=20)
    return Sweep(dit, images, {**OPTIONS, **options}, cache)


def without_seconds(result):
    return {**result.to_dict(), 'seconds': 0}


@pytest.fixture(scope='module')
def full(tiny_dit, photos):
    return make_sweep(tiny_dit, photos, method='full').run(progress=False)


@pytest.fixture(scope='module')
def raced(tiny_dit, photos):
    return make_sweep(tiny_dit, photos).run(progress=False)


# -- what users write -----------------------------------------------------------------------------
def test_what_a_search_asks_for():
    assert BlockSearch.parse('auto') == BlockSearch()
    assert BlockSearch.parse('auto:4') == BlockSearch(4)
    assert BlockSearch.parse('auto:<=30') == BlockSearch(1, 30)
    assert BlockSearch.parse('auto:2:<=3').candidates(5, 'X') == (0, 1, 2, 3)
    for wrong in ('all', 'auto:', 'auto:0', 'auto:-1', 'auto:<30', '4', ''):
        with pytest.raises(ValueError, match="blocks must be block numbers, 'auto'"):
            BlockSearch.parse(wrong)
    with pytest.raises(ValueError, match='block 5 is out of range: this X has 5 blocks, 0 to 4'):
        BlockSearch.parse('auto:<=5').candidates(5, 'X')


def test_places_that_are_searched(tiny_dit):
    def places(blocks, features):
        return Places.of(FrozenDiT.from_pretrained(tiny_dit, blocks=blocks, features=features))

    joint = places('auto', 'auto')
    assert joint.groups == tuple((cell,) for cell in CELLS) and joint.published is None
    assert places('auto:<=1', 'key').groups == (((0, 'key'),), ((1, 'key'),))
    one_feature = places([1, 3], 'auto')
    assert len(one_feature.groups) == 5 and one_feature.groups[0] == ((1, 'query'), (3, 'query'))
    assert places('auto:2', 'query').groups == (tuple((block, 'query') for block in range(6)),)
    plain = places([1, 3], ['query', 'key'])
    assert not plain.are_searched and plain.settings() == {} and len(plain.groups[0]) == 4
    with pytest.raises(ValueError, match='7 blocks are wanted of 6'):
        places('auto:7', 'query')


# -- the pick -------------------------------------------------------------------------------------
def test_the_pick_is_the_best_cell_of_a_plain_loop(tiny_dit, photos, full):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=list(range(6)), features=FEATURES)
    images = CalibrationSet(ImageFolder(photos), 32, num_images=20)
    plain = Sweep(dit, images, {**OPTIONS, 'method': 'full'}).run(progress=False)
    best = max(plain.per_tap, key=lambda curve: curve.best.score)
    assert full.cells == [(best.block, best.feature)] and full.timestep == best.timestep
    assert (full.blocks, full.feature) == ([best.block], best.feature)
    assert full.curve.scores == pytest.approx(best.scores, rel=1e-6)
    assert len(full.per_tap) == len(CELLS)
    assert full.model_evaluations == 20 * len(GRID)
    full.check()


def test_the_race_over_cells_picks_the_same_with_fewer_passes(tiny_dit, photos, full, raced):
    assert raced.cells == full.cells and raced.timestep == full.timestep
    assert raced.model_evaluations < full.model_evaluations
    place = GRID.index(raced.timestep)
    if raced.num_images == full.num_images:
        assert raced.curve.scores[place] == pytest.approx(full.curve.scores[place], rel=1e-6)
    raced.check()
    sweep = make_sweep(tiny_dit, photos)
    counted = dict(passes=0)
    sweep.dit.transformer.register_forward_pre_hook(
        lambda module, args: counted.update(passes=counted['passes'] + len(args[0]))
    )
    again = sweep.run(progress=False)
    assert counted['passes'] == 1 + raced.model_evaluations  # one is to count FLOPs
    assert without_seconds(again) == without_seconds(raced)


def test_the_cost_weighs_the_depth_of_each_pass(tiny_dit, photos, full, raced):
    assert full.cost.of_full == 1 and full.cost.default == (3, 'query')
    sweep = make_sweep(tiny_dit, photos)
    flops = count_flops(sweep.dit, 32)
    read, spent = sweep.dit.features, []

    def noted(latent, timestep, noise, keys=None):
        spent.append(len(latent) * max(flops[key] for key in keys or sweep.dit.keys))
        return read(latent, timestep, noise, keys)

    sweep.dit.features = noted
    assert sweep.run(progress=False).cost == raced.cost
    assert raced.cost.flops == sum(spent)
    whole = max(flops.values()) * 20 * len(GRID)
    assert raced.cost.of_full == pytest.approx(sum(spent) / whole)
    ratio = raced.cost.of_default / raced.cost.of_full
    assert ratio == pytest.approx(max(flops.values()) / flops[3, 'query'])
    # The race leaves the last block: what is left is cheaper than the number of its passes says.
    assert raced.cells == [(3, 'output')]
    assert raced.cost.of_full < raced.model_evaluations / full.model_evaluations
    assert str(raced.cost).startswith(f'in FLOPs {100 * raced.cost.of_full:.0f} % of a full sweep')


def test_what_a_search_takes_is_said_before_it_starts(tiny_dit, photos, caplog):
    def said(**search):
        caplog.clear()
        make_sweep(tiny_dit, photos, timesteps=[0], **search).run(progress=False)
        return [text for text in caplog.messages if 'a search of' in text]

    (joint,) = said()
    assert joint == (
        'A-SelecT: a search of 6 blocks and 5 features holds 229 KiB of weights, and takes up to '
        '4.1 MFLOP for a pass of an image; the default, query of block 3, 155 KiB and 2.14 MFLOP '
        "(1.9 times less). To search up to block 3 only: blocks='auto:<=3'"
    )
    (four,) = said(blocks='auto:4', features='query')
    assert 'a search of 6 blocks and 1 feature holds' in four and "'auto:4:<=3'" in four
    (few,) = said(blocks='auto:<=2')
    assert few.endswith('a pass of an image') and 'default' not in few
    (features,) = said(blocks=[1, 3])
    assert features.endswith(
        ': a search of 5 features takes up to 2.77 MFLOP for a pass of an image; query alone 2.14 '
        'MFLOP'
    )
    assert said(blocks=[1, 3], features='query') == []


@pytest.mark.parametrize('blocks', ['auto', 'auto:2'])
def test_a_search_takes_as_many_images_as_it_needs(tiny_dit, photos, monkeypatch, blocks):
    monkeypatch.setattr('mmaselect.selection.options.FIRST_IMAGES', 8)
    result = make_sweep(tiny_dit, photos, blocks=blocks).run(progress=False)
    assert result.decided and result.num_images == 8
    assert 0.9 < result.cost.of_full <= 1  # of a sweep of eight images
    # Beyond the 16 that the criterion asks for, equals are no reason to take more.
    tied = make_sweep(tiny_dit, photos, blocks=blocks, criterion='Alike').run(progress=False)
    assert not tied.decided and tied.images_needed is None and tied.num_images == 16


def test_a_pass_ends_at_the_deepest_cell_that_is_left(tiny_dit, photos):
    sweep = make_sweep(tiny_dit, photos, blocks='auto:<=3')
    blocks = sweep.dit.transformer.transformer_blocks
    assert len(blocks) == 4
    latent = torch.zeros(1, 3, 32, 32)
    ran = []
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *args, number=number: ran.append(number))
    maps = sweep.dit.features(latent, 100, latent, [(1, 'query'), (2, 'key')])
    assert list(maps) == [(1, 'query'), (2, 'key')] and ran == [0, 1, 2]


def test_a_fixed_timestep_and_one_feature(tiny_dit, photos):
    result = make_sweep(tiny_dit, photos, blocks=[1, 3], timesteps=300).run(progress=False)
    assert result.timestep == 300 and [block for block, _ in result.cells] == [1, 3]
    assert result.interval is None and str(result) == '300'
    assert len({feature for _, feature in result.cells}) == 1


def test_several_blocks_are_those_that_score_best_at_one_timestep(tiny_dit, photos, full):
    result = make_sweep(tiny_dit, photos, blocks='auto:2', method='full').run(progress=False)
    assert len(result.cells) == 2 and result.blocks == sorted(set(result.blocks))
    at = GRID.index(result.timestep)
    scores = {(c.block, c.feature): c.points[at].score for c in full.per_tap}
    best = {
        name: sorted(((scores[block, name], block) for block in range(6)), reverse=True)[:2]
        for name in FEATURES
    }
    means = {name: np.mean([score for score, _ in pairs]) for name, pairs in best.items()}
    name = max(means, key=means.get)
    assert result.cells == [(block, name) for block in sorted(block for _, block in best[name])]
    assert result.curve.best.score == pytest.approx(means[name], rel=1e-6)
    result.check()


def test_a_published_place_stays_where_images_cannot_tell(tiny_dit, photos, monkeypatch):
    """That of SD3, say; a middle block that nobody has published gives way to the best."""
    monkeypatch.setattr(Family, 'published_block', 3)
    result = make_sweep(tiny_dit, photos, criterion='Alike', others=(), timesteps=[0, 500]).run(
        progress=False
    )
    assert result.cells == [(3, 'query')] and result.decided is False
    (said,) = [warning.text for warning in result.warnings if warning.code == 'place']
    assert said.startswith('the place is undecided: 30 places cannot be told from')
    assert 'the published place, query of block 3, is kept' in said


# -- kept, resumed, shared ------------------------------------------------------------------------
def test_a_stored_pick_is_found_and_another_search_is_another(tiny_dit, photos, raced, tmp_path):
    cache = SelectionCache(tmp_path)
    first = make_sweep(tiny_dit, photos, cache=cache)
    first.run(progress=False)
    again = make_sweep(tiny_dit, photos, cache=cache)
    found = again.run(progress=False)
    assert again.was_stored and found.cells == raced.cells
    assert SelectionResult.load(first.stored_at).cells == raced.cells
    assert found.cost == raced.cost
    other = make_sweep(tiny_dit, photos, blocks='auto:<=3', cache=cache)
    other.run(progress=False)
    assert not other.was_stored


@pytest.mark.parametrize('passes', [3, 12])
def test_a_killed_search_resumes_where_it_was(
    tiny_dit, photos, raced, tmp_path, passes, monkeypatch
):
    monkeypatch.setattr('mmaselect.selection.partial.SAVE_SECONDS', 0)
    monkeypatch.setattr('mmaselect.selection.partial._SHARE_OF_TIME', 0)
    cache = SelectionCache(tmp_path)
    sweep = make_sweep(tiny_dit, photos, cache=cache)
    stop_after(sweep.dit, passes)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(progress=False)
    again = make_sweep(tiny_dit, photos, cache=cache)
    assert without_seconds(again.run(progress=False)) == without_seconds(raced)


def _rank(rank, folder, photos, out):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{out}/store', rank=rank, world_size=2
    )
    result = make_sweep(folder, photos).run(progress=False)
    (Path(out) / f'rank{rank}.json').write_text(json.dumps(without_seconds(result)))
    torch.distributed.destroy_process_group()


def test_two_ranks_pick_the_place_that_one_picks(tiny_dit, photos, raced, tmp_path):
    context = torch.multiprocessing.get_context('fork')
    ranks = [
        context.Process(target=_rank, args=(rank, tiny_dit, photos, str(tmp_path)))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    one, two = (json.loads((tmp_path / f'rank{rank}.json').read_text()) for rank in range(2))
    assert one == two
    result = SelectionResult.from_dict(one)
    assert (result.cells, result.timestep) == (raced.cells, raced.timestep)
    assert (result.model_evaluations, result.cost) == (raced.model_evaluations, raced.cost)
    assert result.curve.scores == pytest.approx(raced.curve.scores, rel=1e-5)


# -- the model afterwards -------------------------------------------------------------------------
def test_what_is_left_is_the_model_of_the_picked_place(tiny_dit):
    searched = FrozenDiT.from_pretrained(tiny_dit, blocks='auto', features='auto')
    searched.settle([(2, 'attention')])
    plain = FrozenDiT.from_pretrained(tiny_dit, blocks=2, features='attention')
    assert searched.keys == plain.keys and searched.maps == plain.maps and searched.search is None
    names = [name for name, _ in plain.named_parameters()]
    assert [name for name, _ in searched.named_parameters()] == names
    latent = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = (dit.features(latent, 100, latent) for dit in (searched, plain))
    assert torch.equal(one[2, 'attention'], other[2, 'attention'])
    with pytest.raises(ValueError, match='not among the places that were searched'):
        searched.settle([(4, 'query')])


# -- faces ----------------------------------------------------------------------------------------
@pytest.fixture
def options(tmp_path):
    return dict(timesteps=[0, 300], criterion='MeanOfSquares', others=(), cache_dir=tmp_path / 'c')


def test_the_extractor_reads_at_the_picked_place(tiny_dit, photos, options):
    result = select(
        tiny_dit, photos, blocks='auto', feature='auto', image_size=32, progress=False, **options
    )
    extract = FeatureExtractor(
        tiny_dit, 'auto', blocks='auto', features='auto', image_size=32, calibration=photos,
        selection=options,
    )  # fmt: skip
    assert extract.selection_result.to_dict() == result.to_dict()
    assert list(extract.keys) == result.cells and extract.timestep == result.timestep
    named = FeatureExtractor(
        tiny_dit, result.timestep, result.blocks, result.feature, image_size=32
    )
    image = np.full((32, 32, 3), 90, np.uint8)
    assert torch.equal(extract(image)[result.cells[0]], named(image)[result.cells[0]])
    fixed = FeatureExtractor(
        tiny_dit, 300, blocks='auto:2', image_size=32, calibration=photos, selection=options
    )
    assert fixed.timestep == 300 and len(fixed.keys) == 2
    assert {feature for _, feature in fixed.keys} == {'query'}


def test_timm_s_face(tiny_dit, photos, options):
    options['image_size'] = 32
    model = FeaturesOnly(
        tiny_dit, 'auto', out_indices='auto:2', feature='auto', calibration=photos,
        selection=options,
    )  # fmt: skip
    assert len(model.feature_info.channels()) == len(model(torch.zeros(1, 3, 32, 32))) == 2


def test_the_command(tiny_dit, photos, tmp_path, capsys):
    command = ['select', photos, '--pretrained', tiny_dit, '--timesteps', '0,300', '--no-cache']
    place = ['--blocks', 'auto', '--feature', 'auto', '--criterion', 'MeanOfSquares']
    assert main([*command, *place, '--image-size', '32', '--out', str(tmp_path)]) == 0
    result = SelectionResult.load(tmp_path / 'selection.json')
    out = ' '.join(capsys.readouterr().out.split())
    assert f'{result.feature} of block {result.blocks[0]}, sigma' in out
    assert result.settings['search']['count'] is None
    page = selection_page(result)
    assert f'blocks={result.blocks}' in page
    assert main([*command, '--blocks', 'auto', '2']) == 1
    assert '--blocks auto leaves the choice open: give it alone' in capsys.readouterr().err


def test_the_figure_has_a_map_for_each_feature(full):
    figure = selection_figure(full)
    maps = [axis for axis in figure.axes if axis.get_ylabel().endswith('\nblock')]
    assert [axis.get_ylabel().partition('\n')[0] for axis in maps] == list(FEATURES)
    (stars,) = [axis for axis in maps if axis.lines]
    assert stars.get_ylabel().startswith(full.feature)
    assert stars.lines[0].get_xydata().tolist() == [[full.timestep, full.blocks[0]]]


def test_json_has_the_place(full, tmp_path):
    data = json.loads(full.save(tmp_path / 'selection.json').read_text())
    assert data['cells'] == [list(full.cells[0])]
    assert [*full.cells[0], full.timestep] in data['contenders']
    assert SelectionResult.load(tmp_path / 'selection.json').contenders == full.contenders
    del data['cells'], data['checksum']
    assert SelectionResult.from_dict(data).cells == []
