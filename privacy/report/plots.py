"""The report's plots as inline SVG: no colour scheme of their own, so that they read on a light and a dark
page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

INK = "#7f8794"
ACCENT = "#2f7de1"


def draw(data: dict[str, Any]) -> dict[str, str]:
    """SVG by name for whatever `data` (see `privacy.report.contents`) holds: epsilon, clip, participations,
    cohorts.
    """
    plots = {}
    if len(data["epsilon_by_round"]) > 1:
        rounds, eps = zip(*data["epsilon_by_round"], strict=True)
        plots["epsilon"] = _svg(
            lambda axes: axes.plot(rounds, eps, color=ACCENT, linewidth=2), "rounds released", "ε", zero=True
        )
    adaptive = data["adaptive_clipping"]
    if adaptive and len(adaptive["clip_by_round"]) > 1:
        path = adaptive["clip_by_round"]
        plots["clip"] = _svg(
            lambda axes: axes.plot(range(len(path)), path, color=ACCENT, linewidth=2),
            "round",
            "clip norm",
            zero=True,
        )
    operator = data.get("operator")
    if operator:
        counts = {int(count): clients for count, clients in operator["participations"].items()}
        plots["participations"] = _svg(
            lambda axes: axes.bar(counts.keys(), counts.values(), color=ACCENT, width=0.85),
            "rounds a client took part in",
            "clients",
            whole=True,
        )
        sizes = operator["cohort_sizes"]
        if len(sizes) > 1:

            def cohorts(axes: Any) -> None:
                axes.scatter(range(len(sizes)), sizes, color=ACCENT, s=12)
                axes.axhline(data["planned"]["expected_cohort"], color=INK, linestyle="--", linewidth=1)

            plots["cohorts"] = _svg(cohorts, "round", "clients (dashes: expected)", zero=True)
    return plots


def _svg(paint: Callable[[Any], Any], across: str, up: str, *, zero: bool = False, whole: bool = False) -> str:
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
        paint(axes)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        if whole:
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if zero:
            axes.set_ylim(bottom=0)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
