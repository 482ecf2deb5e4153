"""Simulates the level and the power of the fairness test where a few rows decide it, and where they just do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from experiments.intervals import share_interval
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
    counts: Array
    values: str
    rate: float
    gap: float


def tables() -> Iterator[Table]:
    """Yields tables in which one group of few rows counts as much as one of many, and ordinary ones."""
    for few, rate in ((2, 0.35), (5, 0.35), (20, 0.2), (50, 0.05), (100, 0.05), (100, 0.35), (200, 0.35)):
        yield Table(f"{few} and {_MANY:,} rows", np.array([few, _MANY]), "losses", rate, 0.3)
    for few in (2, 30):
        yield Table(f"{few} and 20 times {_MANY:,} rows", np.array([few, *[_MANY] * 20]), "losses", 0.3, 0.3)
    for groups, rows, rate in ((5, 3, 0.5), (1000, 2, 0.01), (2, 60, 0.3), (5, 20, 0.3), (5, 40, 0.3), (30, 40, 0.1)):
        yield Table(f"{groups:,} times {rows} rows", np.full(groups, rows), "losses", rate, 0.3)
    for values in ("uniform", "skewed"):
        for few in (10, 50, 150):
            yield Table(f"{few} and {_MANY_SCORES:,} rows", np.array([few, _MANY_SCORES]), values, 0.0, 0.0)


def measure_few_rows(table: Table, runs: int, seed: int) -> dict[str, Any]:
    """Simulates one table.

    Returns:
      "level" and, for losses, "power", each with "test", the share of rejections by the test at the level 0.05, and
      "gamma", that by the gamma distribution alone, with 95 % intervals; "few", the share that few rows decide.
    """
    generator = np.random.default_rng(seed)
    rates = np.full(len(table.counts), table.rate)
    found = {"level": _reject(table, rates, runs, generator)}
    if table.gap:
        rates[0] += table.gap
        found["power"] = _reject(table, rates, runs, generator)
    return {
        "table": table.name,
        "values": table.values,
        "rate": table.rate,
        "gap": table.gap,
        "few": found["level"].pop("few"),
        **{
            name: {key: share_interval(shares[key], runs)._asdict() for key in ("test", "gamma")}
            for name, shares in found.items()
        },
    }


def _reject(table: Table, rates: Array, runs: int, generator: np.random.Generator) -> dict[str, Any]:
    weights = np.full(len(rates), 1 / len(rates))
    hits: dict[str, Any] = {"test": 0, "gamma": 0, "few": 0}
    for _ in range(runs):
        sums = _draw(table, rates, generator)
        result = weighted_test(sums, alpha=_ALPHA, level=_LEVEL, weights=weights)
        form = variance.build_form(sums.counts, weights, None)
        center = variance.overall_value(form, sums.sums)
        pairs = None if sums.is_binary else variance.pair_squares(sums, center)
        row_variances = variance.row_variances(sums, center)
        null = variance.null_moments(form, row_variances, variance.skew_bound(sums, center), pairs=pairs)
        hits["test"] += result.rejects
        hits["gamma"] += skewed.tail_probability(result.variance, null) <= _LEVEL
        hits["few"] += result.p_value_by != "gamma distribution"
    hits["few"] /= runs
    return hits


def _draw(table: Table, rates: Array, generator: np.random.Generator) -> GroupSums:
    if table.values == "losses":
        return draw_losses(generator, table.counts, rates)
    codes = np.repeat(np.arange(len(rates)), table.counts)
    scores = generator.random(len(codes)) if table.values == "uniform" else generator.beta(0.5, 4.5, len(codes))
    return from_rows(scores, codes, len(rates))
