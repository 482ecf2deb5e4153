"""Computes what blockwise decoding drafts at temperature 0, at every place of texts that a model wrote itself.

Greedy decoding gives the same text whatever is drafted. So the model writes its greedy texts once, its heads'
likeliest tokens are computed at all places together, and the blocks of every way to draft follow from these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.choices import Choices
from models.decoding.draft_statistics import successive_blocks
from models.decoding.drafters import Drafter
from models.decoding.generator import Generator
from models.decoding.katz_tables import KatzTables
from models.decoding.p_best import find_best_paths
from models.heads import HeadedLanguageModel
from models.language_model import Weights
from models.tensors import to_tensors

_LATTICES = 512
"""Number of lattices whose best paths are searched at once."""
_LEAST_LOGIT = -1e4

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Lattices:
    """Holds greedy texts and the likeliest tokens of each head at every place where a block may begin.

    A block at place s follows the first `prompt + s` tokens of a text, and its first drafted token is the one after
    them. R is the number of texts, S of places, h of heads, k of tokens.

    Attributes:
      tokens: int32 `[R, prompt + S + h - 1]`, prompts and greedy texts.
      prompt: number of tokens of each prompt.
      ids: int32 `[R, S, h - 1, k]`, the likeliest tokens of the heads from 2, ascending.
      logits: float32 `[R, S, h - 1, k]`, their logits.
      entropies: float64 `[h]`, mean entropy of each head in nats, over all places.
    """

    tokens: Ints
    prompt: int
    ids: Ints
    logits: NDArray[np.float32]
    entropies: NDArray[np.float64]

    @property
    def places(self) -> int:
        """Returns the number of places S."""
        return self.ids.shape[1]

    def following(self, count: int) -> Ints:
        """Returns the text's own next tokens at each place, int32 `[R, S, count]`, for at most h - 1 tokens."""
        windows = np.lib.stride_tricks.sliding_window_view(self.tokens[:, self.prompt :], count, axis=1)
        return np.asarray(windows[:, : self.places])

    def take(self, rows: slice) -> Lattices:
        """Returns some of the texts; the entropies remain those of all."""
        return Lattices(self.tokens[rows], self.prompt, self.ids[rows], self.logits[rows], self.entropies)


