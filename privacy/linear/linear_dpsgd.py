"""Trains softmax regression by DP-SGD without materialising per-example gradients.

With logits W'x, an example's gradient is x (p - y)'. Its L2 norm is the product |x| |p - y| of two vectors' norms. So
clipping multiplies each row of the residuals p - y by a factor, and one matrix product gives the sum of clipped
gradients (Goodfellow 2015, arXiv:1510.01799). A private step costs about as much as a plain one.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.accounting import costs
from privacy.arrays import as_array, clip_rows, row_norms
from privacy.noise.training import standard_normal

Floats = npt.NDArray[Any]

_LARGEST_NORM = 1e12


@dataclasses.dataclass(frozen=True)
class LinearDPSGD:
    """Trains softmax regression by DP-SGD (Abadi et al. 2016, arXiv:1607.00133), from weights of zero.

    Each step takes a Poisson sample, clips each example's gradient, adds up the clipped gradients, adds
    N(0, (noise_multiplier clip_norm)² I) and divides by `expected_batch`: a fixed number, never the size of the sample.

    Attributes:
      steps: number of steps, at least 1.
      sampling_probability: probability with which each record joins a step's sample, in (0, 1].
      expected_batch: divisor of the noisy sum, above 0; public, for instance sampling_probability x a count released
        with differential privacy.
      clip_norm: bound C on the L2 norm of one example's gradient over all weights, above 0; inf only without noise.
      noise_multiplier: standard deviation of the noise / C, at least 0; 0 is not private.
      learning_rate: step size, above 0. It multiplies the mean gradient divided by the clip norm (by 1 if that is inf).
      momentum: momentum of SGD, in [0, 1).
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
        checks.whole("steps", self.steps, 1, "40 to 200 are usual")
        checks.between(
            "sampling_probability", self.sampling_probability, 0, 1, "give batch / records", closed_high=True
        )
        checks.positive("expected_batch", self.expected_batch, "give sampling_probability x a public number of records")
        checks.non_negative("noise_multiplier", self.noise_multiplier, "0 switches privacy off, 1 is a usual start")
        checks.positive("learning_rate", self.learning_rate, "10 is a usual start")
        if self.clip_norm != math.inf:
            checks.positive("clip_norm", self.clip_norm, "1 is usual for features of norm 1")
        elif self.noise_multiplier > 0:
            raise ValueError("clip_norm is infinite and there is noise, which then protects nobody: give a finite one")
        if not checks.non_negative("momentum", self.momentum, "0.9 is usual") < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {self.momentum!r}: 0.9 is usual")

    def cost(self) -> costs.Cost:
        """Returns the cost of the whole training under add-or-remove-one. Raises ValueError without noise."""
        return costs.Gaussian(self.noise_multiplier, self.steps, self.sampling_probability)

    def train(self, features: Any, labels: Any, classes: int, generator: np.random.Generator) -> Floats:
        """Trains on features [n, d] and labels [n].

        Args:
          features: float32 or float64 [n, d], finite; results and products have this dtype.
          labels: integers [n] from 0 to `classes` - 1.
          classes: number of classes K, at least 2.
          generator: draws samples and noise; see `privacy.noise.training.secure_generator`.

        Returns:
          Weights [d, K], averaged over the last half of the steps. The average has less noise, at no privacy cost.

        Raises:
          ValueError: features, labels or classes are invalid.
        """
        checks.whole("classes", classes, 2, "one class leaves nothing to learn")
        features, labels = _check_data(features, labels, classes)
        count, size = features.shape
        # Vectors above the largest norm are scaled down, so that no product of one record overflows and spoils the sum.
        # Training does not work on vectors anywhere near that norm.
        norms = row_norms(features)
        if not (norms <= _LARGEST_NORM).all():
            features = clip_rows(features, _LARGEST_NORM)
            norms = row_norms(features)
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
                gradient_norms = norms[batch] * row_norms(residuals)
                factors = margin * self.clip_norm / np.maximum(gradient_norms, self.clip_norm)
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
    """Returns the probabilities [n, K] of logits [n, K]."""
    logits = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _check_data(features: Any, labels: Any, classes: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    features, labels = as_array("features", features), as_array("labels", labels)
    if features.ndim != 2 or features.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"features have shape {list(features.shape)}, dtype {features.dtype}: floats [records, features] are needed"
        )
    if not np.isfinite(features).all():
        raise ValueError(
            f"features of {int((~np.isfinite(features)).any(axis=1).sum())} records are not finite: fix or remove them"
        )
    if labels.shape != features.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels have shape {list(labels.shape)}, dtype {labels.dtype}: one integer for each of {len(features)} "
            "records is needed"
        )
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}: 0 to {classes - 1} are needed")
    return features, labels.astype(np.int64)
