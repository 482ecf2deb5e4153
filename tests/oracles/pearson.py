"""Pearson's chi-square test."""

import numpy as np
from scipy.special import chdtrc


def p_value(observed: np.ndarray, expected: np.ndarray) -> float:
    """Probability that counts at least this far from `expected` (of equal sum, all positive) come by
    chance."""
    assert np.isclose(observed.sum(), expected.sum()) and expected.min() > 0
    return float(chdtrc(len(observed) - 1, ((observed - expected) ** 2 / expected).sum()))
