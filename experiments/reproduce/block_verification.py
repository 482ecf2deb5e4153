"""Defines `fedspeak reproduce block-verification`: how many tokens a call of the target gives under each decoding.

The study follows Sun et al., "Block verification accelerates speculative decoding" (https://arxiv.org/abs/2403.10444),
with models that `fedspeak reproduce drafters` trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments import options
from experiments.display import ConsoleDisplay, no_notices
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.reproduce.study_models import choose_models, learn_ngram, model_options
from experiments.runs import load_trained, write_json
from privacy.files import write_public

DRAFT_LENGTHS = (2, 4, 8)
# Not longer: prompt and continuation stay near the 64 tokens of a row of the text that the models learned from.
_PROMPT = 24
_BLOCKS = 12
# Draft length, token and block verification: PaLM-2-S with the drafter PaLM-2-XXS, the mean over eight data sets.
_PUBLISHED = ((4, 2.89, 2.99, 3.46), (6, 3.23, 3.43, 6.19), (8, 3.41, 3.70, 8.30))


@click.command("block-verification")
@model_options
@click.option(
    "--prompts",
    type=click.IntRange(min=2),
    default=128,
    show_default=True,
    help=f"Number of prompts of {_PROMPT} tokens from the held-out plays, drawn at random.",
)
@click.option(
    "--texts",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help=f"Number of continuations of each prompt, of {_BLOCKS} blocks each.",
)
@options.seed
@options.output("runs/block-verification", "the table, the plot and the results")
def block_verification(
    models: Path,
    target: Path | None,
    drafters: tuple[str, ...],
    prompts: int,
    texts: int,
    seed: int,
    output: Path,
) -> None:
    """Measure the tokens per target call of token, block, greedy block and invariant decoding.

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
    rows = measure(*chosen, prompts, texts, seed, show)
    results = {"command": command_line(), "versions": versions(), "seed": seed, "rows": rows}
    write_json(output / "metrics.json", results)
    plots.block_efficiencies(output / "plot", rows)
    table = format_table(rows)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def measure(
    target: Path, drafters: dict[str, str], source: Any, prompts: int, texts: int, seed: int, show: Any
) -> list[dict[str, Any]]:
    """Decodes with each drafter, draft length and temperature by every decoding, from the same prompts and seed.

    Args:
      target: folder of the target.
      drafters: name of each drafter for `experiments.drafting.load_drafter`, by its name in the results.
      source: (speaker, lines) pairs of held-out text.
      prompts: number of prompts, >= 2; all of them if the text has fewer.
      texts: number of continuations of each prompt, >= 1.
      seed: seed of prompts and draws.
      show: display for progress.

    Returns:
      One row for each drafter, temperature and draft length: `experiments.reproduce.block_efficiency.summarise`.

    Raises:
      OSError, ValueError: a model cannot be read or does not fit; one line.
    """
    import numpy as np
    import tensorflow as tf

    from experiments.drafting import load_drafter
    from experiments.reproduce import block_efficiency
    from experiments.reproduce.drafters import TEMPERATURES

    model, weights, vocabulary = load_trained(target)
    chosen = block_efficiency.choose_prompts(source, vocabulary, _PROMPT, prompts, seed)
    repeated, requests = np.tile(chosen, (texts, 1)), np.arange(texts * len(chosen), dtype=np.int32)
    constants = {name: tf.constant(value) for name, value in weights.items()}
    rows = []
    for name, form in drafters.items():
        for length in DRAFT_LENGTHS:
            show.note(f"{name}, drafts of {length} tokens …")
            context = _PROMPT + (_BLOCKS + 1) * (length + 1)
            decoder = block_efficiency.Decoder(
                model.fit(context),
                constants,
                load_drafter(form, model, weights, vocabulary, context),
                length,
                _BLOCKS,
                block_efficiency.batch_rows(length, vocabulary.size, len(repeated)),
            )
            for temperature in TEMPERATURES:
                with no_notices():  # TensorFlow warns of the many graphs
                    found = {
                        method: decoder.draw(method, repeated, requests, temperature, seed)
                        for method in block_efficiency.METHODS
                    }
                rows.append(
                    {
                        "drafter": name,
                        "temperature": temperature,
                        "draft_length": length,
                        "prompts": len(chosen),
                        "texts": texts,
                        "blocks": _BLOCKS,
                        **block_efficiency.summarise(found, len(chosen)),
                    }
                )
    order = {name: number for number, name in enumerate(drafters)}
    return sorted(rows, key=lambda row: (order[row["drafter"]], -row["temperature"], row["draft_length"]))


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns the results as Markdown."""
    first = rows[0]
    apart = max(abs(row[name]["standard_errors_apart"]) for row in rows for name in _VERIFIED)
    calls = first["prompts"] * first["texts"] * first["blocks"]
    after = sorted(first["greedy_ahead"], key=int)
    tokens, gains, ahead = [], [], []
    for row in rows:
        setting = (row["drafter"], f"{row['temperature']:g}", row["draft_length"])
        counts = [*(row[name]["expected"] for name in _VERIFIED), row["invariant"]["sampled"]]
        percents = [row["gain"][key] for key in ("sampled", "expected", "same_drafts")]
        tokens.append((*setting, *(format_interval(count, 2) for count in counts)))
        gains.append((*setting, *(format_interval(percent, 1, "+") for percent in percents)))
        ahead.append((*setting, *(format_interval(row["greedy_ahead"][count], 2, "+") for count in after)))
    published = [(length, f"{token:.2f}", f"{block:.2f}", f"+{gain:.1f}") for length, token, block, gain in _PUBLISHED]
    columns = ("drafter", "T", "draft length")
    lines = [
        f"### Tokens per target call ({first['prompts']} prompts from held-out plays, {calls:,} calls in each cell)",
        "",
        "95 % bootstrap intervals over prompts. Token, block and greedy block verification: expected tokens given the",
        f"drafts. The tokens sampled in the same blocks are at most {apart:.1f} standard errors away in all "
        f"{len(_VERIFIED) * len(rows)} cells.",
        "Invariant decoding: sampled tokens.",
        "",
        *markdown_table((*columns, "token", "block", "greedy block", "invariant"), tokens),
        "",
        "### Gain of block over token verification",
        "",
        "In percent of the tokens per call. Prompts are resampled in pairs. In the last column the two decide about",
        "the same drafts, those of the texts of block verification.",
        "",
        *markdown_table((*columns, "sampled", "expected", "expected, same drafts"), gains),
        "",
        "Published for PaLM-2-S with the drafter PaLM-2-XXS, the mean over eight data sets (Sun et al. 2024,",
        "[arXiv:2403.10444](https://arxiv.org/abs/2403.10444)):",
        "",
        *markdown_table(("draft length", "token", "block", "gain"), published),
        "",
        "### Tokens by which greedy block is ahead of block verification",
        "",
        "Expected tokens since the prompt, after the first blocks. Greedy block gains in the first block and pays in",
        "the next ones.",
        "",
        *markdown_table((*columns, *(f"after {count}" for count in after)), ahead),
    ]
    return "\n".join(lines) + "\n"


_VERIFIED = ("speculative", "block", "greedy-block")
