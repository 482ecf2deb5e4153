"""Runs a step of DP-SGD on a Keras model, as a TensorFlow function that is traced once for samples of all sizes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.dpsgd import clip_bounds, ghost_norms
from privacy.dpsgd.batch_checks import LARGEST_BATCH
from privacy.dpsgd.examples import Examples, losses_of, one_line
from privacy.dpsgd.layer_gradients import Recording
from privacy.dpsgd.model_checks import check_apart
from privacy.noise.training import secure_generator, standard_normal

_NOISE_AT_ONCE = 2**17  # number of noise values that are drawn at once, unless one step needs more


class PrivateStep:
    """Runs steps of DP-SGD: the model's own optimizer applies (sum of clipped gradients + noise) / denominator.

    Call `close` after use.

    Attributes:
      recomputed: names of the layers whose gradients have no closed form and are computed example by example.
    """

    def __init__(
        self,
        model: Any,
        clip_norm: float,
        noise_multiplier: float,
        denominator: float,
        data: Examples,
        largest: int = LARGEST_BATCH,
    ) -> None:
        """Checks the model and builds the step.

        Args:
          model: built and compiled.
          clip_norm: L2 bound on one example's gradient, > 0.
          noise_multiplier: standard deviation of the noise / clip_norm, >= 0.
          denominator: divisor of the noisy sum, > 0.
          data: examples that the model is checked on.
          largest: approximate maximum number of examples that a step takes at once, at least 1. The model is checked
            with as many, up to `LARGEST_BATCH`.

        Raises:
          ValueError: clipping would not protect examples in this model; the message says what to change.
        """
        # The bounds of `clip_bounds` hold for the rounding of IEEE arithmetic only.
        if tf.config.list_physical_devices("GPU") and tf.config.experimental.tensor_float_32_execution_enabled():
            raise ValueError(
                "TensorFloat-32 is on, which rounds products to 11 bits, so that clipping is not exact: call "
                "tf.config.experimental.enable_tensor_float_32_execution(False)"
            )
        self._model, self._clip, self._denominator = model, clip_norm, denominator
        self._losses = losses_of(model)
        self._weights = list(model.trainable_weights)
        if not self._weights:
            raise ValueError(f"model {model.name} has no weights to train: build it, and make a layer trainable")
        self.recomputed = check_apart(model, self._losses, data, largest)
        self._sums = [tf.Variable(tf.zeros(weight.shape, weight.dtype), trainable=False) for weight in self._weights]
        self._left_out = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._sizes = [int(np.prod(weight.shape)) for weight in self._weights]
        stddev = noise_multiplier * clip_norm / denominator if noise_multiplier else 0.0
        dtype = np.result_type(*(total.dtype.as_numpy_dtype for total in self._sums))
        self._noise = _NoiseAhead(sum(self._sizes) if stddev else 0, stddev, dtype)
        if hasattr(model.optimizer, "build"):
            model.optimizer.build(self._weights)
        signature = data.signature()
        noise = tf.TensorSpec([None], dtype)
        self._step = tf.function(self._run_step, [*signature, noise], autograph=False)
        self._add = tf.function(self._accumulate, signature, autograph=False)
        self._end = tf.function(self._release_sums, [noise], autograph=False)

    def __call__(self, data: Examples, chosen: npt.NDArray[Any], at_once: int | None) -> None:
        """Trains on the chosen rows [b], b ≥ 0, in parts of `at_once` rows; None takes all at once."""
        size = at_once or len(chosen)
        with one_line():
            if 0 < len(chosen) <= size:
                self._step(*data.take(chosen), self._noise.take())
                return
            for start in range(0, len(chosen), max(size, 1)):
                self._add(*data.take(chosen[start : start + size]))
            self._end(self._noise.take())

    def close(self) -> None:
        """Ends the thread that draws noise."""
        self._noise.close()

    @property
    def left_out(self) -> int:
        """Returns the number of gradients that counted as zero, as they were not finite or clipping would underflow."""
        return int(self._left_out.numpy())

    def _sum_clipped(self, x: Any, y: Any) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            recording = Recording(tape)
            with recording.of(self._model):
                losses = self._losses(x, y)
        gradients = tape.gradient(losses, recording.taps, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        groups = ghost_norms.by_weight(recording.terms(gradients))
        bounds = clip_bounds.compute_bounds(groups)
        dtypes = [weight.dtype for weight in self._sums]
        factors = clip_bounds.clip_factors(bounds, self._clip, self._denominator, dtypes)
        factors = tf.where(tf.math.is_finite(losses), factors, tf.zeros_like(factors))
        self._left_out.assign_add(tf.reduce_sum(tf.cast(tf.equal(factors, 0), tf.int64)))
        return ghost_norms.in_order(self._weights, groups, factors)

    def _run_step(self, x: Any, y: Any, noise: tf.Tensor) -> None:
        self._release(self._sum_clipped(x, y), noise)

    def _accumulate(self, x: Any, y: Any) -> None:
        for total, part in zip(self._sums, self._sum_clipped(x, y), strict=True):
            total.assign_add(part)

    def _release_sums(self, noise: tf.Tensor) -> None:
        totals = [tf.identity(total) for total in self._sums]
        with tf.control_dependencies(totals):
            for total in self._sums:
                total.assign(tf.zeros_like(total))
        self._release(totals, noise)

    def _release(self, totals: list[tf.Tensor], noise: tf.Tensor) -> None:
        if self._noise.size:
            parts = tf.split(noise, self._sizes)
            totals = [
                total + tf.cast(tf.reshape(part, total.shape), total.dtype)
                for total, part in zip(totals, parts, strict=True)
            ]
        self._model.optimizer.apply_gradients(zip(totals, self._weights, strict=True))


class _NoiseAhead:
    """Draws Gaussian noise, [size] for each step, in a thread of its own while earlier steps compute."""

    def __init__(self, size: int, stddev: float, dtype: Any) -> None:
        self.size = size
        self._stddev, self._dtype = stddev, dtype
        self._generator = secure_generator()
        self._thread = ThreadPoolExecutor(1)
        self._rows: list[tf.Tensor] = []
        self._next: Future[list[tf.Tensor]] | None = None  # nothing is drawn before the first `take`

    def take(self) -> tf.Tensor:
        """Returns the noise of one step; no noise is returned twice."""
        if not self._rows:
            self._rows = self._draw() if self._next is None else self._next.result()
            self._next = self._thread.submit(self._draw)
        return self._rows.pop()

    def close(self) -> None:
        self._thread.shutdown()

    def _draw(self) -> list[tf.Tensor]:
        rows = max(1, _NOISE_AT_ONCE // max(self.size, 512))
        noise = standard_normal(self._generator, rows * self.size, self._dtype)
        noise *= self._stddev
        return [tf.constant(row) for row in noise.reshape(rows, self.size)]
