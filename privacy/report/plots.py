"""Draws the plots of a report as inline SVG.

Their colours are readable on a light and on a dark page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

INK = "#7f8794"
ACCENT = "#2f7de1"


def draw(data: dict[str, Any]) -> dict[str, str]:
    """Returns SVG by name, for the plots that `data` has values for.

    Args:
      data: contents of a report of a run (`privacy.report.contents`).

    Returns:
      Some of the plots "epsilon", "clip", "participations" and "cohorts".
    """
    plots = {}
    if len(data["epsilon_by_round"]) > 1:
        rounds, eps = zip(*data["epsilon_by_round"], strict=True)
        plots["epsilon"] = render_svg(
            lambda axes: axes.plot(rounds, eps, color=ACCENT, linewidth=2), "rounds released", "ε", from_zero=True
        )
    adaptive = data["adaptive_clipping"]
    if adaptive and len(adaptive["clip_by_round"]) > 1:
        norms = adaptive["clip_by_round"]
        plots["clip"] = render_svg(
            lambda axes: axes.plot(range(len(norms)), norms, color=ACCENT, linewidth=2),
            "round",
            "clip norm",
            from_zero=True,
        )
    operator = data.get("operator")
    if operator:
        counts = {int(count): clients for count, clients in operator["participations"].items()}
        plots["participations"] = render_svg(
            lambda axes: axes.bar(counts.keys(), counts.values(), color=ACCENT, width=0.85),
            "rounds a client took part in",
            "clients",
            integers=True,
        )
        sizes = operator["cohort_sizes"]
        if len(sizes) > 1:

            def draw_cohorts(axes: Any) -> None:
                axes.scatter(range(len(sizes)), sizes, color=ACCENT, s=12)
                axes.axhline(data["planned"]["expected_cohort"], color=INK, linestyle="--", linewidth=1)

            plots["cohorts"] = render_svg(draw_cohorts, "round", "clients (dashes: expected)", from_zero=True)
    return plots


def render_svg(
    draw_axes: Callable[[Any], Any], x_label: str, y_label: str, *, from_zero: bool = False, integers: bool = False
) -> str:
    """Returns a plot as SVG in the style of the reports; its x axis has integers.

    Args:
      draw_axes: draws on Matplotlib axes.
      x_label: what the x axis shows.
      y_label: what the y axis shows.
      from_zero: whether the y axis begins at 0.
      integers: whether the y axis has integers only.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "fedspeak",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.family": "sans-serif",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(5.2, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw_axes(axes)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if integers:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if from_zero:
            axes.set_ylim(bottom=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
