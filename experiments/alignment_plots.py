"""Draws the plots of the studies on alignment, each as PNG and SVG. Every function returns the paths of both files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.figures import new_figure, save_figure


def convergence(path: Path, study: Mapping[str, Any]) -> list[Path]:
    """Plots how best-of-N for long texts approaches the optimal policy, and the probabilities of high mean rewards.

    Args:
      path: path of the files, without suffix.
      study: result of `experiments.reproduce.alignment.measure`.
    """
    figure, ((reward, kl), (to_optimal, tail)) = new_figure(2, 2, share_y=False)
    rows, best = study["rows"], study["optimal"]
    lengths = [row["tokens"] for row in rows]
    reward.plot(lengths, [row["reward"] for row in rows], marker="o", label="best-of-N")
    reward.axhline(best["reward"], color="black", linewidth=0.8, label="optimal policy")
    reward.set_ylabel("reward per token")
    kl.plot(lengths, [row["kl"] for row in rows], marker="o", label="KL of best-of-N")
    kl.plot(lengths, [row["kl_bound"] for row in rows], linestyle="--", label="log N - (N - 1)/N")
    kl.axhline(best["kl"], color="black", linewidth=0.8, label="optimal policy")
    kl.set_ylabel("nats per token")
    distances = [row["kl_to_tilt"] for row in rows]
    to_optimal.plot(lengths, distances, marker="o", label="KL(best-of-N ‖ optimal policy)")
    halves = distances[-1] + np.log(np.array(lengths) / lengths[-1]) / 2
    to_optimal.plot(lengths, halves, color="grey", linestyle="--", label="½ log m + constant")
    to_optimal.plot(lengths, np.array(distances) / lengths, marker="o", label="the same per token")
    to_optimal.set_ylabel("nats")
    for axes in (reward, kl, to_optimal):
        axes.set_xscale("log")
        axes.set_xlabel("tokens m")
        axes.legend()
    curve = study["curve"]
    for row in curve["rows"]:
        tail.plot(curve["mean_rewards"], row["rates"], linewidth=1, label=f"m = {row['tokens']}")
    tail.plot(curve["mean_rewards"], curve["limits"], color="black", label="rate I(τ)")
    tail.set_xlabel("mean reward τ")
    tail.set_ylabel("-log P(mean reward ≥ τ) / m")
    tail.legend()
    return save_figure(figure, path)


def best_of_n_kl(path: Path, study: Mapping[str, Any]) -> list[Path]:
    """Plots KL, estimate and formula against n for two kinds of outcomes, and the win rate against the KL.

    Args:
      path: path of the files, without suffix.
      study: result of `experiments.reproduce.best_of_n_theory.measure`.
    """
    figure, (equal, rare, win_rate) = new_figure(3, share_y=False)
    curves = study["curves"]
    for axes, models in ((equal, curves["uniform"]), (rare, {"": curves["rare"]})):
        for number, (size, curve) in enumerate(models.items()):
            name = f"KL, {size} outcomes" if size else "KL"
            axes.plot(curves["n"], curve["kl"], color=f"C{number}", label=name)
        for number, curve in enumerate(models.values()):
            label = None if number else "mean of the estimate"
            axes.plot(curves["n"], curve["estimate"], "k.", markersize=3, markevery=3, label=label)
        axes.plot(curves["n"], curves["formula"], color="black", linestyle="--", linewidth=0.8, label="formula")
        axes.set_xscale("log")
        axes.set_xlabel("samples n")
        axes.set_ylabel("nats")
        axes.legend(fontsize="small")
    equal.set_title("equally likely outcomes", fontsize="medium")
    rare.set_title("probabilities 0.9899, 0.01 and 0.0001", fontsize="medium")
    rows = study["win_rates"]
    for key, name in (("optimum", "best possible"), ("best_of_n", "best-of-n"), ("rejection", "rejection")):
        win_rate.plot([row[key] for row in rows], [1 - row["win_rate"] for row in rows], marker=".", label=name)
    win_rate.set_yscale("log")
    win_rate.set_title("no outcome is likely", fontsize="medium")
    win_rate.set_xlabel("KL, nats")
    win_rate.set_ylabel("1 - win rate")
    win_rate.legend()
    return save_figure(figure, path)


def reward_by_kl(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the expected reward of each policy against its KL, one panel for each model, prompt and reward.

    Args:
      path: path of the files, without suffix.
      rows: as `experiments.reproduce.best_of_n_models.measure_model` returns them; the first prompt of each model.
    """
    first = {row["model"]: row["prompt"] for row in reversed(rows)}
    shown = [row for row in rows if row["prompt"] == first[row["model"]]]
    figure, panels = new_figure(len(shown), share_y=False)
    for axes, row in zip(np.atleast_1d(panels), shown, strict=True):
        for name, points in row["curves"].items():
            axes.plot(*np.array(sorted(points)).T, marker=".", label=name)
        axes.set_title(f"{row['model']}, {row['reward']}", fontsize="medium")
        axes.set_xlabel("KL, nats")
    np.atleast_1d(panels)[0].set_ylabel("expected reward")
    np.atleast_1d(panels)[0].legend(fontsize="small")
    return save_figure(figure, path)


def densities(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Plots the density of the optimal policy over the reward's quantile, one panel for each price of KL.

    Args:
      path: path of the files, without suffix.
      rows: as `experiments.reproduce.inference_time.measure` returns them.
    """
    betas = list(dict.fromkeys(row["beta"] for row in rows))
    figure, panels = new_figure(len(betas))
    for axes, beta in zip(np.atleast_1d(panels), betas, strict=True):
        for row in rows:
            if row["beta"] == beta:
                middles = (np.arange(len(row["density"])) + 0.5) / len(row["density"])
                axes.plot(middles, row["density"], label=f"N = {row['n']}")
        axes.set_yscale("log")
        axes.set_title(f"β = {beta:g}", fontsize="medium")
        axes.set_xlabel("quantile of the reward")
    np.atleast_1d(panels)[0].set_ylabel("density of the optimum for best-of-N")
    np.atleast_1d(panels)[0].legend()
    return save_figure(figure, path)
