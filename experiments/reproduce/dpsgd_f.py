"""Defines `fedspeak reproduce dpsgd-f`: DPSGD-F (arXiv:2307.11106) beside DP-SGD on linear models.

Both methods are tuned over the same grid on a validation split.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from experiments import options
from experiments.display import ConsoleDisplay
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.reproduce import excess_loss, images
from experiments.reproduce.excess_loss import METHODS
from experiments.reproduce.images import Images
from experiments.reproduce.seeds import interval
from experiments.runs import write_json
from privacy.files import write_public

DELTA = 1e-5
# Share of ε spent before training. Without preprocessing (False, DP-SGD) it is spent on the number of records alone.
# With preprocessing (True, DPSGD-F) it is spent on the number of records, the centre and the radius.
SHARES = {False: 1 / 30, True: 0.1}
_RATES = (3.0, 10.0, 30.0)
# Candidate pairs (steps, sampling probability). A step takes all records of the small set, a sample of the large one.
_GRIDS = {"digits": ((20, 1.0), (40, 1.0)), "fashion-mnist": ((100, 0.05), (300, 0.05))}
_OFFSETS = (0.0, 1.0, 3.0)
_MEANS = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)


@click.command("dpsgd-f")
@click.option(
    "--images",
    "folder",
    type=click.Path(path_type=Path),
    default=images.DEBIAN,
    show_default=True,
    help="Folder with the files of Fashion-MNIST, in MNIST's format.",
)
@click.option(
    "--data",
    type=click.Choice([*_GRIDS, "all"]),
    default="all",
    show_default=True,
    help="Image data set to train on.",
)
@click.option(
    "--seeds",
    type=click.Choice(["3", "5", "10"]),
    default="5",
    show_default=True,
    help="Number of runs per estimate of an accuracy.",
)
@options.output("runs/dpsgd-f", "the table, the plots and the results")
def dpsgd_f(folder: Path, data: str, seeds: str, output: Path) -> None:
    """Compare DPSGD-F with DP-SGD on linear models.

    Measures the accuracy on the paper's counter-example, the excess loss by the features' diameter and by their
    distance from the origin, and the accuracy on images at ε = 1, 2, 4, 8 and with a constant added to every pixel.

    The images are Fashion-MNIST (Debian's package dataset-fashion-mnist, or a folder with files in MNIST's format) and
    scikit-learn's digits.
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
    results: dict[str, Any] = {"counter_example": counter_example(count)}
    text = [_counter_table(results["counter_example"])]
    show.note("excess loss by diameter and by distance: about three minutes …")
    results["excess_loss"] = excess_loss.measure(4 * count, show)
    text.append(excess_loss.table(results["excess_loss"]))
    plots.excess_loss(output / "excess-loss", results["excess_loss"])
    for name, data_set in sets.items():
        results[name] = _measure_accuracies(name, data_set, count, show)
        text.append(_accuracy_table(name, results[name], count))
    large = sets.get("fashion-mnist")
    if large is not None:
        results["offsets"] = _measure_offsets(large, count, results["fashion-mnist"], show)
        text.append(_offset_table(results["offsets"]))
        plots.offsets(output / "plot", results["offsets"])
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), **results})
    write_public(output / "table.md", "\n".join(text).encode())
    click.echo("\n".join(text))


def fit_classifier(
    preprocess: bool, epsilon: float, part: tuple[Any, Any], seed: int, *, steps: int, rate: float, learning_rate: float
) -> Any:
    """Fits a `DPLinearClassifier` to features scaled to L2 norm 1, with seeded noise.

    Args:
      preprocess: whether to fit DPSGD-F; otherwise DP-SGD.
      epsilon: ε at δ = `DELTA`, > 0.
      part: features [n, size] and labels [n].
      seed: seed of the samples and of the noise.
      steps: number of steps.
      rate: sampling probability of a record in a step, in (0, 1].
      learning_rate: learning rate, > 0.
    """
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
    """Measures the accuracy on the paper's counter-example (section 4), features μ e₁ ± e₂.

    There are 5000 records, and ε = 1. Each method has the best of three learning rates.

    Args:
      seeds: number of runs per estimate.

    Returns:
      For each μ a row with "mu" and, by method, the mean accuracy with its interval.
    """
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


def _measure_accuracies(name: str, data_set: Images, seeds: int, show: ConsoleDisplay) -> list[dict[str, Any]]:
    rows = []
    for epsilon in (1.0, 2.0, 4.0, 8.0):
        row: dict[str, Any] = {"epsilon": epsilon}
        for method, preprocess in METHODS.items():
            settings = _tune(name, data_set, preprocess, epsilon)
            models = [fit_classifier(preprocess, epsilon, data_set.train, seed, **settings) for seed in range(seeds)]
            row[method] = {**interval([model.score(*data_set.test) for model in models]), "settings": settings}
        rows.append(row)
        show.note(f"{name}, ε = {epsilon:g}: {_describe(row)}")
    return [*rows, {"epsilon": None, "plain": _measure_plain(data_set)}]


