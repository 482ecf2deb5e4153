"""Defines the command `ngram`, which learns an n-gram model from public text."""

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
    help="Folder of the model that the n-gram model is for: a run, a pretrained or an imported model.",
)
@click.option(
    "--smoothing",
    type=click.Choice(["kneser-ney", "katz"]),
    default="kneser-ney",
    show_default=True,
    help="Smoothing: kneser-ney is meant for drafters, katz for scoring single tokens, as in refined blockwise drafts.",
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
    show_default=f"{MAX_SUCCESSORS} with kneser-ney, no limit with katz",
    help="Maximum number of stored tokens after each context.",
)
@click.option(
    "--min-counts",
    metavar="N,N,…",
    default="",
    help="How often n-grams of 2 tokens, of 3, and so on must occur to be stored, such as 1,2,4. Default: 1 for all.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("ngram.npz"),
    show_default=True,
    help="File to write.",
)
def ngram(
    texts: tuple[Path, ...],
    vocabulary: Path,
    smoothing: str,
    order: int,
    max_entries: int,
    max_successors: int | None,
    min_counts: str,
    output: Path,
) -> None:
    """Learn an n-gram model for speculative or blockwise decoding from public text.

    TEXTS are text files in UTF-8. The result holds parts of them, so they must be public. Without TEXTS, the text that
    the run's config declares public is used.
    """
    extras.require("models")
    from experiments import ngram_learning

    require_writable_file(output)
    model, tokens = ngram_learning.learn(
        vocabulary, texts, order, max_entries, max_successors, _parse_counts(min_counts), smoothing
    )
    model.save(output)
    click.echo(
        f"wrote {output}: order {model.order}, {len(model.tokens):,} n-grams after {len(model.backoff) - 1:,} contexts "
        f"from {tokens:,} tokens, {model.nbytes / 1e6:,.1f} MB"
    )


def _parse_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"--min-counts {text!r}: must be integers with commas between them, such as 1,2,4") from None
