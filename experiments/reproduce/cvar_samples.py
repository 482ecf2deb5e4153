"""Measures how many rows a fairness test needs, from simulations of the test, and fits exponents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special, stats

from experiments.intervals import Interval, share_interval
from experiments.reproduce.cvar_instances import (
    Array,
    Population,
    draw_losses,
    draw_rows,
    equal_weights,
    max_gap_rejects,
    root_of_entropy,
    with_gap,
    zipf_weights,
)
from fl.fairness import attribute_specific_test, plan_attribute_specific, plan_max_gap, plan_weighted, weighted_test

GAP, ALPHA, RATE, ERROR = 0.2, 0.9, 0.5, 0.05
"""F_α to be found, the share that it leaves out, the overall rate, and the bound on both probabilities of an error."""

_PILOT = np.geomspace(0.35, 1.4, 7)
_STEPPED = np.linspace(0.8, 1.4, 31)
_FINAL = np.array([0.75, 0.87, 1.0, 1.15, 1.3])
_NEAR = 0.55  # of the logarithm: numbers from 0.58 to 1.73 times the first root are used for the second
_LARGE = 1000
_MANY = 10_000  # groups: with more, simulations are half as many


Hits = dict[int, tuple[int, int]]
"""Rejections and trials by number of units."""


class Case(NamedTuple):
    """Holds a test of one population, whose size is counted in units of rows.

    Attributes:
      test: name of the test.
      groups: number of groups.
      size: number that the rows are compared with, such as the number of groups.
      planned: number of units of the plan.
      unit: number of rows of a unit.
      rejects: returns whether the test rejects on one draw of so many units. Its last argument says whether the groups
        are equal.
      is_stepped: whether the power jumps from one number of units to the next, and need not rise.
    """

    test: str
    groups: int
    size: float
    planned: int
    unit: int
    rejects: Callable[[np.random.Generator, int, bool], bool]
    is_stepped: bool = False


def cases(sizes: Sequence[int]) -> Iterator[Case]:
    """Yields the tests for each number of groups, which must be multiples of 10."""
    plan: dict[str, float] = {"gap": GAP, "error": ERROR, "rate": RATE}
    for groups in sizes:
        weights = equal_weights(groups)
        spread, one = with_gap(weights, ALPHA, GAP, RATE), with_gap(weights, 1 - 1 / groups, GAP, RATE)
        rows = plan_weighted(weights, alpha=ALPHA, **plan).rows
        yield Case("weighted", groups, groups, rows, 1, _weighted(spread, ALPHA))
        draws = plan_attribute_specific(alpha=ALPHA, **plan)
        yield Case(
            "attribute-specific",
            groups,
            groups,
            draws.draws,
            draws.rows_per_draw,
            _attribute_specific(spread, draws.rows_per_draw),
        )
        each = plan_max_gap(weights, alpha=ALPHA, **plan).rows_per_group
        yield Case("largest gap", groups, groups, each, groups, _max_gap(spread), is_stepped=True)
        each = plan_max_gap(weights, alpha=1 - 1 / groups, **plan).rows_per_group
        yield Case("largest gap, one group", groups, groups, each, groups, _max_gap(one))
        if groups <= _MANY:
            rows = plan_weighted(weights, alpha=1 - 1 / groups, **plan).rows
            yield Case("weighted, one group", groups, groups, rows, 1, _weighted(one, 1 - 1 / groups))
        weights = zipf_weights(groups)
        rows = plan_weighted(weights, alpha=ALPHA, **plan).rows
        size = root_of_entropy(weights) ** 2
        yield Case("weighted, Zipf", groups, size, rows, 1, _weighted(with_gap(weights, ALPHA, GAP, RATE), ALPHA))


def _weighted(population: Population, alpha: float, exponent: float = 2 / 3) -> Callable[..., bool]:
    probabilities = population.weights**exponent
    probabilities /= probabilities.sum()
    equal = population.without_gaps()

    def rejects(generator: np.random.Generator, rows: int, is_equal: bool) -> bool:
        sums = draw_rows(generator, equal if is_equal else population, rows, probabilities)
        return weighted_test(
            sums, alpha=alpha, level=ERROR, weights=population.weights, probabilities=probabilities
        ).rejects

    return rejects


def _attribute_specific(population: Population, rows_per_draw: int) -> Callable[..., bool]:
    equal = population.without_gaps()

    def rejects(generator: np.random.Generator, draws: int, is_equal: bool) -> bool:
        chosen = generator.choice(len(population.weights), size=draws)  # all weights are equal
        rates = (equal if is_equal else population).rates[chosen]
        return attribute_specific_test(
            draw_losses(generator, np.full(draws, rows_per_draw), rates), alpha=ALPHA, level=ERROR
        ).rejects

    return rejects


def _max_gap(population: Population) -> Callable[..., bool]:
    equal = population.without_gaps()

    def rejects(generator: np.random.Generator, rows_per_group: int, is_equal: bool) -> bool:
        sums = generator.binomial(rows_per_group, (equal if is_equal else population).rates)
        return max_gap_rejects(sums, rows_per_group, ERROR)

    return rejects


def measure(case: Case, runs: int, seed: int) -> dict[str, Any]:
    """Measures the rows that a test needs, and both probabilities of an error there.

    The power is simulated at several numbers of units around the plan, then around the root that they show. A normal
    distribution function of their logarithm is fitted to all, and its root at the power 1 - `ERROR` is the result.

    If the power is stepped, as that of exact binomial tests of few rows is, every number near the root is simulated
    instead, and the result is the smallest one whose power is 1 - `ERROR`.

    Args:
      case: test and population.
      runs: number of simulated tests at each number of units near the root, >= 100, and half of it for more than 10,000
        groups; half as many at the first numbers, and four times as many for the false alarms.
      seed: seed of the draws.

    Returns:
      "rows" with its 95 % "low" and "high", "planned" rows, "groups", "size", and the intervals "false_alarm" and
      "power" at "rows", rounded up to units.
    """
    generator = np.random.default_rng(seed)
    runs = runs if case.groups <= _MANY else runs // 2
    hits: Hits = {}

    def simulate(units: Array, number: int) -> None:
        for count in np.unique(np.maximum(np.ceil(units), 2)).astype(int).tolist():
            found = sum(case.rejects(generator, count, False) for _ in range(number))
            before = hits.get(count, (0, 0))
            hits[count] = before[0] + found, before[1] + number

    simulate(case.planned * _PILOT, runs // 2)
    first = power_root(hits, 1 - ERROR).estimate
    if case.is_stepped:
        hits = {}
        simulate(np.exp(first) * _STEPPED, runs)
        units = smallest(hits, 1 - ERROR)
    else:
        simulate(np.exp(first) * _FINAL, runs)
        near = {count: found for count, found in hits.items() if abs(math.log(count) - first) < _NEAR}
        root = power_root(near, 1 - ERROR)
        if abs(root.estimate - first) > _NEAR:  # few simulations show no slope so near
            root = power_root(hits, 1 - ERROR)
        units = Interval(*map(math.exp, root))
    count = math.ceil(units.estimate)
    false_alarms = sum(case.rejects(generator, count, True) for _ in range(4 * runs))
    found = sum(case.rejects(generator, count, False) for _ in range(runs))
    return {
        "test": case.test,
        "groups": case.groups,
        "size": case.size,
        "planned": case.planned * case.unit,
        "rows": units.estimate * case.unit,
        "low": units.low * case.unit,
        "high": units.high * case.unit,
        "false_alarm": share_interval(false_alarms, 4 * runs)._asdict(),
        "power": share_interval(found, runs)._asdict(),
    }


def smallest(hits: Hits, power: float) -> Interval:
    """Returns the smallest number whose share of rejections is at least `power`.

    The ends of the interval are the smallest numbers whose own 95 % intervals reach `power`, and lie above it.

    Raises:
      ValueError: there is none.
    """
    shares = {count: share_interval(*hits[count]) for count in sorted(hits)}
    ends = [
        next((count for count, share in shares.items() if share[place] >= power), None)
        for place in (0, 2, 1)  # estimate, high, low
    ]
    if ends[0] is None:
        raise ValueError(f"no number up to {max(hits)} has the power {power}: simulate larger ones")
    return Interval(ends[0], ends[1] or ends[0], ends[2] or max(hits))


def power_root(hits: Hits, power: float) -> Interval:
    """Returns the logarithm of the number at which a fitted power curve has the value `power`, with a 95 % interval.

    The curve is Φ(a + b log n), fitted by maximum likelihood. Numbers whose power is far from 1/2 on
    both sides say little, and have little weight.

    Args:
      hits: by number n, rejections and trials; at least two numbers.
      power: power in (0, 1).

    Reference: Finney 1971, Probit Analysis.
    """
    numbers = np.array(list(hits), np.float64)
    rejections, trials = np.array(list(hits.values()), np.float64).T
    center = float(np.log(numbers).mean())
    design = np.stack([np.ones(len(numbers)), np.log(numbers) - center], axis=1)
    # Half a rejection more and less keeps shares of 0 and 1 finite at the start.
    start = special.ndtri((rejections + 0.5) / (trials + 1))
    roots = np.sqrt(trials)
    guess = np.linalg.lstsq(design * roots[:, np.newaxis], start * roots, rcond=None)[0]

    def loss(coefficients: Array) -> float:
        linear = design @ coefficients
        return -float(rejections @ special.log_ndtr(linear) + (trials - rejections) @ special.log_ndtr(-linear))

    coefficients = optimize.minimize(loss, guess, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-9}).x
    linear = np.clip(design @ coefficients, -6, 6)
    shares, slopes = special.ndtr(linear), np.exp(-(linear**2) / 2) / math.sqrt(2 * math.pi)
    weights = trials * slopes**2 / (shares * (1 - shares))
    information = design.T @ (weights[:, np.newaxis] * design)
    offset, slope = coefficients
    root = (float(special.ndtri(power)) - offset) / slope
    gradient = -np.array([1.0, root]) / slope
    half = 1.959964 * math.sqrt(float(gradient @ np.linalg.solve(information, gradient)))
    return Interval(root + center, root + center - half, root + center + half)


def fit_exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each test the exponent of the rows in the size, by least squares on logarithms, with 95 % intervals.

    The intervals come from the scatter about the line, which holds the curvature too. "large" is the exponent from
    1,000 groups on, and "planned" that of the planned rows.

    Args:
      rows: results of `measure`; each test with at least three sizes in all.
    """
    fits = []
    for test in dict.fromkeys(row["test"] for row in rows):
        chosen = [row for row in rows if row["test"] == test]
        large = [row for row in chosen if row["groups"] >= _LARGE]
        fits.append(
            {
                "test": test,
                "all": _exponent(chosen, "rows")._asdict(),
                "large": _exponent(large, "rows")._asdict() if len(large) > 2 else None,
                "planned": _exponent(chosen, "planned").estimate,
            }
        )
    return fits


