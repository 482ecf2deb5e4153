"""Defines the options of decoding with a model's own prediction heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from experiments.drafting import load_katz, naming, ngram_file, read_drafter
from models.presets import MAX_HEADS
from models.token_tree import MAX_NODES, format_shape

FORM = "heads"
"""The name of the drafter that a model's own prediction heads are."""
_RESCORERS = "none, ngram:FILE, lookup or the folder of a model with the same vocabulary"
_QUICK, _MOST = 1 << 12, 1 << 16
"""Numbers of n-grams at a position up to which best paths are quick, and beyond which they are refused."""
_OPTIONS = (
    click.option(
        "--heads",
        "heads",
        type=click.IntRange(2, MAX_HEADS),
        help="Number of prediction heads that draft, head 1 included, for --decoding blockwise. Default: all.",
    ),
    click.option(
        "--rescore",
        help=f"What refines the drafts of the heads: {_RESCORERS}.",
        show_default="none",
    ),
    click.option(
        "--top-k-heads",
        type=click.IntRange(1),
        show_default="16",
        help="Number of likeliest tokens of each head among which --rescore chooses.",
    ),
    click.option(
        "--paths",
        type=click.IntRange(1, MAX_NODES - 1),
        help="Draft this number of best paths through the likeliest tokens of all heads, as --rescore ngram:FILE (of "
        "--smoothing katz) or none scores them, and verify them together. Default: one draft, token by token.",
    ),
    click.option(
        "--alpha", type=click.FloatRange(0, 1000), show_default="1", help="Weight of the logits of --rescore."
    ),
)


