"""Draws a round's cohort (the clients that take part) from the sampler key and the round's number alone.

The privacy plan states the sampler and its parameters (`privacy.sampling`); this module draws the cohorts.
Amplification by sampling holds only while the drawn cohorts stay secret, so the seeds come from `privacy.keys`.
"""

import math
from collections.abc import Callable

import numpy as np

from privacy.sampling import Cyclic, FixedSize, Poisson, Sampling

SeedOfRound = Callable[[int], int]
"""A function from a round to its 128-bit seed, for instance `privacy.keys.RunKeys.sampler_seed`."""


def draw_cohort(sampling: Sampling, population: int, round_number: int, seed_of_round: SeedOfRound) -> np.ndarray:
    """Draws the cohort of one round.

    Args:
      sampling: `Poisson` (each client joins independently with probability `sampling_probability`; the cohort may be
        empty), `FixedSize` (uniform without replacement) or `Cyclic` (the population is divided once, in secret, into
        `sampling.cohorts` cohorts, whose sizes differ by at most one client; the rounds use the cohorts in turn, so
        that each client takes part in exactly every `sampling.cohorts`-th round).
      population: number of clients, >= 1.
      round_number: round, counted from 0.
      seed_of_round: returns the secret seed of a round; the seeds of different rounds must give unrelated streams.

    Returns:
      int64 [cohort size], indices of clients in [0, population), increasing, without repeats.

    Raises:
      ValueError: the cohort is larger than the population, or a number is out of range.
    """
    if population < 1:
        raise ValueError(f"population is {population}: give at least one client")
    if round_number < 0:
        raise ValueError(f"round_number is {round_number}: rounds count from 0")
    match sampling:
        case Poisson(sampling_probability=rate):
            return _draw_independently(_make_generator(seed_of_round(round_number)), rate, population)
        case FixedSize(size=size):
            if size > population:
                raise ValueError(f"cohort size {size} is larger than the population of {population} clients: lower it")
            return np.sort(
                _make_generator(seed_of_round(round_number)).choice(population, size, replace=False, shuffle=False)
            )
        case Cyclic(cohorts=cohorts):
            if cohorts > population:
                raise ValueError(
                    f"{cohorts} cyclic cohorts for {population} clients: give at most as many cohorts as clients"
                )
            order = _make_generator(seed_of_round(0)).permutation(population)  # one partition for the whole run
            return np.sort(order[round_number % cohorts :: cohorts])
    raise ValueError(f"unknown sampling {sampling!r}: use Poisson, FixedSize or Cyclic")


def _draw_independently(generator: np.random.Generator, rate: float, population: int) -> np.ndarray:
    """Draws each index below `population` independently with probability `rate`."""
    if rate > 0.5:
        return np.flatnonzero(generator.random(population) < rate)
    # Draws a Poisson number of events and gives each to a uniformly drawn client. Then every client gets a Poisson
    # number of events, independent of the others', and gets none with probability 1 - rate. Unlike drawing the
    # geometric gaps between clients, this needs no special care at tiny rates.
    events = generator.poisson(-math.log1p(-rate) * population)
    return np.unique(generator.integers(population, size=events))


def _make_generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))
