"""Draws one token after another in NumPy, from any model that gives logits."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.decoding.choices import Choices
from models.decoding.numpy_ops import BLOCK, LEFT_OUT, Stream, Words, random_words, sample, seed_words
from models.decoding.numpy_processing import History, process

Mask = Callable[[list[int]], NDArray[np.bool_] | None]


def draw(
    step: Callable[[int, Any], tuple[NDArray[np.float32], Any]],
    logits: NDArray[np.float32],
    state: Any,
    prompt: Sequence[int],
    choices: Choices,
    bias: NDArray[np.float32] | None = None,
    mask: Mask | None = None,
) -> Iterator[int]:
    """Yields one token after another, as `models.decoding.loop.generate` draws them in one graph.

    Args:
      step: the model as a function from (token, state) to (logits `[V]`, new state).
      logits: the logits `[V]` after the prompt.
      state: the state after the prompt.
      prompt: token ids of the whole prompt, begin token included. Their number is the position of the first draw, and
        the repetition penalty applies to them.
      choices: how to draw, and how many tokens at most.
      bias: float32 `[V]` that is added to the logits; -inf bans a token.
      mask: function from the tokens generated so far to bool `[V]`, the tokens that may come next; it may return None
        for all. It is called before each draw.

    Raises:
      ValueError: the logits are not finite, the mask is not bool `[V]`, or bias and mask leave no token.
    """
    seed = seed_words(choices.seed)
    block: Words = (np.zeros(0, np.int32), np.zeros(0, np.int32))
    history = _begin_history(prompt, logits.shape[-1]) if choices.has_penalties else None
    generated: list[int] = []
    for i in range(choices.max_new_tokens):
        if i % BLOCK == 0:  # words of many positions at once: the cost of a call does not depend on their number
            block = random_words(seed, Stream.SAMPLE, choices.request, len(prompt) + i + np.arange(BLOCK))
        position = len(prompt) + i
        if not np.isfinite(logits).all():
            raise ValueError(f"logits at position {position} are not finite: the model is damaged or diverged")
        masked = bias if mask is None else _apply_mask(bias, mask(list(generated)), logits.shape[-1])
        if masked is not None and (masked <= LEFT_OUT).all():
            raise ValueError(f"bias, banned and mask leave no token at position {position}: allow at least one token")
        processed = process(logits, choices.processing, history, masked)
        token = int(sample(processed, (block[0][i % BLOCK], block[1][i % BLOCK])))
        yield token
        if token == choices.stop or i + 1 == choices.max_new_tokens:
            return
        generated.append(token)
        if history is not None:
            history.counts[token] += 1
        logits, state = step(token, state)


def _begin_history(prompt: Sequence[int], size: int) -> History:
    in_prompt = np.zeros(size, bool)
    in_prompt[np.asarray(prompt, np.int64)] = True
    return History(in_prompt, np.zeros(size, np.int32))


def _apply_mask(
    bias: NDArray[np.float32] | None, allowed: NDArray[np.bool_] | None, size: int
) -> NDArray[np.float32] | None:
    """Returns the bias, -inf where the mask does not allow a token; None if neither changes a logit."""
    if allowed is None:
        return bias
    if not isinstance(allowed, np.ndarray) or allowed.dtype != bool or allowed.shape != (size,):
        kind = f"{allowed.dtype} {list(allowed.shape)}" if isinstance(allowed, np.ndarray) else type(allowed).__name__
        raise ValueError(f"mask = a function that returned {kind}: must return a bool array of shape [{size}], or None")
    return np.where(allowed, np.float32(0) if bias is None else bias, np.float32(-np.inf))
