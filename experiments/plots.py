"""Draws the plots of runs and studies, each as PNG and SVG. Every function returns the paths of both files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import new_figure as _figure
from experiments.figures import save_figure as _save
from experiments.intervals import Interval
from privacy.files import write_private


def loss_curve(path: Path, metrics: Sequence[Mapping[str, Any]], lines: Mapping[str, float]) -> list[Path]:
    """Plots the validation loss by round beside reference values; the files are the operator's (mode 0600).

    Args:
      path: path of the files, without suffix.
      metrics: rows of `metrics.jsonl`; rows without an evaluation are skipped.
      lines: reference values in nats per token, by name; each becomes a horizontal line.
    """
    rows = [row for row in metrics if "validation_loss" in row["evaluation"]]
    figure, axes = _figure()
    rounds = [row["round"] for row in rows]
    # A loss that is not finite is None in the metrics and NaN here, which leaves a gap in the curve.
    losses = np.array([row["evaluation"]["validation_loss"] for row in rows], float)
    axes.plot(rounds, losses, marker="o", markersize=3, label="federated model")
    for number, (name, value) in enumerate(lines.items(), 1):
        axes.axhline(value, linestyle="--", color=f"C{number}", label=name)
    axes.set_xlabel("round")
    axes.set_ylabel("nats per token, validation clients")
    axes.legend()
    return _save(figure, path, write_private)


def repetitions(path: Path, name: str, values: Sequence[Interval]) -> list[Path]:
    """Plots the estimate of each repetition with its interval over clients, and their mean as a line.

    Args:
      path: path of the files, without suffix.
      name: label of the values' axis.
      values: one estimate with its interval per repetition.
    """
    figure, axes = _figure()
    numbers = np.arange(1, len(values) + 1)
    estimates = np.array([value.estimate for value in values])
    spread = np.abs(np.array([[value.low, value.high] for value in values]).T - estimates)
    axes.errorbar(numbers, estimates, yerr=spread, fmt="o", capsize=3)
    axes.axhline(estimates.mean(), linestyle="--", color="C1", label=f"mean {estimates.mean():.3f}")
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xticks(numbers)
    axes.set_xlabel("repetition")
    axes.set_ylabel(name)
    axes.legend()
    return _save(figure, path)


def round_cost(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the seconds of a round's parts against its number of clients, on logarithmic axes.

    Args:
      path: path of the files, without suffix.
      rows: seconds by number of clients, as `fedspeak bench cohort` measures them.
    """
    figure, axes = _figure()
    clients = [row["clients"] for row in rows]
    for part in ("reading", "packing", "training"):
        axes.plot(clients, [row[f"{part}_seconds"] for row in rows], marker="o", label=part)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("clients in the round")
    axes.set_ylabel("seconds")
    axes.legend()
    return _save(figure, path)


