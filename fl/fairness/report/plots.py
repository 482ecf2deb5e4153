"""Draws the plot of a fairness report."""

from __future__ import annotations

from typing import Any

from privacy.report.plots import ACCENT, INK, render_svg


def draw_gaps(groups: list[dict[str, Any]]) -> str:
    """Returns SVG with the gap of each group to the overall value and its interval, in the order of `groups`.

    Args:
      groups: mappings with the numbers "gap", "low" and "high".
    """
    gaps = [group["gap"] for group in groups]
    below = [group["gap"] - group["low"] for group in groups]
    above = [group["high"] - group["gap"] for group in groups]

    def draw_axes(axes: Any) -> None:
        numbers = range(1, len(groups) + 1)
        axes.errorbar(numbers, gaps, yerr=(below, above), fmt="o", color=ACCENT, markersize=3.5, linewidth=1.2)
        axes.axhline(0, color=INK, linewidth=1)

    return render_svg(draw_axes, "group, as numbered in the table", "gap to the overall value")
