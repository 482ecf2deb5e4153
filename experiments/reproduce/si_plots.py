"""Draws the plots of `fedspeak reproduce si`: learning curves, learning rates, and loss against ε."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import new_figure, save_figure
from experiments.reproduce.si_analysis import Study
from experiments.reproduce.si_arms import MOMENTUM
from experiments.reproduce.si_choice import MissingError
from experiments.reproduce.si_models import PAIRS
from experiments.reproduce.si_tables import read


def draw(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Draws what is measured so far, and returns the paths: each plot as PNG and SVG."""
    study = read(found)
    return [
        *_curves(folder / "curves", study),
        *_rates(folder / "rates", study),
        *_privacy(folder / "privacy", study, found["guarantees"]),
    ]


def _curves(path: Path, study: Study) -> list[Path]:
    figure, axes = new_figure(2)
    for panel, pair in zip(axes, PAIRS.items(), strict=True):
        for model in pair:
            try:
                rows = study.final(MOMENTUM, model)
            except MissingError:
                continue
            color = f"C{pair.index(model)}"
            for number, row in enumerate(rows):
                losses = np.array([study.limit(loss) for loss in row["curve"]["loss"]])
                panel.plot(row["curve"]["rounds"], losses, color=color, label=None if number else model)
        _finish(panel, "round")
    axes[0].set_ylabel("nats per token, validation clients")
    return save_figure(figure, path)


def _rates(path: Path, study: Study) -> list[Path]:
    figure, axes = new_figure(2)
    for panel, pair in zip(axes, PAIRS.items(), strict=True):
        for model in pair:
            try:
                by_rate = study.by_rate(model)
            except MissingError:
                continue
            losses = np.array(list(by_rate.values()))
            spread = np.abs(np.array([losses.min(axis=1), losses.max(axis=1)]) - losses.mean(axis=1))
            panel.errorbar(list(by_rate), losses.mean(axis=1), yerr=spread, marker="o", capsize=3, label=model)
        panel.set_xscale("log")
        _finish(panel, "learning rate of the clients")
    axes[0].set_ylabel(f"nats per token after {study.rounds // 2} rounds")
    return save_figure(figure, path)


def _privacy(path: Path, study: Study, guarantees: Mapping[str, Any]) -> list[Path]:
    figure, axes = new_figure(2)
    for panel, pair in zip(axes, PAIRS.items(), strict=True):
        for model in pair:
            for clip, style in (("fixed", "-"), ("adaptive", "--")):
                points = []
                for name in guarantees:
                    if name.endswith(f"{clip} clip"):
                        try:
                            points.append((guarantees[name]["epsilon"], *_range(study.losses(name, model))))
                        except MissingError:
                            continue
                if points:
                    epsilons, means, lows, highs = np.array(sorted(points)).T
                    spread = np.array([means - lows, highs - means])
                    label, color = f"{model}, {clip} clip", f"C{pair.index(model)}"
                    panel.errorbar(epsilons, means, yerr=spread, fmt=f"o{style}", color=color, capsize=3, label=label)
        _finish(panel, "ε")
    axes[0].set_ylabel("nats per token, test clients")
    return save_figure(figure, path)


def _range(losses: np.ndarray) -> tuple[float, float, float]:
    return float(losses.mean()), float(losses.min()), float(losses.max())


def _finish(panel: Any, label: str) -> None:
    panel.set_xlabel(label)
    if panel.get_legend_handles_labels()[0]:
        panel.legend()
    else:
        panel.text(0.5, 0.5, "not measured yet", ha="center", transform=panel.transAxes)