def worst_case(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the worst-case error of private means, divided by the least possible one, against ε.

    Args:
      path: path of the files, without suffix.
      rows: worst-case errors by ε, as `fedspeak reproduce dp-mean` measures them.
    """
    figure, axes = _figure()
    epsilons = [row["epsilon"] for row in rows]
    for name in ("midpoint", "transformed-laplace", "hourglass"):
        axes.plot(epsilons, [row[name]["error"] / row["bound"] for row in rows], marker="o", label=name)
    axes.axhline(1, color="grey", linewidth=0.8, label="least possible")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("ε")
    axes.set_ylabel("worst-case error over V*(ε)")
    axes.legend()
    return _save(figure, path)


def offsets(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the accuracy of linear models against the constant that is added to every pixel.

    Args:
      path: path of the files, without suffix.
      rows: accuracies by offset, as `fedspeak reproduce dpsgd-f` measures them.
    """
    figure, axes = _figure()
    for name in ("DP-SGD", "DPSGD-F"):
        means = [100 * row[name]["mean"] for row in rows]
        halves = [100 * row[name]["half"] for row in rows]
        axes.errorbar([row["offset"] for row in rows], means, yerr=halves, marker="o", capsize=3, label=name)
    axes.set_xlabel("constant added to every pixel")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    return _save(figure, path)


def excess_loss(path: Path, study: Mapping[str, Any]) -> list[Path]:
    """Plots the excess loss of linear models against the features' diameter and their distance from the origin.

    Args:
      path: path of the files, without suffix.
      study: result of `experiments.reproduce.excess_loss.measure`.
    """
    figure, both = _figure(2)
    for axes, key, size, label in (
        (both[0], "by_diameter", "diameter", "diameter of the features, R = 10"),
        (both[1], "by_distance", "distance", "R, diameter 1"),
    ):
        rows = study[key]
        sizes = [row[size] for row in rows]
        for name in ("DP-SGD", "DPSGD-F"):
            means, halves = ([row[name][part] for row in rows] for part in ("mean", "half"))
            # A logarithmic axis cannot show an interval that reaches below zero: it is cut at a tenth of the mean.
            below = [min(half, 0.9 * mean) for mean, half in zip(means, halves, strict=True)]
            axes.errorbar(sizes, means, yerr=[below, halves], marker="o", capsize=3, label=name)
        axes.plot(sizes, [row["nothing"] for row in rows], color="grey", linestyle="--", label="zero weights")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.legend()
    both[0].set_ylabel("training loss above the minimum, nats")
    return _save(figure, path)


def agreements(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots how often a target and its drafters draw the same token against the total variation, by temperature.

    Args:
      path: path of the files, without suffix.
      rows: agreements in single contexts, as `experiments.reproduce.coupling_models.measure` returns them.
    """
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    figure, panels = _figure(len(temperatures))
    variations = np.linspace(0, 1, 101)
    for axes, temperature in zip(np.atleast_1d(panels), temperatures, strict=True):
        points = [point for row in rows if row["temperature"] == temperature for point in row["points"]]
        for key, name in (("minhash", "weighted MinHash"), ("gumbel", "Gumbel race")):
            axes.plot(
                [point["total_variation"] for point in points],
                [point[key] for point in points],
                linestyle="",
                marker=".",
                markersize=2,
                label=name,
            )
        axes.plot(variations, 1 - variations, color="black", linewidth=0.8, label="maximal coupling")
        axes.plot(variations, (1 - variations) / (1 + variations), color="grey", linestyle="--", label="bound")
        axes.set_xlabel(f"total variation, T = {temperature:g}")
    np.atleast_1d(panels)[0].set_ylabel("probability of equal tokens")
    np.atleast_1d(panels)[0].legend(markerscale=4)
    return _save(figure, path)


def message_bits(path: Path, study: Mapping[str, Any]) -> list[Path]:
    """Plots the mean bits of the exchange of few messages against n / error, with the line fitted to them.

    Args:
      path: path of the files, without suffix.
      study: result of `experiments.reproduce.coupling_theory.few_messages`.
    """
    figure, axes = _figure()
    for error in dict.fromkeys(row["error"] for row in study["rows"]):
        rows = [row for row in study["rows"] if row["error"] == error]
        sizes = [row["tokens"] / error for row in rows]
        axes.plot(sizes, [row["bits"] for row in rows], linestyle="", marker="o", label=f"ε = {error:g}")
    ratios = [row["tokens"] / row["error"] for row in study["rows"]]
    ends = np.array([min(ratios), max(ratios)])
    slope, intercept = (study["fit"][key]["estimate"] for key in ("slope", "intercept"))
    label = f"{intercept:.1f} + {slope:.2f} log₂(n / ε)"
    axes.plot(ends, intercept + slope * np.log2(ends), color="grey", linestyle="--", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("n / ε")
    axes.set_ylabel("bits for a pair of tokens")
    axes.legend()
    return _save(figure, path)


def block_efficiencies(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots tokens per target call against the draft length, by drafter, and the mean tokens of successive blocks.

    The second panel is of the longest drafts, the mean over the drafters. Both are of the first temperature.

    Args:
      path: path of the files, without suffix.
      rows: as `experiments.reproduce.block_verification.measure` returns them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    temperature = rows[0]["temperature"]
    drafters = list(dict.fromkeys(row["drafter"] for row in rows))
    for number, drafter in enumerate(drafters):
        own = [row for row in rows if row["drafter"] == drafter and row["temperature"] == temperature]
        for name, style in (("speculative", ":"), ("block", "-")):
            means = [row[name]["expected"] for row in own]
            estimates = np.array([mean["estimate"] for mean in means])
            spread = np.abs(np.array([[mean["low"], mean["high"]] for mean in means]).T - estimates)
            lengths = [row["draft_length"] for row in own]
            label = drafter if name == "block" else None
            left.errorbar(lengths, estimates, yerr=spread, linestyle=style, color=f"C{number}", capsize=3, label=label)
    left.set_title(f"block (—) and token (···) verification, T = {temperature:g}", fontsize="medium")
    left.set_xlabel("draft length")
    left.set_ylabel("tokens per target call")
    left.legend()
    length = max(row["draft_length"] for row in rows)
    longest = [row for row in rows if row["draft_length"] == length and row["temperature"] == temperature]
    names = {"speculative": "token", "block": "block", "greedy-block": "greedy block"}
    for (name, label), style in zip(names.items(), (":", "-", "--"), strict=True):
        values = np.mean([row["by_block"][name] for row in longest], axis=0)
        right.plot(np.arange(1, len(values) + 1), values, linestyle=style, color="black", marker=".", label=label)
    right.set_title(f"mean over the drafters, drafts of {length} tokens", fontsize="medium")
    right.set_xlabel("block after the prompt")
    right.set_ylabel("tokens of this block")
    right.legend()
    return _save(figure, path)


def tree_efficiencies(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots tokens per target call against the number of drafted tokens, one panel for each drafter.

    Args:
      path: path of the files, without suffix.
      rows: as `experiments.reproduce.spectr.measure` returns them; those of the first temperature are shown.
    """
    temperature = rows[0]["temperature"]
    own = [row for row in rows if row["temperature"] == temperature]
    figure, axes = _figure(len(own))
    for axis, row in zip(np.atleast_1d(axes), own, strict=True):
        for decoding, style in (("block", "s:"), ("spectr", "o--"), ("tree", "^-")):
            entries = [entry for entry in row["modes"] if entry["mode"].partition(":")[0] == decoding]
            entries.sort(key=lambda entry: float(entry["drafted"]))
            estimates = np.array([entry["tokens"]["estimate"] for entry in entries])
            bounds = np.array([[entry["tokens"]["low"], entry["tokens"]["high"]] for entry in entries]).T
            drafted = [entry["drafted"] for entry in entries]
            axis.errorbar(drafted, estimates, yerr=np.abs(bounds - estimates), fmt=style, capsize=3, label=decoding)
        axis.set_title(f"{row['drafter']}, T = {temperature:g}", fontsize="medium")
        axis.set_xlabel("drafted tokens")
    np.atleast_1d(axes)[0].set_ylabel("tokens per target call")
    np.atleast_1d(axes)[0].legend()
    return _save(figure, path)


def speedups(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the speed of the fastest mode of each decoding beside plain decoding, one panel for each temperature.

    Args:
      path: path of the files, without suffix.
      rows: "rows" of the results of `fedspeak bench decoding`.
    """
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    decodings = list(dict.fromkeys(row["mode"].partition(":")[0] for row in rows))
    pairs = list(dict.fromkeys((row["precision"], row["drafter"]) for row in rows))
    figure, axes = _figure(len(temperatures))
    height = 0.8 / len(pairs)
    for axis, temperature in zip(np.atleast_1d(axes), temperatures, strict=True):
        for number, pair in enumerate(pairs):
            here = [r for r in rows if (r["precision"], r["drafter"], r["temperature"]) == (*pair, temperature)]
            for place, decoding in enumerate(decodings):
                own = [row for row in here if row["mode"].partition(":")[0] == decoding]
                if not own:
                    continue
                best = max(own, key=lambda row: float(row["speed"]["estimate"]))["speed"]
                spread = [[best["estimate"] - best["low"]], [best["high"] - best["estimate"]]]
                label = ", ".join(pair) if place == 0 else None
                y = place + (number - (len(pairs) - 1) / 2) * height
                axis.barh(y, best["estimate"], height, xerr=spread, color=f"C{number}", label=label)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"T = {temperature:g}", fontsize="medium")
        axis.set_xlabel("tokens per second beside plain decoding")
    first = np.atleast_1d(axes)[0]
    first.set_yticks(range(len(decodings)), decodings)
    first.invert_yaxis()
    handles = first.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(pairs), fontsize="small")
    return _save(figure, path)


def refinements(path: Path, rows: Sequence[Mapping[str, Any]], plain: str) -> list[Path]:
    """Plots by how much refined drafts raise the tokens per call, against those of the heads alone, one text a point.

    Args:
      path: path of the files, without suffix.
      rows: "rows" of the results of `fedspeak reproduce blockwise`; those of the largest number of heads are shown.
      plain: name of the drafts that the others are compared with.
    """
    figure, axes = _figure()
    own = [row["tokens"][max(row["tokens"], key=int)] for row in rows]
    for name in sorted(own[0]):
        if name == plain or name.startswith("oracle"):
            continue
        tokens = [entry[plain]["tokens"]["estimate"] for entry in own]
        axes.plot(tokens, [entry[name]["gain"]["estimate"] for entry in own], "o", label=name)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_xlabel("tokens per call of the heads alone")
    axes.set_ylabel("gain in percent")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.01, 1))
    return _save(figure, path)


def losses_by_epsilon(path: Path, arms: Sequence[Mapping[str, Any]], public: float) -> list[Path]:
    """Plots the test losses of private runs against ε, one line for each kind of noise.

    Args:
      path: path of the files, without suffix.
      arms: results as `fedspeak reproduce dp-ftrl` writes them.
      public: loss of the public model, in nats per token.
    """
    figure, axes = _figure()
    for name in dict.fromkeys(arm["name"] for arm in arms):
        rows = [arm for arm in arms if arm["name"] == name]
        axes.plot([row["epsilon"] for row in rows], [row["nats"]["estimate"] for row in rows], marker="o", label=name)
    axes.axhline(public, color="grey", linewidth=0.8, label="public model")
    axes.set_xscale("log")
    axes.set_xlabel("ε")
    axes.set_ylabel("test loss, nats per token")
    axes.legend()
    return _save(figure, path)
