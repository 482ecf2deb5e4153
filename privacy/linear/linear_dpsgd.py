"""DP-SGD for linear classifiers: softmax regression whose per-example gradients are never made.

Of logits W'x an example's gradient is x (p - y)', whose norm is |x| |p - y|: known from two vectors, so that clipping
is a factor on the rows of the residuals, and one matrix product gives the sum of clipped gradients (Goodfellow 2015,
arXiv:1510.01799). A private step costs what a plain one does.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.arrays import require_array, row_lengths, shortened
from privacy.noise.training import standard_normal

Floats = npt.NDArray[Any]

_LONGEST = 1e12


@dataclasses.dataclass(frozen=True)
class LinearDPSGD:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133) on softmax regression, from weights of zero.

    Each step takes a Poisson sample, clips each example's gradient, sums, adds N(0, (noise_multiplier clip)² I) and
    divides by the expected batch: a fixed number, never the size of the sample.

    Attributes:
      steps: at least 1.
      sampling_probability: probability with which each record joins a step's batch, in (0, 1].
      expected_batch: the denominator, above 0; public, for instance rate x a private count.
      clip_norm: norm C of one example's gradient over all weights, above 0; inf only without noise.
      noise_multiplier: z, at least 0; 0 is not private.
      learning_rate: above 0; of the mean gradient divided by the clip norm where there is one.
      momentum: in [0, 1).
    """

    steps: int
    sampling_probability: float
    expected_batch: float
    clip_norm: float
    noise_multiplier: float
    learning_rate: float
    momentum: float = 0.9

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("steps", self.steps, 1, "give at least one")
        checks.between(
            "sampling_probability", self.sampling_probability, 0, 1, "give batch / records", closed_high=True
        )
        checks.positive("expected batch", self.expected_batch, "give rate x a public number of records")
        checks.non_negative("noise multiplier", self.noise_multiplier, "0 switches privacy off, 1 is a usual start")
        checks.positive("learning rate", self.learning_rate, "10 is a usual start")
        if self.clip_norm != math.inf:
            checks.positive("clip_norm", self.clip_norm, "1 is usual for features of norm 1")
        elif self.noise_multiplier > 0:
            raise ValueError("clip_norm is infinite and there is noise: without a clip norm no noise protects a record")
        if not checks.non_negative("momentum", self.momentum, "0.9 is usual") < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}: 0.9 is usual")

    def cost(self) -> costs.Cost:
        """Of the whole training, under add-or-remove-one. Raises ValueError without noise."""
        return costs.Gaussian(self.noise_multiplier, self.steps, self.sampling_probability)

    def train(self, features: Any, labels: Any, classes: int, generator: np.random.Generator) -> Floats:
        """Trains on features [n, d] and labels, whole numbers [n] from 0 to below `classes`.

        Args:
          features: float32 or float64; the dtype of the result and of all products. One that is not finite would make
            its gradient none: refused.
          labels: the classes.
          classes: K, at least 2.
          generator: of samples and noise; see `privacy.noise.training.secure_generator`.

        Returns:
          Weights [d, K], the mean over the last half of the steps: their noise cancels in part, at no cost.

        Raises:
          ValueError: features or labels are not as above, in one line.
        """
        checks.whole("classes", classes, 2, "one class leaves nothing to learn")
        features, labels = _checked(features, labels, classes)
        count, size = features.shape
        # Far beyond anything that trains, so that no product of one record overflows and spoils the sum.
        norms = row_lengths(features)
        if not (norms <= _LONGEST).all():
            features = shortened(features, _LONGEST)
            norms = row_lengths(features)
        weights = np.zeros((size, classes), features.dtype)
        velocity, average = np.zeros_like(weights), np.zeros_like(weights)
        scale = 1.0 if math.isinf(self.clip_norm) else self.clip_norm
        averaged = self.steps - self.steps // 2
        margin = 1 - 4 * float(np.finfo(features.dtype).eps)  # for the rounding of factors and products
        for step in range(self.steps):
            batch = (
                np.flatnonzero(generator.random(count) < self.sampling_probability)
                if self.sampling_probability < 1
                else np.arange(count)
            )
            x = features[batch]
            residuals = softmax(x @ weights)
            residuals[np.arange(len(x)), labels[batch]] -= 1
            if not math.isinf(self.clip_norm):
                lengths = norms[batch] * row_lengths(residuals)
                factors = margin * self.clip_norm / np.maximum(lengths, self.clip_norm)
                residuals *= factors[:, np.newaxis].astype(residuals.dtype)
            total = x.T @ residuals
            if self.noise_multiplier:
                noise = standard_normal(generator, total.size, total.dtype).reshape(total.shape)
                total += self.noise_multiplier * self.clip_norm * noise
            velocity = self.momentum * velocity + total / (self.expected_batch * scale)
            weights = weights - self.learning_rate * velocity
            if step >= self.steps - averaged:
                average += weights / averaged
        return average


def softmax(logits: Floats) -> Floats:
    """Probabilities [n, K] of logits [n, K]."""
    logits = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _checked(features: Any, labels: Any, classes: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    require_array("features", features)
    require_array("labels", labels)
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or features.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"features have shape {list(features.shape)}, dtype {features.dtype}: floats [records, features] are needed"
        )
    if not np.isfinite(features).all():
        raise ValueError(
            f"features of {int((~np.isfinite(features)).any(axis=1).sum())} records are not finite: mend them"
        )
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {list(labels.shape)}, dtype {labels.dtype}: one whole number for each of "
            f"{len(features)} records is needed"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}: 0 to {classes - 1} are needed")
    return features, labels.astype(np.int64)
