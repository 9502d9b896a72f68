# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Linear probes: a logistic regression on frozen features, of images or of pixels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

#: Raised whenever a change here could change a result, so that stored ones are not mixed with it.
PROBE_VERSION = 3
#: Values of scikit-learn's C that are tried: an inverse strength, times the sum of the losses.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True)
class ProbeOptions:
    """How probes are fitted.

    Attributes:
        strengths: Values of scikit-learn's C to choose from, increasing (weaker and weaker).
        holdout: Share of the training samples that the choice is made on. 0, which needs a single
            strength, holds none out.
        max_iter: Max iter of the L-BFGS solver.
        seed: Seed of the split, and of the choice of pixels.
        pixels_per_image: Segmentation: labeled pixels of each training image.
    """

    strengths: Sequence[float] = STRENGTHS
    holdout: float = 0.2
    max_iter: int = 500
    seed: int = 0
    pixels_per_image: int = 32

    def __post_init__(self) -> None:
        if self.pixels_per_image < 1:
            raise ValueError(f'pixels_per_image must be at least 1, got {self.pixels_per_image}')
        if not self.holdout and len(self.strengths) != 1:
            raise ValueError(
                f'without samples held out (holdout=0) a strength cannot be chosen from '
                f'{list(self.strengths)}: give one'
            )


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier of features as they are (standardization is folded in).

    Attributes:
        weight: (K, C).
        bias: (K,); -inf for classes that no training sample had.
        strength: The C that was chosen.
        holdout_accuracy: Accuracy on the held-out part, in percent, at that C; None if no sample
            was held out.
        converged: Whether the final fit converged within its iterations.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    holdout_accuracy: float | None
    converged: bool

    def logits(self, samples: np.ndarray) -> np.ndarray:
        """(N, K) for samples (N, C)."""
        return samples @ self.weight.T + self.bias

    def predict(self, samples: np.ndarray) -> np.ndarray:
        """Classes (N,) of samples (N, C)."""
        return self.logits(samples).argmax(1)


def fit_probe(
    samples: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    options: ProbeOptions = ProbeOptions(),
    groups: np.ndarray | None = None,
    tolerance: float = 1e-3,
) -> LinearProbe:
    """Fit a multinomial logistic regression with L2 regularization.

    Channels are standardized (those of diffusion transformers differ by orders of magnitude). The
    strength is chosen on a held-out part of the samples, from strong to weak until their
    likelihood falls; the final fit is on all of them. Test samples are never looked at.

    Args:
        samples: (N, C), finite.
        labels: (N,), 0..K-1.
        num_classes: K.
        options: See :class:`ProbeOptions`.
        groups: (N,), samples of one group (pixels of one image) stay on one side of the split.
            Without groups the split keeps the share of each class.
        tolerance: Tolerance of the solver. 1e-3 may stop it short of the optimum by a few tenths
            of a point of accuracy, in two thirds of the iterations that 1e-4 takes.

    Raises:
        ValueError: If samples are not finite, a label is out of range, or there are too few samples
            to hold some out.
    """
    if not np.isfinite(samples).all():
        raise ValueError(
            'features are not finite (NaN or infinity): use dtype="bf16" or "fp32" if this is an '
            'overflow'
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f'labels span {labels.min()} to {labels.max()}, but there are {num_classes} classes'
        )
    if len(np.unique(labels)) < 2:
        raise ValueError(
            f'the training samples are all of class {labels[0]}: a probe needs two classes or more'
        )
    mean = samples.mean(0, dtype=np.float64)
    std = samples.std(0, dtype=np.float64)
    std[std == 0] = 1.0
    scaled = (samples - mean) / std
    strength, accuracy = options.strengths[0], None
    if options.holdout:
        strength, accuracy = _choose_strength(scaled, labels, groups, options, tolerance)
    model = _new_classifier(options, tolerance)
    model.C = strength
    converged = _fit(model, scaled, labels)

    weight = np.zeros((num_classes, samples.shape[1]))
    bias = np.full(num_classes, -np.inf)
    if len(model.classes_) == 2:
        # One row of coefficients says how much likelier the second class is.
        weight[model.classes_[1]] = model.coef_[0] / std
        bias[model.classes_] = 0.0, model.intercept_[0] - (model.coef_[0] / std) @ mean
    else:
        weight[model.classes_] = model.coef_ / std
        bias[model.classes_] = model.intercept_ - (model.coef_ / std) @ mean
    return LinearProbe(weight, bias, strength, accuracy, converged)


def _choose_strength(
    scaled: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray | None,
    options: ProbeOptions,
    tolerance: float,
) -> tuple[float, float]:
    """The strength that is best on a held-out part, and the accuracy there in percent."""
    fit, held = _split(labels, groups, options)
    best, lowest, accuracy = options.strengths[0], np.inf, np.nan
    model = _new_classifier(options, tolerance)
    for strength in options.strengths:
        model.C = strength
        _fit(model, scaled[fit], labels[fit])
        loss = _log_loss(model, scaled[held], labels[held])
        if loss >= lowest:
            break
        best, lowest = strength, loss
        accuracy = 100 * float((model.predict(scaled[held]) == labels[held]).mean())
    return best, accuracy


def _new_classifier(options: ProbeOptions, tolerance: float) -> LogisticRegression:
    return LogisticRegression(max_iter=options.max_iter, warm_start=True, tol=tolerance)


def _log_loss(model: LogisticRegression, samples: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood; a class that the model was not fitted on counts as 1e-12.

    It is smooth where accuracy on a few hundred samples is a staircase with noise on it.
    """
    likelihood = np.full((len(labels), max(labels.max(), model.classes_.max()) + 1), 1e-12)
    likelihood[:, model.classes_] = model.predict_proba(samples).clip(min=1e-12)
    return float(-np.log(likelihood[np.arange(len(labels)), labels]).mean())


def _fit(model: LogisticRegression, samples: np.ndarray, labels: np.ndarray) -> bool:
    """Fit; False if the solver ran out of iterations."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model.fit(samples, labels)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _split(
    labels: np.ndarray, groups: np.ndarray | None, options: ProbeOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of what is fitted, and of what the strength is chosen on."""
    splitter = StratifiedShuffleSplit if groups is None else GroupShuffleSplit
    split = splitter(n_splits=1, test_size=options.holdout, random_state=options.seed)
    try:
        return next(split.split(labels[:, None], labels, groups))
    except ValueError as error:
        counts = np.bincount(labels)
        raise ValueError(
            f'{len(labels)} training samples cannot be split to choose the regularization '
            f'({error}). Each class needs two or more (the smallest has '
            f'{counts[counts > 0].min()}): use more training images'
        ) from error
