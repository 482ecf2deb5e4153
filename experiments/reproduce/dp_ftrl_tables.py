"""Formats the results of `fedspeak reproduce dp-ftrl`, and compares their order with that of the literature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.intervals import format_interval
from experiments.markdown import markdown_table

DPSGD = "DP-SGD, Poisson"
"""Name of the arm with hypothetical Poisson cohorts."""


def format_errors(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns errors and memory of the mechanisms as a Markdown table."""
    cells = []
    for row in rows:
        sensitivity = f"{row['sensitivity']:.3f}{'' if row['is_exact'] else ' (upper bound)'}"
        cells.append((row["mechanism"], f"{row['error']:.2f}", f"{row['over_least']:.2f}", sensitivity, row["vectors"]))
    columns = ("error of prefix sums, clip norms", "over the least possible", "sensitivity", "history vectors")
    return "\n".join(markdown_table(("mechanism", *columns), cells)) + "\n"


def format_rounds(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns time and memory of a round's noise as a Markdown table."""
    cells = []
    for row in rows:
        seconds = f"{row['seconds']:.2f} ({row['least_seconds']:.2f}–{row['largest_seconds']:.2f})"
        peak = "does not run" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f}"
        cells.append((row["mechanism"], seconds, f"{row['history_bytes'] / 1e6:.0f}", peak))
    columns = ("seconds for the noise of a round, median (range)", "history, MB", "peak memory of rounds, GB")
    return "\n".join(markdown_table(("mechanism", *columns), cells)) + "\n"


def format_training(arms: Sequence[Mapping[str, Any]]) -> str:
    """Returns the test losses as a Markdown table, one row for each arm and ε."""
    cells = []
    for arm in arms:
        losses = (format_interval(arm["nats"], 3), format_interval(arm["over_public"], 3, "+"))
        ends = f"{min(arm['by_seed']):.3f}, {max(arm['by_seed']):.3f}"
        cells.append((f"{arm['epsilon']:g}", arm["name"], *losses, ends))
    header = ("ε", "noise", "nats per token", "more than the public model", "smallest and largest seed")
    return "\n".join(markdown_table(header, cells)) + "\n"


def expected_orders(epsilons: Sequence[float]) -> list[tuple[str, float, str, str, bool]]:
    """Returns the orders that the literature reports, as (claim, ε, arm a, arm b, whether they may be equal).

    Arm a should have the smaller loss. Sources: Choquette-Choo et al. 2022 (arXiv:2211.06530), figure on Stack
    Overflow, and McMahan et al. 2024 (arXiv:2408.08868).
    """
    low, high = min(epsilons), max(epsilons)
    claims = [(f"BLT is better than the tree at ε = {each:g}", each, "BLT", "tree", False) for each in epsilons]
    claims.append((f"DP-SGD with Poisson cohorts is better than the tree at ε = {low:g}", low, DPSGD, "tree", False))
    claims.append((f"BLT is no worse than DP-SGD with Poisson cohorts at ε = {high:g}", high, "BLT", DPSGD, True))
    return claims


def judge(difference: Mapping[str, float], may_be_equal: bool) -> str:
    """Returns whether an order holds: "holds", "fails" or "undecided".

    Args:
      difference: interval of the loss of arm a minus that of arm b.
      may_be_equal: whether the order also holds if the arms are equal.
    """
    if difference["high"] < 0 or (may_be_equal and difference["high"] <= 0):
        return "holds"
    if difference["low"] > 0:
        return "fails"
    return "holds (no difference seen)" if may_be_equal else "undecided"


def format_orders(orders: Sequence[Mapping[str, Any]]) -> str:
    """Returns the comparison with the literature as a Markdown table."""
    cells = [(order["claim"], format_interval(order["difference"], 3, "+"), order["verdict"]) for order in orders]
    header = ("order that the literature reports", "difference, nats per token", "here")
    return "\n".join(markdown_table(header, cells)) + "\n"
