"""Defines the methods of decoding: how tokens are drafted and how a drafted block is decided.

* `Plain` draws every token from the target, keyed by its position (decoding "autoregressive").
* `Speculative` verifies a draft by a lossless rule ("speculative", "block" and "greedy-block").
* `Invariant` draws drafter's and target's tokens with the same noise and accepts a draft where the two are equal
  ("invariant"): its text depends neither on the drafter nor on the draft length (Daliri et al. 2024,
  https://arxiv.org/abs/2408.07978).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import tensorflow as tf

from models.decoding.greedy_block import GREEDY_BLOCK
from models.decoding.numpy_ops import Stream
from models.decoding.prng import BlockWords, block_words, random_words
from models.decoding.race import gumbels, race
from models.decoding.sampling import distribution_of, sample, sample_31, weights_31
from models.decoding.verification import block_rule, sample_probabilities, token_rule, verify
from models.decoding.verifier import Verifier


class Drawn(NamedTuple):
    """Holds one drafted token per row.

    Attributes:
      token: int32 `[B]`.
      law: the probabilities that it was drawn with, float32 `[B, V]`; () for methods that do not need them.
    """

    token: tf.Tensor
    law: Any


class Decision(NamedTuple):
    """Holds what was decided about one block per row.

    Attributes:
      accepted: int32 `[B]`, number of accepted drafted tokens.
      token: int32 `[B]`, the token after them.
      carry: what the method carries to the next block.
    """

    accepted: tf.Tensor
    token: tf.Tensor
    carry: Any


class Method(ABC):
    """Draws and decides blocks; a set of pure functions with static shapes."""

    def initial_carry(self, batch: int, draft_length: int) -> Any:
        """Returns what the method carries from block to block, before the first one: a nest of tensors.

        A method that carries anything needs the whole draft in every block.
        """
        return ()

    @abstractmethod
    def words(self, seed: tf.Tensor, request: tf.Tensor, starts: tf.Tensor, draft_length: int) -> Any:
        """Returns the random words of blocks that begin at `starts`: a nest of int32 tensors `[B, N, ...]`.

        Args:
          seed: int32 `[2]`.
          request: int32 `[B]`.
          starts: int32 `[B, N]`, numbers of tokens before each block, those of the prompt included.
          draft_length: number of drafted tokens G.
        """

    def noise(self, words: Any, draft_length: int, size: int) -> Any:
        """Returns the random numbers of one block per row, from its words `[B, ...]`, for a vocabulary of `size`."""
        return words

    @abstractmethod
    def draw(self, processed: tf.Tensor, noise: Any, place: int) -> Drawn:
        """Draws the drafted token at `place` (0 to G - 1) from the drafter's processed logits `[B, V]`."""

    @abstractmethod
    def decide(
        self,
        processed: tf.Tensor,
        target: tf.Tensor,
        laws: list[Any],
        tokens: tf.Tensor,
        lengths: tf.Tensor,
        limits: tf.Tensor,
        noise: Any,
        carry: Any,
    ) -> Decision:
        """Decides how much of each row's draft is accepted, and draws the token after it.

        Args:
          processed: the target's processed logits, `[B, G+1, V]`, after the block's prefixes.
          target: their softmax.
          laws: G times `Drawn.law`.
          tokens: int32 `[B, G]`, the draft.
          lengths: int32 `[B]`, number of real tokens of each draft.
          limits: int32 `[B]`, number of tokens that each draft could have.
          noise: as for `draw`.
          carry: what the block before carried.
        """


class _ByPosition(Method):
    """Draws the target's own token at each position, and accepts a draft as far as it equals them.

    A position's random numbers depend on the position alone, so that the text is the one of plain sampling.
    """

    def decide(
        self,
        processed: tf.Tensor,
        target: tf.Tensor,
        laws: list[Any],
        tokens: tf.Tensor,
        lengths: tf.Tensor,
        limits: tf.Tensor,
        noise: Any,
        carry: Any,
    ) -> Decision:
        """Compares the draft with the target's own tokens; see `Method.decide`."""
        own = self._draw_all(processed, noise)
        count = tokens.shape[1]
        differs = ~(tf.equal(own[:, :count], tokens) & tf.sequence_mask(lengths, count))
        accepted = tf.reduce_sum(tf.cast(tf.equal(tf.cumsum(tf.cast(differs, tf.int32), axis=1), 0), tf.int32), axis=1)
        return Decision(accepted, tf.gather(own, accepted, axis=1, batch_dims=1), carry)

    @abstractmethod
    def _draw_all(self, processed: tf.Tensor, noise: Any) -> tf.Tensor:
        """Draws the target's token at each position, int32 `[B, G+1]`."""


