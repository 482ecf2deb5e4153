"""Measures the tokens per target call of decodings with several drafts, and the acceptance of one level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from experiments.decoding_modes import LINES, Mode, build
from experiments.intervals import mean_interval
from models.decoding.block_decoder import Request
from models.decoding.choices import Processing
from models.decoding.drafters import Drafter
from models.decoding.transport import (
    greedy_acceptance,
    k_seq_acceptance,
    multi_path_acceptance,
    optimal_acceptance,
    recursive_acceptance,
)
from models.language_model import LanguageModel, Weights
from models.tensors import to_tensors

_ROWS = 32


class Decoder:
    """Continues prompts by a number of blocks, with one graph for all temperatures and seeds.

    Args:
      mode: how to decode.
      model: the target.
      weights: its weights by name.
      drafter: what drafts.
      blocks: number of blocks.
    """

    def __init__(self, mode: Mode, model: LanguageModel, weights: Weights, drafter: Drafter, blocks: int) -> None:
        self._decoder = build(mode, model, to_tensors(weights), drafter)
        self._blocks = blocks
        self._run = tf.function(self._continue, autograph=False)

    def draw(self, prompts: NDArray[np.int32], temperature: float, seed: int) -> NDArray[np.int32]:
        """Returns the number of tokens of each block, int32 `[P, blocks]`, for prompts int32 `[P, T]`."""
        rows = min(_ROWS, len(prompts))
        padded = np.concatenate([prompts, prompts[: -len(prompts) % rows]])
        parts = []
        for begin in range(0, len(padded), rows):
            part = tf.constant(padded[begin : begin + rows])
            requests = tf.range(begin, begin + rows)
            parts.append(self._run(part, requests, tf.constant(temperature), tf.constant([seed, 0])).numpy())
        return np.asarray(np.concatenate(parts)[: len(prompts)])

    def _continue(self, prompts: tf.Tensor, requests: tf.Tensor, temperature: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        own = self._decoder
        request = Request(seed, requests, Processing(temperature=temperature))
        batch, length = prompts.shape
        before = own.read(prompts[:, :-1], tf.fill([batch], length - 1), own.initial_state(batch))
        counts = tf.TensorArray(tf.int32, self._blocks)

        def body(step: tf.Tensor, state: Any, counts: Any) -> tuple[Any, ...]:
            words = tf.nest.map_structure(lambda part: part[:, 0], own.words(request, state.position, 1))
            block, state = own.block(state, request, words, tf.ones([batch], tf.bool))
            return step + 1, state, counts.write(step, block.count)

        start = (tf.constant(0), own.begin(prompts[:, -1], before), counts)
        *_, counts = tf.while_loop(lambda step, *_: step < self._blocks, body, start)
        return tf.transpose(counts.stack())


def summarise(counts: Mapping[Mode, NDArray[np.int32]]) -> list[dict[str, Any]]:
    """Returns tokens per call with 95 % bootstrap intervals over prompts, and gains over SpecTr.

    Args:
      counts: number of tokens of each block `[P, blocks]` by mode, from the same prompts.

    Returns:
      For each mode its name, number of drafted tokens and tokens per call; for modes with several drafts also by how
      many percent these are more than those of SpecTr with as many drafted tokens, if it is among them. Gains are
      resampled in pairs.
    """
    of_spectr = {mode.drafted: values for mode, values in counts.items() if mode.decoding == "spectr"}
    found = []
    for mode, values in counts.items():
        totals = values.sum(axis=1).astype(np.float64)
        calls = np.full(len(values), values.shape[1])
        entry: dict[str, Any] = {
            "mode": mode.text,
            "drafted": mode.drafted,
            "tokens": mean_interval(totals, calls)._asdict(),
        }
        other = of_spectr.get(mode.drafted)
        if mode.decoding not in (*LINES, "spectr") and other is not None:
            ratio = mean_interval(totals, other.sum(axis=1).astype(np.float64))
            entry["gain_over_spectr"] = {name: 100 * (value - 1) for name, value in ratio._asdict().items()}
        found.append(entry)
    return found


def first_level(
    model: LanguageModel,
    weights: Weights,
    drafter: Drafter,
    prompts: NDArray[np.int32],
    temperature: float,
    num_drafts: Sequence[int],
) -> list[dict[str, float]]:
    """Returns the exact acceptance of K drafts of one token, the mean over prompts int32 `[P, T]`.

    Contexts in which the drafter proposes nothing count as acceptance 0.

    Returns:
      For each K: "one" draft; "k_seq", "multi_path" and the optimum for "independent" drafts; for drafts without
      replacement the rule of a "distinct_tree", for K <= 2 only, and the optimum for "distinct" ones; and "greedy"
      drafting, of which the rule of a tree is the best.
    """
    tokens = tf.constant(prompts)
    batch, length = tokens.shape
    lengths = tf.fill([batch], length - 1)
    logits, _ = model.prefill(to_tensors(weights), tokens, lengths + 1, model.initial_state(batch))
    state = drafter.prefill(tokens[:, :-1], lengths, drafter.initial_state(batch))
    drafted, _ = drafter.step(tokens[:, -1], state)
    target, draft = (_softmax(part.numpy().astype(np.float64) / temperature) for part in (logits, drafted))
    pairs = [(p, q) for p, q in zip(draft, target, strict=True) if np.isfinite(p).all()]
    rows = []
    for count in num_drafts:
        functions: dict[str, Any] = {
            "one": lambda p, q, k: optimal_acceptance(p, q, 1),
            "k_seq": k_seq_acceptance,
            "multi_path": multi_path_acceptance,
            "independent": optimal_acceptance,
            **({"distinct_tree": recursive_acceptance} if count <= 2 else {}),
            "distinct": lambda p, q, k: optimal_acceptance(p, q, k, replacement=False),
            "greedy": greedy_acceptance,
        }
        means = {name: sum(f(p, q, count) for p, q in pairs) / batch for name, f in functions.items()}
        rows.append({"num_drafts": count, **means})
    return rows


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):  # a row of -inf becomes NaN
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))
