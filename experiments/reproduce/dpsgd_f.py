"""DPSGD-F (arXiv:2307.11106) beside DP-SGD, both tuned over one grid on a validation split."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from experiments.display import ConsoleDisplay
from experiments.provenance import command_line, versions
from experiments.reproduce import excess_loss, images
from experiments.reproduce.excess_loss import METHODS
from experiments.reproduce.images import Images
from experiments.reproduce.seeds import interval
from experiments.runs import write_json
from privacy.files import write_public

DELTA = 1e-5
SHARES = {False: 1 / 30, True: 0.1}  # of ε: for the number of records alone, for all of the preprocessing
_RATES = (3.0, 10.0, 30.0)
# (steps, sampling rate): of the small set all records, of the large one samples.
_GRIDS = {"digits": ((20, 1.0), (40, 1.0)), "fashion-mnist": ((100, 0.05), (300, 0.05))}
_OFFSETS = (0.0, 1.0, 3.0)
_MEANS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@click.command("dpsgd-f")
@click.option("--images", "folder", type=click.Path(path_type=Path), default=images.DEBIAN, show_default=True)
@click.option("--data", type=click.Choice([*_GRIDS, "all"]), default="all", show_default=True)
@click.option("--seeds", type=click.Choice(["3", "5", "10"]), default="5", show_default=True, help="Runs of a figure.")
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/dpsgd-f"), show_default=True)
def dpsgd_f(folder: Path, data: str, seeds: str, output: Path) -> None:
    """Accuracy on the counter-example, excess loss by diameter and by distance from the origin, accuracy on images at
    ε = 1, 2, 4, 8, and with a constant added to every pixel.

    Images: Fashion-MNIST from Debian's dataset-fashion-mnist, or any folder with MNIST's files; scikit-learn's digits.
    """
    from experiments import plots

    show, count = ConsoleDisplay(), int(seeds)
    sets: dict[str, Images] = {}
    if data in ("digits", "all"):
        sets["digits"] = images.digits()
    if data in ("fashion-mnist", "all"):
        sets["fashion-mnist"] = images.fashion_mnist(folder)
    output.mkdir(parents=True, exist_ok=True)
    show.note("the counter-example …")
    found: dict[str, Any] = {"counter_example": counter_example(count)}
    text = [_counter_table(found["counter_example"])]
    show.note("excess loss by diameter and by distance: three minutes …")
    found["excess_loss"] = excess_loss.measured(4 * count, show)
    text.append(excess_loss.table(found["excess_loss"]))
    plots.excess_loss(output / "excess-loss", found["excess_loss"])
    for name, of in sets.items():
        found[name] = _accuracies(name, of, count, show)
        text.append(_accuracy_table(name, found[name], count))
    large = sets.get("fashion-mnist")
    if large is not None:
        found["offsets"] = _offsets(large, count, found["fashion-mnist"], show)
        text.append(_offset_table(found["offsets"]))
        plots.offsets(output / "plot", found["offsets"])
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), **found})
    write_public(output / "table.md", "\n".join(text).encode())
    click.echo("\n".join(text))


def fitted(
    preprocess: bool, epsilon: float, part: tuple[Any, Any], seed: int, *, steps: int, rate: float, learning_rate: float
) -> Any:
    """A `DPLinearClassifier` on features scaled to length 1, with seeded noise."""
    from privacy.linear.classifier import DPLinearClassifier

    classes = range(int(part[1].max()) + 1)
    model = DPLinearClassifier(
        epsilon,
        DELTA,
        preprocess=preprocess,
        share=SHARES[preprocess],
        steps=steps,
        sampling_probability=rate,
        learning_rate=learning_rate,
        classes=classes,
        random_state=seed,
    )
    return model.fit(*part)


def counter_example(seeds: int) -> list[dict[str, Any]]:
    """Features μ e1 ± e2 (section 4): 5000 records, ε = 1; of each method the best learning rate of three."""
    from privacy.linear.classifier import DPLinearClassifier

    labels = np.random.default_rng(0).integers(0, 2, 5000)
    rows = []
    for mu in _MEANS:
        features = np.stack([np.full(len(labels), mu), 2.0 * labels - 1], axis=1)
        row: dict[str, Any] = {"mu": mu}
        for name, preprocess in METHODS.items():
            best = [
                [
                    DPLinearClassifier(
                        1.0,
                        DELTA,
                        preprocess=preprocess,
                        bound=math.hypot(mu, 1),
                        share=0.3 if preprocess else SHARES[False],
                        steps=50,
                        sampling_probability=1.0,
                        learning_rate=learning_rate,
                        classes=(0, 1),
                        random_state=seed,
                    )
                    .fit(features, labels)
                    .score(features, labels)
                    for seed in range(seeds)
                ]
                for learning_rate in (1.0, 10.0, 100.0)
            ]
            row[name] = interval(max(best, key=np.mean))
        rows.append(row)
    return rows


def _accuracies(name: str, of: Images, seeds: int, show: ConsoleDisplay) -> list[dict[str, Any]]:
    rows = []
    for epsilon in (1.0, 2.0, 4.0, 8.0):
        row: dict[str, Any] = {"epsilon": epsilon}
        for method, preprocess in METHODS.items():
            settings = _tuned(name, of, preprocess, epsilon)
            scores = [fitted(preprocess, epsilon, of.train, seed, **settings).score(*of.test) for seed in range(seeds)]
            row[method] = {**interval(scores), "settings": settings}
        rows.append(row)
        show.note(f"{name}, ε = {epsilon:g}: {_said(row)}")
    return [*rows, {"epsilon": None, "plain": _plain(of)}]


def _tuned(name: str, of: Images, preprocess: bool, epsilon: float) -> dict[str, Any]:
    """The settings of the grid with the best validation score, the mean of two runs with other noise."""
    grid = [
        {"steps": steps, "rate": rate, "learning_rate": learning_rate}
        for (steps, rate), learning_rate in itertools.product(_GRIDS[name], _RATES)
    ]

    def score(settings: dict[str, Any]) -> float:
        runs = [fitted(preprocess, epsilon, of.train, seed, **settings) for seed in (1000, 1001)]
        return float(np.mean([run.score(*of.validation) for run in runs]))

    return max(grid, key=score)


def _plain(of: Images) -> float:
    """Test accuracy without privacy: scikit-learn's logistic regression on the same features."""
    from sklearn.linear_model import LogisticRegression

    def scaled(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    model = LogisticRegression(C=100.0, max_iter=200, tol=1e-3).fit(scaled(of.train[0]), of.train[1])
    return float(model.score(scaled(of.test[0]), of.test[1]))


def _offsets(of: Images, seeds: int, tuned: list[dict[str, Any]], show: ConsoleDisplay) -> list[dict[str, Any]]:
    """ε = 1, with the settings of offset 0."""
    rows = []
    for offset in _OFFSETS:
        moved = [(x + np.float32(offset), y) for x, y in (of.train, of.test)]
        row: dict[str, Any] = {"offset": offset}
        for method, preprocess in METHODS.items():
            settings = tuned[0][method]["settings"]
            row[method] = interval(
                [fitted(preprocess, 1.0, moved[0], seed, **settings).score(*moved[1]) for seed in range(seeds)]
            )
        rows.append(row)
        show.note(f"offset {offset:g}: {_said(row)}")
    return rows


def _said(row: dict[str, Any]) -> str:
    return ", ".join(f"{method} {row[method]['mean']:.3f}" for method in METHODS)


def _cell(entry: dict[str, float]) -> str:
    return f"{100 * entry['mean']:.1f} ± {100 * entry['half']:.1f}"


def _counter_table(rows: list[dict[str, Any]]) -> str:
    words = "Accuracy in %, best learning rate of 1, 10, 100; unit record, add-or-remove-one; everybody in every step."
    title = "Counter-example: x = μ e₁ ± e₂, 5000 records, ε = 1, δ = 1e-5"
    return _by_method(title, words, "μ", [(row["mu"], row) for row in rows])


def _accuracy_table(name: str, rows: list[dict[str, Any]], seeds: int) -> str:
    grid = " or ".join(f"{steps} at {rate:g}" for steps, rate in _GRIDS[name])
    rates = ", ".join(f"{learning_rate:g}" for learning_rate in _RATES)
    lines = [
        f"### {name}, test accuracy in %, δ = 1e-5",
        "",
        f"Mean of {seeds} seeds ± half a 95 % interval; unit record, add-or-remove-one. Chosen on the validation",
        f"split, for each method and ε: steps at sampling rate ({grid}) and learning rate ({rates});",
        "the choice itself is not paid for, for either. Rows are scaled to length 1 for both; clip norm 1, momentum",
        "0.9. A tenth of ε goes to DPSGD-F's preprocessing, a thirtieth to the number of records in DP-SGD.",
        "",
        "| ε | " + " | ".join(f"{m} | steps, rate, learning rate" for m in METHODS) + " |",
        "|---" * (1 + 2 * len(METHODS)) + "|",
    ]
    for row in rows[:-1]:
        cells = []
        for method in METHODS:
            chosen = row[method]["settings"]
            cells += [_cell(row[method]), f"{chosen['steps']}, {chosen['rate']:g}, {chosen['learning_rate']:g}"]
        lines.append(f"| {row['epsilon']:g} | {' | '.join(cells)} |")
    lines += ["", f"Not private (scikit-learn's logistic regression): {100 * rows[-1]['plain']:.1f}."]
    return "\n".join(lines) + "\n"


def _offset_table(rows: list[dict[str, Any]]) -> str:
    title = "fashion-mnist with a constant added to every pixel, ε = 1, δ = 1e-5"
    return _by_method(title, "Settings as tuned without it.", "added", [(row["offset"], row) for row in rows])


def _by_method(title: str, words: str, name: str, rows: list[tuple[float, dict[str, Any]]]) -> str:
    lines = [f"### {title}", "", words, "", f"| {name} | " + " | ".join(METHODS) + " |"]
    lines.append("|---" * (1 + len(METHODS)) + "|")
    lines += [f"| {value:g} | {' | '.join(_cell(row[m]) for m in METHODS)} |" for value, row in rows]
    return "\n".join(lines) + "\n"
