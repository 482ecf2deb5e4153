"""Draws a round's cohort (the clients that take part) from the sampler key and the round's number alone.

The privacy plan states the sampler and its parameters (`privacy.sampling`); this module draws the cohorts.
Amplification by sampling holds only while the drawn cohorts stay secret, so the seeds come from `privacy.keys`.
"""

import math
from collections.abc import Callable

import numpy as np

from privacy import checks
from privacy.sampling import CheckIn, Cyclic, CyclicPoisson, FixedSize, Poisson, Sampling

_NEVER = 2**62  # a round that no run reaches

SeedOfRound = Callable[[int], int]
"""A function from a round to its 128-bit seed, for instance `privacy.keys.RunKeys.sampler_seed`."""


def draw_cohort(sampling: Sampling, population: int, round_number: int, seed_of_round: SeedOfRound) -> np.ndarray:
    """Draws the cohort of one round.

    Args:
      sampling: `Poisson` (each client joins independently with probability `sampling_probability`; the cohort may be
        empty), `FixedSize` (uniform without replacement) or `Cyclic` (the population is divided once, in secret, into
        `sampling.cohorts` cohorts, whose sizes differ by at most one client; the rounds use the cohorts in turn, so
        that each client takes part in exactly every `sampling.cohorts`-th round), `CyclicPoisson` (of the cohort whose
        turn it is, each client joins independently) or `CheckIn` (`sampling.size` of the clients who may take part
        again, uniformly, which stands for devices that check in when they can; all earlier rounds are drawn anew).
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
    checks.whole("round_number", round_number, 0, "rounds count from 0")
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
            return _take_turn(cohorts, population, round_number, seed_of_round)
        case CyclicPoisson(cohorts=cohorts, sampling_probability=rate):
            turn = _take_turn(cohorts, population, round_number, seed_of_round)
            # The partition has round 0's seed, so the draw must have a stream of its own.
            generator = _make_generator(seed_of_round(round_number), stream=1)
            return turn[_draw_independently(generator, rate, len(turn))]
        case CheckIn():
            return CheckIns(sampling, population, seed_of_round).cohort(round_number)
    raise ValueError(f"unknown sampling {sampling!r}: use one of privacy.sampling")


class CheckIns:
    """Draws the cohorts of `CheckIn` round by round, and keeps who may take part again.

    A round depends on all rounds before it. After a round was drawn, the next one takes time in proportion to the
    population; any other round begins again at round 0.

    Args:
      sampling: size of a cohort, separation and limit.
      population: number of clients, at least `sampling.size`.
      seed_of_round: returns the secret seed of a round, as for `draw_cohort`.

    Raises:
      ValueError: the cohort is larger than the population.
    """

    def __init__(self, sampling: CheckIn, population: int, seed_of_round: SeedOfRound) -> None:
        if sampling.size > population:
            raise ValueError(
                f"cohort size {sampling.size} is larger than the population of {population} clients: lower it"
            )
        self._sampling, self._population, self._seed_of_round = sampling, population, seed_of_round
        self._begin()

    def _begin(self) -> None:
        self._next = 0
        self._free_from = np.zeros(self._population, np.int64)  # first round in which each client may take part again
        self._participations = np.zeros(self._population, np.int64)

    def cohort(self, round_number: int) -> np.ndarray:
        """Returns the cohort of a round, as `draw_cohort` does."""
        checks.whole("round_number", round_number, 0, "rounds count from 0")
        if round_number < self._next:
            self._begin()
        while self._next <= round_number:
            cohort = self._draw()
        return cohort

    def _draw(self) -> np.ndarray:
        may = self._free_from <= self._next
        if self._sampling.participation_limit is not None:
            may &= self._participations < self._sampling.participation_limit
        eligible = np.flatnonzero(may)
        generator = _make_generator(self._seed_of_round(self._next))
        size = min(self._sampling.size, len(eligible))
        cohort = np.sort(generator.choice(eligible, size, replace=False, shuffle=False))
        self._free_from[cohort] = min(self._next + self._sampling.min_separation, _NEVER)
        self._participations[cohort] += 1
        self._next += 1
        return cohort


def _take_turn(cohorts: int, population: int, round_number: int, seed_of_round: SeedOfRound) -> np.ndarray:
    """Returns the cohort of a fixed partition whose turn it is."""
    if cohorts > population:
        raise ValueError(f"{cohorts} cyclic cohorts for {population} clients: give at most as many cohorts as clients")
    order = _make_generator(seed_of_round(0)).permutation(population)  # one partition for the whole run
    return np.sort(order[round_number % cohorts :: cohorts])


def _draw_independently(generator: np.random.Generator, rate: float, population: int) -> np.ndarray:
    """Draws each index below `population` independently with probability `rate`."""
    if rate > 0.5:
        return np.flatnonzero(generator.random(population) < rate)
    # Draws a Poisson number of events and gives each to a uniformly drawn client. Then every client gets a Poisson
    # number of events, independent of the others', and gets none with probability 1 - rate. Unlike drawing the
    # geometric gaps between clients, this needs no special care at tiny rates.
    events = generator.poisson(-math.log1p(-rate) * population)
    return np.unique(generator.integers(population, size=events))


def _make_generator(seed: int, stream: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, stream]))
