# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler

from mmaselect.analysis.linear_probe import STRENGTHS, ProbeOptions, fit_probe


def clusters(count, classes=3, channels=6, seed=0, spread=1.0):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((classes, channels)) * 2
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    # Channels of very different scales, as in a diffusion transformer.
    scale = 10.0 ** np.arange(-2, channels - 2)
    samples = (centres[labels] + spread * rng.standard_normal((count, channels))) * scale + scale
    return samples, labels


@pytest.mark.parametrize('classes', [2, 3])
def test_equals_scikit_learn_at_the_chosen_strength(classes):
    samples, labels = clusters(90, classes)
    probe = fit_probe(samples, labels, classes)
    scaler = StandardScaler().fit(samples)
    model = LogisticRegression(C=probe.strength, max_iter=500, tol=1e-3)
    model.fit(scaler.transform(samples), labels)
    test, truth = clusters(300, classes, seed=1)
    assert (probe.predict(test) == model.predict(scaler.transform(test))).all()
    assert (probe.predict(test) == truth).mean() > 0.9
    if classes > 2:
        logits = probe.logits(test)
        expected = model.decision_function(scaler.transform(test))
        np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], atol=1e-6)
    assert probe.converged


def test_one_strength_is_taken_as_it_is_and_nothing_is_held_out():
    samples, labels = clusters(90)
    probe = fit_probe(samples, labels, 3, ProbeOptions(strengths=(0.01,), holdout=0))
    assert (probe.strength, probe.holdout_accuracy) == (0.01, None)
    scaled = StandardScaler().fit_transform(samples)
    model = LogisticRegression(C=0.01, max_iter=500, tol=1e-3).fit(scaled, labels)
    logits, expected = probe.logits(samples), model.decision_function(scaled)
    np.testing.assert_allclose(logits - logits[:, :1], expected - expected[:, :1], atol=1e-6)
    with pytest.raises(ValueError, match='cannot be chosen from'):
        ProbeOptions(holdout=0)
    # Too few to hold some out, enough to fit on.
    fit_probe(samples[:3], labels[:3], 3, ProbeOptions(strengths=(0.01,), holdout=0))


def test_absent_classes_are_never_predicted():
    samples, labels = clusters(60)
    probe = fit_probe(samples, labels * 2 + 1, num_classes=8)
    assert set(probe.predict(samples)) == {1, 3, 5}
    assert np.isneginf(probe.bias[[0, 2, 4, 6, 7]]).all()


@pytest.mark.parametrize('shift, expected', [(0.12, 0.1), (0.2, 1.0)])
def test_strength_is_chosen_on_held_out_samples(shift, expected):
    """Independent: the likelihood of the held-out fifth, over all strengths.

    A faint difference among many channels of noise wants a stronger penalty than a clear one.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 2
    samples = rng.standard_normal((80, 400))
    samples[:, :40] += shift * (2 * labels[:, None] - 1)
    probe = fit_probe(samples, labels, 2)
    scaled = StandardScaler().fit_transform(samples)
    split = StratifiedShuffleSplit(n_splits=1, test_size=0.2, random_state=0)
    ((fit, held),) = split.split(samples, labels)
    losses = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=500, tol=1e-3)
        model.fit(scaled[fit], labels[fit])
        losses[strength] = log_loss(labels[held], model.predict_proba(scaled[held]))
    assert probe.strength == min(losses, key=losses.get) == expected


def test_groups_stay_together():
    """Pixels of an image resemble each other: where they leak, the held-out accuracy is 100 %."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    labels = rng.integers(0, 2, 40)[groups]
    samples = rng.standard_normal((40, 60))[groups] * 3 + 0.01 * rng.standard_normal((200, 60))
    options = ProbeOptions(strengths=(10.0,))
    assert fit_probe(samples, labels, 2, options).holdout_accuracy == 100
    assert fit_probe(samples, labels, 2, options, groups).holdout_accuracy < 80


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda x, y: (np.where(x == x[0], np.nan, x), y), 'not finite'),
        (lambda x, y: (x, y + 1), 'labels span 1 to 3, but there are 3 classes'),
        (lambda x, y: (x, y * 0), 'all of class 0'),
        (lambda x, y: (x[:4], y[:4]), r'the smallest has 1\): use more training images'),
    ],
)
def test_bad_samples(change, message):
    samples, labels = change(*clusters(30))
    with pytest.raises(ValueError, match=message):
        fit_probe(samples, labels, 3)


def test_iterations_that_run_out_are_told():
    samples, labels = clusters(90, spread=2.0)
    assert not fit_probe(samples, labels, 3, ProbeOptions(max_iter=1)).converged
