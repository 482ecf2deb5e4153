"""Defines the options of decoding with a model's own prediction heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from experiments.drafting import load_drafter
from models.presets import MAX_HEADS

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
        "--alpha", type=click.FloatRange(0, 1000), show_default="1", help="Weight of the logits of --rescore."
    ),
)


class HeadsOptions(NamedTuple):
    """Holds what the user gave; None where nothing was given.

    Attributes:
      heads: number of heads.
      rescore: name of the rescorer.
      top_k_heads: number of tokens of each head.
      alpha: weight of the rescorer.
    """

    heads: int | None
    rescore: str | None
    top_k_heads: int | None
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
        for name in ("top_k_heads", "alpha"):
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

        if self.rescore in (None, "none"):
            return HeadsDrafter()
        if self.rescore in (FORM, "self"):
            raise ValueError(f"--rescore {self.rescore}: must be none, ngram:FILE, lookup or the folder of a model")
        rescorer = load_drafter(self.rescore, model, weights, vocabulary, context)
        top_k = 16 if self.top_k_heads is None else self.top_k_heads
        if top_k > vocabulary.size:
            raise ValueError(f"--top-k-heads {top_k}: the vocabulary has {vocabulary.size:,} tokens; lower it")
        return HeadsDrafter(rescorer, top_k, 1.0 if self.alpha is None else self.alpha)


def heads_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