def _exponent(rows: Sequence[dict[str, Any]], key: str) -> Interval:
    fit = stats.linregress(np.log([row["size"] for row in rows]), np.log([row[key] for row in rows]))
    half = float(stats.t.ppf(0.975, len(rows) - 2)) * fit.stderr
    return Interval(float(fit.slope), float(fit.slope - half), float(fit.slope + half))


def rows_by_exponent(groups: int, exponents: Sequence[float], runs: int, seed: int) -> list[dict[str, Any]]:
    """Measures the rows that the weighted test of groups with Zipf weights needs if they are drawn with w^exponent.

    Args:
      groups: number of groups, >= 10.
      exponents: exponents of the weights, in [0, 1].
      runs: as for `measure`.
      seed: seed of the draws.

    Returns:
      Rows of `measure` with "exponent", and "noise", Σ w² / π² as a multiple of its minimum e^H.
    """
    weights = zipf_weights(groups)
    population = with_gap(weights, ALPHA, GAP, RATE)
    planned = plan_weighted(weights, alpha=ALPHA, gap=GAP, error=ERROR, rate=RATE).rows
    found = []
    for exponent in exponents:
        powers = weights**exponent
        noise = float(((weights * powers.sum() / powers) ** 2).sum()) / root_of_entropy(weights) ** 2
        start = round(planned * math.sqrt(noise))
        case = Case("weighted, Zipf", groups, groups, start, 1, _weighted(population, ALPHA, exponent))
        found.append(measure(case, runs, seed) | {"exponent": exponent, "noise": noise})
    return found
