"""Sums one score per client over groups, in integers that leave each client's place, with Gaussian noise or without.

The unit is the client. A client has one score x in [0, 1], such as its accuracy over all its tokens, and belongs to one
group, to whose sums it adds the three integers

    k²,  k (K - k),  (K - k)²    with k = x K rounded, K = `STEPS`

that is, in units of K²: x², x (1 - x) and (1 - x)². Everything that a test needs is a sum of them:

    N = Σ 1 = Σ x² + 2 Σ x (1 - x) + Σ (1 - x)²      S = Σ x = Σ x² + Σ x (1 - x)      Q = Σ x²

Scaled by (1, √2, 1), a client's three numbers are the tensor square of the pair (x, 1 - x), whose L2 norm is at most 1
(Kulesza, Suresh and Wang 2024, arXiv:2312.06658, section 3, release the pair itself). So the L2 norm of the scaled
numbers is x² + (1 - x)² ≤ 1, and adding or removing a client changes the scaled sums of all groups together by at most
1 in L2 norm. Noise of standard deviation z on Σ x² and Σ (1 - x)², and z / √2 on Σ x (1 - x), of every group is
therefore one Gaussian mechanism with noise multiplier z. It hides to which group a client belongs, too: the groups are
a public list, and each of them gets noise, whether it has clients or not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.fairness.groups import GroupSums

STEPS = 2**12
"""Number of steps into which scores from 0 to 1 are rounded: sums of integers do not depend on their order."""

SENSITIVITY = float(STEPS**2)
"""L2 sensitivity of the integer sums under add-or-remove-one, the middle one scaled by √2."""

REPLACE_ONE = math.sqrt(2)
"""Factor of the sensitivity under replace-one: a client leaves one group and another client joins another group."""

_Array = NDArray[np.float64]


def contributions(correct: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns each client's three integers, int64 [clients, 3]; zeros for a client without tokens.

    However many tokens a client has, it counts as one: its tokens are not independent.

    Args:
      correct: int64 [clients], number of tokens that were predicted correctly.
      tokens: int64 [clients], number of tokens.
    """
    score = (2 * STEPS * correct + tokens) // np.maximum(2 * tokens, 1)
    rest = STEPS - score
    return np.where(tokens[:, None] > 0, np.stack([score**2, score * rest, rest**2], 1), 0)


def exact_sums(totals: NDArray[np.int64]) -> GroupSums:
    """Returns the sums of totals without noise, int64 [groups, 3]; their number of rows is the number of clients."""
    squares, products, rests = totals.T.astype(np.float64) / STEPS**2
    return GroupSums(np.rint(squares + 2 * products + rests), squares + products, squares)


def noise_stddevs(noise_multiplier: float) -> tuple[float, float]:
    """Returns the standard deviations of the noise on the first and third, and on the second total of each group."""
    return noise_multiplier * SENSITIVITY, noise_multiplier * SENSITIVITY / math.sqrt(2)


class NoisySums(NamedTuple):
    """Holds the totals of each group with Gaussian noise, in units of the score.

    The noise has standard deviation z on `squares` and `rests`, and z / √2 on `products`.

    Attributes:
      squares: float64 [groups], Σ x².
      products: float64 [groups], Σ x (1 - x).
      rests: float64 [groups], Σ (1 - x)².
      noise_multiplier: z, above 0.
    """

    squares: _Array
    products: _Array
    rests: _Array
    noise_multiplier: float

    @property
    def counts(self) -> _Array:
        """Returns the noisy number of clients of each group, which may be negative."""
        return self.squares + 2 * self.products + self.rests

    @property
    def sums(self) -> _Array:
        """Returns the noisy sum of the scores of each group."""
        return self.squares + self.products

    def select(self, groups: NDArray[np.bool_]) -> NoisySums:
        """Returns the totals of the groups in a mask [groups]."""
        return NoisySums(self.squares[groups], self.products[groups], self.rests[groups], self.noise_multiplier)


def noisy_sums(totals: NDArray[np.int64], noise: NDArray[np.int64], noise_multiplier: float) -> NoisySums:
    """Returns the sums of totals to which noise is added.

    Args:
      totals: int64 [groups, 3].
      noise: int64 [groups, 3], with the standard deviations of `noise_stddevs`.
      noise_multiplier: z, above 0.
    """
    squares, products, rests = (totals + noise).T.astype(np.float64) / STEPS**2
    return NoisySums(squares, products, rests, noise_multiplier)
