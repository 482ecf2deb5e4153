"""Pairs of distributions, and tests of draws from them."""

import numpy as np
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2


def pairs(size):
    """Generates pairs of distributions over `size` tokens, some with zeros."""
    weights = st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1)), min_size=size, max_size=size)
    return (
        st.tuples(weights, weights)
        .filter(lambda pair: all(sum(part) > 0 for part in pair))
        .map(lambda pair: tuple(np.array(part) / sum(part) for part in pair))
    )


def assert_law(tokens, probabilities):
    """Pearson's test; a true law fails with probability 1e-5 (fixed seed)."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    assert not counts[probabilities == 0].any()
    expected = len(tokens) * probabilities[probabilities > 0]
    statistic = np.sum((counts[probabilities > 0] - expected) ** 2 / expected)
    assert statistic < chi2.ppf(1 - 1e-5, len(expected) - 1)


def assert_agrees(a, b, expected):
    """Exact binomial test; a true agreement fails with probability 1e-5 (fixed seed)."""
    assert binomtest(int(np.sum(a == b)), len(a), expected).pvalue > 1e-5