def _tune(name: str, data_set: Images, preprocess: bool, epsilon: float) -> dict[str, Any]:
    """Returns the settings with the best validation score in the grid; a score is the mean of two runs."""
    grid = [
        {"steps": steps, "rate": rate, "learning_rate": learning_rate}
        for (steps, rate), learning_rate in itertools.product(_GRIDS[name], _RATES)
    ]

    def score(settings: dict[str, Any]) -> float:
        models = [fit_classifier(preprocess, epsilon, data_set.train, seed, **settings) for seed in (1000, 1001)]
        return float(np.mean([model.score(*data_set.validation) for model in models]))

    return max(grid, key=score)


def _measure_plain(data_set: Images) -> float:
    """Returns the test accuracy of scikit-learn's logistic regression, which is not private, on the same features."""
    from sklearn.linear_model import LogisticRegression

    def scale(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)

    (x, y), (test_x, test_y) = data_set.train, data_set.test
    model = LogisticRegression(C=100.0, max_iter=200, tol=1e-3).fit(scale(x), y)
    return float(model.score(scale(test_x), test_y))


def _measure_offsets(
    data_set: Images, seeds: int, accuracies: list[dict[str, Any]], show: ConsoleDisplay
) -> list[dict[str, Any]]:
    """Measures the accuracy at ε = 1 for each offset, with the settings that were tuned without an offset."""
    rows = []
    for offset in _OFFSETS:
        train, test = [(x + np.float32(offset), y) for x, y in (data_set.train, data_set.test)]
        row: dict[str, Any] = {"offset": offset}
        for method, preprocess in METHODS.items():
            settings = accuracies[0][method]["settings"]
            row[method] = interval(
                [fit_classifier(preprocess, 1.0, train, seed, **settings).score(*test) for seed in range(seeds)]
            )
        rows.append(row)
        show.note(f"offset {offset:g}: {_describe(row)}")
    return rows


def _describe(row: dict[str, Any]) -> str:
    return ", ".join(f"{method} {row[method]['mean']:.3f}" for method in METHODS)


def _cell(entry: dict[str, float]) -> str:
    return f"{100 * entry['mean']:.1f} ± {100 * entry['half']:.1f}"


def _counter_table(rows: list[dict[str, Any]]) -> str:
    text = "Accuracy in %, best learning rate of 1, 10, 100; unit record, add-or-remove-one; all records in every step."
    title = "Counter-example: x = μ e₁ ± e₂, 5000 records, ε = 1, δ = 1e-5"
    return _method_table(title, text, "μ", [(row["mu"], row) for row in rows])


def _accuracy_table(name: str, rows: list[dict[str, Any]], seeds: int) -> str:
    grid = " or ".join(f"{steps} at {rate:g}" for steps, rate in _GRIDS[name])
    rates = ", ".join(f"{learning_rate:g}" for learning_rate in _RATES)
    body = []
    for row in rows[:-1]:
        cells = [f"{row['epsilon']:g}"]
        for method in METHODS:
            own = row[method]["settings"]
            cells += [_cell(row[method]), f"{own['steps']}, {own['rate']:g}, {own['learning_rate']:g}"]
        body.append(cells)
    columns = [title for method in METHODS for title in (method, "steps, sampling probability, learning rate")]
    lines = [
        f"### {name}, test accuracy in %, δ = 1e-5",
        "",
        f"Mean of {seeds} seeds ± half the width of a 95 % interval; unit record, add-or-remove-one. For each method",
        f"and ε, the steps with their sampling probability ({grid}) and the learning rate ({rates}) were chosen on",
        "the validation split; ε does not cover this choice, for either method. Rows are scaled to L2 norm 1 for both;",
        "clip norm 1, momentum 0.9. DPSGD-F spends a tenth of ε on preprocessing, DP-SGD a thirtieth on the number of",
        "records.",
        "",
        *markdown_table(("ε", *columns), body),
        "",
        f"Not private (scikit-learn's logistic regression): {100 * rows[-1]['plain']:.1f}.",
    ]
    return "\n".join(lines) + "\n"


def _offset_table(rows: list[dict[str, Any]]) -> str:
    title = "fashion-mnist with a constant added to every pixel, ε = 1, δ = 1e-5"
    text = "The settings are those tuned without the constant."
    return _method_table(title, text, "constant", [(row["offset"], row) for row in rows])


def _method_table(title: str, text: str, name: str, rows: list[tuple[float, dict[str, Any]]]) -> str:
    cells = [(f"{value:g}", *(_cell(row[method]) for method in METHODS)) for value, row in rows]
    return "\n".join([f"### {title}", "", text, "", *markdown_table((name, *METHODS), cells)]) + "\n"
