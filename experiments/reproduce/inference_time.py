"""Defines `fedspeak reproduce inference-time`: what aligning a model for best-of-N gains over the usual alignment.

The study follows Balashankar et al., "InfAlign: inference-time language model alignment"
(https://arxiv.org/abs/2412.19792), for rewards without ties: all depends on the quantile u of the reward alone, which
is uniform on [0, 1] under the reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import options
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.runs import write_json
from models.alignment.checks import Array
from models.alignment.inference_time import align_for_best_of_n
from models.alignment.outcomes import Outcomes
from privacy.files import write_public

COUNTS = (1, 2, 4, 8, 16)
_QUANTILES, _POINTS = 1000, 50
_PERTURBATIONS = 1000
_STEPS, _REFINEMENTS = 41, 6
_SMALLEST, _LARGEST = 0.05, 10.0


@click.command("inference-time")
@click.option(
    "--beta",
    "betas",
    type=float,
    multiple=True,
    default=(0.1, 0.3, 1.0),
    show_default=True,
    help=f"Price of KL, in units of win rate per nat, from {_SMALLEST:g} to {_LARGEST:g}. May be repeated.",
)
@options.seed
@options.output("runs/inference-time", "the table, the plot and the results")
def inference_time(betas: tuple[float, ...], seed: int, output: Path) -> None:
    """Compare policies for use with best-of-N: the optimum, the best exponential tilt, and the usual alignment.

    The objective is the win rate of best-of-N of the policy over best-of-N of the reference, less beta times the
    policy's KL. Random perturbations of the optimum must not improve it.
    """
    for beta in betas:
        if not _SMALLEST <= beta <= _LARGEST:
            raise ValueError(f"--beta = {beta}: must be from {_SMALLEST:g} to {_LARGEST:g}")
    from experiments import alignment_plots

    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "seed": seed,
        "quantiles": _QUANTILES,
        "perturbations": _PERTURBATIONS,
        "rows": measure(betas, seed),
    }
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), **results})
    alignment_plots.densities(output / "plot", results["rows"])
    table = format_table(results)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def measure(betas: tuple[float, ...], seed: int) -> list[dict[str, Any]]:
    """Computes the objectives of all policies for each price and number of samples.

    Args:
      betas: prices of KL, > 0.
      seed: seed of the perturbations.

    Returns:
      Rows with the objectives "usual" (the tilt e^(u / beta), optimal for one sample), "tilt" (the best e^(b u), with
      its "strength" b) and "optimum", the optimum's win rate, KL and "density" in bins of the quantile,
      and "largest_gain", the largest change of the objective by a perturbation of the optimum.
    """
    outcomes = Outcomes(np.full(_QUANTILES, 1 / _QUANTILES), np.arange(_QUANTILES))
    generator = np.random.default_rng(seed)
    rows = []
    for beta in betas:
        usual = align_for_best_of_n(outcomes, 1, beta).distribution
        for n in COUNTS:
            best = align_for_best_of_n(outcomes, n, beta)
            strength, tilt = best_tilt(outcomes, n, beta)
            others = perturb(best.distribution, _PERTURBATIONS, generator)
            rows.append(
                {
                    "beta": beta,
                    "n": n,
                    "usual": float(objective(usual, outcomes, n, beta)),
                    "tilt": tilt,
                    "strength": strength,
                    "optimum": best.objective,
                    "win_rate": best.win_rate,
                    "kl": best.kl,
                    "largest_gain": float(objective(others, outcomes, n, beta).max()) - best.objective,
                    "density": list(best.distribution.reshape(_POINTS, -1).sum(1) * _POINTS),
                }
            )
    return rows


def objective(policies: Array, outcomes: Outcomes, n: int, beta: float) -> Array:
    """Returns win rate less beta times KL, from their definitions.

    Args:
      policies: distributions over the outcomes, whose rewards ascend, `[..., K]`.
      outcomes: outcomes of the reference, all with another reward and a probability.
      n: number of samples that policy and reference choose from.
      beta: price of KL.
    """
    chosen = np.diff(np.cumsum(policies, axis=-1) ** n, axis=-1, prepend=0.0)
    theirs = np.diff(np.cumsum(outcomes.masses) ** n, prepend=0.0)
    won = chosen @ (np.cumsum(theirs) - theirs / 2)
    kl = np.sum(policies * np.log(np.maximum(policies, 1e-300) / outcomes.masses), axis=-1)
    return np.asarray(won - beta * kl)


def best_tilt(outcomes: Outcomes, n: int, beta: float) -> tuple[float, float]:
    """Returns strength b and objective of the best policy proportional to p e^(b u), by a search that is refined.

    The search is between 0.01/beta and 100/beta: for large b the slope of the win rate is of the order of 1/b², that of
    the KL 1/b.

    Args:
      outcomes: as for `objective`.
      n: number of samples that policy and reference choose from.
      beta: price of KL.
    """
    quantiles = outcomes.below + outcomes.masses / 2
    low, high = 0.01 / beta, 100 / beta
    for _ in range(_REFINEMENTS):
        strengths = np.geomspace(low, high, _STEPS)
        weights = outcomes.masses * np.exp(strengths[:, np.newaxis] * (quantiles - 1))
        values = objective(weights / weights.sum(axis=1, keepdims=True), outcomes, n, beta)
        best = int(values.argmax())
        low, high = float(strengths[max(best - 1, 0)]), float(strengths[min(best + 1, _STEPS - 1)])
    return float(strengths[best]), float(values[best])


def perturb(policy: Array, count: int, generator: np.random.Generator) -> Array:
    """Returns policies times the exponential of random walks of different sizes, `[count, K]`.

    Args:
      policy: distribution, `[K]`.
      count: number of policies.
      generator: source of the walks.
    """
    walks = np.cumsum(generator.normal(size=(count, len(policy))), axis=1) / np.sqrt(len(policy))
    weights = policy * np.exp(10 ** generator.uniform(-3, 0.5, size=(count, 1)) * walks)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def format_table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    cells = []
    for row in results["rows"]:
        others = (f"{row['usual']:.4f}", f"{row['tilt']:.4f}", f"{row['strength']:.3g}")
        best = [f"{row[key]:.4f}" for key in ("optimum", "win_rate", "kl")]
        cells.append((f"{row['beta']:g}", row["n"], *others, *best, f"{row['largest_gain']:.1e}"))
    policies = ("usual alignment e^(u/β)", "best tilt e^(b u)", "its b", "optimum", "its win rate", "its KL")
    lines = [
        "### Win rate of best-of-N over best-of-N of the reference, less β KL",
        "",
        f"On {results['quantiles']} quantiles. The last column is the largest change of the objective by one of "
        f"{results['perturbations']} random",
        "perturbations of the optimum.",
        "",
        *markdown_table(("β", "N", *policies, "perturbed"), cells),
    ]
    return "\n".join(lines) + "\n"
