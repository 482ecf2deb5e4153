"""Computes the p-value of Pearson's chi-square test."""

import numpy as np
from scipy.special import chdtrc


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """Returns the probability that chance moves counts at least this far from `expected`.

    `expected` must be positive and have the same sum as `observed`.
    """
    assert np.isclose(observed.sum(), expected.sum()) and expected.min() > 0
    return float(chdtrc(len(observed) - 1, ((observed - expected) ** 2 / expected).sum()))
