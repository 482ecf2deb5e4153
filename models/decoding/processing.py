"""Processes logits: bias, penalties, temperature, top-k, top-p and min-p give the distribution of the next token."""

from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from models.decoding.choices import Processing
from models.decoding.exact import exact
from models.decoding.numpy_ops import LEFT_OUT, LOWEST, WEIGHT_BITS
from models.decoding.numpy_processing import LARGEST_LOGIT, LEAST_TEMPERATURE, PENALTY_STEPS, History
from models.decoding.sampling import scale, split_31, weights

_Truth: TypeAlias = "tf.Tensor | bool"
"""A condition: a bool if it is known when the graph is built. The converter fails on a `tf.cond` with a constant."""


def process(
    logits: tf.Tensor, processing: Processing, history: History | None = None, bias: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns the processed logits minus their maximum, so that the likeliest token has 0.

    The order is: bias, penalties, temperature, top-k, top-p, min-p. A token that is left out gets the logit `LEFT_OUT`,
    the lowest float32. Equal arguments give equal bits in eager TensorFlow, `tf.function`, XLA, TFLite and
    `models.decoding.numpy_processing`. A graph cannot refuse bad values, so the caller checks the options first, with
    `models.decoding.choices.Choices`. A row without any token that may be drawn is NaN throughout, and
    `models.decoding.sampling.sample` gives the token -1 for it.

    Top-p and min-p use the integer weights that tokens are sampled with, whose sums are exact, as probabilities.

    Args:
      logits: float32 `[..., V]` with static V, at most 2**15 in absolute value. If two of them differ by less than
        1e-38, backends may disagree, because some kernels treat such a difference as 0.
      processing: the options, Python numbers or scalar tensors.
        temperature: 0, a negative number or NaN is greedy: only the likeliest token after bias and penalties stays, or
        the first of several equally likely ones.
        top_k: tokens that are less likely than the k-th likeliest are left out; ties with the k-th stay. 0 or less
        keeps all tokens, and so does V or more.
        top_p: the smallest set of likeliest tokens stays whose probability, among those that top-k keeps, reaches p;
        ties with the last one stay. 1 or more keeps all.
        min_p: tokens with less than min_p times the likeliest token's probability are left out.
        The penalties have no effect without a history.
      history: which tokens the text has so far, prompt bool and counts int32 `[..., V]`; None applies no penalties.
      bias: float32 `[V]` or `[..., V]` that is added to the logits. -inf or `LEFT_OUT` bans a token, so a mask of
        allowed tokens is a bias of 0 and -inf.

    Returns:
      float32 `[..., V]`, whose softmax is the distribution of the next token.

    Reference: Keskar et al. 2019 (repetition penalty), https://arxiv.org/abs/1909.05858; Holtzman et al. 2020 (top-p),
    https://arxiv.org/abs/1904.09751; Nguyen et al. 2024 (min-p), https://arxiv.org/abs/2407.01082.
    """
    temperature = tf.convert_to_tensor(processing.temperature, tf.float32)
    if bias is not None:
        banned = bias <= LEFT_OUT
        logits += tf.where(banned, 0.0, bias)
    if history is not None:
        logits = penalize(logits, processing, history)
    if bias is not None:
        logits = tf.where(banned, LEFT_OUT, logits)
    largest = tf.reduce_max(logits, axis=-1, keepdims=True)
    hot = _test(temperature, lambda value: value > 0)
    allowed = logits > LEFT_OUT
    smallest = tf.reduce_min(logits if bias is None else tf.where(allowed, logits, largest), axis=-1, keepdims=True)
    sampled = _keep_top_k(logits, allowed, smallest, largest, processing.top_k, hot)
    # Multiplies by 1/T instead of dividing by T. Compilers themselves replace division by a constant T in this way. If
    # this divided, the last bit would differ between a graph where T is a constant and one where T is an input.
    sharpness = 1 / tf.where(hot, tf.maximum(temperature, LEAST_TEMPERATURE), 1.0)
    scaled = tf.where(allowed, (logits - largest) * sharpness, LEFT_OUT)
    sampled = _keep_likely(scaled, sampled, processing.top_p, processing.min_p, hot)
    first = tf.argmax(logits, axis=-1, output_type=tf.int32)[..., tf.newaxis]
    greedy = tf.equal(tf.range(logits.shape[-1]), first)
    processed = tf.where(tf.where(hot, sampled, greedy), scaled, LEFT_OUT)
    return processed if bias is None else tf.where(largest > LEFT_OUT, processed, float("nan"))


def process_plain(logits: tf.Tensor, temperature: Any) -> tf.Tensor:
    """Does what `process` does if the temperature alone changes the logits, with fewer ops.

    Args:
      logits: as for `process`. Where all of a row are -inf, it is NaN.
      temperature: as for `process`. At 0 the other options of a plain request may keep any number of likeliest tokens.
    """
    is_hot = _test(tf.convert_to_tensor(temperature, tf.float32), lambda value: value > 0)
    return _choose(is_hot, lambda: apply_temperature(logits, temperature), lambda: _keep_likeliest(logits))


def _keep_likeliest(logits: tf.Tensor) -> tf.Tensor:
    first = tf.argmax(logits, axis=-1, output_type=tf.int32)
    kept = tf.one_hot(first, logits.shape[-1], on_value=0.0, off_value=LEFT_OUT)  # its logit minus itself
    is_void = tf.reduce_max(logits, axis=-1, keepdims=True) <= LEFT_OUT
    return kept + tf.where(is_void, float("nan"), 0.0)


def apply_temperature(logits: tf.Tensor, temperature: tf.Tensor) -> tf.Tensor:
    """Does what `process` does if the temperature is above 0 and all other options are off, with fewer ops.

    A token whose logit is -inf stays there.
    """
    return (logits - tf.reduce_max(logits, axis=-1, keepdims=True)) * (1 / tf.maximum(temperature, LEAST_TEMPERATURE))


def penalize(logits: tf.Tensor, processing: Processing, history: History) -> tf.Tensor:
    """Returns the logits after the repetition, presence and frequency penalties.

    The repetition penalty divides the positive logits of tokens of prompt and generated text, and multiplies negative
    ones. The other two apply to generated tokens only. Their sum is computed in integer multiples of 2**-15.

    Args:
      logits: as for `process`.
      processing: as for `process`; only its penalties are used.
      history: as for `process`.
    """
    repetition = tf.convert_to_tensor(processing.repetition_penalty, tf.float32)
    generated = history.counts > 0
    product = logits * tf.where(logits > 0, 1 / repetition, repetition)
    # The limits keep logits finite. They also stand between the product and the subtraction, which a compiler that
    # fused the two would round once instead of twice.
    cut = tf.minimum(tf.maximum(product, -LARGEST_LOGIT), LARGEST_LOGIT)
    steps = _count_steps(processing.presence_penalty) * tf.cast(generated, tf.int64)
    steps += _count_steps(processing.frequency_penalty) * tf.cast(history.counts, tf.int64)
    # The product with a power of two is exact, so that fusing it changes nothing.
    return tf.where(history.prompt | generated, cut, logits) - tf.cast(steps, tf.float32) * (1 / PENALTY_STEPS)


def _count_steps(penalty: Any) -> tf.Tensor:
    """Returns a penalty as an int64 number of steps of 2**-15."""
    return tf.cast(tf.round(tf.convert_to_tensor(penalty, tf.float32) * PENALTY_STEPS), tf.int64)


def _keep_top_k(
    logits: tf.Tensor, allowed: tf.Tensor, smallest: tf.Tensor, largest: tf.Tensor, top_k: Any, hot: _Truth
) -> tf.Tensor:
    """Returns which tokens `[..., V]` of those allowed top-k keeps, given the smallest and largest allowed logit."""
    k = tf.convert_to_tensor(top_k, tf.int32)

    def keep() -> tf.Tensor:
        bound = _find_bound(logits, _count, k, smallest, largest, lambda _: tf.constant(1))
        return logits >= bound

    return _choose(_both(hot, _test(k, lambda value: value > 0)), keep, lambda: allowed)


def _keep_likely(scaled: tf.Tensor, kept: tf.Tensor, top_p: Any, min_p: Any, hot: _Truth) -> tf.Tensor:
    """Returns which tokens `[..., V]` of those kept so far top-p and min-p keep, from the scaled logits."""
    top_p, min_p = tf.convert_to_tensor(top_p, tf.float32), tf.convert_to_tensor(min_p, tf.float32)
    has_top_p = _test(top_p, lambda value: value < 1)
    has_min_p = _test(min_p, lambda value: value > 0)

    def keep() -> tf.Tensor:
        token_weights = tf.where(kept, weights(scaled), tf.constant(0, tf.int64))
        inside = _choose(has_top_p, lambda: _is_in_nucleus(scaled, kept, token_weights, top_p), lambda: kept)
        # Weights are at most 2**44 and have 24 bits, so that they and the limit are exact in float32.
        limit = min_p * exact(2.0**WEIGHT_BITS, min_p)
        return _choose(has_min_p, lambda: inside & (tf.cast(token_weights, tf.float32) >= limit), lambda: inside)

    return _choose(_both(hot, _either(has_top_p, has_min_p)), keep, lambda: kept)


def _is_in_nucleus(scaled: tf.Tensor, kept: tf.Tensor, token_weights: tf.Tensor, top_p: tf.Tensor) -> tf.Tensor:
    """Returns which kept tokens `[..., V]` are at least as likely as the one whose weight makes the sum reach p."""
    # p and 1 - p are exact multiples of 2**-62, unless p is below 2**-38; then the likeliest token is enough. What is
    # needed is the total minus the largest integer that is at most (1 - p) times the total.
    rest = tf.constant(1 << 62, tf.int64) - tf.maximum(tf.cast(top_p * exact(2.0**62, top_p), tf.int64), 1)
    total = tf.reduce_sum(token_weights, axis=-1, keepdims=True)
    needed = total - scale(total, *split_31(rest))
    # The weight of a token below -LOWEST is 0.
    smallest = tf.reduce_min(tf.where(kept, tf.maximum(scaled, -LOWEST), 0.0), axis=-1, keepdims=True)
    # Weights have a relative error of 2**-21, so that a token's weight is at least the weight 2**-18 nats below it.
    least = lambda bound: weights(bound - 2.0**-18)  # noqa: E731
    zeros = tf.zeros_like(token_weights)  # a scalar would be slower: the operator that broadcasts it is

    def weigh(reached: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.where(reached, token_weights, zeros), axis=-1, keepdims=True)

    return kept & (scaled >= _find_bound(scaled, weigh, needed, smallest, tf.zeros_like(smallest), least))


def _count(tokens: tf.Tensor) -> tf.Tensor:
    """Returns how many tokens are true, bool `[..., V]` -> int32 `[..., 1]`."""
    return tf.reduce_sum(tf.cast(tokens, tf.int32), axis=-1, keepdims=True)


def _find_bound(
    values: tf.Tensor,
    measure: Callable[[tf.Tensor], tf.Tensor],
    needed: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    least: Callable[[tf.Tensor], tf.Tensor],
) -> tf.Tensor:
    """Returns a bound `[..., 1]` that only the smallest set of largest values reaches whose measure is what is needed.

    The bound lies at the smallest of these values or below it, and above the next smaller value. It is found by
    bisection because what is needed is known at run time only. XLA needs a constant k for `tf.math.top_k`, and a full
    sort takes longer than a step of a small model. The bisection ends when, in every row, the measure without any one
    of the values is too small, or no float32 lies between the two bounds.

    Args:
      values: float32 `[..., V]`.
      measure: function from a set of values, bool `[..., V]`, to its measure, int32 or int64 `[..., 1]`: the number of
        its values or the sum of their weights.
      needed: integer `[]` or `[..., 1]`. If it is more than the measure of all values, all reach the bound.
      low: float32 `[..., 1]`, a bound that all values reach whose measure is not 0.
      high: float32 `[..., 1]`, the largest value.
      least: function from a bound to the least measure that a value which reaches the bound may have.
    """

    def choose_next(low: tf.Tensor, between: tf.Tensor, reached: tf.Tensor) -> tf.Tensor:
        return tf.where(reached - least(low) < needed, low, between)

    def unfinished(low: tf.Tensor, high: tf.Tensor, reached: tf.Tensor, between: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(between > low)

    def halve(low: tf.Tensor, high: tf.Tensor, reached: tf.Tensor, between: tf.Tensor) -> tuple[tf.Tensor, ...]:
        at_least = measure(values >= between)
        enough = at_least >= needed
        low, high = tf.where(enough, between, low), tf.where(enough, high, between)
        reached = tf.where(enough, at_least, reached)
        between = 0.5 * low + 0.5 * high  # halves are exact, so the sum rounds once
        return low, high, reached, choose_next(low, tf.where(between < high, between, low), reached)

    # The values that reach `low` have the measure `reached`, which is enough, and those that reach `high` too little,
    # except that `high` itself is tried first. In a finished row `between` equals `low`, so that the row stays as it is
    # while others go on.
    reached = measure(values >= low)
    return tf.while_loop(unfinished, halve, (low, high, reached, choose_next(low, high, reached)))[0]


def _test(value: tf.Tensor, holds: Callable[[Any], Any]) -> _Truth:
    """Returns whether `holds` is true of a scalar tensor."""
    known = tf.get_static_value(value)
    return holds(value) if known is None else bool(holds(known))


def _both(first: _Truth, second: _Truth) -> _Truth:
    if isinstance(first, bool):
        return second if first else False
    return first if second is True else False if second is False else first & second


def _either(first: _Truth, second: _Truth) -> _Truth:
    if isinstance(first, bool):
        return True if first else second
    return first if second is False else True if second is True else first | second


def _choose(condition: _Truth, yes: Callable[[], tf.Tensor], no: Callable[[], tf.Tensor]) -> tf.Tensor:
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)
