"""Measures modes of decoding for `fedspeak bench decoding`, each in turn with plain decoding from the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.bench.processes import watch_others
from experiments.decoding_modes import Mode
from experiments.intervals import mean_interval

PROMPT, TOKENS = 32, 64
"""Number of tokens of each prompt, and of those that are drawn after it."""
_ROWS = (1, 2, 3, 5, 7, 9, 13, 17)
# The rule and the optimum of decodings with several drafts, in `experiments.reproduce.tree_efficiency.first_level`.
SHARES = {
    "spectr": ("k_seq", "independent"),
    "multi-path": ("multi_path", "independent"),
    "distinct-tree": ("distinct_tree", "distinct"),
}


class Measurement:
    """Measures modes of one target.

    Args:
      model: the target.
      weights: its weights by name.
      starts: for each text the prompts from it, token ids.
      temperatures: the temperatures to measure at.
      seed: seed of the draws.
    """

    def __init__(
        self,
        model: Any,
        weights: Any,
        starts: Mapping[str, Sequence[Sequence[int]]],
        temperatures: Sequence[float],
        seed: int,
    ) -> None:
        self._target = model, weights
        self._prompts = [(name, prompt) for name, rows in starts.items() for prompt in rows]
        self._temperatures, self._seed = temperatures, seed
        self._plain: dict[str, Any] = {}

    def cost(self, precision: str) -> dict[str, list[float]]:
        """Returns milliseconds of a call of the target by its number of tokens: quartiles."""
        from experiments.bench.decoding_loop import time_rows
        from experiments.display import no_notices

        with no_notices():
            times = time_rows(*self._target, precision, _ROWS, PROMPT + TOKENS + max(_ROWS))
        return {str(count): np.quantile(values, [0.25, 0.5, 0.75]).tolist() for count, values in times.items()}

    def rows(self, mode: Mode, drafter: Any, precision: str) -> list[dict[str, Any]]:
        """Returns the results of a mode at each temperature, as `summarise` gives them.

        "others" is the number of processor cores that other programs used meanwhile; "of_optimum", above temperature 0,
        what a rule for several drafts accepts after the prompts as a share of what the best rule for its drafts
        accepts. It is left out where it is not known: for three and more children without replacement.

        Args:
          mode: the mode.
          drafter: what drafts.
          precision: precision of the weights of target and drafter.

        Raises:
          ValueError: the mode does not fit the models, or they do not convert; one line.
        """
        from experiments.bench.decoding_loop import Loop
        from experiments.display import no_notices

        with no_notices():
            loop = Loop(mode, *self._target, drafter, precision, PROMPT, TOKENS)
            if precision not in self._plain:
                self._plain = {precision: Loop(None, *self._target, None, precision, PROMPT, TOKENS)}
        pair = loop, self._plain[precision]
        for each in pair:  # the first calls pack the weights
            each.draw(self._prompts[0][1], 1.0, self._seed)
        found = []
        for temperature in self._temperatures:
            others = watch_others()
            drawn = []
            for place, (_, prompt) in enumerate(self._prompts):
                order = (0, 1) if place % 2 else (1, 0)
                both = {which: pair[which].draw(prompt, temperature, self._seed + place) for which in order}
                drawn.append([both[0], both[1]])
            row = {"temperature": temperature, **summarise([name for name, _ in self._prompts], drawn)}
            row["others"] = others()
            if mode.decoding in SHARES and temperature > 0:
                row |= self._of_optimum(drafter, mode, temperature)
            found.append(row)
        return found

    def _of_optimum(self, drafter: Any, mode: Mode, temperature: float) -> dict[str, float]:
        """Returns the entry "of_optimum" of a row, with weights in float32; nothing if no rule accepts anything."""
        from experiments.reproduce.tree_efficiency import first_level

        model, weights = self._target
        prompts = np.array([prompt for _, prompt in self._prompts], np.int32)
        own, best = SHARES[mode.decoding]
        options = model.fit(prompts.shape[1]), weights, drafter, prompts, temperature
        level = first_level(*options, [mode.first_drafts])[0]
        return {"of_optimum": level[own] / level[best]} if own in level and level[best] else {}


def summarise(texts: Sequence[str], drawn: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Returns tokens per call and the speed of a mode, with 95 % bootstrap intervals over prompts.

    Args:
      texts: for each prompt the text that it is from.
      drawn: for each prompt what drawing with the mode and with plain decoding took
        (`experiments.bench.decoding_loop.Drawn`).

    Returns:
      "tokens" per call of the target; "by_text" the same by text, without intervals; "speed", tokens per second divided
      by those of plain decoding from the same prompts; "milliseconds" of a call; "per_second", tokens of the mode;
      "reached" and "accepted", the number of drafted tokens by place.
    """
    mode, plain = (np.array([pair[place][:3] for pair in drawn], np.float64).T for place in (0, 1))
    seconds, tokens, calls = mode
    plain_seconds, plain_tokens, _ = plain
    by_text = {
        name: float(tokens[here].sum() / calls[here].sum())
        for name in dict.fromkeys(texts)
        if (here := np.array([text == name for text in texts])).any()
    }
    return {
        "tokens": mean_interval(tokens, calls)._asdict(),
        "by_text": by_text,
        "speed": mean_interval(plain_seconds / plain_tokens * tokens, seconds)._asdict(),
        "milliseconds": float(1000 * seconds.sum() / calls.sum()),
        "per_second": float(tokens.sum() / seconds.sum()),
        **{name: np.sum([getattr(own, name) for own, _ in drawn], axis=0).tolist() for name in ("reached", "accepted")},
    }
