"""Measures how the excess loss of DP-SGD and DPSGD-F depends on the features' diameter and distance from the origin.

The theorem (arXiv:2307.11106) bounds the excess loss of DP-SGD by G|θ*| R √(rank log 1/δ) / (nε), for a loss with
Lipschitz constant G, best weights θ*, and n feature vectors of L2 norm at most R and the given rank. The bound of
DPSGD-F has the features' diameter in place of R, plus a term R log n / (nε). The bounds hold for all data, so only the
hardest data show their slopes. Therefore the study varies how strongly the features show the label (`Problem.signal`)
and reports the worst case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.display import ConsoleDisplay
from experiments.markdown import markdown_table
from experiments.reproduce.seeds import interval

Floats = npt.NDArray[np.float64]

METHODS = {"DP-SGD": False, "DPSGD-F": True}
# Share of ε spent before training. Without preprocessing (False, DP-SGD) it is spent on the number of records alone.
# With preprocessing (True, DPSGD-F) it is spent on the number of records, the centre and the radius.
SHARES = {False: 1 / 30, True: 0.3}
EPSILON, DELTA, STEPS = 1.0, 1e-5, 20
RATES = (0.1, 1.0, 3.0, 10.0, 100.0)
SIGNALS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FAR, WIDE = 10.0, 1.0  # R while the diameter varies, and the diameter while R varies
DIAMETERS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DISTANCES = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
_TUNING = (1000, 1001)  # seeds with which learning rates and signals are chosen


class Problem(NamedTuple):
    """Describes a logistic regression problem whose best weights of L2 norm at most 1 are known.

    The features are R e₁ + diameter / 2 (s y e₂ + √(1 - s²) r), with labels y = ±1 and unit vectors r orthogonal to e₁
    and e₂. Each r comes with -r, and both come with each label. So by symmetry and convexity the best weights of L2
    norm at most 1 are e₂ without a bias, for every R and diameter.

    Attributes:
      distance: distance R of the features' centre from the origin, > 0.
      diameter: diameter of the features, > 0.
      signal: strength s with which the features show the label, in (0, 1].
      records: number of records, a multiple of 4.
      size: number of features, ≥ 3.
    """

    distance: float
    diameter: float
    signal: float
    records: int = 5000
    size: int = 16

    def data(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Returns the features float64 [records, size] and the labels 0 and 1, int64 [records]; always the same."""
        rest = np.random.default_rng(0).normal(size=(self.records // 4, self.size - 2))
        rest /= np.linalg.norm(rest, axis=1, keepdims=True)
        signs = np.tile([1.0, -1.0], self.records // 2)
        rest = np.repeat(np.concatenate([rest, -rest]), 2, axis=0)
        features = np.empty((self.records, self.size))
        features[:, 0] = self.distance
        features[:, 1] = self.diameter / 2 * self.signal * signs
        features[:, 2:] = self.diameter / 2 * math.sqrt(1 - self.signal**2) * rest
        return features, (signs > 0).astype(np.int64)

    def least(self) -> float:
        """Returns the mean loss of the best weights of L2 norm at most 1, in nats."""
        return math.log1p(math.exp(-self.signal * self.diameter / 2))

    def nothing_learned(self) -> float:
        """Returns the excess loss of zero weights, in nats."""
        return math.log(2) - self.least()

    def excess(self, model: Any, features: Floats, labels: npt.NDArray[np.int64]) -> float:
        """Returns a fitted classifier's excess loss: its training loss above the minimum, in nats, ≥ 0.

        If the classifier's weights have an L2 norm above 1 in the units of `features`, its logits are scaled down as if
        the norm were 1. This post-processing of the released weights costs no privacy.

        Args:
          model: a fitted `DPLinearClassifier`.
          features: float64 [records, size], as from `data`.
          labels: int64 [records], as from `data`.
        """
        weights = (model.weights_[:-1, 1] - model.weights_[:-1, 0]) / model.feature_map_.radius
        logits = model.decision_function(features) / max(float(np.linalg.norm(weights)), 1.0)
        return float(np.logaddexp(0, -logits * (2 * labels - 1)).mean()) - self.least()


def measure(seeds: int, show: ConsoleDisplay, **sizes: int) -> dict[str, Any]:
    """Measures the excess loss against the diameter and against the distance, and the slopes of both series.

    Args:
      seeds: number of runs per estimate.
      show: display of the progress.
      sizes: `records` and `size` of the problems; by default those of `Problem`.

    Returns:
      "by_diameter" and "by_distance": rows of both series; "slopes": results of `slope` by method, then by series, then
      by "all" (over all rows) and "learned" (over the rows where the method learns something).
    """
    rows: dict[tuple[float, float], dict[str, Any]] = {}  # the pair (FAR, WIDE) belongs to both series
    for pair in [*((FAR, diameter) for diameter in DIAMETERS), *((distance, WIDE) for distance in DISTANCES)]:
        if pair not in rows:
            rows[pair] = _measure_row(*pair, seeds, sizes)
            losses = ", ".join(f"{method} {rows[pair][method]['mean']:.2g}" for method in METHODS)
            show.note(f"excess loss, R {pair[0]:g}, diameter {pair[1]:g}: {losses}")
    by_diameter = [rows[FAR, diameter] for diameter in DIAMETERS]
    by_distance = [rows[distance, WIDE] for distance in DISTANCES]
    return {
        "by_diameter": by_diameter,
        "by_distance": by_distance,
        "slopes": {
            method: {
                "diameter": _slopes(by_diameter, "diameter", method),
                "distance": _slopes(by_distance, "distance", method),
            }
            for method in METHODS
        },
    }


def _slopes(rows: list[dict[str, Any]], size: str, method: str) -> dict[str, Any]:
    """Returns the slope over all rows, and over those whose excess loss is below half that of zero weights.

    A slope over fewer than two rows is None.
    """
    learned = [row for row in rows if row[method]["mean"] < row["nothing"] / 2]
    return {
        name: slope([row[size] for row in some], [row[method]["excess"] for row in some]) if len(some) > 1 else None
        for name, some in (("all", rows), ("learned", learned))
    }


def slope(sizes: Sequence[float], excess: Sequence[Sequence[float]]) -> dict[str, float]:
    """Fits the slope of log excess loss against log size by least squares, for each seed.

    Args:
      sizes: diameters or distances.
      excess: excess losses [sizes, seeds].

    Returns:
      The mean slope over the seeds and half the width of its 95 % interval, as `seeds.interval` returns them.
    """
    return interval(np.polyfit(np.log(sizes), np.log(np.array(excess)), 1)[0].tolist())


def _measure_row(distance: float, diameter: float, seeds: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Measures each method on its hardest signal, at the best learning rate for that signal.

    Signal and learning rate are chosen with the seeds `_TUNING`, which are not used for the estimate.
    """
    row: dict[str, Any] = {"distance": distance, "diameter": diameter}
    problems = [Problem(distance, diameter, signal, **sizes) for signal in SIGNALS]
    row["nothing"] = max(problem.nothing_learned() for problem in problems)
    for method, preprocess in METHODS.items():
        worst = (-math.inf, problems[0], RATES[0])
        for problem in problems:
            losses = [(float(np.mean(_train(problem, preprocess, rate, _TUNING))), rate) for rate in RATES]
            worst = max(worst, (min(losses)[0], problem, min(losses)[1]))
        _, problem, rate = worst
        excess = _train(problem, preprocess, rate, range(seeds))
        row[method] = {**interval(excess), "excess": excess, "signal": problem.signal, "learning_rate": rate}
    return row


def _train(problem: Problem, preprocess: bool, learning_rate: float, seeds: Sequence[int]) -> list[float]:
    """Trains a classifier with each seed and returns the excess losses."""
    from privacy.linear.classifier import DPLinearClassifier

    data = problem.data()
    return [
        problem.excess(
            DPLinearClassifier(
                EPSILON,
                DELTA,
                preprocess=preprocess,
                bound=math.hypot(problem.distance, problem.diameter / 2),
                share=SHARES[preprocess],
                steps=STEPS,
                sampling_probability=1.0,
                learning_rate=learning_rate,
                classes=(0, 1),
                random_state=seed,
            ).fit(*data),
            *data,
        )
        for seed in seeds
    ]


def table(study: dict[str, Any]) -> str:
    """Returns both series and their slopes, as from `measure`, as Markdown."""
    rates, signals = (", ".join(f"{value:g}" for value in values) for values in (RATES, SIGNALS))
    seeds = len(study["by_diameter"][0]["DP-SGD"]["excess"])
    lines = [
        "### Excess loss by diameter and by distance from the origin, ε = 1, δ = 1e-5",
        "",
        "Training loss in nats above its minimum over weights of L2 norm at most 1, for the features",
        f"x = R e₁ + diameter / 2 (s y e₂ + √(1 − s²) r) and {STEPS} steps on all records. Each value is for the worst",
        f"s of {signals}, at the best learning rate of {rates} for that s;",
        f"both were chosen with other seeds. Mean of {seeds} seeds ± half the width of a 95 % interval; unit record,",
        "add-or-remove-one. Slopes are of log excess loss against log diameter or log R.",
    ]
    for name, key in (("diameter", "by_diameter"), ("distance", "by_distance")):
        head = f"diameter, R = {FAR:g}" if name == "diameter" else f"R, diameter {WIDE:g}"
        header = [head, "zero weights", *(title for method in METHODS for title in (method, "s, learning rate"))]
        body = []
        for row in study[key]:
            cells = [f"{row[name]:g}", f"{row['nothing']:.2g}"]
            for method in METHODS:
                entry = row[method]
                cells += [f"{entry['mean']:.2g} ± {entry['half']:.1g}"]
                cells += [f"{entry['signal']:g}, {entry['learning_rate']:g}"]
            body.append(cells)
        labels = {"all": "slope, all rows", "learned": "slope, rows below half of zero weights' excess loss"}
        for part, label in labels.items():
            cells = [label, "–"]
            for method in METHODS:
                entry = study["slopes"][method][name][part]
                cells += [f"{entry['mean']:.3f} ± {entry['half']:.3f}" if entry else "–", "–"]
            body.append(cells)
        lines += ["", *markdown_table(header, body)]
    return "\n".join(lines) + "\n"
