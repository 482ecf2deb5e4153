"""Measures the level and the power of the fairness test where a few rows decide it, and where they just do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from experiments.intervals import Interval, share_interval
from experiments.reproduce.cvar_instances import Array, draw_losses
from fl.fairness import skewed, variance, weighted_test
from fl.fairness.groups import GroupSums, from_rows

_LEVEL, _ALPHA = 0.05, 0.8
_MANY = 100_000
_MANY_SCORES = 5000  # rows are drawn one by one


class Table(NamedTuple):
    """Holds a table of groups, of which all weigh the same.

    Attributes:
      name: description of the table.
      counts: integers [groups], numbers of rows.
      values: "losses" of 0 or 1, or "uniform" or "skewed" scores.
      rate: expected value of all groups; for losses only.
      gap: difference of the first group's rate, for the power; for losses only.
    """

    name: str
    counts: NDArray[np.int64]
    values: str
    rate: float
    gap: float


def tables() -> Iterator[Table]:
    """Yields tables in which one group of few rows counts as much as one of many, and ordinary ones."""
    for few, rate in ((2, 0.35), (5, 0.35), (20, 0.2), (50, 0.05), (100, 0.05), (100, 0.2), (100, 0.35), (200, 0.35)):
        yield Table(f"{few} and {_MANY:,} rows", np.array([few, _MANY]), "losses", rate, 0.3)
    for groups, rows, rate in ((5, 3, 0.5), (30, 2, 0.1), (2, 30, 0.3), (2, 60, 0.3), (5, 10, 0.3), (5, 20, 0.3)):
        yield Table(f"{groups:,} times {rows} rows", np.full(groups, rows), "losses", rate, 0.3)
    for values in ("uniform", "skewed"):
        for few in (10, 50, 150):
            yield Table(f"{few} and {_MANY_SCORES:,} rows", np.array([few, _MANY_SCORES]), values, 0.0, 0.0)


def measure_few_rows(table: Table, runs: int, seed: int) -> dict[str, Any]:
    """Measures one table: by all numbers of losses in the first group if the other is large, or else by simulation.

    Args:
      table: groups of rows.
      runs: number of simulated tests, >= 1.
      seed: seed of these.

    Returns:
      "level" and, for losses, "power", each with "test", the share of rejections by the test at the level 0.05, and
      "gamma", that by the gamma distribution alone, with 95 % intervals if simulated; "few", the share that few rows
      decide; "runs", the number of simulated tests, 0 if none was.
    """
    generator = np.random.default_rng(seed)
    rates = np.full(len(table.counts), table.rate)
    runs = 0 if table.counts[-1] == _MANY else runs
    level = _reject(table, rates, runs, generator)
    found = {"level": level}
    if table.gap:
        rates[0] += table.gap
        found["power"] = _reject(table, rates, runs, generator)
    return {
        "table": table.name,
        "values": table.values,
        "rate": table.rate,
        "few": level["few"],
        "runs": runs,
        **{name: {key: _interval(shares[key], runs) for key in ("test", "gamma")} for name, shares in found.items()},
    }


def _interval(share: float, runs: int) -> dict[str, float]:
    return (share_interval(round(share * runs), runs) if runs else Interval(share, share, share))._asdict()


def _reject(table: Table, rates: Array, runs: int, generator: np.random.Generator) -> dict[str, float]:
    """Returns the probabilities that the test and the gamma distribution reject, and that few rows decide."""
    weights = np.full(len(rates), 1 / len(rates))
    total = np.zeros(3)
    for chance, sums in _outcomes(table, rates, runs, generator):
        result = weighted_test(sums, alpha=_ALPHA, level=_LEVEL, weights=weights)
        form = variance.build_form(sums.counts, weights, None)
        center = variance.overall_value(form, sums.sums)
        pairs = None if sums.is_binary else variance.pair_squares(sums, center)
        row_variances = variance.row_variances(sums, center)
        null = variance.null_moments(form, row_variances, variance.skew_bound(sums, center), pairs=pairs)
        by_gamma = skewed.tail_probability(result.variance, null) <= _LEVEL
        total += chance * np.array([result.rejects, by_gamma, result.p_value_by != "gamma distribution"])
    return dict(zip(("test", "gamma", "few"), total.tolist(), strict=True))


def _outcomes(
    table: Table, rates: Array, runs: int, generator: np.random.Generator
) -> Iterator[tuple[float, GroupSums]]:
    """Yields sums with their probabilities; without `runs` for all numbers of losses in the first group.

    The other group's number of losses is then the expected one. Its own chance is small beside that of the first group.
    """
    counts = table.counts.astype(np.float64)
    if not runs:
        for losses in range(int(counts[0]) + 1):
            sums = np.array([losses, round(counts[1] * rates[1])], np.float64)
            yield float(stats.binom.pmf(losses, counts[0], rates[0])), GroupSums(counts, sums, sums)
    codes = np.repeat(np.arange(len(rates)), table.counts)
    for _ in range(runs):
        if table.values == "losses":
            yield 1 / runs, draw_losses(generator, table.counts, rates)
        else:
            uniform = table.values == "uniform"
            scores = generator.random(len(codes)) if uniform else generator.beta(0.5, 4.5, len(codes))
            yield 1 / runs, from_rows(scores, codes, len(rates))
