"""Defines the command `ngram`, which learns an n-gram drafter from public text."""

from pathlib import Path

import click

from experiments import extras
from models.ngram import LARGEST_ORDER, MAX_ENTRIES, MAX_SUCCESSORS, ORDER
from privacy.files import require_writable_file


@click.command()
@click.argument("texts", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    metavar="RUN",
    required=True,
    help="Folder of the model that the drafter is for: a run, a pretrained or an imported model.",
)
@click.option(
    "--order",
    type=click.IntRange(1, LARGEST_ORDER),
    default=ORDER,
    show_default=True,
    help="Maximum number of tokens of an n-gram.",
)
@click.option(
    "--max-entries",
    type=click.IntRange(min=1),
    default=MAX_ENTRIES,
    show_default=True,
    help="Maximum number of stored n-grams, of 32 bytes or less each.",
)
@click.option(
    "--max-successors",
    type=click.IntRange(min=1),
    default=MAX_SUCCESSORS,
    show_default=True,
    help="Maximum number of stored tokens after each context.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("ngram.npz"),
    show_default=True,
    help="File to write.",
)
def ngram(
    texts: tuple[Path, ...], vocabulary: Path, order: int, max_entries: int, max_successors: int, output: Path
) -> None:
    """Learn an n-gram drafter for speculative decoding from public text.

    TEXTS are text files in UTF-8. The result holds parts of them, so they must be public. Without TEXTS, the text that
    the run's config declares public is used.
    """
    extras.require("models")
    from experiments import ngram_learning

    require_writable_file(output)
    model, tokens = ngram_learning.learn(vocabulary, texts, order, max_entries, max_successors)
    model.save(output)
    click.echo(
        f"wrote {output}: order {model.order}, {len(model.tokens):,} n-grams after {len(model.backoff) - 1:,} contexts "
        f"from {tokens:,} tokens, {model.nbytes / 1e6:,.1f} MB"
    )
