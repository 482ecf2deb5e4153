"""Who takes part in a round: cohorts drawn by (sampler key, round) alone, never by history.

The *promise* (which scheme, which rate) is data of the privacy plan (`privacy.sampling`); this module carries it out.
Amplification by sampling holds only while the realised cohorts are secret, so the seeds come from `privacy.keys`.
"""

import math
from collections.abc import Callable

import numpy as np

from privacy.sampling import Cyclic, FixedSize, Poisson, Sampling

SeedOfRound = Callable[[int], int]
"""128-bit seed of a round, for instance `privacy.keys.RunKeys.sampler_seed`."""


def draw_cohort(sampling: Sampling, population: int, round_number: int, seed_of_round: SeedOfRound) -> np.ndarray:
    """Indices of the clients of one round.

    Args:
      sampling: `Poisson` (every client by its own coin, the cohort may be empty), `FixedSize` (uniform without
        replacement) or `Cyclic` (one secret partition of the population into equal cohorts, taken in turn: a client's
        rounds are exactly `sampling.cohorts` apart).
      population: number of clients, > 0.
      round_number: round, >= 0.
      seed_of_round: secret seed of a round; rounds draw from disjoint streams.

    Returns:
      int64 [cohort size], increasing, without repeats.

    Raises:
      ValueError: the cohort is larger than the population, or a number is out of range.
    """
    if population < 1:
        raise ValueError(f"population is {population}: at least one client is needed")
    if round_number < 0:
        raise ValueError(f"round is {round_number}: rounds count from 0")
    match sampling:
        case Poisson(rate=rate):
            return _coins(_generator(seed_of_round(round_number)), rate, population)
        case FixedSize(size=size):
            if size > population:
                raise ValueError(f"cohort size {size} is larger than the population of {population} clients: lower it")
            return np.sort(
                _generator(seed_of_round(round_number)).choice(population, size, replace=False, shuffle=False)
            )
        case Cyclic(cohorts=cohorts):
            if cohorts > population:
                raise ValueError(f"{cohorts} cyclic cohorts for {population} clients: use at most one cohort a client")
            order = _generator(seed_of_round(0)).permutation(population)  # one partition for the whole run
            return np.sort(order[round_number % cohorts :: cohorts])
    raise ValueError(f"unknown sampling {sampling!r}: use Poisson, FixedSize or Cyclic")


def _coins(generator: np.random.Generator, rate: float, population: int) -> np.ndarray:
    """Numbers below `population`, each with probability `rate` on its own."""
    if rate > 0.5:
        return np.flatnonzero(generator.random(population) < rate)
    # Events of a Poisson process spread over the clients: each gets a Poisson number of them, independent of the
    # others', and none with probability 1 - rate. Unlike geometric gaps, it needs no care at tiny rates.
    events = generator.poisson(-math.log1p(-rate) * population)
    return np.unique(generator.integers(population, size=events))


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))
