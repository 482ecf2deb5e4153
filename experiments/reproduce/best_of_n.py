"""Defines `fedspeak reproduce best-of-n`: the KL of best-of-n beside the formula that is often printed as the KL.

The study follows Beirami et al., "Theoretical guarantees on the best-of-n alignment policy"
(https://arxiv.org/abs/2401.01879).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments import extras, options
from experiments.display import ConsoleDisplay
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.reproduce import best_of_n_theory
from experiments.runs import RunFolder, write_json
from privacy.files import write_public

_COLUMNS = ("n", "KL", "KL at least", "KL at most", "mean of D̂", "log n - (n - 1)/n")


@click.command("best-of-n")
@click.option(
    "--draws",
    type=click.IntRange(32, 1_000_000),
    default=4000,
    show_default=True,
    help="Number of draws of best-of-n for each estimate of its KL.",
)
@click.option(
    "--model",
    "models",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Folder of a trained or imported model on whose texts the policies are measured too. May be repeated.",
)
@click.option(
    "--samples",
    type=click.IntRange(64),
    default=2048,
    show_default=True,
    help="Number of texts that each --model draws for a prompt.",
)
@click.option(
    "--new-tokens",
    type=click.IntRange(1, 1024),
    default=24,
    show_default=True,
    help="Maximum number of tokens of a text of --model.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the draws.")
@options.output("runs/best-of-n", "the table, the plot and the results")
def best_of_n(draws: int, models: tuple[Path, ...], samples: int, new_tokens: int, seed: int, output: Path) -> None:
    """Compute the KL of best-of-n exactly, beside its bounds, its estimate D̂ and the formula log n - (n - 1)/n.

    The outcomes are equally likely ones, rare good ones and a pair. The study also compares the win rate for a KL with
    the largest possible one, and measures the estimate by draws. With --model it draws texts, and measures KL and
    reward of best-of-n, soft best-of-n and the tilt on them.
    """
    from experiments import alignment_plots

    if models:
        extras.require("models")
    for folder in models:
        RunFolder(folder).require_trained()
    output.mkdir(parents=True, exist_ok=True)
    results = {"seed": seed, **best_of_n_theory.measure(draws, seed)}
    if models:
        from experiments.reproduce.best_of_n_models import measure_model

        show = ConsoleDisplay()
        rows = [measure_model(folder, samples, new_tokens, seed, show) for folder in models]
        results["models"] = [row for own in rows for row in own]
        alignment_plots.reward_by_kl(output / "models", results["models"])
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), **results})
    alignment_plots.best_of_n_kl(output / "plot", results)
    table = format_table(results)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def format_table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    sections = [
        _uniform_lines(results["uniform"]),
        _kl_lines("Rare good outcomes: probabilities 0.9899, 0.01 and 0.0001", results["rare"]),
        _kl_lines("Two outcomes of probability 1/2: the KL never exceeds log 2 = 0.693147", results["pair"]),
        _win_rate_lines(results["win_rates"]),
        _spread_lines(results["spread"]),
    ]
    if "models" in results:
        from experiments.reproduce.best_of_n_models import format_rows

        sections.append(format_rows(results["models"]))
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _uniform_lines(rows: list[dict[str, Any]]) -> list[str]:
    return [
        "### Equally likely outcomes",
        "",
        "In nats. The bounds need the best outcome's probability only. D̂ estimates the KL from one draw.",
        "",
        *markdown_table(("outcomes", *_COLUMNS), [(row["outcomes"], *_kl_cells(row)) for row in rows]),
    ]


def _kl_lines(title: str, rows: list[dict[str, Any]]) -> list[str]:
    return [f"### {title}", "", *markdown_table(_COLUMNS, map(_kl_cells, rows))]


def _kl_cells(row: dict[str, Any]) -> list[str]:
    return [str(row["n"]), *(f"{row[key]:.6f}" for key in ("kl", "least", "most", "estimate", "formula"))]


def _win_rate_lines(rows: list[dict[str, Any]]) -> list[str]:
    header = ("n", "win rate", "KL of best-of-n", "least KL of any policy", "KL of rejection")
    keys = ("win_rate", "best_of_n", "optimum", "rejection")
    return [
        "### KL for a win rate, if no outcome is likely",
        "",
        "Rejection draws until the reward is good enough.",
        "",
        *markdown_table(header, [(row["n"], *(f"{row[key]:.5f}" for key in keys)) for row in rows]),
    ]


def _spread_lines(rows: list[dict[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        kls = (f"{row['kl']:.5f}", f"{row['estimate']:.5f}", f"{row['deviation']:.4f}")
        cells.append((row["n"], *kls, format_interval(row["drawn"], 4), f"{row['formula']:.5f}"))
    header = ("n", "KL", "mean of D̂", "deviation of D̂", "D̂, drawn", "log n - (n - 1)/n")
    return [
        f"### The estimate by {rows[0]['draws']} draws, 50 outcomes of very different probabilities",
        "",
        "Exact KL, mean and standard deviation of D̂ for one draw, and the mean over the draws with its 95 % interval.",
        "",
        *markdown_table(header, cells),
    ]