def write_texts(
    model: HeadedLanguageModel, weights: Weights, prompts: Sequence[Sequence[int]], places: int, top_k: int, rows: int
) -> Lattices:
    """Continues prompts of equal length greedily, and computes the heads' likeliest tokens.

    Args:
      model: the target with prediction heads.
      weights: its weights by name.
      prompts: token ids, at least 2 in each prompt.
      places: number of places S.
      top_k: number of tokens k of each head.
      rows: number of texts to compute at once.
    """
    length, heads = len(prompts[0]), model.prediction_heads
    count = places + heads - 1
    base, base_weights = model.base, model.split(weights)[0]
    generator = Generator(base, base_weights, max_prompt=length, max_new_tokens=count)
    greedy = Choices(max_new_tokens=count, temperature=0.0)
    fitted = model.fit(length + count)
    held = to_tensors(weights)

    @tf.function(autograph=False)
    def read(tokens: tf.Tensor) -> tf.Tensor:
        _, hidden, _ = fitted.extend_with_hidden(held, tokens, fitted.initial_state(tokens.shape[0]))
        # The heads read the state before the last known token, of which head 1 has given that token.
        return hidden[:, length - 2 : length - 2 + places]

    @tf.function(autograph=False)
    def summarise(hidden: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        found = []
        for head in range(1, heads + 1):
            flat = tf.reshape(fitted.head_hidden(held, hidden, head), [-1, hidden.shape[2]])
            logits = fitted.logits(held, flat)
            log_probs = tf.nn.log_softmax(logits)
            entropy = -tf.reduce_mean(tf.reduce_sum(tf.exp(log_probs) * log_probs, -1))
            top = tf.math.top_k(logits, top_k)
            found.append(
                [tf.reshape(part, [*hidden.shape[:2], top_k]) for part in (top.indices, top.values)] + [entropy]
            )
        ids, values, entropies = zip(*found, strict=True)
        return tf.stack(ids[1:], axis=2), tf.stack(values[1:], axis=2), tf.stack(entropies)

    parts, texts = [], []
    for begin in range(0, len(prompts), rows):
        # The last batch is filled up with texts from the beginning, which are dropped.
        chosen = [prompts[i % len(prompts)] for i in range(begin, begin + rows)]
        text = np.concatenate([chosen, generator(chosen, greedy).tokens], axis=1).astype(np.int32)
        hidden = read(tf.constant(text))
        by_text = [[part.numpy() for part in summarise(row[tf.newaxis])] for row in hidden[: len(prompts) - begin]]
        texts.append(text[: len(prompts) - begin])
        parts += by_text
    ids, logits = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    order = np.argsort(ids, axis=-1)
    return Lattices(
        np.concatenate(texts),
        length,
        np.take_along_axis(ids, order, -1),
        np.take_along_axis(logits, order, -1),
        np.mean([part[2] for part in parts], axis=0, dtype=np.float64),
    )


def draft_plain(lattices: Lattices) -> Ints:
    """Returns the heads' own drafts, int32 `[R, S, h - 1]`."""
    return _choose(lattices.ids, lattices.logits)


def draft_with_ngram(lattices: Lattices, tables: KatzTables, alpha: float) -> Ints:
    """Returns drafts that an n-gram model refined token by token, int32 `[R, S, h - 1]`."""
    memory, drafts = tables.order - 1, []
    texts = np.pad(lattices.tokens, [[0, 0], [memory, 0]])
    history = _histories(texts, lattices.prompt, memory, lattices.places)
    for place in range(lattices.ids.shape[2]):
        candidates = lattices.ids[:, :, place]
        scores = lattices.logits[:, :, place] + np.float32(alpha) * tables.log_probs(history, candidates).numpy()
        drafts.append(_choose(candidates, scores))
        history = np.concatenate([history, drafts[-1][..., np.newaxis]], axis=-1)[..., 1:]
    return np.stack(drafts, axis=-1)


def draft_with_model(lattices: Lattices, drafter: Drafter, alpha: float) -> Ints:
    """Returns drafts that a drafter refined token by token, int32 `[R, S, h - 1]`."""
    batch, length = lattices.tokens.shape
    prompt = lattices.prompt
    draft, weight = _build_draft(drafter, lattices.ids.shape[2]), tf.constant(alpha, tf.float32)
    first = tf.constant(lattices.tokens[:, : prompt - 1])
    state = drafter.prefill(first, tf.fill([batch], prompt - 1), drafter.initial_state(batch))
    found = []
    for place in range(lattices.places):
        inputs = (lattices.tokens[:, prompt - 1 + place], lattices.ids[:, place], lattices.logits[:, place])
        drafts, state = draft(*map(tf.constant, inputs), state, weight)
        found.append(drafts.numpy())
    return np.stack(found, axis=1)


@cache
def _build_draft(drafter: Drafter, steps: int) -> Any:
    @tf.function(autograph=False)
    def draft(
        tokens: tf.Tensor, ids: tf.Tensor, logits: tf.Tensor, state: Any, alpha: tf.Tensor
    ) -> tuple[tf.Tensor, Any]:
        states, drafts = [state], []
        for place in range(steps):
            scored, state = drafter.step(tokens, state)
            states.append(state)
            scored = tf.maximum(tf.gather(scored, ids[:, place], axis=1, batch_dims=1), _LEAST_LOGIT)
            scores = logits[:, place] + alpha * scored
            tokens = tf.gather(ids[:, place], tf.argmax(scores, 1), axis=1, batch_dims=1)
            drafts.append(tokens)
        return tf.stack(drafts, axis=1), drafter.rewind(states, tf.ones_like(tokens))

    return draft


def draft_paths(lattices: Lattices, tables: KatzTables | None, alpha: float, paths: int, heads: int) -> Ints:
    """Returns the best paths through the lattices of the first `heads` heads, int32 `[R, S, p, heads - 1]`, or -1."""
    batch, places = lattices.ids.shape[:2]
    memory = 0 if tables is None else tables.order - 1
    texts = np.pad(lattices.tokens, [[0, 0], [memory, 0]])
    history = _histories(texts, lattices.prompt, memory, places).reshape(batch * places, memory)
    search, weight = _build_search(tables, paths), tf.constant(alpha, tf.float32)
    flat = [part[:, :, : heads - 1].reshape(batch * places, heads - 1, -1) for part in (lattices.ids, lattices.logits)]
    missing = -len(history) % _LATTICES
    padded = [np.concatenate([part, np.repeat(part[:1], missing, 0)]) for part in (*flat, history)]
    found = [
        search(*(tf.constant(part[begin : begin + _LATTICES]) for part in padded), weight).numpy()
        for begin in range(0, len(padded[0]), _LATTICES)
    ]
    return np.concatenate(found)[: batch * places].reshape(batch, places, paths, heads - 1)


@cache
def _build_search(tables: KatzTables | None, paths: int) -> Any:
    log_probs = None if tables is None else tables.log_probs
    return tf.function(
        lambda ids, logits, history, alpha: find_best_paths(ids, logits, history, alpha, log_probs, paths).tokens,
        autograph=False,
    )


def block_lengths(is_right: NDArray[np.bool_]) -> Ints:
    """Returns the number of tokens of a block for each draft, int32 `[...]`.

    Args:
      is_right: bool `[..., G]`, whether each drafted token is the text's own.
    """
    return np.asarray(1 + np.cumprod(is_right, axis=-1, dtype=np.int32).sum(axis=-1, dtype=np.int32))


def walk(lengths: Ints) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the numbers of tokens and of calls of each text `[R]`, for blocks from place 0 on.

    Args:
      lengths: int32 `[R, S]`, number of tokens of a block at each place. The last block may exceed the places.
    """
    blocks = [successive_blocks(row) for row in lengths]
    return np.array([row.sum() for row in blocks]), np.array([len(row) for row in blocks])


def _choose(ids: Ints, scores: NDArray[np.float32]) -> Ints:
    """Returns the candidate with the largest score; of equal ones that with the lowest id."""
    best = np.argmax(scores, axis=-1)[..., np.newaxis]
    return np.take_along_axis(ids, best, -1)[..., 0]


def _histories(texts: Ints, prompt: int, memory: int, places: int) -> Ints:
    """Returns the last `memory` tokens before each place, int32 `[R, S, memory]`; texts have `memory` zeros before."""
    at = prompt + np.arange(places)[:, np.newaxis] + np.arange(memory)
    return np.asarray(texts[:, at])
