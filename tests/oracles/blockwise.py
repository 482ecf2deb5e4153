"""Blockwise parallel decoding at temperature 0, token by token and draft by draft, as it is defined."""

from collections.abc import Callable
from typing import Any

import numpy as np

Drafts = Callable[[list[int], Any], list[list[int]]]
"""Function from a text and the logits of the heads from 2, `[h - 1, V]`, to the drafts after the text."""


def decode(text: list[int], greedy: Any, heads: Any, drafts: Drafts, blocks: int) -> list[list[int]]:
    """Returns the tokens of each of the first blocks after a text.

    Args:
      text: the tokens before, at least one. As one call of the model verifies a draft and gives the next one, the heads
        have not read the last of them.
      greedy: function from a text to the base model's likeliest token.
      heads: function from a text to the logits of the heads from 2 after it.
      drafts: what is drafted.
      blocks: number of blocks.
    """
    text, found = list(text), []
    for _ in range(blocks):
        accepted: list[int] = []
        for draft in drafts(text, heads(text[:-1])):
            length = 0
            while length < len(draft) and draft[length] == greedy([*text, *draft[:length]]):
                length += 1
            accepted = max(accepted, draft[:length], key=len)
        found.append([*accepted, greedy([*text, *accepted])])
        text += found[-1]
    return found


def rescored(text: list[int], heads: Any, rescorer: Any, top_k: int, alpha: float) -> list[int]:
    """Returns the draft with the best scores, token by token; ties with a head's last likely token stay.

    Args:
      text: the text.
      heads: float32 `[h - 1, V]`.
      rescorer: function from a text to float32 logits `[V]`.
      top_k: number of likeliest tokens of each head.
      alpha: weight of the rescorer.
    """
    draft: list[int] = []
    for scores in heads:
        is_likely = scores >= np.sort(scores)[-top_k:][0]
        refined = scores + np.float32(alpha) * rescorer([*text, *draft])
        draft.append(int(np.argmax(np.where(is_likely, refined, -np.inf))))
    return draft
