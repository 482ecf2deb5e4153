"""Returns the distribution of a round's cohort by enumeration: each subset of a population with its probability."""

from fractions import Fraction
from itertools import combinations
from math import comb

Distribution = dict[tuple[int, ...], Fraction]


def _subsets(population: int) -> list[tuple[int, ...]]:
    return [subset for size in range(population + 1) for subset in combinations(range(population), size)]


def poisson(rate: float, population: int) -> Distribution:
    """Returns the distribution of a Poisson cohort: each client joins by its own coin."""
    heads = Fraction(rate)
    return {cohort: heads ** len(cohort) * (1 - heads) ** (population - len(cohort)) for cohort in _subsets(population)}


def fixed_size(size: int, population: int) -> Distribution:
    """Returns the uniform distribution over the cohorts of that size."""
    each = Fraction(1, comb(population, size))
    return {cohort: each if len(cohort) == size else Fraction(0) for cohort in _subsets(population)}
