"""Holds what the processes of all frameworks share: their arguments, the workload file and the results file.

A workload file (`.npz`) holds, for C clients with N examples in all, R rounds of K clients, and weights by name:

- "x", "y": examples in the order of the clients. For text, x is int32 `[N, T+1]`, rows of tokens padded with 0, and
  there is no y. For images and feature vectors, x is float32 `[N, …]` and y is int32 `[N]`.
- "offsets": int64 `[C+1]`; client c has the examples offsets[c] to offsets[c+1] - 1.
- "cohorts": int64 `[R, K]`, indices of each round's clients.
- "weight/NAME": float32, the initial weights; `experiments.bench.workloads` lists them for each model.
- "settings": JSON object with the fields of `Settings`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


class Unsupported(Exception):
    """Raised where a framework cannot express a workload; the message says why."""


@dataclass(frozen=True)
class Settings:
    """Holds the settings of local training.

    Attributes:
      model: "lstm", "si-cifg", "transformer", "cnn" or "logistic".
      batch_size: examples per step of local SGD; batches are taken in order, and the last one may be smaller.
      learning_rate: learning rate of local SGD, on the mean loss over a batch's examples (for text, over its tokens
        without padding).
      clip: L2 norm to which a client's update is clipped in private runs.
      compared_after: number of rounds, at most 3, after which the weights are written for the comparison.
    """

    model: str
    batch_size: int
    learning_rate: float
    clip: float
    compared_after: int


class Client(NamedTuple):
    """Holds a client's examples x and y; `weight` is the number of examples."""

    x: np.ndarray
    y: np.ndarray
    weight: float


@dataclass(frozen=True)
class Workload:
    """Holds the content of a workload file.

    Attributes:
      settings: settings of local training.
      weights: initial weights by name, float32.
      clients: examples of each client.
      cohorts: int64 [rounds, clients per round], indices of each round's clients.
    """

    settings: Settings
    weights: dict[str, np.ndarray]
    clients: list[Client]
    cohorts: np.ndarray

    @property
    def is_text(self) -> bool:
        """Returns whether the examples are rows of tokens."""
        return self.settings.model in ("lstm", "si-cifg", "transformer")

    def cohort(self, number: int) -> list[Client]:
        """Returns the clients of round `number`, counted from 0."""
        return [self.clients[client] for client in self.cohorts[number]]


def load(path: str) -> Workload:
    """Reads a workload file. For text, x and y become int32 `[n, T]`: the input tokens, and the token after each."""
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    settings = Settings(**json.loads(str(arrays["settings"])))
    x = arrays["x"]
    y = arrays["y"] if "y" in arrays else x[:, 1:]
    if "y" not in arrays:
        x = x[:, :-1]
    clients = []
    for begin, end in zip(arrays["offsets"][:-1], arrays["offsets"][1:], strict=True):
        clients.append(
            Client(np.ascontiguousarray(x[begin:end]), np.ascontiguousarray(y[begin:end]), float(end - begin))
        )
    prefix = "weight/"
    weights = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return Workload(settings, dict(sorted(weights.items())), clients, arrays["cohorts"])


@dataclass(frozen=True)
class Request:
    """Holds the arguments of a peer's process.

    Attributes:
      workload: path of the workload file.
      rounds: number of rounds to run, at most the number in the file.
      noise_multiplier: None for a mean weighted by the clients' numbers of examples. A number z ≥ 0 for a uniform mean
        of clipped updates, with Gaussian noise of standard deviation z · clip added to their sum.
      processes: number of processes that train the clients; frameworks without such a setting ignore it.
      output: path of the JSON file to write; the weights go to the same path with ".npz" appended.
    """

    workload: str
    rounds: int
    noise_multiplier: float | None
    processes: int
    output: str


def parse_request() -> Request:
    """Parses the command line of a peer's process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--dp", type=float, metavar="NOISE_MULTIPLIER")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    return Request(arguments.workload, arguments.rounds, arguments.dp, arguments.processes, arguments.output)


class Recorder:
    """Times a peer's rounds and writes the results file and the weights.

    Args:
      output: path of the JSON file; the weights go to the same path with ".npz" appended.
      compared_after: number of rounds after which the weights are written.
    """

    def __init__(self, output: str, compared_after: int) -> None:
        self.output = output
        self.compared_after = compared_after
        self.seconds: list[float] = []
        self.first_round_end = 0.0
        self._last = 0.0

    def start(self) -> None:
        """Starts the clock; call this when the data is in memory and the model is built."""
        self._last = time.perf_counter()

    def round_done(self, weights: Callable[[], dict[str, Any]]) -> None:
        """Records the end of a round.

        Args:
          weights: returns the model's weights by the workload's names. It is called only after the round
            `compared_after`.
        """
        self.seconds.append(time.perf_counter() - self._last)
        if len(self.seconds) == 1:
            self.first_round_end = time.time()
        if len(self.seconds) == self.compared_after:
            named = {name: np.asarray(value, np.float32) for name, value in weights().items()}
            np.savez(self.output + ".npz", **named)  # type: ignore[arg-type]
        self._last = time.perf_counter()

    def write(self, framework: str, version: str) -> None:
        """Writes the results file, with the name and the version of the framework."""
        self._dump(
            {
                "framework": framework,
                "version": version,
                "seconds": self.seconds,
                "first_round_end": self.first_round_end,
            }
        )

    def _dump(self, content: dict[str, Any]) -> None:
        with open(self.output, "w") as file:
            json.dump(content, file)

    def write_unsupported(self, reason: str) -> None:
        """Writes a results file that says why the framework cannot express the workload."""
        self._dump({"unsupported": reason})


def run(peer: Callable[[Request, Workload, Recorder], None]) -> None:
    """Runs a peer's process: parses its arguments, reads the workload and trains.

    Args:
      peer: trains the workload and records its rounds; it raises `Unsupported` if it cannot.
    """
    request = parse_request()
    workload = load(request.workload)
    recorder = Recorder(request.output, workload.settings.compared_after)
    try:
        peer(request, workload, recorder)
    except Unsupported as error:
        recorder.write_unsupported(str(error))
