"""Checks identities behind the fairness tests on random cases, and that simulations show planted faults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.intervals import format_interval, share_interval
from experiments.reproduce.cvar_instances import (
    Array,
    draw_losses,
    draw_rows,
    equal_weights,
    root_of_entropy,
    with_gap,
    zipf_weights,
)
from fl.fairness import cvar, sampling_probabilities
from fl.fairness.groups import GroupSums
from fl.fairness.variance import build_form, estimate, overall_value

_GAPS, _WEIGHTS = (0.3, 0.1, 0.0, 0.05), (0.1, 0.2, 0.4, 0.3)
_CVARS = {0.0: 0.065, 0.5: 0.12, 0.8: 0.2, 0.9: 0.3, 0.95: 0.3}
_PERTURBATIONS = 2000
_CASES_PER_RUN = 5
_ROUNDING = 1e-9
_SPREAD = 1.05
_ROWS = 3000

Cvar = Callable[[Array, Array, float], float]
Statistic = Callable[[GroupSums, Array], float]


def check_identities(runs: int, seed: int) -> list[dict[str, Any]]:
    """Checks what the tests rest on.

    Args:
      runs: a fifth of the number of random cases, >= 1.
      seed: seed of the random cases.

    Returns:
      Rows with "name", "found", "wanted" (both text) and "holds".
    """
    generator = np.random.default_rng(seed)
    values = [cvar(_GAPS, _WEIGHTS, alpha) for alpha in _CVARS]
    number = runs * _CASES_PER_RUN
    wrong, ratio = compare_cvar(cvar, number, generator), least_ratio(number, generator)
    zipf = zipf_weights(400)
    best, others = noise(zipf, sampling_probabilities(zipf)), perturbed_noise(zipf, generator)
    variance = pair_sum_variance(0.6, 0.7, 0.3)
    return [
        _row(
            "CVaR of 0.3, 0.1, 0, 0.05 with the weights 0.1, 0.2, 0.4, 0.3, for α = 0, 0.5, 0.8, 0.9, 0.95",
            ", ".join(f"{value:.4g}" for value in values),
            ", ".join(f"{value:.4g}" for value in _CVARS.values()),
            np.allclose(values, list(_CVARS.values()), rtol=0, atol=1e-12),
        ),
        _row(
            f"random cases of {number:,} in which CVaR is not Rockafellar and Uryasev's minimum",
            f"{wrong:,}",
            "0",
            wrong == 0,
        ),
        _row(f"least V / ((1 - α) F_α²) in {number:,} random cases", f"{ratio:.4f}", "at least 1", ratio >= 1),
        _row(
            "Σ w² / π² of 400 groups with Zipf weights, π proportional to w^(2/3), over e^H",
            f"{best / root_of_entropy(zipf) ** 2:.10f}",
            "1",
            math.isclose(best, root_of_entropy(zipf) ** 2, rel_tol=1e-9),
        ),
        _row(
            f"the least of {_PERTURBATIONS:,} random perturbations of π, over the same",
            f"{others / best:.6f}",
            "above 1",
            others > best,
        ),
        _row(
            "variance of a group's pair sum, Poisson number of rows with mean 0.7, rate 0.6, m = 0.3, by enumeration",
            f"{variance:.10f}",
            "0.6142040816",
            math.isclose(variance, 0.6142040816, abs_tol=1e-9),
        ),
    ]


def compare_cvar(function: Cvar, number: int, generator: np.random.Generator) -> int:
    """Returns in how many random cases a function differs from the minimum over η of η + E (gap - η)₊ / (1 - α)."""
    wrong = 0
    for _ in range(number):
        gaps, weights, alpha = _random_case(generator)
        minimum = (gaps + np.maximum(gaps - gaps[:, np.newaxis], 0) @ weights / (1 - alpha)).min()
        wrong += abs(function(gaps, weights, alpha) - minimum) > _ROUNDING
    return wrong


def least_ratio(number: int, generator: np.random.Generator) -> float:
    """Returns the least E gap² / ((1 - α) CVaR²) of random cases."""
    ratios = []
    for _ in range(number):
        gaps, weights, alpha = _random_case(generator)
        ratios.append(float(weights @ gaps**2) / ((1 - alpha) * cvar(gaps, weights, alpha) ** 2))
    return min(ratios)


def _random_case(generator: np.random.Generator) -> tuple[Array, Array, float]:
    """Returns 2 to 12 gaps, some of them equal, weights, and α."""
    groups = int(generator.integers(2, 13))
    gaps = np.round(generator.random(groups), int(generator.integers(1, 6))) + 1e-3
    return gaps, generator.dirichlet(np.ones(groups)), float(generator.uniform(0, 0.99))


def noise(weights: Array, probabilities: Array) -> float:
    """Returns Σ w² / π², in proportion to which equal groups spread the estimate's square."""
    return float(((weights / probabilities) ** 2).sum())


def perturbed_noise(weights: Array, generator: np.random.Generator) -> float:
    """Returns the least `noise` among random perturbations of the sampling probabilities."""
    found = []
    for _ in range(_PERTURBATIONS):
        size = 10 ** generator.uniform(-3, 0)
        other = sampling_probabilities(weights) * np.exp(size * generator.normal(size=len(weights)))
        found.append(noise(weights, other / other.sum()))
    return min(found)


