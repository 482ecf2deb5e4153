"""Draws tokens from an exported file block by block, on a device: the host's side of speculative decoding."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.decoding.acceptance import Acceptance
from models.decoding.choices import Choices
from models.decoding.transport import k_seq_acceptance, optimal_acceptance

Signature = Callable[..., dict[str, NDArray[Any]]]


class BlockDraw(Iterator[int]):
    """Gives one token after another; each block is drafted and verified by one call of the runtime.

    The iterator ends at `choices.max_new_tokens` or after the stop token. After `extend` it goes on: the text is then
    the one that a single call would have given.

    Attributes:
      log_probs: log-probability of each token given so far, under the target's processed distribution.
      unprocessed_log_probs: the same under the target's softmax before any processing.

    Args:
      blocks: the file's signatures that add a block with drafts, and one after drafting has ended.
      state: the state after the prompt, arrays by name. They are not changed: several texts may begin with them.
      position: number of tokens of the prompt.
      inputs: the request's choices, as inputs of these signatures.
      choices: the same choices; those of the end are applied here.
      context: maximum number of tokens of prompt and text; None for none.
      num_drafts: number of independent drafts of each block, to compare K-SEQ with the best rule; 0 does not compare.
      is_best: as in `models.decoding.acceptance.Acceptance`.
    """

    def __init__(
        self,
        blocks: tuple[Signature, Signature],
        state: dict[str, NDArray[Any]],
        position: int,
        inputs: dict[str, NDArray[Any]],
        choices: Choices,
        context: int | None,
        num_drafts: int = 0,
        is_best: bool = False,
    ) -> None:
        self._signatures, self._inputs, self._stop = blocks, inputs, choices.stop
        self._drafts = True
        self._left, self._ended = choices.max_new_tokens, False
        self._state, self._position, self._context = state, position, context
        self._pending: list[tuple[int, float, float]] = []
        self._blocks: list[tuple[int, int]] = []
        self._width = 0
        self._num_drafts, self._is_best = num_drafts, is_best
        self._firsts: list[list[NDArray[np.float32]]] = []
        self._by_k_seq = self._by_best = 0.0
        self.log_probs: list[float] = []
        self.unprocessed_log_probs: list[float] = []

    def __next__(self) -> int:
        if self._left == 0 or self._ended:
            raise StopIteration
        if not self._pending:
            self._draw_block()
        token, log_prob, unprocessed = self._pending.pop(0)
        self.log_probs.append(log_prob)
        self.unprocessed_log_probs.append(unprocessed)
        self._left -= 1
        self._ended = token == self._stop
        return token

    def extend(self, max_new_tokens: int) -> "BlockDraw":
        """Lets the iterator give up to `max_new_tokens` more tokens, also after a stop token, and returns it.

        Raises:
          ValueError: the number is out of range, or more than the file's context has room for.
        """
        left = Choices(max_new_tokens=max_new_tokens).max_new_tokens  # raises if it is out of range
        if self._context is not None and self.position + left > self._context:
            raise ValueError(
                f"max_new_tokens = {left}: the text has {self.position} of the {self._context} tokens that the file "
                "was exported for; ask for fewer, or export with larger limits"
            )
        self._left, self._ended = left, False
        return self

    @property
    def position(self) -> int:
        """Returns the number of tokens of prompt and text so far."""
        return self._position + len(self.log_probs)

    @property
    def acceptance(self) -> Acceptance:
        """Returns what became of the drafts so far."""
        drafted, count = np.array(self._blocks, np.int64).reshape(-1, 2).T
        at = np.arange(self._width)
        is_drafted = at < drafted[:, np.newaxis]
        counts = {
            "calls": len(drafted),
            "decided": count.sum(),
            "drafted": is_drafted,
            "reached": is_drafted & (at < count[:, np.newaxis]),
            "accepted": is_drafted & (at < count[:, np.newaxis] - 1),
        }
        self.compare()
        found = Acceptance.from_counts(counts, self._is_best)
        return replace(found, by_k_seq=self._by_k_seq, by_best=self._by_best)

    def compare(self) -> None:
        """Compares K-SEQ with the best rule in the blocks that were drawn since the last comparison.

        Drawing leaves it to this method and to `acceptance`, so that it takes no longer. Until then two arrays `[V]` of
        each block are kept.
        """
        for first in self._firsts:
            # In float32, the sum of a large vocabulary's probabilities is 1 to a few millionths only.
            drafter, target = (row / row.sum() for row in (part.astype(np.float64) for part in first))
            self._by_k_seq += k_seq_acceptance(drafter, target, self._num_drafts)
            self._by_best += optimal_acceptance(drafter, target, self._num_drafts)
        self._firsts.clear()

    def _draw_block(self) -> None:
        draw, draw_plain = self._signatures
        outputs = (draw if self._drafts else draw_plain)(**self._inputs, **self._state)
        self._drafts = bool(outputs.get("drafts", True))
        self._state = {name: value for name, value in outputs.items() if name.startswith("state_")}
        count = int(outputs["count"][0])
        self._width = outputs["tokens"].shape[1] - 1
        if count == 0:
            raise ValueError(
                f"logits at position {self.position} are not finite, or bias and banned leave no token: the model is "
                "damaged or diverged, or allow at least one token"
            )
        self._blocks.append((int(outputs["drafted"][0]), count))
        if self._num_drafts and outputs["drafted"][0]:
            self._firsts.append([outputs[name][0] for name in ("first_drafter", "first_target")])
        fields = (outputs[name][0, :count].tolist() for name in ("tokens", "log_probs", "unprocessed_log_probs"))
        self._pending = list(zip(*fields, strict=True))
