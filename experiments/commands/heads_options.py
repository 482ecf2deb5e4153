"""Defines the options of decoding with a model's own prediction heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from experiments.drafting import load_drafter, load_katz
from models.presets import MAX_HEADS
from models.token_tree import MAX_NODES

FORM = "heads"
"""The name of the drafter that a model's own prediction heads are."""
_OPTIONS = (
    click.option(
        "--heads",
        "heads",
        type=click.IntRange(2, MAX_HEADS),
        help="Number of prediction heads that draft, head 1 included, for --decoding blockwise. Default: all.",
    ),
    click.option(
        "--rescore",
        help="What refines the drafts of the heads: none, ngram:FILE, lookup or the folder of a model.",
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
                raise click.UsageError(
                    f"--{name.replace('_', '-')} has no use without --rescore: drop it, or give both"
                )
        if self.heads is not None and draft_length is not None:
            raise click.UsageError(
                "--heads and --draft-length say the same: drop one (drafts have a token less than heads)"
            )

    def draft_length(self, model: Any) -> int:
        """Returns the number of drafted tokens for a model.

        Raises:
          ValueError: the model has fewer heads, or none.
        """
        own = getattr(model, "prediction_heads", 1)
        if own < 2:
            raise ValueError(
                "the model has no prediction heads that could draft: train them with fedspeak pretrain --heads-on"
            )
        heads = own if self.heads is None else self.heads
        if heads > own:
            raise ValueError(f"--heads {heads}: the model has {own}; lower it, or train more")
        return heads - 1

    def drafter(self, model: Any, weights: Any, vocabulary: Any, context: int) -> Any:
        """Returns the drafter for a model; arguments as for `experiments.drafting.load_drafter`.

        Raises:
          OSError, ValueError: the rescorer cannot be read or does not fit; one line.
        """
        from models.decoding.heads_drafter import HeadsDrafter
        from models.decoding.katz_tables import KatzTables
        from models.decoding.lattice_drafter import LatticeDrafter

        top_k = 16 if self.top_k_heads is None else self.top_k_heads
        if top_k > vocabulary.size:
            raise ValueError(f"--top-k-heads {top_k}: the vocabulary has {vocabulary.size:,} tokens; lower it")
        alpha = 1.0 if self.alpha is None else self.alpha
        plain = self.rescore is None or self.rescore == "none"
        if self.paths is not None:
            path = (self.rescore or "").removeprefix("ngram:")
            return LatticeDrafter(None if plain else KatzTables(load_katz(Path(path), vocabulary)), top_k, alpha)
        if self.rescore is None or plain:
            return HeadsDrafter()
        if self.rescore in (FORM, "self"):
            raise ValueError(f"--rescore {self.rescore}: must be none, ngram:FILE, lookup or the folder of a model")
        return HeadsDrafter(load_drafter(self.rescore, model, weights, vocabulary, context), top_k, alpha)


def heads_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
