"""Draws the plot of the study on fairness over many groups, as PNG and SVG, and returns both paths."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import new_figure, save_figure

_PANELS = (
    ("a tenth of the groups has the gap", ("largest gap", "weighted", "attribute-specific"), "groups"),
    ("one group has the gap", ("largest gap, one group", "weighted, one group"), "groups"),
    ("Zipf weights, a tenth of the weight has the gap", ("weighted, Zipf",), "effective number of groups e^H"),
)
_COLORS = {"largest gap": "C0", "weighted": "C1", "attribute-specific": "C2"}


def rows_needed(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the rows that each test needs against the number of groups, with intervals, and the plans.

    Args:
      path: path of the files, without suffix.
      rows: results of `experiments.reproduce.cvar_samples.measure`.
    """
    figure, panels = new_figure(len(_PANELS))
    for axes, (title, tests, label) in zip(panels, _PANELS, strict=True):
        for test in tests:
            chosen = [row for row in rows if row["test"] == test]
            sizes, needed, low, high, planned = (
                np.array([row[key] for row in chosen]) for key in ("size", "rows", "low", "high", "planned")
            )
            errors = np.maximum([needed - low, high - needed], 0)
            name = test.partition(",")[0]
            axes.errorbar(sizes, needed, errors, color=_COLORS[name], marker="o", markersize=4, label=name)
            axes.plot(sizes, planned, color=_COLORS[name], linestyle=":")
        axes.plot([], [], color="black", linestyle=":", label="plan")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(title, fontsize="medium")
        axes.set_xlabel(label)
        axes.legend()
    panels[0].set_ylabel("rows needed")
    return save_figure(figure, path)
