"""Measures drafts of prediction heads on a known text, with NumPy alone.

Counts are those of decoding in blocks (docs/systems/blockwise.md): the tokens of a block are the accepted ones and the
model's own after them, so that with h heads a block has 1 to h tokens.

Reference: Kim et al. 2024, https://arxiv.org/abs/2404.09221.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Repetition(NamedTuple):
    """Says how often the tokens of drafts repeat.

    Attributes:
      neighbours: share of equal tokens among all pairs of neighbouring tokens of a draft; NaN without a pair.
      longest_run: mean over the drafts of the largest number of equal tokens one after another; NaN without a draft.
    """

    neighbours: float
    longest_run: float


def oracle_lengths(candidates: Any, text: Any) -> NDArray[np.int64]:
    """Returns how many tokens a block has at most that begins at each position of a greedy text, int `[T]`.

    A block ends where the text's token is none of the head's candidates. At temperature 0 no draft of candidates, one
    or several, gives a longer block there: neither a refined one nor the best paths. With one candidate, the likeliest,
    it is the block of the heads' own draft. More candidates never give a shorter block.

    Args:
      candidates: token ids `[T, h - 1, k]`: at each position the k likeliest tokens of the heads from 2.
      text: token ids `[T + h - 2]` of the model's greedy text. Entry t + j is what candidates `[t, j]` predict.

    Raises:
      ValueError: the shapes do not fit together.
    """
    candidates, text = np.asarray(candidates), np.asarray(text)
    if candidates.ndim != 3 or text.shape != (len(candidates) + candidates.shape[1] - 1,):
        raise ValueError(
            f"candidates of shape {candidates.shape} and text of shape {text.shape}: must be [T, h - 1, k] and "
            "[T + h - 2]"
        )
    positions, heads, _ = candidates.shape
    targets = text[np.arange(positions)[:, np.newaxis] + np.arange(heads)]
    is_found = (candidates == targets[..., np.newaxis]).any(axis=2)
    return 1 + np.cumprod(is_found, axis=1, dtype=np.int64).sum(axis=1)


def successive_blocks(lengths: Any) -> NDArray[np.int64]:
    """Returns the lengths of the blocks of a text, each of which begins where the one before ends; int `[blocks]`.

    Their mean is the block efficiency. The last block may go on after the end.

    Args:
      lengths: int `[T]`, the length of the block that begins at each position, >= 1.
    """
    lengths, position, found = np.asarray(lengths, np.int64), 0, []
    while position < len(lengths):
        found.append(lengths[position])
        position += lengths[position]
    return np.array(found, np.int64)


def measure_repetition(drafts: Any) -> Repetition:
    """Measures the repetition in drafts.

    Args:
      drafts: token ids `[drafts, h]`, the model's own token (head 1) first.

    Raises:
      ValueError: the drafts are no matrix.
    """
    drafts = np.asarray(drafts)
    if drafts.ndim != 2:
        raise ValueError(f"drafts of shape {drafts.shape}: must be a matrix [drafts, h]")
    if not drafts.size:
        return Repetition(float("nan"), float("nan"))
    equal = drafts[:, 1:] == drafts[:, :-1]
    run = longest = np.ones(len(drafts), np.int64)
    for column in equal.T:
        run = np.where(column, run + 1, 1)
        longest = np.maximum(longest, run)
    return Repetition(float(equal.mean()) if equal.size else float("nan"), float(longest.mean()))
