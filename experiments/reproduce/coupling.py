"""Defines `fedspeak reproduce coupling`: how often two models draw the same token with little or no communication.

The study follows Daliri, Musco and Suresh, "Coupling without communication and drafter-invariant speculative decoding"
(https://arxiv.org/abs/2408.07978), with models that `fedspeak reproduce drafters` trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments import config_file, extras, options
from experiments.display import ConsoleDisplay
from experiments.drafting import short_name
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.runs import RunFolder, write_json
from privacy.files import write_public

_PAIRS, _DRAWS = 200, 20_000
# Entry of the results → title of its column.
_COLUMNS = {
    "total_variation": "total variation",
    "bound": "bound",
    "minhash": "weighted MinHash",
    "gumbel": "Gumbel race",
    "maximal": "maximal coupling",
}


@click.command("coupling")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    default=Path("runs/drafters"),
    show_default=True,
    help="Folder that fedspeak reproduce drafters wrote: its target and drafters are compared.",
)
@click.option(
    "--target",
    type=click.Path(path_type=Path),
    help="Folder of a trained or imported model to compare instead of those in --models; needs --drafter.",
)
@click.option(
    "--drafter",
    "drafters",
    multiple=True,
    help="Drafter to compare with --target: the folder of a model, self or ngram:FILE. May be repeated.",
)
@click.option(
    "--contexts",
    type=click.IntRange(min=10),
    default=2000,
    show_default=True,
    help="Number of contexts from the held-out plays, drawn at random.",
)
@options.seed
@options.output("runs/coupling", "the table, the plots and the results")
def coupling(
    models: Path, target: Path | None, drafters: tuple[str, ...], contexts: int, seed: int, output: Path
) -> None:
    """Measure how often a target and its drafters draw the same token, beside the total variation.

    The contexts are from plays on which the models were not trained. The study also tries all protocols without
    messages on the worst pairs of distributions, and measures the bits of the protocol with few messages.
    """
    from experiments.reproduce import coupling_models
    from experiments.reproduce.drafters import MODELS, TARGET

    if (target is None) != (not drafters):
        raise ValueError(
            "--target and --drafter belong together: give both, or neither to compare the models in --models"
        )
    if target is None:
        coupling_models.require_models(models)
        target, by_name = models / TARGET, {name: str(models / name) for name in MODELS if name != TARGET}
        config = RunFolder(target).read_config()
    else:
        RunFolder(target).require_trained()
        by_name = {short_name(name): name for name in drafters}
        if len(by_name) < len(drafters):
            raise ValueError("--drafter: two folders or files have the same name: rename one")
        config = config_file.load("target")
    extras.require("federated")
    from experiments import data, plots
    from experiments.reproduce import coupling_theory

    show = ConsoleDisplay()
    output.mkdir(parents=True, exist_ok=True)
    show.note("comparing the models on the held-out plays …")
    source, _, _ = data.sources(config)
    pairs = coupling_models.measure(target, by_name, source, config.clients.sequence_length, contexts, seed)
    show.note("made-up pairs, the worst pairs and few messages …")
    results = {
        "models": pairs,
        "made_up": coupling_theory.made_up_pairs(_PAIRS, seed),
        "worst": [coupling_theory.worst_pairs(size) for size in coupling_theory.WORST_SIZES],
        "few_messages": coupling_theory.few_messages(_DRAWS, seed),
    }
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), "seed": seed, **results})
    plots.agreements(output / "plot", pairs)
    plots.message_bits(output / "bits", results["few_messages"])
    table = format_table(results)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def format_table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    return "\n".join([*_model_lines(results["models"]), "", *_theory_lines(results)]) + "\n"


def format_models(rows: list[dict[str, Any]]) -> str:
    """Returns the comparison of target and drafters as Markdown."""
    return "\n".join(_model_lines(rows)) + "\n"


def _model_lines(rows: list[dict[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        agreements = [format_interval(row[key], 3) for key in (*_COLUMNS, "drawn")]
        cells.append((row["drafter"], f"{row['temperature']:g}", *agreements))
    return [
        f"### Target and drafters ({rows[0]['contexts']} contexts from held-out plays)",
        "",
        "Means of exact agreements; 95 % bootstrap intervals over speakers. The last column is the share of equal",
        "tokens in one race at each context, with its 95 % interval for these contexts.",
        "",
        *markdown_table(("drafter", "T", *_COLUMNS.values(), "race, drawn"), cells),
    ]


def _theory_lines(results: dict[str, Any]) -> list[str]:
    made_up = [
        (row["tokens"], f"{row['noise']:g}", *(f"{row[key]:.3f}" for key in _COLUMNS)) for row in results["made_up"]
    ]
    keys = ("best", "bound", "gumbel", "maximal")
    worst = [(row["tokens"], row["maps"], *(f"{row[key]:.4f}" for key in keys)) for row in results["worst"]]
    few = results["few_messages"]
    slope, intercept = few["fit"]["slope"], few["fit"]["intercept"]
    messages = []
    for row in few["rows"]:
        promised = (f"{row['maximal'] - row['error']:.4f}", f"{row['agreement']:.4f}")
        drawn, bits = format_interval(row["drawn"], 3), f"{row['bits']:.1f} ± {row['half']:.1f}"
        messages.append(
            (row["tokens"], f"{row['error']:g}", *promised, drawn, f"{row['maximal']:.4f}", bits, row["largest"])
        )
    columns = ("1 - TV - ε", "agreement", "drawn", "1 - TV", "mean bits", "largest")
    return [
        "### Made-up pairs: normal logits of standard deviation 2, and noise on them",
        "",
        *markdown_table(("tokens", "noise", *_COLUMNS.values()), made_up),
        "",
        "### The worst pairs: uniform on all tokens but one",
        "",
        "The best protocol without messages, by exhaustive search, agrees as often as the bound says.",
        "",
        *markdown_table(("tokens", "maps tried", "best protocol", "bound", "Gumbel race", "maximal coupling"), worst),
        "",
        f"### Few messages ({_DRAWS} pairs of tokens for each row)",
        "",
        *markdown_table(("tokens n", "error ε", *columns), messages),
        "",
        f"Mean bits ≈ {format_interval(intercept, 3)} + {format_interval(slope, 3)} · log₂(n / ε), by least squares "
        "with 95 % intervals;",
        f"no row is further from the line than {few['fit']['largest_residual']:.1f} bits. Messages of log₂ n and "
        "log₂(n / ε) bits are sent twice on average: the slope is 2 where only ε varies, and 4 where only n does.",
    ]