class Plain(_ByPosition):
    """Draws each token by inverse CDF, with one number per position; it has no use for a drafter."""

    def words(self, seed: tf.Tensor, request: tf.Tensor, starts: tf.Tensor, draft_length: int) -> Any:
        """Returns two words per position; see `Method.words`."""
        return random_words(seed, Stream.SAMPLE, request[:, tf.newaxis], starts)

    def draw(self, processed: tf.Tensor, noise: Any, place: int) -> Drawn:
        """Raises; a draft would be drawn with the same number as the target's token."""
        raise ValueError("decoding = 'autoregressive': takes no drafter; choose another decoding, or drop the drafter")

    def _draw_all(self, processed: tf.Tensor, noise: Any) -> tf.Tensor:
        return sample(processed, tuple(word[:, tf.newaxis] for word in noise))  # type: ignore[arg-type]


class Invariant(_ByPosition):
    """Draws each token by an exponential race, with one number per position and token."""

    def words(self, seed: tf.Tensor, request: tf.Tensor, starts: tf.Tensor, draft_length: int) -> Any:
        """Returns seed, request and position, from which `noise` computes the race's numbers; see `Method.words`."""
        batch, count = starts.shape
        return (
            tf.broadcast_to(seed, [batch, count, 2]),
            tf.broadcast_to(request[:, tf.newaxis], [batch, count]),
            starts,
        )

    def noise(self, words: Any, draft_length: int, size: int) -> tf.Tensor:
        """Returns the numbers of the block's positions, float32 `[B, G+1, V]`; see `Method.noise`."""
        seed, request, start = words
        positions = start[:, tf.newaxis] + tf.range(draft_length + 1)
        return gumbels(seed[0], request[:, tf.newaxis], positions, size)

    def draw(self, processed: tf.Tensor, noise: tf.Tensor, place: int) -> Drawn:
        """Runs the drafter's race; see `Method.draw`."""
        return Drawn(race(processed, noise[:, place]), ())

    def _draw_all(self, processed: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        return race(processed, noise[:, : processed.shape[1]])


@dataclass(frozen=True)
class Speculative(Method):
    """Decides by a lossless verifier.

    Attributes:
      verifier: the rule, and what it carries from block to block.
    """

    verifier: Verifier

    def initial_carry(self, batch: int, draft_length: int) -> Any:
        """Returns the verifier's carry; see `Method.initial_carry`."""
        return self.verifier.initial_carry(batch, draft_length)

    def words(self, seed: tf.Tensor, request: tf.Tensor, starts: tf.Tensor, draft_length: int) -> BlockWords:
        """Returns the words of each block; see `Method.words`."""
        return block_words(seed, request[:, tf.newaxis], starts, draft_length)

    def draw(self, processed: tf.Tensor, noise: BlockWords, place: int) -> Drawn:
        """Draws by inverse CDF; see `Method.draw`."""
        token_weights = weights_31(processed)
        token = sample_31(token_weights, noise.draft[0][:, place])
        return Drawn(token, distribution_of(token_weights))

    def decide(
        self,
        processed: tf.Tensor,
        target: tf.Tensor,
        laws: list[Any],
        tokens: tf.Tensor,
        lengths: tf.Tensor,
        limits: tf.Tensor,
        noise: BlockWords,
        carry: Any,
    ) -> Decision:
        """Verifies the draft; see `Method.decide`."""
        if not laws:
            return Decision(tf.zeros_like(lengths), sample_probabilities(target[:, 0], noise.bonus), carry)
        drafter = tf.stack(laws, axis=1)
        modified = self.verifier.modify(target, drafter, tokens, lengths, carry, limits)
        found = verify(self.verifier.rule, modified.target, drafter, tokens, lengths, noise)
        # A row without any token has -1, which no op may look up; its text ends here.
        token = tf.maximum(found.token, 0)
        return Decision(found.accepted, found.token, self.verifier.advance(modified, found.accepted, token))


METHODS: dict[str, Method] = {
    "autoregressive": Plain(),
    "speculative": Speculative(Verifier(token_rule)),
    "block": Speculative(Verifier(block_rule)),
    "greedy-block": Speculative(GREEDY_BLOCK),
    "invariant": Invariant(),
}
"""The methods of the decodings that draft a single line of tokens, by name."""


def build_method(name: str) -> Method:
    """Returns the method of a name in `METHODS`."""
    if name not in METHODS:
        raise ValueError(f"decoding = {name!r}: must be one of {', '.join(METHODS)}")
    return METHODS[name]
