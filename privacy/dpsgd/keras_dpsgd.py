"""Trains Keras models by DP-SGD; for the usual layers, the norms of per-example gradients have a closed form.

An example contributes at most the clip norm to a step's sum, rounding included (`privacy.dpsgd.clip_bounds`).

    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    private = KerasDPSGD.for_budget(2.0, 1e-5, records=60_000, batch_size=256, epochs=10, clip_norm=1.0)
    private.fit(model, images, labels, validation_data=(test_images, test_labels))
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from privacy import checks
from privacy.accounting import composition, costs
from privacy.accounting.guarantee import Guarantee
from privacy.noise.training import NOT_STATED, secure_generator
from privacy.sampling import Poisson

if TYPE_CHECKING:
    from privacy.budget import Releases
    from privacy.dpsgd.examples import Examples
    from privacy.dpsgd.step import PrivateStep


@dataclasses.dataclass(frozen=True)
class KerasDPSGD:
    """Trains a Keras model by DP-SGD (Abadi et al. 2016, arXiv:1607.00133).

    One `fit` is (ε, δ)-DP under add-or-remove-one of a record (an example), with the ε that `guarantee` states. Each
    step takes a Poisson sample, clips each example's gradient over all weights, adds up the clipped gradients, adds
    Gaussian noise and divides by `batch_size`, never by the sample's size. The model's own optimizer applies the
    result.

    Attributes:
      records: approximate number of records, at least 1. It is public: a known number, or a count released with
        differential privacy. The data that `fit` gets may hold another number of rows.
      batch_size: expected size of a sample, from 1 to `records`.
      epochs: number of epochs of ceil(records / batch_size) steps each, at least 1.
      clip_norm: bound C on the L2 norm of one example's gradient, above 1e-12; inf only without noise.
      noise_multiplier: standard deviation of the noise / C, from 1e-6 to 1e8, or 0 for no privacy.
      delta: δ that ε is stated at, above 0 and below 1 / records; far below is usual.
      at_once: maximum number of examples whose gradients are computed together, at least 1. Larger samples are
        processed in parts, which takes less memory and gives the same step up to rounding. None: no maximum.
    """

    records: int
    batch_size: int
    epochs: int
    clip_norm: float
    noise_multiplier: float
    delta: float
    at_once: int | None = None

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.whole("records", self.records, 1, "give the approximate number of records, which is public")
        checks.whole("batch_size", self.batch_size, 1, "256 is usual")
        if self.batch_size > self.records:
            raise ValueError(f"batch_size {self.batch_size} is above records {self.records}: use a smaller one")
        checks.whole("epochs", self.epochs, 1, "10 is a usual start")
        fix = "0 switches privacy off, 1 is a usual start"
        if checks.non_negative("noise_multiplier", self.noise_multiplier, fix) > 0:
            checks.noise_multiplier(self.noise_multiplier, fix)
        checks.between("delta", self.delta, 0, 1 / self.records, "1e-5 is usual, far below 1 / records")
        if self.at_once is not None:
            checks.whole("at_once", self.at_once, 1, "None takes all")
        # Squares of much smaller gradients would underflow in float32.
        checks.between("clip_norm", self.clip_norm, 1e-12, math.inf, "1 is a usual start", closed_high=True)
        if math.isinf(self.clip_norm) and self.noise_multiplier > 0:
            raise ValueError("clip_norm is infinite and there is noise, which then protects nobody: give a finite one")

    @classmethod
    def for_budget(
        cls,
        epsilon: float,
        delta: float,
        *,
        records: int,
        batch_size: int,
        epochs: int,
        clip_norm: float,
        at_once: int | None = None,
    ) -> KerasDPSGD:
        """Returns settings with the least noise, to 0.1 %, at which the training costs at most `epsilon` at `delta`.

        Args:
          epsilon: ε of the whole training, above 0.
          delta: see `KerasDPSGD`, as for all other arguments.

        Raises:
          ValueError: a setting is out of range, or no noise is enough.
        """
        plain = cls(records, batch_size, epochs, clip_norm, 1.0, delta, at_once)
        least = costs.calibrate(lambda z: [costs.Gaussian(z, plain.steps, plain.sampling_probability)], epsilon, delta)
        return dataclasses.replace(plain, noise_multiplier=least)

    @property
    def sampling_probability(self) -> float:
        """Returns the probability with which each record joins a step's sample."""
        return self.batch_size / self.records

    @property
    def steps(self) -> int:
        """Returns the number of steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of steps of one epoch, ceil(records / batch_size)."""
        return math.ceil(self.records / self.batch_size)

    @property
    def guarantee(self) -> Guarantee:
        """Returns the guarantee of one `fit`; raises ValueError without noise, when nothing is guaranteed."""
        if not self.noise_multiplier:
            raise ValueError("noise_multiplier is 0: the training is not private and has no epsilon, give one above 0")
        return Guarantee(
            f"DP-SGD, {self.steps} steps, clip norm {self.clip_norm:g}, noise multiplier {self.noise_multiplier:.4g}",
            (costs.Gaussian(self.noise_multiplier, self.steps, self.sampling_probability),),
            "add-or-remove-one",
            float(self.delta),
            "floating-point Gaussian (Philox, seeded by the operating system), not hardened against floating-point "
            "attacks",
            f"{self.steps} Poisson samples with probability {self.sampling_probability:.4g}; "
            f"the number of records ({self.records}) is public",
        )

    def fit(
        self,
        model: Any,
        x: Any,
        y: Any = None,
        *,
        validation_data: tuple[Any, Any] | None = None,
        callbacks: Sequence[Any] = (),
        verbose: int = 0,
        ledger: Releases | None = None,
    ) -> Any:
        """Trains a compiled model with its own optimizer and loss. Each call costs ε again.

        A record's loss is the mean of the loss over its positions, or over those that the model's mask keeps. If the
        noise is too small for a finite ε, a warning says so.

        Args:
          model: a built and compiled `keras.Model` with one output.
          x: inputs: an array [n, ...], or a list or dict of arrays, as the model takes them. A `tf.data.Dataset`, a
            generator or a `keras.utils.Sequence` is refused, since each step draws its own sample of single records.
            The error message gives the line of code that converts it to arrays.
          y: labels [n, ...]; they must be given.
          validation_data: (x, y) for `model.evaluate` after each epoch. The results reveal something about these
            records, which `guarantee` does not protect.
          callbacks: Keras callbacks. Their logs hold only `val_…`, since the loss of the training records is not
            private.
          verbose: 0: silent, 1: a progress bar, 2: a line for each epoch, as in Keras' own `fit`.
          ledger: ledger of a `privacy.Budget`; the guarantee is on disk before any noise is drawn.

        Returns:
          Keras' History object, which holds the results on `validation_data`.

        Raises:
          ValueError: the model cannot take the data, the model does not keep examples apart (as with batch
            normalisation), or the budget does not allow the training. These errors are raised before any noise is
            drawn. If the model fails on a later batch, ValueError is raised during the training, and the ledger keeps
            the cost.
        """
        from privacy.dpsgd.examples import checked_examples
        from privacy.dpsgd.step import PrivateStep

        data = checked_examples(x, y)
        # The 16 is for small samples: a Poisson sample of a small expected size is often more than twice as large.
        largest = self.at_once or 2 * self.batch_size + 16
        step = PrivateStep(model, self.clip_norm, self.noise_multiplier, float(self.batch_size), data, largest)
        try:
            _check_validation(model, validation_data)
            callback_list = self._build_callbacks(model, callbacks, verbose)
            if self.noise_multiplier and self._has_no_epsilon():
                warnings.warn(
                    f"epsilon is infinite with noise_multiplier {self.noise_multiplier:g}: {NOT_STATED}",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if ledger is not None:
                ledger.record(self.guarantee)
            self._train(model, step, data, validation_data, callback_list)
        finally:
            step.close()
        if step.left_out:
            warnings.warn(
                f"{step.left_out} gradients were not finite and counted as zero: check the data and the learning rate "
                "(this number is for the operator only)",
                RuntimeWarning,
                stacklevel=2,
            )
        return model.history

    def _has_no_epsilon(self) -> bool:
        """Returns whether ε is infinite. Rényi DP comes first: it costs little and is finite in nearly all cases."""
        sampling = Poisson(self.sampling_probability)
        rdp, _ = composition.rdp_epsilon(sampling, self.records, self.noise_multiplier, self.steps, float(self.delta))
        return math.isinf(rdp) and math.isinf(self.guarantee.epsilon)

    def _build_callbacks(self, model: Any, callbacks: Sequence[Any], verbose: int) -> Any:
        import keras

        if not isinstance(callbacks, (list, tuple)) or not all(
            isinstance(each, keras.callbacks.Callback) for each in callbacks
        ):
            raise ValueError(f"callbacks are {callbacks!r}: give a list of keras.callbacks.Callback")
        return keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,
            add_progbar=bool(verbose),
            model=model,
            epochs=self.epochs,
            steps=self.steps_per_epoch,
            verbose=verbose,
        )

    def _train(self, model: Any, step: PrivateStep, data: Examples, validation: Any, callbacks: Any) -> None:
        generator = secure_generator()
        model.stop_training = False
        callbacks.on_train_begin()
        for epoch in range(self.epochs):
            callbacks.on_epoch_begin(epoch)
            for batch in range(self.steps_per_epoch):
                callbacks.on_train_batch_begin(batch)
                step(data, np.flatnonzero(generator.random(len(data.y)) < self.sampling_probability), self.at_once)
                callbacks.on_train_batch_end(batch)
                if model.stop_training:
                    break
            results = {} if validation is None else model.evaluate(*validation, verbose=0, return_dict=True)
            callbacks.on_epoch_end(epoch, {f"val_{name}": value for name, value in results.items()})
            if model.stop_training:
                break
        if getattr(model.optimizer, "use_ema", False):
            model.optimizer.finalize_variable_values(model.trainable_variables)
        callbacks.on_train_end()


def _check_validation(model: Any, validation: Any) -> None:
    """Raises ValueError unless the model can be evaluated on the validation data."""
    from privacy.arrays import how_to_gather
    from privacy.dpsgd.examples import checked_examples, losses_of
    from privacy.dpsgd.model_checks import check_values

    if validation is None:
        return
    if not isinstance(validation, (list, tuple)) or len(validation) != 2:
        name = type(validation).__name__
        raise ValueError(f"validation_data is {name}: give (x, y), {how_to_gather('validation_data', validation)}")
    try:
        check_values(model, losses_of(model), checked_examples(*validation))
    except ValueError as error:
        raise ValueError(f"validation_data: {error}") from None
