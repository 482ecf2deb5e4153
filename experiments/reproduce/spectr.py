"""Defines `fedspeak reproduce spectr`: how many tokens a call of the target gives with several drafts.

The study follows Sun et al., "SpecTr: fast speculative decoding via optimal transport"
(https://arxiv.org/abs/2310.15141), with models that `fedspeak reproduce drafters` trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments import options
from experiments.decoding_modes import parse
from experiments.display import ConsoleDisplay, no_notices
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.reproduce.study_models import choose_models, learn_ngram, model_options
from experiments.runs import load_trained, write_json
from privacy.files import write_public

# Those with equal numbers of drafted tokens follow each other.
MODES = (
    "block:4",
    "block:8",
    "spectr:2x4",
    "multi-path:2x4",
    "distinct-tree:2,1,1,1",
    "tree:2,1,1,1",
    "spectr:3x4",
    "tree:3,1,1,1",
    "tree:2,2,1",
    "spectr:4x4",
    "multi-path:4x4",
    "distinct-tree:4,1,1,1",
    "tree:4,1,1,1",
    "spectr:8x4",
    "tree:8,1,1,1",
)
_FIRST = (2, 3, 4, 8)
_COLUMNS = {
    "one": "one draft",
    "k_seq": "K-SEQ",
    "multi_path": "multi-path",
    "independent": "best, independent",
    "distinct_tree": "tree without replacement",
    "distinct": "best, without replacement",
    "greedy": "greedy drafting",
}
_OPTIMA = {"k_seq": "independent", "multi_path": "independent", "distinct_tree": "distinct"}
_PROMPT, _BLOCKS = 24, 12


@click.command("spectr")
@model_options
@click.option(
    "--prompts",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help=f"Number of prompts of {_PROMPT} tokens from the held-out plays, drawn at random.",
)
@options.seed
@options.output("runs/spectr", "the table, the plot and the results")
def spectr(models: Path, target: Path | None, drafters: tuple[str, ...], prompts: int, seed: int, output: Path) -> None:
    """Measure the tokens per target call of block verification, SpecTr and trees, and the acceptance of one level.

    The prompts are from plays on which the models were not trained. An n-gram drafter is learned from the text that
    they were trained on.
    """
    chosen = choose_models(models, target, drafters)
    from experiments import plots

    show = ConsoleDisplay()
    output.mkdir(parents=True, exist_ok=True)
    if not drafters:
        show.note("learning the n-gram drafter …")
        chosen = learn_ngram(chosen, output / "ngram.npz")
    rows = measure(*chosen, prompts, seed, show)
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), "seed": seed, "rows": rows})
    plots.tree_efficiencies(output / "plot", rows)
    table = format_table(rows)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def measure(
    target: Path, drafters: dict[str, str], source: Any, prompts: int, seed: int, show: Any
) -> list[dict[str, Any]]:
    """Decodes with each drafter and temperature by every decoding, from the same prompts and seed.

    Args:
      target: folder of the target.
      drafters: name of each drafter for `experiments.drafting.load_drafter`, by its name in the results.
      source: (speaker, lines) pairs of held-out text.
      prompts: number of prompts, >= 2; all of them if the text has fewer.
      seed: seed of prompts and draws.
      show: display for progress.

    Returns:
      One row for each drafter and temperature, in which "modes" holds for each entry of `MODES` the tokens per call
      and by how many percent they are more than those of SpecTr with as many drafted tokens; and "first" for each
      number of drafts K the mean acceptance of one level over the prompts.

    Raises:
      OSError, ValueError: a model cannot be read or does not fit; one line.
    """

    from experiments.drafting import load_drafter
    from experiments.reproduce.block_efficiency import choose_prompts
    from experiments.reproduce.drafters import TEMPERATURES
    from experiments.reproduce.tree_efficiency import Decoder, first_level, summarise

    model, weights, vocabulary = load_trained(target)
    chosen = choose_prompts(source, vocabulary, _PROMPT, prompts, seed)
    context = _PROMPT + (_BLOCKS + 1) * 9 + 64
    rows = []
    for name, form in drafters.items():
        drafter = load_drafter(form, model, weights, vocabulary, context)
        counts: dict[float, dict[Any, Any]] = {temperature: {} for temperature in TEMPERATURES}
        for mode in map(parse, MODES):
            show.note(f"{name}, {mode.text} …")
            decoder = Decoder(mode, model.fit(context), weights, drafter, _BLOCKS)
            with no_notices():
                for temperature in TEMPERATURES:
                    counts[temperature][mode] = decoder.draw(chosen, temperature, seed)
        for temperature in TEMPERATURES:
            rows.append(
                {
                    "drafter": name,
                    "temperature": temperature,
                    "prompts": len(chosen),
                    "blocks": _BLOCKS,
                    "modes": summarise(counts[temperature]),
                    "first": first_level(model.fit(context), weights, drafter, chosen, temperature, _FIRST),
                }
            )
    return sorted(rows, key=lambda row: (list(drafters).index(row["drafter"]), -row["temperature"]))


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns the results as Markdown."""
    first = rows[0]
    header = ("mode", "drafted", *(f"{row['drafter']}, T = {row['temperature']:g}" for row in rows))
    tokens, gains = [], []
    for entries in zip(*(row["modes"] for row in rows), strict=True):
        mode = (entries[0]["mode"], entries[0]["drafted"])
        tokens.append((*mode, *(format_interval(entry["tokens"], 2) for entry in entries)))
        if "gain_over_spectr" in entries[0]:
            gains.append((*mode, *(format_interval(entry["gain_over_spectr"], 1, "+") for entry in entries)))
    # Results of before fedspeak computed the acceptance of a rule lack it.
    known = {name for row in rows for entry in row["first"] for name in entry}
    columns = {name: title for name, title in _COLUMNS.items() if name in known}
    acceptances = []
    for row in rows:
        for entry in row["first"]:
            cells = [_format_acceptance(entry, name) for name in columns]
            acceptances.append((row["drafter"], f"{row['temperature']:g}", entry["num_drafts"], *cells))
    lines = [
        f"### Tokens per target call ({first['prompts']} prompts from held-out plays, "
        f"{first['prompts'] * first['blocks']:,} calls in each cell)",
        "",
        "95 % bootstrap intervals over prompts.",
        "",
        *markdown_table(header, tokens),
        "",
        "### Gain over SpecTr with as many drafted tokens",
        "",
        "In percent of the tokens per call. Prompts are resampled in pairs.",
        "",
        *markdown_table(header, gains),
        "",
        "### Acceptance of one level, K drafts of one token",
        "",
        "Exact probabilities, the mean over the prompts. In brackets: percent of the optimum for the rule's drafts. "
        "Greedy drafting reaches the optimum for its own.",
        "",
        *markdown_table(("drafter", "T", "K", *columns.values()), acceptances),
    ]
    return "\n".join(lines) + "\n"


def _format_acceptance(entry: dict[str, Any], name: str) -> str:
    """Returns an acceptance, with its share of the optimum for the same drafts; a dash for what is not known."""
    if name not in entry:
        return "–"
    if name not in _OPTIMA:
        return f"{entry[name]:.3f}"
    best = entry[_OPTIMA[name]]
    return f"{entry[name]:.3f} ({f'{100 * entry[name] / best:.1f} %' if best else '–'})"
