"""Builds the audit case of a step of `KerasDPSGD`, with a record that is hard to clip.

The record is chosen among candidates whose gradients are sums of outer products that cancel. The norms of such
gradients, computed from inner products, are too small unless rounding errors are allowed for.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from privacy.accounting import costs
from privacy.audit.cases import Case
from privacy.dpsgd.examples import checked_examples
from privacy.dpsgd.step import PrivateStep

_INPUTS, _FEATURES, _POSITIONS, _CANDIDATES = 16, 256, 16, 1500
_CLIP = 1e-3  # far below the candidates' gradients
_SLOW = 40


def cancelling_record(epsilon: float, delta: float) -> Case:
    """Returns the audit of one step, on one record or on none, that is claimed to cost `epsilon` at `delta`.

    All weights are released. The record is the one of 1500 candidates that moves the weights most in a step without
    noise. The score is the projection of the released weights on that move.

    Raises:
      ValueError: epsilon or delta is out of range.
    """
    noise_multiplier = costs.calibrate(lambda z: [costs.Gaussian(z)], epsilon, delta)

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        dense = keras.layers.Dense(_FEATURES, use_bias=False, kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((_POSITIONS, _INPUTS)), dense])
        # With this loss the labels are the gradient at the outputs, whatever the weights.
        model.compile(keras.optimizers.SGD(1.0), lambda y, outputs: tf.reduce_sum(y * outputs, -1))
        data = checked_examples(*_draw_candidates(np.random.default_rng(0)))
        zeros = model.get_weights()

        def release(step: PrivateStep, rows: list[int]) -> npt.NDArray[np.float64]:
            model.set_weights(zeros)
            step(data, np.array(rows, int), None)
            return -np.asarray(model.get_weights()[0], np.float64).ravel()

        noiseless = PrivateStep(model, _CLIP, 0.0, 1.0, data)
        moves = [release(noiseless, [row]) for row in range(_CANDIDATES)]
        noiseless.close()
        canary = int(np.argmax([np.linalg.norm(move) for move in moves]))
        direction = moves[canary] / np.linalg.norm(moves[canary])
        noisy = PrivateStep(model, _CLIP, noise_multiplier, 1.0, data)
        try:
            without, with_ = (
                np.array([direction @ release(noisy, rows) for _ in range(trials)]) for rows in ([], [canary])
            )
        finally:
            noisy.close()
        return without, with_

    return Case("KerasDPSGD, one step, a record that cancels", "add-or-remove-one", epsilon, delta, _SLOW, scores)


def _draw_candidates(generator: np.random.Generator) -> tuple[Any, Any]:
    """Draws records with constant inputs and with labels (the gradients at the outputs) of two values that cancel.

    The sum of a record's labels is 0.1 % to 0.3 % of the sum of their magnitudes, or 11 % to 43 % for every tenth
    record.
    """
    height, half = 0.5 + generator.random((_CANDIDATES, 1, 1)), _POSITIONS // 2
    first, difference = 1 + generator.random((_CANDIDATES, 1)), generator.uniform(2e-3, 6e-3, (_CANDIDATES, 1))
    difference[::10] *= 100
    residuals = np.concatenate([np.repeat(first, half, 1), np.repeat(-first * (1 - difference), half, 1)], 1)
    x = np.broadcast_to(height, (_CANDIDATES, _POSITIONS, _INPUTS))
    y = np.repeat(residuals[:, :, np.newaxis], _FEATURES, 2)
    return x.astype(np.float32), y.astype(np.float32)
