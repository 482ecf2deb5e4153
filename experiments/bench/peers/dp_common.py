"""What every peer of `fedspeak bench dp-step` shares: the tasks, the clock, and the line that it prints.

A peer builds a training loop, private or not, of a task's model from its first weights. Batches lie in memory and are
cut beforehand: how a framework samples is not timed, its gradients, clipping, noise and update are.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CLIP = 0.1  # below most gradients of each task
NOISE_MULTIPLIER = 1.0
LEARNING_RATE = 0.1

_VOCABULARY, _EMBEDDING, _UNITS, _TOKENS = 2000, 64, 128, 20


class Task(NamedTuple):
    """One model with its data.

    Attributes:
      name: key of `TASKS`.
      weights: first ones by name, float32, Keras' layouts: kernels [in, out], LSTM gates in the order i f g o.
      x: float32 [batches, batch, features], or tokens int32 [batches, batch, tokens].
      y: classes int32 [batches, batch], or [batches, batch, tokens]. The loss is the mean cross-entropy of an example.
    """

    name: str
    weights: dict[str, np.ndarray]
    x: np.ndarray
    y: np.ndarray


class Loop(NamedTuple):
    """A peer's training loop.

    Attributes:
      run: trains for a number of steps, batch after batch from the first, and returns when all is done.
      weights: the present ones, copies, in any order and layout.
    """

    run: Callable[[int], None]
    weights: Callable[[], list[np.ndarray]]


def _linear(generator: np.random.Generator) -> Task:
    x, y = _images(generator)
    return Task("linear", {"kernel": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}, x, y)


def _mlp(generator: np.random.Generator) -> Task:
    x, y = _images(generator)
    weights = {
        "hidden_kernel": _drawn(generator, 784, 256),
        "hidden_bias": np.zeros(256, np.float32),
        "kernel": _drawn(generator, 256, 10),
        "bias": np.zeros(10, np.float32),
    }
    return Task("mlp", weights, x, y)


def _lstm(generator: np.random.Generator) -> Task:
    tokens = generator.integers(0, _VOCABULARY, (40, 64, _TOKENS + 1), np.int32)
    weights = {
        "embedding": _drawn(generator, _VOCABULARY, _EMBEDDING),
        "lstm_kernel": _drawn(generator, _EMBEDDING, 4 * _UNITS),
        "recurrent_kernel": _drawn(generator, _UNITS, 4 * _UNITS),
        "lstm_bias": np.zeros(4 * _UNITS, np.float32),
        "kernel": _drawn(generator, _UNITS, _VOCABULARY),
        "bias": np.zeros(_VOCABULARY, np.float32),
    }
    return Task("lstm", weights, tokens[..., :-1], tokens[..., 1:])


def _images(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """60,000 records in batches of 256, the last 96 left out."""
    x = generator.random((234, 256, 784), np.float32)
    return x, generator.integers(0, 10, (234, 256), np.int32)


def _drawn(generator: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return generator.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(rows))


TASKS: dict[str, Callable[[np.random.Generator], Task]] = {"linear": _linear, "mlp": _mlp, "lstm": _lstm}


class UnsupportedError(Exception):
    """The framework cannot express the task; the message says why."""


def measure(
    build: Callable[[Task, float | None], Loop], task: Task, *, steps: int, repetitions: int
) -> dict[str, object]:
    """Seconds a step, and how long the mean of the first batch's clipped gradients is: equal for equal work.

    Args:
      build: makes a loop; its second argument is the noise multiplier, None: not private at all.
      task: what is trained.
      steps: timed at once.
      repetitions: private and not, in turn.
    """
    checked = build(task, 0.0)
    before = checked.weights()
    checked.run(1)
    moved = sum(float(np.sum(np.square(new - old))) for new, old in zip(checked.weights(), before, strict=True))
    del checked
    loops = {"private": build(task, NOISE_MULTIPLIER), "plain": build(task, None)}
    for loop in loops.values():
        loop.run(2)  # what is compiled or allocated at first
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(repetitions):
        for name, loop in loops.items():
            begin = time.perf_counter()
            loop.run(steps)
            seconds[name].append((time.perf_counter() - begin) / steps)
    figures = {name: {"median": float(np.median(found)), "min": min(found)} for name, found in seconds.items()}
    return {"task": task.name, "clipped": moved**0.5 / LEARNING_RATE, **figures}


def main(framework: str, version: str, build: Callable[[Task, float | None], Loop]) -> None:
    """A peer's: `TASK --steps N --repetitions N`; prints one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--repetitions", type=int, required=True)
    asked = parser.parse_args()
    line: dict[str, object] = {"framework": framework, "version": version}
    task = TASKS[asked.task](np.random.default_rng(20))
    try:
        line |= measure(build, task, steps=asked.steps, repetitions=asked.repetitions)
    except UnsupportedError as error:
        line["unsupported"] = str(error)
    print(json.dumps(line), flush=True)