class HeadsOptions(NamedTuple):
    """Holds what the user gave; None where nothing was given.

    Attributes:
      heads: number of heads.
      rescore: name of the rescorer.
      top_k_heads: number of tokens of each head.
      paths: number of best paths.
      alpha: weight of the rescorer.
    """

    heads: int | None
    rescore: str | None
    top_k_heads: int | None
    paths: int | None
    alpha: float | None

    def check(self, decodings: tuple[str, ...], drafter: str | None, draft_length: str | None) -> None:
        """Raises a click.UsageError for options that do not go together."""
        if "blockwise" in decodings and drafter not in (None, FORM):
            raise click.UsageError(
                f"--decoding blockwise drafts with the model's own heads, not with --drafter {drafter}: drop one, or "
                "refine with --rescore"
            )
        is_used = "blockwise" in decodings or drafter == FORM
        for name, value in self._asdict().items():
            if value is not None and not is_used:
                option = f"--{name.replace('_', '-')}"
                raise click.UsageError(f"{option} has no use without --decoding blockwise or --drafter heads: drop it")
        if self.paths is not None and set(decodings) - {"blockwise", "autoregressive"}:
            raise click.UsageError("--paths is for --decoding blockwise only: drop it, or the other decodings")
        if self.paths is not None and not (self.rescore or "none").startswith(("none", "ngram:")):
            raise click.UsageError(
                f"--rescore {self.rescore} drafts one path: drop --paths, or give ngram:FILE or none"
            )
        for name in ("alpha",) if self.paths is not None else ("top_k_heads", "alpha"):
            if getattr(self, name) is not None and self.rescore in (None, "none"):
                missing = "without --rescore" if self.rescore is None else "with --rescore none"
                raise click.UsageError(
                    f"--{name.replace('_', '-')} has no use {missing}: drop it, or name what refines the drafts"
                )
        is_word = self.rescore in ("ngram", "neural") and not Path(self.rescore).exists()
        if is_word or self.rescore in (FORM, "self", ""):
            raise click.UsageError(f"--rescore {self.rescore!r}: must be {_RESCORERS}")
        if self.alpha is not None and not self.alpha >= 0:
            raise click.UsageError(f"--alpha {self.alpha}: must be a number from 0 to 1000")
        if self.heads is not None and draft_length is not None:
            raise click.UsageError(
                "--heads and --draft-length say the same: drop one (drafts have a token less than heads)"
            )

    def draft_length(self, model: Any, given: int | None) -> int:
        """Returns the number of drafted tokens for a model.

        Args:
          model: the model.
          given: what --draft-length says; None where it is not given.

        Raises:
          ValueError: the model has fewer heads, or none, or the paths are too many for drafts of this length.
        """
        own = getattr(model, "prediction_heads", 1)
        if own < 2:
            raise ValueError(
                "the model has no prediction heads that could draft: train them with fedspeak pretrain --heads-on"
            )
        heads = own if self.heads is None else self.heads
        if heads > own:
            raise ValueError(f"--heads {heads}: the model has {own}; lower it, or train more")
        length = heads - 1 if given is None else given
        if length >= own:
            raise ValueError(
                f"--draft-length {length}: the model's {own} heads draft at most {own - 1} tokens; lower it"
            )
        if self.paths is not None and self.paths * length >= MAX_NODES:
            raise ValueError(
                f"--paths {self.paths}: drafts of {length} tokens are {self.paths * length} tokens, more than "
                f"{MAX_NODES - 1}; give at most {(MAX_NODES - 1) // length}, or fewer heads"
            )
        return length

    def check_tree(self, model: Any, tree: Sequence[int]) -> None:
        """Raises ValueError if a tree is deeper than the heads of a model can draft."""
        most = model.prediction_heads - 1
        if len(tree) > most:
            raise ValueError(
                f"--tree {format_shape(tree)}: the model's {most + 1} heads draft at most {most} tokens one after "
                f"another; give at most {most} numbers"
            )

    def drafter(self, model: Any, weights: Any, vocabulary: Any, context: int, length: int) -> Any:
        """Returns the drafter for a model.

        Args:
          model: the model.
          weights: its weights by name.
          vocabulary: its vocabulary.
          context: maximum number of tokens of a prompt and its continuation, the tokens of a draft included.
          length: number of tokens of a draft.

        Raises:
          OSError, ValueError: the rescorer cannot be read or does not fit; one line.
        """
        from models.decoding.heads_drafter import HeadsDrafter
        from models.decoding.katz_tables import KatzTables
        from models.decoding.lattice_drafter import LatticeDrafter
        from models.decoding.shared_vocabulary import SharedVocabularyDrafter

        top_k = 16 if self.top_k_heads is None else self.top_k_heads
        if top_k > vocabulary.size:
            raise ValueError(f"--top-k-heads {top_k}: the vocabulary has {vocabulary.size:,} tokens; lower it")
        alpha = 1.0 if self.alpha is None else self.alpha
        if self.rescore is None or self.rescore == "none":
            return HeadsDrafter() if self.paths is None else LatticeDrafter(None, top_k)
        with naming("--rescore", self.rescore, f"give {_RESCORERS}"):
            if self.paths is not None:
                ngram = load_katz(ngram_file(self.rescore), vocabulary)
            else:
                rescorer = read_drafter(self.rescore, model, weights, vocabulary, context)
                if isinstance(rescorer, SharedVocabularyDrafter):
                    raise ValueError(f"it has another vocabulary than the target: give {_RESCORERS}")
                return HeadsDrafter(rescorer, top_k, alpha)
        _check_width(top_k, ngram.order, length)
        return LatticeDrafter(KatzTables(ngram), top_k, alpha)


def _check_width(top_k: int, order: int, length: int) -> None:
    """Refuses best paths by an n-gram model that take too much memory, and warns of those that take long.

    At a position of a draft, the probabilities of k tokens are looked up after all paths of n - 1 tokens to it.
    """
    power = min(order, length)

    def widest(count: int) -> int:
        return next(k for k in range(top_k, 0, -1) if k**power <= count)

    if top_k > widest(_QUICK):
        cost = f"--top-k-heads {top_k}: with --paths and an n-gram model of order {order}, a position of a draft has "
        cost += f"{top_k**power:,} n-grams"
        if top_k > widest(_MOST):
            raise ValueError(f"{cost}, more than {_MOST:,}; give at most {widest(_MOST)}")
        click.echo(f"warning: {cost} and takes long; {widest(_QUICK)} is quick", err=True)


def heads_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