def pair_sum_variance(rate: float, mean_rows: float, center: float) -> float:
    """Returns the variance of ((S - N m)² - Σ (X - m)²) / λ² for a Poisson number N of rows, by enumeration."""
    counts, sums = np.mgrid[0:40, 0:40]
    chances = stats.poisson.pmf(counts, mean_rows) * stats.binom.pmf(sums, counts, rate)
    squares = sums * (1 - center) ** 2 + (counts - sums) * center**2
    values = ((sums - counts * center) ** 2 - squares) / mean_rows**2
    mean = (chances * values).sum()
    return float((chances * (values - mean) ** 2).sum())


def _row(name: str, found: str, wanted: str, holds: bool) -> dict[str, Any]:
    return {"name": name, "found": found, "wanted": wanted, "holds": bool(holds)}


def find_faults(runs: int, seed: int) -> list[dict[str, Any]]:
    """Makes each check on the package's function and on a faulty one, which must fail it.

    Args:
      runs: number of simulations, >= 20.
      seed: seed of the draws.

    Returns:
      Rows with "fault", "check", and the results "right" and "wrong" (text) with "passes" and "caught".
    """
    generator = np.random.default_rng(seed)
    alarms = [_false_alarms(function, runs, generator) for function in (_estimate, _with_squares)]
    rows = [
        _fault(
            "each row's product with itself left in",
            "false alarms at the threshold, 400 groups of 22 or 23 rows: at most 0.02",
            [format_interval(share, 4) for share in alarms],
            alarms[0]["low"] <= 0.02,
            alarms[1]["low"] > 0.02,
        )
    ]
    number = runs * _CASES_PER_RUN
    for name, faulty_cvar in (
        ("CVaR: the group at the boundary counts as a whole", _whole_groups),
        ("CVaR: the group at the boundary is left out", _fewer_groups),
    ):
        differing = [compare_cvar(function, number, generator) for function in (cvar, faulty_cvar)]
        rows.append(
            _fault(
                name,
                f"random cases of {number:,} that differ from the minimum: none",
                [f"{count:,}" for count in differing],
                not differing[0],
                differing[1] > 0,
            )
        )
    weights = zipf_weights(1000)
    right_spread = _relative_stddev(weights, 2 / 3, runs, generator)
    for exponent in (0.5, 1.0):
        wrong_spread = _relative_stddev(weights, exponent, runs, generator)
        rows.append(
            _fault(
                f"rows drawn with weights to the power {exponent:g}",
                f"standard deviation for equal groups over √2 σ² e^(H/2) / n: at most {_SPREAD}",
                [format_interval(spread, 3) for spread in (right_spread, wrong_spread)],
                right_spread["low"] <= _SPREAD,
                wrong_spread["low"] > _SPREAD,
            )
        )
    return rows


def _fault(name: str, check: str, results: Sequence[str], passes: bool, caught: bool) -> dict[str, Any]:
    return {
        "fault": name,
        "check": check,
        "right": results[0],
        "wrong": results[1],
        "passes": bool(passes),
        "caught": bool(caught),
    }


def _estimate(sums: GroupSums, weights: Array) -> float:
    form = build_form(sums.counts, weights, None)
    return estimate(form, sums, overall_value(form, sums.sums))


def _with_squares(sums: GroupSums, weights: Array) -> float:
    means = sums.sums / sums.counts
    return float(weights @ (means - weights @ means) ** 2)


def _false_alarms(function: Statistic, runs: int, generator: np.random.Generator) -> dict[str, float]:
    weights = equal_weights(400)
    equal = with_gap(weights, 0.9, 0.2, 0.3).without_gaps()
    counts = np.full(400, 22) + (np.arange(400) % 4 == 0)
    alarms = sum(function(draw_losses(generator, counts, equal.rates), weights) > 0.002 for _ in range(runs))
    return share_interval(alarms, runs)._asdict()


def _whole_groups(gaps: Array, weights: Array, alpha: float) -> float:
    order = np.argsort(-gaps)
    before = np.cumsum(weights[order]) - weights[order]
    worst = order[before < 1 - alpha]
    return float(weights[worst] @ gaps[worst] / weights[worst].sum())


def _fewer_groups(gaps: Array, weights: Array, alpha: float) -> float:
    order = np.argsort(-gaps)
    worst = order[np.cumsum(weights[order]) <= 1 - alpha]
    return float(weights[worst] @ gaps[worst] / weights[worst].sum()) if len(worst) else float(gaps.max())


def _relative_stddev(weights: Array, exponent: float, runs: int, generator: np.random.Generator) -> dict[str, float]:
    """Returns the standard deviation of the estimate over its minimum for large numbers of groups, with an interval."""
    equal = with_gap(weights, 0.9, 0.2, 0.3).without_gaps()
    probabilities = weights**exponent / (weights**exponent).sum()
    values = []
    for _ in range(runs):
        sums = draw_rows(generator, equal, _ROWS, probabilities)
        form = build_form(sums.counts, weights, _ROWS * probabilities)
        values.append(estimate(form, sums, overall_value(form, sums.sums)))
    rate = float(equal.rates[0])
    least = math.sqrt(2) * rate * (1 - rate) * root_of_entropy(weights) / _ROWS
    squares = (np.array(values) - np.mean(values)) ** 2 / least**2
    half = 1.959964 * squares.std() / math.sqrt(runs)
    low, high = (math.sqrt(max(square, 0.0)) for square in (squares.mean() - half, squares.mean() + half))
    return {"estimate": math.sqrt(squares.mean()), "low": low, "high": high}
