"""Measures block efficiency, the number of tokens per call of the target, on continuations of held-out text.

Two estimates of the same mean come from the same blocks. One is the number of tokens that a block gave. The other is
`expected_tokens`, which replaces the decision and the last drafted token of each prefix by their exact expectation: it
has the same mean given the text before the block, and much less noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from experiments.intervals import mean_interval
from models.decoding import numpy_ops
from models.decoding.block_decoder import Request
from models.decoding.choices import Processing
from models.decoding.drafters import Drafter
from models.decoding.greedy_block import GREEDY_BLOCK, Carry
from models.decoding.methods import Decision, Invariant, Speculative
from models.decoding.speculation import Speculation
from models.decoding.verification import block_rule, log_ratios, token_rule
from models.decoding.verifier import Verifier
from models.language_model import LanguageModel

VERIFIERS = {"speculative": Verifier(token_rule), "block": Verifier(block_rule), "greedy-block": GREEDY_BLOCK}
"""The verifiers that are compared, by the name of the decoding."""
METHODS = (*VERIFIERS, "invariant")
_LARGEST_LOG = 80.0  # so that a product of ratios fits a float32; at exp(80) the target's side is never the smaller one
_BATCH_LOGITS = 1 << 22  # probabilities of the target in memory at a time


class Blocks(NamedTuple):
    """Holds what became of the blocks of each text.

    Attributes:
      counts: int32 `[R, K]`, number of tokens that each of K successive blocks gave.
      expected: float32 `[R, K]`, `expected_tokens` of each block; NaN for decodings without a verifier.
      sequential: float32 `[R, K]`, the same for token verification of the same drafts.
    """

    counts: NDArray[Any]
    expected: NDArray[Any]
    sequential: NDArray[Any]


def expected_tokens(
    name: str, target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor
) -> tf.Tensor:
    """Returns an unbiased estimate of the expected number of tokens that a block gives, float `[B]`.

    With M_b and M_s the target's and the drafter's distributions, at least i drafted tokens are accepted with
    probability w_i given the prefix X^i: the product of min(1, r) for token verification, the reflected walk p_i for
    block verification, min(1, rho_i) for greedy block verification. The mean over X_i is a sum over the vocabulary,

        E[w_i | X^(i-1)] = sum over x of min(w' M_b(x | X^(i-1)), M_s(x | X^(i-1))),

    with w' = p_(i-1) or rho_(i-1); for token verification, w_(i-1) times that sum at w' = 1. The result is 1 plus the
    sum over all i of these means along the draft. Its mean over drafts is the expected number of tokens of the block.

    Args:
      name: a key of `VERIFIERS`.
      target: the probabilities that verify the block, float `[B, G+1, V]`.
      drafter: probabilities with which the drafter sampled, float `[B, G, V]`.
      tokens: the draft, int32 `[B, G]`.
      lengths: int32 `[B]`, number of real tokens of each row.

    Reference: Sun et al. 2024, https://arxiv.org/abs/2403.10444.
    """
    log_ratio, real, _ = log_ratios(target, drafter, tokens, lengths)
    log_weight = tf.zeros_like(log_ratio[:, 0])
    expected = tf.ones_like(log_weight)
    for place in range(tokens.shape[1]):
        weight = tf.exp(tf.minimum(log_weight, _LARGEST_LOG))
        scale = tf.ones_like(weight) if name == "speculative" else weight
        common = tf.reduce_sum(tf.minimum(scale[:, tf.newaxis] * target[:, place], drafter[:, place]), axis=-1)
        common = weight * common if name == "speculative" else common
        # A row proposes at a place, or not, whatever token it draws there.
        expected += tf.where(real[:, place], common, 0.0)
        step = log_ratio[:, place]
        if name == "speculative":
            log_weight += tf.minimum(step, 0.0)
        else:
            log_weight += step
            log_weight = tf.minimum(log_weight, 0.0) if name == "block" else log_weight
    return expected


class _Carried(NamedTuple):
    """Holds what passes from block to block: the greedy verifier's carry, and the last block's expectations."""

    greedy: Carry
    expected: Any
    sequential: Any


@dataclasses.dataclass(frozen=True)
class _Watched(Speculative):
    """Verifies by the rule of a number that is an input of the graph, and reports the expectations of each block.

    Attributes:
      verifier: not used.
      number: int32 scalar, the place of a verifier in `VERIFIERS`.
    """

    number: Any = 0

    def initial_carry(self, batch: int, draft_length: int) -> _Carried:
        """Returns the carry before the first block; see `Speculative.initial_carry`."""
        return _Carried(GREEDY_BLOCK.initial_carry(batch, draft_length), tf.zeros([batch]), tf.zeros([batch]))

    def decide(
        self,
        processed: tf.Tensor,
        target: tf.Tensor,
        laws: list[Any],
        tokens: tf.Tensor,
        lengths: tf.Tensor,
        limits: tf.Tensor,
        noise: Any,
        carry: _Carried,
    ) -> Decision:
        """Verifies the draft; see `Speculative.decide`."""

        def decide_by(name: str) -> Decision:
            verifier, seen = VERIFIERS[name], []

            def rule(target: tf.Tensor, drafter: tf.Tensor, tokens: tf.Tensor, lengths: tf.Tensor) -> Any:
                seen.append(expected_tokens(name, target, drafter, tokens, lengths))
                return verifier.rule(target, drafter, tokens, lengths)

            own = carry.greedy if verifier is GREEDY_BLOCK else ()
            method = Speculative(dataclasses.replace(verifier, rule=rule))
            found = method.decide(processed, target, laws, tokens, lengths, limits, noise, own)
            greedy = found.carry if verifier is GREEDY_BLOCK else carry.greedy
            sequential = expected_tokens("speculative", target, tf.stack(laws, axis=1), tokens, lengths)
            return Decision(found.accepted, found.token, _Carried(greedy, seen[0], sequential))

        return tf.switch_case(self.number, [lambda name=name: decide_by(name) for name in VERIFIERS])


class Decoder:
    """Draws blocks of texts, with graphs that are traced once for each decoding's way to draft.

    Args:
      model: the target, with room for the prompts and the blocks.
      weights: its weights by name.
      drafter: the drafter.
      draft_length: number of drafted tokens G, >= 1.
      blocks: number of successive blocks K of each text, >= 1.
      rows: number of texts that are drawn at once, >= 1.
    """

    def __init__(
        self, model: LanguageModel, weights: Any, drafter: Drafter, draft_length: int, blocks: int, rows: int
    ) -> None:
        self._arguments = (model, weights, drafter, draft_length)
        self._blocks, self._rows = blocks, rows
        self._verified = tf.function(
            lambda number, *rest: self._draw(_Watched(GREEDY_BLOCK, number), *rest), autograph=False
        )
        self._invariant = tf.function(lambda *rest: self._draw(Invariant(), *rest), autograph=False)

    def draw(
        self, name: str, prompts: NDArray[np.int32], requests: NDArray[np.int32], temperature: float, seed: int
    ) -> Blocks:
        """Continues prompts by K blocks each.

        Args:
          name: one of `METHODS`.
          prompts: int32 `[R, T]`, T >= 2.
          requests: int32 `[R]`, numbers that identify the texts.
          temperature: sampling temperature, > 0.
          seed: seed of the draws, 0 to 2**64 - 1.
        """
        count, parts = len(prompts), []
        for begin in range(0, count, self._rows):
            # The last batch is filled up with texts from the beginning, which are dropped.
            rows = np.arange(begin, begin + self._rows) % count
            inputs = (
                tf.constant(prompts[rows], tf.int32),
                tf.constant(requests[rows], tf.int32),
                tf.constant(temperature, tf.float32),
                tf.constant(numpy_ops.seed_words(seed)),
            )
            if name == "invariant":
                found = self._invariant(*inputs)
            else:
                found = self._verified(tf.constant(list(VERIFIERS).index(name)), *inputs)
            parts.append([value.numpy()[: count - begin] for value in found])
        return Blocks(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _draw(
        self, method: Any, prompts: tf.Tensor, requests: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        model, weights, drafter, draft_length = self._arguments
        own = Speculation(model, weights, method, drafter, draft_length, penalties=False, log_probs=False)
        request = Request(seed, requests, Processing(temperature=temperature))
        batch, length = prompts.shape
        lengths = tf.fill([batch], length - 1)
        state = own.begin(prompts[:, -1], own.read(prompts[:, :-1], lengths, own.initial_state(batch)))
        records = tuple(tf.TensorArray(kind, self._blocks) for kind in (tf.int32, tf.float32, tf.float32))
        nothing = tf.fill([batch], float("nan"))

        def body(step: tf.Tensor, state: Any, records: Any) -> tuple[Any, ...]:
            words = tf.nest.map_structure(lambda part: part[:, 0], own.words(request, state.position, 1))
            block, state = own.block(state, request, words, tf.ones([batch], tf.bool))
            carry = state.carry
            found = (carry.expected, carry.sequential) if isinstance(carry, _Carried) else (nothing, nothing)
            values = (block.count, *found)
            return step + 1, state, tuple(r.write(step, value) for r, value in zip(records, values, strict=True))

        *_, records = tf.while_loop(lambda step, *_: step < self._blocks, body, (tf.constant(0), state, records))
        return tuple(tf.transpose(record.stack()) for record in records)


def batch_rows(draft_length: int, size: int, texts: int) -> int:
    """Returns how many of the texts to draw at once, for a vocabulary of `size`, so that batches are about equal."""
    batches = -(-texts // max(_BATCH_LOGITS // ((draft_length + 1) * size), 1))
    return -(-texts // batches)


def summarise(found: Mapping[str, Blocks], prompts: int) -> dict[str, Any]:
    """Returns block efficiencies and gains with 95 % bootstrap intervals over prompts.

    Args:
      found: the blocks of each decoding. Row r is a text of prompt r % `prompts`, for all decodings alike.
      prompts: number of prompts, >= 1.

    Returns:
      For each decoding the sampled and the expected block efficiency, and how many standard errors they are apart; the
      gain of block over token verification in percent, sampled, expected, and expected on the same drafts; by how many
      tokens greedy is ahead of block verification after 1, 2, 4 and K blocks; and the expected tokens of each block.
      Gains are resampled in pairs.
    """
    texts = {name: _by_prompt(blocks, prompts) for name, blocks in found.items()}
    calls = np.full(prompts, texts["block"].counts.size / prompts)
    result: dict[str, Any] = {}
    for name, blocks in texts.items():
        result[name] = {"sampled": _mean(blocks.counts, calls)}
        if name in VERIFIERS:
            difference: NDArray[np.float64] = found[name].counts - found[name].expected.astype(np.float64)
            error = float(np.sqrt(np.sum(difference**2)))
            result[name]["expected"] = _mean(blocks.expected, calls)
            result[name]["standard_errors_apart"] = float(np.sum(difference)) / error if error else 0.0
    block, token = texts["block"], texts["speculative"]
    result["gain"] = {
        "sampled": _gain(block.counts, token.counts),
        "expected": _gain(block.expected, token.expected),
        "same_drafts": _gain(block.expected, block.sequential),
    }
    ahead = np.cumsum(texts["greedy-block"].expected - block.expected, axis=-1)
    per_block, last = np.full(prompts, block.counts.shape[1]), ahead.shape[-1]
    result["greedy_ahead"] = {
        str(count): mean_interval(ahead[..., count - 1].sum(axis=1), per_block)._asdict()
        for count in sorted({*(1, 2, 4), last})
        if count <= last
    }
    result["by_block"] = {name: texts[name].expected.mean(axis=(0, 1)).tolist() for name in VERIFIERS}
    return result


def _by_prompt(blocks: Blocks, prompts: int) -> Blocks:
    """Returns the same numbers as `[prompts, texts, K]` in float64."""
    return Blocks(*(part.astype(np.float64).reshape(-1, prompts, part.shape[1]).transpose(1, 0, 2) for part in blocks))


def _mean(values: NDArray[np.float64], calls: NDArray[np.float64]) -> dict[str, float]:
    return mean_interval(values.sum(axis=(1, 2)), calls)._asdict()


def _gain(block: NDArray[np.float64], token: NDArray[np.float64]) -> dict[str, float]:
    """Returns by how many percent there are more tokens in the first array; prompts are resampled in pairs."""
    ratio = mean_interval(block.sum(axis=(1, 2)), token.sum(axis=(1, 2)))
    return {name: 100 * (value - 1) for name, value in ratio._asdict().items()}


def choose_prompts(
    source: Sequence[tuple[str, Sequence[str]]], vocabulary: Any, length: int, count: int, seed: int
) -> NDArray[np.int32]:
    """Returns up to `count` passages of `length` tokens that do not overlap, int32 `[P, length]`, in random order.

    Raises:
      ValueError: no speaker's text has that many tokens.
    """
    from fl.clients import sequences

    speakers = [sequences(np.array(vocabulary.document("\n".join(lines)), np.int32), length - 1) for _, lines in source]
    rows = np.concatenate(speakers)
    rows = rows[np.all(rows[:, 1:] != 0, axis=1)]
    if not len(rows):
        raise ValueError(f"no held-out text has {length} tokens: there is nothing to continue")
    return rows[np.random.default_rng(seed).permutation(len(rows))[:count]]
