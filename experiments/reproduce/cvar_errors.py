"""Simulates the error probabilities of the fairness tests, beside the shares that an independent program found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.intervals import share_interval
from experiments.reproduce.cvar_instances import (
    Array,
    Population,
    draw_losses,
    draw_rows,
    equal_weights,
    max_gap_rejects,
    spread_rows,
    with_gap,
    zipf_weights,
)
from fl.fairness import attribute_specific_test, sampling_probabilities, weighted_test

_LEVEL = 0.05


class Sampling(NamedTuple):
    """Holds one way to collect rows and to decide whether groups are alike.

    Attributes:
      name: what is drawn and tested.
      population: groups with a given F_α; those of equal groups have its overall rate.
      rows: number of rows.
      decide: draws rows of groups with these rates; returns whether the estimated variance exceeds (1 - α) gap² / 2,
        halfway between equal groups and the gap, and whether the test at the level 0.05 rejects. None: no such test.
      expected: at the threshold, the shares of false alarms and of misses in 4,000 simulations by an independent
        program; for the largest gap the share of rejections. None: not simulated there.
      divisor: the number of simulations is divided by it.
    """

    name: str
    population: Population
    rows: int
    decide: Callable[[np.random.Generator, Array], tuple[bool | None, bool | None]]
    expected: dict[str, float]
    divisor: int = 1


EXPECTED_RUNS = 4000
"""Number of simulations behind each expected share."""

# Groups: rows; false alarms and misses from given numbers of rows; the same without centring; power of the largest gap.
_HALFWAY = {
    100: (4455, (0.0037, 0.0210), (0.022, 0.069), 0.912),
    400: (8910, (0.0032, 0.0090), (0.019, 0.047), 0.426),
    1600: (17819, (0.0020, 0.0050), (0.020, 0.033), 0.043),
    6400: (35638, (0.0015, 0.0037), (0.016, 0.028), 0.000),
}
# Groups: rows, false alarms and misses for equal weights; rows and false alarms for Zipf weights.
_FEW_ROWS = {
    400: (419, (0.001, 0.007), 278, 0.0015),
    1600: (838, (0.001, 0.0035), 491, 0.004),
    6400: (1676, (0.001, 0.003), 872, 0.0),
}
# Draws, rows of each draw and groups: false alarms and misses.
_DRAWS = {
    (99_226, 2, 6400): (0.002, 0.002),
    (100, 60, 100): (0.0003, 0.079),
    (100, 60, 6400): (0.0008, 0.0745),
    (60, 80, 100): (0.0, 0.123),
    (60, 80, 6400): (0.0005, 0.133),
}


def samplings() -> Iterator[Sampling]:
    """Yields the ways to collect rows for which an independent program gave shares, and the centred form beside it."""
    alpha, gap = 0.9, 0.2
    for groups, (rows, given, uncentred, power) in _HALFWAY.items():
        population = with_gap(equal_weights(groups), alpha, gap, 0.3)
        yield Sampling("given counts", population, rows, _given(rows, groups, alpha, gap), _pair(given))
        yield Sampling("drawn groups", population, rows, _drawn(rows, population.weights, alpha, gap), {})
        yield Sampling("drawn, not centred", population, rows, _uncentred(rows, groups, alpha, gap), _pair(uncentred))
        yield Sampling("largest gap", population, rows, _largest(rows, groups), {"power": power})
    alpha, gap = 0.5, 0.45
    for groups, (rows, both, zipf_rows, alarm) in _FEW_ROWS.items():
        for name, weights, count, expected in (
            ("drawn, fewer rows than groups", equal_weights(groups), rows, _pair(both)),
            # The independent program placed the gaps elsewhere, so that its misses are not those of these groups.
            ("drawn, Zipf weights", zipf_weights(groups), zipf_rows, {"false_alarm": alarm}),
        ):
            yield Sampling(
                name, with_gap(weights, alpha, gap, 0.5), count, _drawn(count, weights, alpha, gap), expected
            )
    alpha, gap = 0.9, 0.2
    for (draws, size, groups), both in _DRAWS.items():
        population = with_gap(equal_weights(groups), alpha, gap, 0.3)
        yield Sampling(
            f"attribute-specific, {draws:,} x {size}",
            population,
            draws * size,
            _attribute_specific(draws, size, alpha, gap),
            _pair(both),
            10 if size == 2 else 1,
        )


def measure_errors(sampling: Sampling, runs: int, seed: int) -> dict[str, Any]:
    """Simulates one way to collect rows, for equal groups and for groups with the gap.

    Returns:
      "threshold" and "level" hold the shares "false_alarm" and "power" (at the threshold also "miss") with 95 %
      intervals, or None; "expected" the shares of the independent program, each with the "p_value" of Fisher's exact
      test that both programs have one probability.
    """
    runs = max(runs // sampling.divisor, 10)
    generator = np.random.default_rng(seed)
    hits = np.zeros((2, 2), int)
    has = [False, False]
    for unequal, population in enumerate((sampling.population.without_gaps(), sampling.population)):
        for _ in range(runs):
            decisions = sampling.decide(generator, population.rates)
            has = [decision is not None for decision in decisions]
            hits[unequal] += [bool(decision) for decision in decisions]
    found: dict[str, Any] = {
        "name": sampling.name,
        "groups": len(sampling.population.weights),
        "rows": sampling.rows,
        "runs": runs,
    }
    for place, name in enumerate(("threshold", "level")):
        alarms, finds = hits[:, place].tolist()
        counts = {"false_alarm": alarms, "power": finds, "miss": runs - finds}
        found[name] = {key: share_interval(n, runs)._asdict() for key, n in counts.items()} if has[place] else None
    place = 0 if has[0] else 1
    alarms, finds = hits[:, place].tolist()
    counts = {"false_alarm": alarms, "power": finds, "miss": runs - finds}
    found["expected"] = {
        key: {"share": share, "p_value": _same_probability(counts[key], runs, share)}
        for key, share in sampling.expected.items()
    }
    return found


def smallest_p(rows: Sequence[Mapping[str, Any]]) -> tuple[float, int]:
    """Returns the smallest p-value of a comparison with the independent program, and the number of comparisons.

    Its test of the largest gap has other critical values, and does not count.
    """
    values = [expected["p_value"] for row in rows if row["threshold"] for expected in row["expected"].values()]
    return min(values), len(values)


def _same_probability(hits: int, runs: int, share: float) -> float:
    theirs = round(share * EXPECTED_RUNS)
    return float(stats.fisher_exact([[hits, runs - hits], [theirs, EXPECTED_RUNS - theirs]])[1])


def _pair(shares: tuple[float, float]) -> dict[str, float]:
    return {"false_alarm": shares[0], "miss": shares[1]}


def _given(rows: int, groups: int, alpha: float, gap: float) -> Callable[..., tuple[bool, bool]]:
    counts = spread_rows(rows, groups)

    def decide(generator: np.random.Generator, rates: Array) -> tuple[bool, bool]:
        result = weighted_test(
            draw_losses(generator, counts, rates), alpha=alpha, level=_LEVEL, weights=np.ones(groups)
        )
        return result.variance > (1 - alpha) * gap**2 / 2, result.rejects

    return decide


def _drawn(rows: int, weights: Array, alpha: float, gap: float) -> Callable[..., tuple[bool, bool]]:
    probabilities = sampling_probabilities(weights)

    def decide(generator: np.random.Generator, rates: Array) -> tuple[bool, bool]:
        sums = draw_rows(generator, Population(weights, rates), rows, probabilities)
        result = weighted_test(sums, alpha=alpha, level=_LEVEL, weights=weights, probabilities=probabilities)
        return result.variance > (1 - alpha) * gap**2 / 2, result.rejects

    return decide


def _uncentred(rows: int, groups: int, alpha: float, gap: float) -> Callable[..., tuple[bool, None]]:
    """Estimates each square of a mean by pairs of rows, and subtracts the square of the overall mean."""
    mean_rows = rows / groups

    def decide(generator: np.random.Generator, rates: Array) -> tuple[bool, None]:
        sums = generator.binomial(generator.poisson(mean_rows, groups), rates)
        squares = (sums * (sums - 1.0)).mean() / mean_rows**2
        overall = (sums.mean() / mean_rows) ** 2 - sums.mean() / (groups * mean_rows**2)
        return squares - overall > (1 - alpha) * gap**2 / 2, None

    return decide


def _largest(rows: int, groups: int) -> Callable[..., tuple[None, bool]]:
    each = round(rows / groups)

    def decide(generator: np.random.Generator, rates: Array) -> tuple[None, bool]:
        return None, max_gap_rejects(generator.binomial(each, rates), each, _LEVEL)

    return decide


def _attribute_specific(draws: int, size: int, alpha: float, gap: float) -> Callable[..., tuple[bool, bool]]:
    counts = np.full(draws, size)

    def decide(generator: np.random.Generator, rates: Array) -> tuple[bool, bool]:
        chosen = rates[generator.integers(len(rates), size=draws)]
        result = attribute_specific_test(draw_losses(generator, counts, chosen), alpha=alpha, level=_LEVEL)
        return result.variance > (1 - alpha) * gap**2 / 2, result.rejects

    return decide
