"""Draws the sums of groups, and compares how often something happens with a range of probabilities."""

from collections.abc import Callable

import numpy as np
from scipy import stats

from fl.fairness.groups import GroupSums

CHANCE = 1e-6
"""Probability that a comparison fails by chance, if the true probability lies in the range."""


def assert_rate(happens: Callable[[np.random.Generator], bool], low: float, high: float, runs: int, seed: int) -> None:
    """Asserts that the probability of an event lies in a range, from independent runs with a fixed seed."""
    generator = np.random.default_rng(seed)
    hits = sum(happens(generator) for _ in range(runs))
    least, most = stats.binom.ppf(CHANCE / 2, runs, low), stats.binom.isf(CHANCE / 2, runs, high)
    assert least <= hits <= most, f"{hits} of {runs} runs: expected from {least:.0f} to {most:.0f}"


def binary_sums(generator: np.random.Generator, counts: np.ndarray, rates: np.ndarray | float) -> GroupSums:
    """Returns the sums of rows of 0 or 1."""
    sums = generator.binomial(counts.astype(int), rates).astype(float)
    return GroupSums(counts.astype(float), sums, sums)


def shifted(groups: int, share: float, gap: float, rate: float) -> np.ndarray:
    """Returns rates of groups: the first ones, with this share, lie `gap` above and below `rate` in turn."""
    rates = np.full(groups, rate)
    number = round(groups * share)
    rates[:number] += gap * np.where(np.arange(number) % 2 == 0, 1, -1)
    return rates
