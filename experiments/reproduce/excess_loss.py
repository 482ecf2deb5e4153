"""Excess loss of DP-SGD and DPSGD-F by the features' diameter and by their distance from the origin.

The theorem (arXiv:2307.11106) bounds it by G|θ*| R √(rank log 1/δ) / (nε) for DP-SGD, and for DPSGD-F by the same with
the diameter in place of R, and a term R log n / (nε). Of a bound that holds for all data only the hardest data show the
slope, so what is reported is the worst over how strongly the labels show in the features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from experiments.display import ConsoleDisplay
from experiments.reproduce.seeds import interval

Floats = npt.NDArray[np.float64]

METHODS = {"DP-SGD": False, "DPSGD-F": True}
SHARES = {False: 1 / 30, True: 0.3}  # of ε: for the number of records alone, for all of the preprocessing
EPSILON, DELTA, STEPS = 1.0, 1e-5, 20
RATES = (0.1, 1.0, 3.0, 10.0, 100.0)
SIGNALS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FAR, WIDE = 10.0, 1.0  # R while the diameter varies, the diameter while R does
DIAMETERS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DISTANCES = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
_TUNING = (1000, 1001)


class Problem(NamedTuple):
    """Logistic regression whose best weights of length at most 1 are known: features R e₁ + diameter / 2 (s y e₂ +
    √(1 - s²) r), with y = ±1 and r of length 1 orthogonal to both.

    Each r comes with -r, and both with each label. So by symmetry and convexity the best weights of length 1 are e₂
    without a bias, whatever R and the diameter.

    Attributes:
      distance: R, above 0.
      diameter: of the features, above 0.
      signal: s, in (0, 1].
      records: a multiple of 4.
      size: features, at least 3.
    """

    distance: float
    diameter: float
    signal: float
    records: int = 5000
    size: int = 16

    def data(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """Features [records, size], labels 0 and 1 [records]."""
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
        """Mean loss of the best weights of length at most 1, in nats."""
        return math.log1p(math.exp(-self.signal * self.diameter / 2))

    def nothing_learned(self) -> float:
        """Excess loss of weights of zero, in nats."""
        return math.log(2) - self.least()

    def excess(self, model: Any, features: Floats, labels: npt.NDArray[np.int64]) -> float:
        """Training loss above the least, in nats, at least 0, of a fitted `DPLinearClassifier`.

        Its logits are scaled down to weights of length 1 in the features' own units: processing of what is released.
        """
        weights = (model.weights_[:-1, 1] - model.weights_[:-1, 0]) / model.feature_map_.radius
        logits = model.decision_function(features) / max(float(np.linalg.norm(weights)), 1.0)
        return float(np.logaddexp(0, -logits * (2 * labels - 1)).mean()) - self.least()


def measured(seeds: int, show: ConsoleDisplay, **sizes: int) -> dict[str, Any]:
    """Both series, of `seeds` runs a figure, and their slopes; `sizes` are `Problem`'s records and size."""
    found: dict[tuple[float, float], dict[str, Any]] = {}  # one place lies on both lines
    for place in [*((FAR, diameter) for diameter in DIAMETERS), *((distance, WIDE) for distance in DISTANCES)]:
        if place not in found:
            found[place] = _row(*place, seeds, sizes)
            said = ", ".join(f"{method} {found[place][method]['mean']:.2g}" for method in METHODS)
            show.note(f"excess loss, R {place[0]:g}, diameter {place[1]:g}: {said}")
    by_diameter = [found[FAR, diameter] for diameter in DIAMETERS]
    by_distance = [found[distance, WIDE] for distance in DISTANCES]
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
    """Of all rows, and of those where more than half of what there is to learn is learned (None of fewer than two)."""
    learned = [row for row in rows if row[method]["mean"] < row["nothing"] / 2]
    return {
        name: slope([row[size] for row in some], [row[method]["excess"] for row in some]) if len(some) > 1 else None
        for name, some in (("all", rows), ("learned", learned))
    }


def slope(sizes: Sequence[float], excess: Sequence[Sequence[float]]) -> dict[str, float]:
    """Least-squares slope of log excess [sizes, seeds] against log size, and half its 95 % interval over the seeds."""
    return interval(np.polyfit(np.log(sizes), np.log(np.array(excess)), 1)[0].tolist())


def _row(distance: float, diameter: float, seeds: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Of each method the hardest signal at the best learning rate for it, both found with seeds of their own."""
    row: dict[str, Any] = {"distance": distance, "diameter": diameter}
    problems = [Problem(distance, diameter, signal, **sizes) for signal in SIGNALS]
    row["nothing"] = max(problem.nothing_learned() for problem in problems)
    for method, preprocess in METHODS.items():
        worst = (-math.inf, problems[0], RATES[0])
        for problem in problems:
            found = [(float(np.mean(_runs(problem, preprocess, rate, _TUNING))), rate) for rate in RATES]
            worst = max(worst, (min(found)[0], problem, min(found)[1]))
        _, problem, rate = worst
        excess = _runs(problem, preprocess, rate, range(seeds))
        row[method] = {**interval(excess), "excess": excess, "signal": problem.signal, "learning_rate": rate}
    return row


def _runs(problem: Problem, preprocess: bool, learning_rate: float, seeds: Sequence[int]) -> list[float]:
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


def table(found: dict[str, Any]) -> str:
    """Both series and the slopes as Markdown."""
    rates, signals = (", ".join(f"{value:g}" for value in values) for values in (RATES, SIGNALS))
    seeds = len(found["by_diameter"][0]["DP-SGD"]["excess"])
    lines = [
        "### Excess loss by diameter and by distance from the origin, ε = 1, δ = 1e-5",
        "",
        "Training loss in nats above the least at weights of length 1; x = R e₁ + diameter / 2 (s y e₂ + √(1 − s²) r),",
        f"{STEPS} steps of everybody. The worst over s ({signals}), each at its best",
        f"learning rate of {rates}, both found with other seeds. Mean of {seeds} seeds ± half a 95 %",
        "interval; unit record, add-or-remove-one. Slopes: of log excess against log diameter or log R.",
    ]
    for name, key in (("diameter", "by_diameter"), ("distance", "by_distance")):
        head = f"diameter, R = {FAR:g}" if name == "diameter" else f"R, diameter {WIDE:g}"
        lines += ["", f"| {head} | nothing learned | " + " | ".join(f"{m} | s, learning rate" for m in METHODS) + " |"]
        lines.append("|---" * (2 + 2 * len(METHODS)) + "|")
        for row in found[key]:
            cells = [f"{row[name]:g}", f"{row['nothing']:.2g}"]
            for method in METHODS:
                entry = row[method]
                cells += [f"{entry['mean']:.2g} ± {entry['half']:.1g}"]
                cells += [f"{entry['signal']:g}, {entry['learning_rate']:g}"]
            lines.append("| " + " | ".join(cells) + " |")
        for part, words in (("all", "slope, all rows"), ("learned", "slope, rows below half of nothing learned")):
            slopes = [found["slopes"][method][name][part] for method in METHODS]
            said = [f"{entry['mean']:.3f} ± {entry['half']:.3f} | –" if entry else "– | –" for entry in slopes]
            lines.append(f"| {words} | – | " + " | ".join(said) + " |")
    return "\n".join(lines) + "\n"
