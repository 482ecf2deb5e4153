"""Looks up probabilities of a Katz back-off model with TensorFlow ops, in constant tables of integers.

The entry of a state and a token is found by one look for each order, with `models.pair_hash`, which needs no operators
that TFLite has not built in. Logarithms are integers, multiples of 2**-23 nats, whose sums are exact: every backend
gives the same bits, and a converter that quantises floats leaves the tables alone.

The tables take about 19 bytes for each stored n-gram (16 for a slot, of which one in 16 is free, and a displacement of
4 for 1.5 to 3 n-grams), 16 for each context and 16 for each token id.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.katz import KatzModel
from models.language_model import Weights
from models.pair_hash import hash_pairs
from models.tensors import to_tensors

UNIT = 2.0**-23
"""What the logarithms are multiples of, in nats."""
_LEAST = -64.0
"""Least logarithm of an entry or a back-off weight, so that a sum of five of them fits in an int32."""


class KatzTables:
    """Holds a Katz model as constant tables; its functions are pure and have static shapes.

    Args:
      model: the model.

    Attributes:
      order: maximum number of tokens of an n-gram, n.
      vocabulary_size: number of token ids, V.
      nbytes: size of the tables.
    """

    def __init__(self, model: KatzModel) -> None:
        states = len(model.backoff)
        owners = np.repeat(np.arange(states), np.diff(model.begins))
        pairs = hash_pairs(owners, model.tokens, states, model.vocabulary_size)
        slots = pairs.slots_of(owners, model.tokens)
        arrays: dict[str, NDArray[Any]] = {
            **pairs._asdict(),
            "shorter": model.shorter,
            "backoff": _fixed(model.backoff),
            "unigram": _fixed(model.unigram),
            "first": model.first,
        }
        del arrays["slots"]
        entries = {"owner": owners, "token": model.tokens, "value": _fixed(model.probability)}
        for name, values in (entries | {"following": model.following}).items():
            arrays[name] = np.full(pairs.slots, -1)
            arrays[name][slots] = values
        self._slots = pairs.slots
        self.order = model.order
        self.vocabulary_size = model.vocabulary_size
        self.nbytes = 4 * sum(len(array) for array in arrays.values())
        self._arrays: Weights = {name: array.astype(np.int32) for name, array in arrays.items()}

    def deploy(self, hold: Callable[[Any], Any]) -> KatzTables:
        """Returns the tables as variables, for an exported file; see `models.decoding.drafters.Drafter.deploy`."""
        deployed = copy.copy(self)
        deployed._arrays = {name: hold(array) for name, array in self._arrays.items()}
        return deployed

    def log_probs(self, histories: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Returns ln p of tokens after histories, float32 `[..., k]`, in nats.

        The largest difference from `KatzModel.log_prob` is (n + 1) * 2**-24 nats and half a unit in the last place.

        Args:
          histories: int32 `[..., n - 1]`, the last tokens of each text, in their order, in [0, V). A text of fewer
            tokens begins with ids 0, which no n-gram holds.
          tokens: int32 `[..., k]`, the candidates, in [0, V). The leading axes broadcast against those of `histories`.
        """
        tables = to_tensors(self._arrays)
        states = tf.zeros(histories.shape[:-1], tf.int32)
        for place, token in enumerate(tf.unstack(histories, axis=-1)):
            states = self._advance(tables, states, token, place)
        return self._look_up(tables, states, tokens)

    def advance(self, states: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Returns the states after one more token each.

        Args:
          states: int32 `[...]`, states of the model; 0 at the beginning of a text.
          tokens: int32 `[...]`, in [0, V).
        """
        return self._advance(to_tensors(self._arrays), states, tokens, self.order - 1)

    def all_log_probs(self, states: tf.Tensor) -> tf.Tensor:
        """Returns ln p of every token after each state, float32 `[B, V]`, in nats.

        Args:
          states: int32 `[B]`.
        """
        return self._look_up(to_tensors(self._arrays), states, tf.range(self.vocabulary_size)[tf.newaxis])

    def _look_up(self, tables: Weights, states: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        found = tf.gather(tables["unigram"], tokens) + tf.zeros_like(states)[..., tf.newaxis]
        for context in reversed(_contexts(tables, states, self.order - 1)):
            slots, is_stored = self._find(tables, context[..., tf.newaxis], tokens)
            backed_off = found + tf.gather(tables["backoff"], context)[..., tf.newaxis]
            found = tf.where(is_stored, tf.gather(tables["value"], slots), backed_off)
        return UNIT * tf.cast(found, tf.float32)

    def _advance(self, tables: Weights, states: tf.Tensor, tokens: tf.Tensor, longest: int) -> tf.Tensor:
        """Returns the states after one more token; no context is of more than `longest` tokens."""
        after = tf.gather(tables["first"], tokens)
        for context in reversed(_contexts(tables, states, longest)):  # the longest context that knows the token counts
            slots, is_stored = self._find(tables, context, tokens)
            after = tf.where(is_stored, tf.gather(tables["following"], slots), after)
        return after

    def _find(self, tables: Weights, states: tf.Tensor, tokens: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the slots of states and tokens, which broadcast, and whether they are stored there."""
        left, right = (tf.gather(tables[f"{side}_bucket"], ids) for side, ids in (("left", states), ("right", tokens)))
        slots = tf.gather(tables["left_slot"], states) + tf.gather(tables["right_slot"], tokens)
        slots += tf.gather(tables["displacement"], tf.bitwise.bitwise_xor(left, right))
        slots = tf.where(slots < self._slots, slots, slots - self._slots)
        is_state = tf.equal(tf.gather(tables["owner"], slots), states)
        is_stored = is_state & tf.equal(tf.gather(tables["token"], slots), tokens)
        return slots, is_stored


def _contexts(tables: Weights, states: tf.Tensor, count: int) -> list[tf.Tensor]:
    """Returns the states and those of their shorter contexts, the longest first, `count` of them; 0 is none."""
    contexts = [states]
    for _ in range(count - 1):
        contexts.append(tf.gather(tables["shorter"], contexts[-1]))
    return contexts[:count]


def _fixed(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns logarithms in multiples of `UNIT`."""
    return np.rint(np.maximum(np.log(probabilities), _LEAST) / UNIT)
