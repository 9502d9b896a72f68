# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import pytest

from mmaselect.analysis.probe_table import scores_over
from mmaselect.analysis.result_folder import ResultFolder
from mmaselect.analysis.scores import score_grid, score_timestep, usable_criteria
from mmaselect.selection import Sweep
from mmaselect.selection.scoring import build_criteria

CROSS, PLAIN = dict(type='CrossSpectrumHFR'), dict(type='HighFrequencyRatio', cutoff=0.25)


@pytest.mark.parametrize('deciding', [CROSS, PLAIN, dict(type='FisherScore', num_classes=3)])
def test_equals_a_sweep(open_with, classification_config, deciding):
    study = open_with(classification_config, '--blocks', '1', '4', '--batch-size', '4')
    images = study.images('train', 9)
    options = dict(timesteps=[0, 300], criterion=deciding, others=(), batch_size=3)
    result = Sweep(study.dit, images, options).run(progress=False)
    encoded = study.encode(images).images
    criteria = build_criteria([CROSS, PLAIN, dict(type='FisherScore', num_classes=3)])
    for index, step in enumerate((0, 300)):
        rows = score_timestep(encoded, step, criteria)
        assert len(rows) == 3 * 2
        for curve in result.per_tap:
            found = scores_over([dict(criteria=rows)], deciding['type'], (curve.block, 'query'))
            assert found[0] == pytest.approx(curve.points[index].score, rel=1e-5)


def test_label_maps_reach_the_fisher_score(open_with, segmentation_config):
    study = open_with(segmentation_config)
    images = study.images('train', None).with_views(study.selection.views)
    rows = score_timestep(study.encode(images).images, 0, study.criteria(fisher=True))
    (fisher,) = (row['score'] for row in rows if row['criterion'] == 'FisherScore')
    assert fisher > 0.1, 'dark and bright'


def test_features_that_overflow_leave_no_score(open_with, classification_config):
    study = open_with(classification_config)
    encoded = study.encode(study.images('train', 3)).images
    latent, labels, positions = encoded._batches[0]
    encoded._batches[0] = (latent * float('inf'), labels, positions)
    (row,) = score_timestep(encoded, 0, build_criteria([PLAIN]))
    assert (row['score'], row['std']) == (None, None)


def test_features_that_overflow_in_one_block_rule_the_timestep_out(
    open_with, classification_config, monkeypatch
):
    """As in a sweep, which cannot pick it either."""
    study = open_with(classification_config, '--blocks', '1', '4')
    images = study.images('train', 3)
    encoded = study.encode(images).images
    features = study.dit.features

    def overflow(latent, timestep, noise):
        maps = features(latent, timestep, noise)
        return {**maps, (4, 'query'): maps[4, 'query'] * (1e30 if timestep == 0 else 1)}

    monkeypatch.setattr(study.dit, 'features', overflow)
    broken, whole = (score_timestep(encoded, step, build_criteria([PLAIN])) for step in (0, 300))
    assert [row['score'] for row in broken] == [None, None]
    assert all(row['score'] > 0 for row in whole)
    options = dict(timesteps=[0, 300], criterion=PLAIN, others=())
    result = Sweep(study.dit, images, options).run(progress=False)
    assert result.timestep == 300
    assert [curve.points[0].score for curve in result.per_tap] == [None, None]


def test_undefined_criteria_are_named(open_with, classification_config):
    study = open_with(classification_config, '--image-size', '8')
    encoded = study.encode(study.images('train', 2)).images
    criteria = build_criteria([CROSS, PLAIN, dict(type='HighFrequencyRatio', dims='channels')])
    usable, reasons = usable_criteria(encoded, criteria)
    assert list(usable) == ['HighFrequencyRatio-2']
    assert 'leaves no low frequency' in reasons['CrossSpectrumHFR']
    assert 'leaves no low frequency' in reasons['HighFrequencyRatio']


def test_a_grid_is_resumed(open_with, classification_config, monkeypatch):
    study = open_with(classification_config)
    images = study.images('train', 4)
    folder = ResultFolder(study.out, study.settings())
    criteria = build_criteria([PLAIN])
    first = score_grid(study, folder, images, [0, 300], criteria)
    calls = []
    original = study.dit.features
    monkeypatch.setattr(study.dit, 'features', lambda *a: calls.append(a[1]) or original(*a))
    again = score_grid(study, folder, images, [0, 300], criteria)
    assert (again, calls) == (first, [])
    wider = score_grid(study, folder, images, [0, 100, 300], criteria)
    assert set(calls) == {0, 100}, '0 is where criteria are tried'
    assert [wider[0], wider[2]] == first


def test_nothing_usable_is_an_error(open_with, classification_config):
    study = open_with(classification_config, '--image-size', '8')
    folder = ResultFolder(study.out, study.settings())
    with pytest.raises(ValueError, match='no criterion is defined for feature maps of this size'):
        score_grid(study, folder, study.images('train', 2), [0], build_criteria([CROSS]))
