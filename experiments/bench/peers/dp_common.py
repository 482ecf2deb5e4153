"""Holds what the libraries of `fedspeak bench dp-step` share: the tasks, the timing and the line of JSON they print.

Each library builds a training loop for a task, private or not, from the task's initial weights. Batches are in memory
before the clock starts, so that sampling is not timed; gradients, clipping, noise and update are.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLIP = 0.1  # most examples' gradients have a larger norm, in every task
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 0.1

_VOCABULARY, _EMBEDDING, _UNITS, _TOKENS = 2000, 64, 128, 20


class Task(NamedTuple):
    """Describes a model with its data; an example's loss is its mean cross-entropy.

    Attributes:
      name: key of `TASKS`.
      weights: initial weights by name, float32. Layouts are Keras': kernels [in, out], LSTM gates in the order i, f, g,
        o.
      x: float32 [batches, batch, features], or tokens int32 [batches, batch, tokens].
      y: classes int32 [batches, batch], or [batches, batch, tokens].
    """

    name: str
    weights: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray


class Loop(NamedTuple):
    """Holds the training loop of a library.

    Attributes:
      run: trains for a given number of steps, beginning with the first batch, and returns when all work is done.
      weights: returns copies of the current weights, in any order and layout.
    """

    run: Callable[[int], None]
    weights: Callable[[], list[np.ndarray]]


def _linear(generator: np.random.Generator) -> Task:
    x, y = _images(generator)
    return Task("linear", {"kernel": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}, x, y)


def _mlp(generator: np.random.Generator) -> Task:
    x, y = _images(generator)
    weights = {
        "hidden_kernel": _random_kernel(generator, 784, 256),
        "hidden_bias": np.zeros(256, np.float32),
        "kernel": _random_kernel(generator, 256, 10),
        "bias": np.zeros(10, np.float32),
    }
    return Task("mlp", weights, x, y)


def _lstm(generator: np.random.Generator) -> Task:
    tokens = generator.integers(0, _VOCABULARY, (40, 64, _TOKENS + 1), np.int32)
    weights = {
        "embedding": _random_kernel(generator, _VOCABULARY, _EMBEDDING),
        "lstm_kernel": _random_kernel(generator, _EMBEDDING, 4 * _UNITS),
        "recurrent_kernel": _random_kernel(generator, _UNITS, 4 * _UNITS),
        "lstm_bias": np.zeros(4 * _UNITS, np.float32),
        "kernel": _random_kernel(generator, _UNITS, _VOCABULARY),
        "bias": np.zeros(_VOCABULARY, np.float32),
    }
    return Task("lstm", weights, tokens[..., :-1], tokens[..., 1:])


def _images(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws 234 batches of 256 records, the full batches of 60,000 records."""
    x = generator.random((234, 256, 784), np.float32)
    return x, generator.integers(0, 10, (234, 256), np.int32)


def _random_kernel(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return generator.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(rows))


TASKS: dict[str, Callable[[np.random.Generator], Task]] = {"linear": _linear, "mlp": _mlp, "lstm": _lstm}


class UnsupportedError(Exception):
    """Raised where a library cannot express a task; the message says why."""


def measure(
    build: Callable[[Task, float | None], Loop], task: Task, *, steps: int, repetitions: int
) -> dict[str, object]:
    """Measures the time of a private and of a plain step.

    Args:
      build: builds a loop for a task and a noise multiplier; None means a plain step, without clipping and noise.
      task: the task.
      steps: number of consecutive steps in one timing.
      repetitions: number of timings of each loop; the private and the plain loop alternate.

    Returns:
      "private" and "plain": median and minimum of the seconds per step; "task": the task's name; "clipped": L2 norm of
      the mean of the first batch's clipped gradients, which is equal in libraries that do the same work.
    """
    noiseless = build(task, 0.0)
    before = noiseless.weights()
    noiseless.run(1)
    moved = sum(float(np.sum(np.square(new - old))) for new, old in zip(noiseless.weights(), before, strict=True))
    del noiseless
    loops = {"private": build(task, NOISE_MULTIPLIER), "plain": build(task, None)}
    for loop in loops.values():
        loop.run(2)  # compilation and first allocations are not timed
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repetitions):
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop.run(steps)
            seconds[name].append((time.perf_counter() - begin) / steps)
    timings = {name: {"median": float(np.median(values)), "min": min(values)} for name, values in seconds.items()}
    return {"task": task.name, "clipped": moved**0.5 / LEARNING_RATE, **timings}


def main(framework: str, version: str, build: Callable[[Task, float | None], Loop]) -> None:
    """Runs a library's process, `TASK --steps N --repetitions N`, and prints its results as one line of JSON.

    Args:
      framework: name of the library.
      version: version of the library.
      build: builds a loop for a task and a noise multiplier; None means a plain step, without clipping and noise.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    arguments = parser.parse_args()
    line: dict[str, object] = {"framework": framework, "version": version}
    task = TASKS[arguments.task](np.random.default_rng(20))
    try:
        line |= measure(build, task, steps=arguments.steps, repetitions=arguments.repetitions)
    except UnsupportedError as error:
        line["unsupported"] = str(error)
    print(json.dumps(line), flush=True)
