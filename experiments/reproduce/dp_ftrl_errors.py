"""Computes error, memory and time of correlated noise, mechanism by mechanism, for `fedspeak reproduce dp-ftrl`."""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

from privacy.correlated import (
    Banded,
    Mechanism,
    Participation,
    Tree,
    Workload,
    least_loss,
    optimize_banded,
    optimize_blt,
)
from privacy.correlated.factorisation import BUFFERS

BANDS = (4, 16, 64)
_REPETITIONS = 5


class Setting(NamedTuple):
    """Describes rounds and limits on participation.

    Attributes:
      rounds: number of rounds.
      participation: limits on a client's rounds.
    """

    rounds: int
    participation: Participation


LONG = Setting(2000, Participation(100, 20))
"""A setting of production's length, for which nothing is trained."""


def build_mechanisms(setting: Setting) -> dict[str, Mechanism]:
    """Returns the mechanisms by name, banded and BLT with the least error of prefix sums."""
    workload, limits = Workload(setting.rounds), setting.participation
    banded = {f"banded, {bands} bands": optimize_banded(bands, workload, limits) for bands in BANDS}
    return {
        "independent noise": Banded((1.0,), workload.describe()),
        "tree": Tree(),
        **banded,
        "BLT": optimize_blt(BUFFERS, workload, limits),
    }


def compute_errors(setting: Setting) -> list[dict[str, Any]]:
    """Returns for each mechanism its error at noise multiplier 1, and that error over the least possible one.

    The error is the root mean square, over the rounds, of the noise in the sum of all updates so far, in clip norms.
    """
    rounds, limits = setting
    least = least_loss(rounds, limits)
    rows = []
    for name, mechanism in build_mechanisms(setting).items():
        sensitivity = mechanism.sensitivity(rounds, limits)
        error = sensitivity.value * mechanism.error(rounds)
        row = {"mechanism": name, "sensitivity": sensitivity.value, "is_exact": sensitivity.is_exact, "error": error}
        rows.append({**row, "over_least": error / least, "vectors": mechanism.vectors(rounds)})
    return rows


def measure_rounds(setting: Setting, weights: int) -> list[dict[str, Any]]:
    """Measures the seconds in which a round's noise is generated, and the bytes of its history.

    Args:
      setting: rounds and limits, which decide the mechanisms.
      weights: number of the model's weights.
    """
    rows = []
    for name, mechanism in build_mechanisms(setting).items():
        seconds, size = _time_rounds(mechanism, setting.rounds, weights)
        row = {"mechanism": name, "seconds": statistics.median(seconds), "history_bytes": size}
        rows.append({**row, "least_seconds": min(seconds), "largest_seconds": max(seconds)})
    return rows


def _time_rounds(mechanism: Mechanism, rounds: int, weights: int) -> tuple[list[float], int]:
    """Returns the seconds of some rounds, after a first one that builds the graph, and the bytes of the history."""
    import numpy as np
    import tensorflow as tf

    from fl import gaussian
    from fl.correlated_noise import build_stream

    stream = build_stream(mechanism, rounds)

    @tf.function(autograph=False)
    def generate(history: Any, seed: Any) -> Any:
        return stream.following(history, lambda name: gaussian.standard_normal(weights, gaussian.stream(seed, name)))

    history, seconds = stream.initial(weights), []
    for number in range(1 + _REPETITIONS):
        start = time.perf_counter()
        noise, history = generate(history, tf.constant([1, number], tf.int64))
        noise.numpy()
        seconds.append(time.perf_counter() - start)
    return seconds[1:], sum(np.asarray(value).nbytes for value in history.values())
