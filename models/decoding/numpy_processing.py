"""Processes logits in NumPy, bit for bit as `models.decoding.processing` does with TensorFlow ops."""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.decoding.choices import Processing
from models.decoding.numpy_ops import LEFT_OUT, WEIGHT_BITS, scale, weights

MAX_BIAS = 1e6
# The constants below are float16 numbers too, so that no converter rounds them.
LEAST_TEMPERATURE = 2.0**-20  # below every temperature that is allowed
# A logit that the repetition penalty has multiplied is cut to this absolute value.
LARGEST_LOGIT = 2.0**15
# The presence and frequency penalties are integer multiples of 1 / PENALTY_STEPS.
PENALTY_STEPS = 1 << 15


class History(NamedTuple):
    """Holds which tokens a text has so far; the penalties depend on it. Tensors or arrays.

    Attributes:
      prompt: bool `[..., V]`, whether the prompt holds the token.
      counts: int32 `[..., V]`, how often the token was generated after the prompt, >= 0.
    """

    prompt: Any
    counts: Any


def process(
    logits: NDArray[np.float32],
    processing: Processing,
    history: History | None = None,
    bias: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Computes the same logits as `models.decoding.processing.process`, in NumPy.

    Raises:
      ValueError: the bias bans all tokens of a row.
    """
    logits = np.asarray(logits, np.float32)
    temperature, top_k, top_p, min_p = (np.float32(value) for value in processing[:4])
    if bias is not None:
        banned = bias <= np.float32(LEFT_OUT)
        if banned.all(axis=-1).any():
            raise ValueError("bias: bans every token of a row; allow at least one token")
        logits = logits + np.where(banned, np.float32(0), bias)
    if history is not None:
        logits = _penalize(logits, processing, history)
    if bias is not None:
        logits = np.where(banned, np.float32(LEFT_OUT), logits)
    largest = logits.max(axis=-1, keepdims=True)
    if not temperature > 0:
        first = logits.argmax(axis=-1)[..., np.newaxis]
        return np.where(np.arange(logits.shape[-1]) == first, np.float32(0), np.float32(LEFT_OUT))
    kept = logits > np.float32(LEFT_OUT)
    if 0 < processing.top_k < logits.shape[-1]:
        place = logits.shape[-1] - int(processing.top_k)
        kept &= logits >= np.partition(logits, place, axis=-1)[..., place, np.newaxis]
    sharpness = np.float32(1) / np.maximum(temperature, np.float32(LEAST_TEMPERATURE))
    # Finite also for tokens that were left out, whose difference from the largest logit may overflow.
    scaled = np.where(kept, np.where(kept, logits - largest, np.float32(0)) * sharpness, np.float32(LEFT_OUT))
    if top_p < 1 or min_p > 0:
        token_weights = weights(scaled)
        if top_p < 1:
            kept &= scaled >= _nucleus_bound(scaled, token_weights, top_p)
        kept &= token_weights >= min_p * np.float32(2.0**WEIGHT_BITS)
    return np.where(kept, scaled, np.float32(LEFT_OUT))


def make_bias(
    size: int, bias: Mapping[int, float] | None = None, banned: Sequence[int] = ()
) -> NDArray[np.float32] | None:
    """Returns the bias float32 `[V]` of a request, -inf for banned tokens; None if nothing is biased.

    Args:
      size: size V of the vocabulary.
      bias: token id -> number that is added to the token's logit, -1e6 to 1e6; -inf bans the token.
      banned: ids of tokens that are never drawn.

    Raises:
      ValueError: an argument has another form, an id or a number is outside its range, or all tokens are banned.
    """
    bias = {} if bias is None else bias
    if not isinstance(bias, Mapping):
        raise ValueError(f"bias = {type(bias).__name__}: must be a dict from token id to number")
    if isinstance(banned, str) or not isinstance(banned, Iterable):
        raise ValueError(f"banned = {banned!r}: must be a list of token ids")
    banned = list(banned)
    if not bias and not banned:
        return None
    row = np.zeros(size, np.float32)
    for name, ids in (("bias", bias), ("banned", banned)):
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int | np.integer) or not 0 <= token < size:
                raise ValueError(f"{name} = {token!r}: must be a token id, an integer from 0 to {size - 1}")
    for token, value in (dict(bias) | dict.fromkeys(banned, -np.inf)).items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not is_number or not (value == -np.inf or -MAX_BIAS <= value <= MAX_BIAS):
            raise ValueError(
                f"bias = {value!r} for token {token}: must be a number from {-MAX_BIAS:g} to {MAX_BIAS:g}, or -inf"
            )
        row[token] = value
    if np.isneginf(row).all():
        raise ValueError(f"banned = all {size} tokens: must leave at least one token")
    return row


def _penalize(logits: NDArray[np.float32], processing: Processing, history: History) -> NDArray[np.float32]:
    """Computes the same logits as `models.decoding.processing.penalize`."""
    repetition, presence, frequency = (np.float32(value) for value in processing[4:])
    generated = history.counts > 0
    factor = np.where(logits > 0, np.float32(1) / repetition, repetition)
    limit = np.float32(LARGEST_LOGIT)
    with np.errstate(over="ignore"):
        cut = np.minimum(np.maximum(logits * factor, -limit), limit)
    steps = np.int64(np.round(presence * PENALTY_STEPS)) * generated.astype(np.int64)
    steps += np.int64(np.round(frequency * PENALTY_STEPS)) * history.counts.astype(np.int64)
    penalty = steps.astype(np.float32) * np.float32(1 / PENALTY_STEPS)
    return np.where(history.prompt | generated, cut, logits) - penalty


def _nucleus_bound(
    scaled: NDArray[np.float32], token_weights: NDArray[np.int64], top_p: np.float32
) -> NDArray[np.float32]:
    """Returns the logit `[..., 1]` of the last token that is needed to reach the probability `top_p`."""
    order = np.argsort(-scaled, axis=-1, kind="stable")
    sums = np.cumsum(np.take_along_axis(token_weights, order, axis=-1), axis=-1)
    total = sums[..., -1:]
    rest = (1 << 62) - np.maximum(np.int64(top_p * np.float32(2.0**62)), 1)
    needed = total - scale(total, rest >> 31, rest & 0x7FFFFFFF)
    last = np.argmax(sums >= needed, axis=-1)[..., np.newaxis]
    return np.take_along_axis(scaled, np.take_along_axis(order, last, axis=-1), axis=-1)
