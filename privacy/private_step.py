"""One step of DP-SGD on a Keras model: a TensorFlow function that is traced once, whatever the sample's size."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy import ghost_norms
from privacy.layer_gradients import Recording, layers_with_weights, variable
from privacy.training_noise import secure_generator, standard_normal

_MARGIN = 16  # units in the last place, for the rounding of norms, factors and products
_PROBED = 4  # examples
_DRAWN = 2**17  # numbers at once, or those of a step


class Examples(NamedTuple):
    """Arrays [n, ...]: a nest of inputs, and labels."""

    x: Any
    y: Any

    def take(self, rows: npt.NDArray[Any]) -> Any:
        """(Inputs, labels) of some rows, as tensors."""
        return tf.nest.map_structure(lambda part: tf.convert_to_tensor(part[rows]), (self.x, self.y))


def checked_examples(x: Any, y: Any) -> Examples:
    """Raises ValueError, in one line, unless all arrays hold finite numbers in as many rows."""
    x, y = tf.nest.map_structure(np.asarray, (x, y))
    parts = tf.nest.flatten(x)
    named = [(f"x[{i}]" if len(parts) > 1 else "x", part) for i, part in enumerate(parts)]
    for name, part in [*named, ("y", y)]:
        if not part.ndim or not y.ndim or len(part) != len(y) or not len(y):
            raise ValueError(f"{name} has shape {list(part.shape)}, y {list(y.shape)}: give as many rows, at least one")
        if part.dtype.kind not in "iufb":
            raise ValueError(f"{name} has dtype {part.dtype}: numbers are needed")
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            rows = int((~np.isfinite(part)).reshape(len(part), -1).any(axis=1).sum())
            raise ValueError(f"{name} is not finite in {rows} rows: mend them or leave them out")
    return Examples(x, y)


class PrivateStep:
    """A step: clipped sum, noise, and the model's own optimizer on (sum + noise) / denominator. Close it after use.

    Attributes:
      recomputed: names of the layers whose gradients have no closed form and are taken example by example.
    """

    def __init__(self, model: Any, clip: float, noise_multiplier: float, denominator: float, data: Examples) -> None:
        """Raises ValueError where the model cannot be trained so, in one line that says what to change."""
        self._model, self._clip, self._denominator = model, clip, denominator
        self._weights = list(model.trainable_weights)
        if not self._weights:
            raise ValueError(f"model {model.name} has no weights to train: build it, and make a layer trainable")
        self._loss = _unreduced(model)
        self.recomputed: set[str] = set()
        with _nothing_kept(model):
            _check_labels(model, data)
            self._probe(data)
        self._sums = [tf.Variable(tf.zeros(weight.shape, weight.dtype), trainable=False) for weight in self._weights]
        self._left_out = tf.Variable(0, trainable=False, dtype=tf.int64)
        self._sizes = [int(np.prod(weight.shape)) for weight in self._weights]
        stddev = noise_multiplier * clip / denominator if noise_multiplier else 0.0
        dtype = np.result_type(*(total.dtype.as_numpy_dtype for total in self._sums))
        self._noise = _NoiseAhead(sum(self._sizes) if stddev else 0, stddev, dtype)
        if hasattr(model.optimizer, "build"):
            model.optimizer.build(self._weights)
        signature = tf.nest.map_structure(
            lambda part: tf.TensorSpec([None, *part.shape[1:]], tf.as_dtype(part.dtype)), (data.x, data.y)
        )
        noise = tf.TensorSpec([None], dtype)
        self._step = tf.function(self._whole, [*signature, noise], autograph=False)
        self._add = tf.function(self._accumulate, signature, autograph=False)
        self._end = tf.function(self._release_sums, [noise], autograph=False)

    def __call__(self, data: Examples, chosen: npt.NDArray[Any], at_once: int | None) -> None:
        """Trains on the chosen rows [b], b ≥ 0, in parts of `at_once`."""
        size = at_once or len(chosen)
        with _one_line():
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
        """Gradients so far that were not finite and counted as zero."""
        return int(self._left_out.numpy())

    def _losses(self, x: Any, y: Any) -> tf.Tensor:
        """Each example's loss, [B]: the mean over its positions."""
        outputs = self._model(x, training=True)
        losses = tf.convert_to_tensor(self._loss(y, outputs))
        if losses.shape.rank == 0:
            raise ValueError("the loss gives one number for all examples together: it must give one for each")
        axes = list(range(1, losses.shape.rank))
        if not axes:
            return losses
        mask = getattr(outputs, "_keras_mask", None)
        if mask is None:
            return tf.reduce_mean(losses, axes)
        kept = tf.cast(mask, losses.dtype)
        return tf.math.divide_no_nan(tf.reduce_sum(kept * losses, axes), tf.reduce_sum(kept, axes))

    def _clipped_sum(self, x: Any, y: Any) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            recording = Recording(tape)
            with recording.of(self._model):
                losses = self._losses(x, y)
        gradients = tape.gradient(losses, recording.taps, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        groups = ghost_norms.by_weight(recording.terms(gradients))
        norms = tf.sqrt(ghost_norms.squared_norms(groups))
        finite = tf.math.is_finite(norms) & tf.math.is_finite(losses)
        self._left_out.assign_add(tf.reduce_sum(tf.cast(~finite, tf.int64)))
        factors = tf.ones_like(norms) / self._denominator
        if np.isfinite(self._clip):
            margin = 1 - _MARGIN * float(np.finfo(norms.dtype.as_numpy_dtype).eps)
            factors = margin * self._clip / self._denominator / tf.maximum(norms, self._clip)
        return self._in_order(groups, tf.where(finite, factors, tf.zeros_like(factors)))

    def _in_order(self, groups: list[list[ghost_norms.Term]], factors: tf.Tensor) -> list[tf.Tensor]:
        """The scaled sum for each of the model's weights; zero for one that took no part."""
        found = dict(
            zip((id(group[0].weight) for group in groups), ghost_norms.scaled_sums(groups, factors), strict=True)
        )
        return [
            found[id(weight)] if id(weight) in found else tf.zeros(weight.shape, weight.dtype)
            for weight in self._weights
        ]

    def _whole(self, x: Any, y: Any, noise: tf.Tensor) -> None:
        self._release(self._clipped_sum(x, y), noise)

    def _accumulate(self, x: Any, y: Any) -> None:
        for total, part in zip(self._sums, self._clipped_sum(x, y), strict=True):
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

    def _probe(self, data: Examples) -> None:
        """Tries the model on a few examples, whose real numbers are made up.

        Clipping is only worth something if a weight acts on each example alone, through the layer that holds it.
        """
        random = np.random.default_rng(0)
        rows = np.arange(_PROBED) % len(data.y)
        x, y = tf.nest.map_structure(
            lambda part: (
                tf.constant(random.random(part[rows].shape), part.dtype)
                if part.dtype.kind == "f"
                else tf.convert_to_tensor(part[rows])
            ),
            (data.x, data.y),
        )
        model, weights = self._model, [variable(weight) for weight in self._weights]
        inputs = [part for part in tf.nest.flatten(x) if part.dtype.is_floating]
        with _one_line(), tf.GradientTape(persistent=True) as tape:
            recording = Recording(tape)
            tape.watch(inputs)
            with recording.of(model):
                losses = self._losses(x, y)
            if losses.shape != (_PROBED,):
                raise ValueError(
                    f"the loss gives shape {list(losses.shape)} for {_PROBED} examples: one for each is needed"
                )
            first = losses[0]
        zero = tf.UnconnectedGradients.ZERO
        if model.losses:
            raise ValueError(f"model {model.name} adds regularisation losses: use the optimizer's weight_decay instead")
        for found in tape.gradient(first, [*recording.taps, *inputs], unconnected_gradients=zero):
            if np.any(found[1:].numpy() != 0):
                raise ValueError(
                    f"model {model.name} mixes examples: the loss of one depends on others, so that no clipping "
                    "protects them (batch normalisation does this, group normalisation does not)"
                )
        true = tape.gradient(losses, weights, unconnected_gradients=zero)
        gradients = tape.gradient(losses, recording.taps, unconnected_gradients=zero)
        groups = ghost_norms.by_weight(recording.terms(gradients))
        for weight, mine, its in zip(weights, self._in_order(groups, tf.ones_like(losses)), true, strict=True):
            its = tf.convert_to_tensor(its).numpy()
            if not np.allclose(mine.numpy(), its, rtol=1e-3, atol=1e-3 * float(np.abs(its).max())):
                raise ValueError(
                    f"model {model.name}: the gradient of {weight.name} does not follow from its layer's calls: use a "
                    "weight only in its own layer, and randomness (dropout) only in layers without weights"
                )
        self.recomputed = recording.recomputed


class _NoiseAhead:
    """Gaussian noise [size] for one step after the other, drawn in a thread while the steps before compute."""

    def __init__(self, size: int, stddev: float, dtype: Any) -> None:
        self.size = size
        self._stddev, self._dtype = stddev, dtype
        self._generator = secure_generator()
        self._thread = ThreadPoolExecutor(1)
        self._rows: list[tf.Tensor] = []
        self._next = self._thread.submit(self._draw)

    def take(self) -> tf.Tensor:
        """Noise that nobody else gets."""
        if not self._rows:
            self._rows = self._next.result()
            self._next = self._thread.submit(self._draw)
        return self._rows.pop()

    def close(self) -> None:
        self._thread.shutdown()

    def _draw(self) -> list[tf.Tensor]:
        rows = max(1, _DRAWN // max(self.size, 512))
        noise = standard_normal(self._generator, rows * self.size, self._dtype)
        noise *= self._stddev
        return [tf.constant(row) for row in noise.reshape(rows, self.size)]


def _unreduced(model: Any) -> Any:
    """The model's loss, a number for each example (and position)."""
    loss = getattr(model, "loss", None)
    if loss is None or getattr(model, "optimizer", None) is None:
        raise ValueError(f"model {model.name} is not compiled: call model.compile(optimizer, loss) first")
    if isinstance(loss, (list, tuple, dict)):
        raise ValueError(f"model {model.name} has several losses: one output with one loss is needed")
    # The public `get_compile_config` would write the loss out, which some of one's own do not allow.
    if getattr(getattr(model, "_compile_config", None), "config", {}).get("loss_weights"):
        raise ValueError(f"model {model.name} has loss_weights: put the factor into the learning rate")
    for layer in layers_with_weights(model):
        if layer.compute_dtype in ("float16", "bfloat16"):
            raise ValueError(f"layer {layer.name} computes in {layer.compute_dtype}: float32 is needed to clip exactly")
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if not isinstance(loss, keras.losses.Loss):
        return _OfFunction(loss)
    if loss.reduction == "sum":
        raise ValueError(f"loss {loss.name} has reduction 'sum': take the default, a mean")
    loss = copy.copy(loss)
    loss.reduction = "none"
    return loss


class _OfFunction(keras.losses.Loss):
    def __init__(self, function: Any) -> None:
        super().__init__(name="loss", reduction="none")
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        return self._function(y_true, y_pred)


def _check_labels(model: Any, data: Examples) -> None:
    """Of a loss that looks labels up among the outputs."""
    loss = (
        model.loss if isinstance(model.loss, str) else getattr(model.loss, "name", getattr(model.loss, "__name__", ""))
    )
    if "sparse_categorical" not in loss or getattr(model.loss, "ignore_class", None) is not None:
        return
    with _one_line():
        classes = model(data.take(np.arange(1))[0]).shape[-1]
    y = data.y
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels go from {y.min():g} to {y.max():g}: 0 to {classes - 1} are needed")


@contextlib.contextmanager
def _nothing_kept(model: Any) -> Iterator[None]:
    """Refuses a model whose other weights change in calls, and puts them back."""
    before = [(variable(weight), variable(weight).numpy()) for weight in model.non_trainable_weights]
    try:
        yield
    finally:
        changed = [weight for weight, value in before if not np.array_equal(weight.numpy(), value)]
        for weight, value in before:
            weight.assign(value)
    if changed:
        raise ValueError(
            f"model {model.name} keeps {changed[0].name} of the examples without noise (a running average?): take a "
            "layer that does not, such as GroupNormalization"
        )


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """TensorFlow's errors of what the data hold, as a ValueError of one line."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"the model cannot take the data: {str(error.message).splitlines()[0]}") from None
