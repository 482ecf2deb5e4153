"""What every framework's process shares: its arguments, the workload it reads, what it writes.

A workload file (`.npz`) holds, for C clients with N examples in all, R rounds of K clients, and weights by name:

- "x", "y": examples in the clients' order. Text: x int32 `[N, T+1]`, rows of tokens padded with 0, and no y.
  Images and feature vectors: x float32 `[N, …]`, y int32 `[N]`.
- "offsets": int64 `[C+1]`; client c has the examples from offsets[c] to below offsets[c+1].
- "cohorts": int64 `[R, K]`, the clients of each round.
- "weight/NAME": float32, the initial weights; for each model see `experiments.bench.workloads`.
- "settings": JSON, the fields of `Settings`.
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
    """This framework does not do that workload; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What is trained and how.

    Attributes:
      model: "lstm", "si-cifg", "cnn" or "logistic".
      batch_size: examples a step of local SGD; batches are taken in order, the last one may be smaller.
      learning_rate: of local SGD, on the gradient of the mean loss over a batch's examples (text: real tokens).
      clip: L2 norm to which a client's change of the model is clipped in private runs.
      compared_after: rounds, at most 3, after which the weights are written, to be compared.
    """

    model: str
    batch_size: int
    learning_rate: float
    clip: float
    compared_after: int


class Client(NamedTuple):
    """A client's examples. `weight` is its number of examples."""

    x: np.ndarray
    y: np.ndarray
    weight: float


@dataclass(frozen=True)
class Workload:
    """A workload file in memory."""

    settings: Settings
    weights: dict[str, np.ndarray]
    clients: list[Client]
    cohorts: np.ndarray

    @property
    def is_text(self) -> bool:
        """Whether examples are rows of tokens."""
        return self.settings.model in ("lstm", "si-cifg")

    def cohort(self, number: int) -> list[Client]:
        """The clients of a round."""
        return [self.clients[client] for client in self.cohorts[number]]


def load(path: str) -> Workload:
    """Reads a workload file. For text, x and y become `[n, T]`: the tokens, and those after them."""
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
    """The arguments of a peer's process.

    Attributes:
      workload: file to read.
      rounds: to run, at most those of the file.
      noise_multiplier: None: mean weighted by the clients' examples. A number z ≥ 0: uniform mean of clipped updates,
        plus Gaussian noise of standard deviation z · clip on their sum.
      processes: that do the clients' work, for frameworks that know such a number.
      out: JSON file to write; the weights go beside it.
    """

    workload: str
    rounds: int
    noise_multiplier: float | None
    processes: int
    out: str


def request() -> Request:
    """Parses the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--dp", type=float, metavar="NOISE_MULTIPLIER")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", required=True)
    asked = parser.parse_args()
    return Request(asked.workload, asked.rounds, asked.dp, asked.processes, asked.out)


class Recorder:
    """Times rounds and writes what the harness reads."""

    def __init__(self, out: str, compared_after: int) -> None:
        self.out = out
        self.compared_after = compared_after
        self.seconds: list[float] = []
        self.first_round_end = 0.0
        self._last = 0.0

    def start(self) -> None:
        """The data are in memory and the model is built: the first round begins."""
        self._last = time.perf_counter()

    def round_done(self, weights: Callable[[], dict[str, Any]]) -> None:
        """A round has ended; `weights` gives the model by the workload's names (called once, in the round after which
        weights are compared)."""
        self.seconds.append(time.perf_counter() - self._last)
        if len(self.seconds) == 1:
            self.first_round_end = time.time()
        if len(self.seconds) == self.compared_after:
            named = {name: np.asarray(value, np.float32) for name, value in weights().items()}
            np.savez(self.out + ".npz", **named)  # type: ignore[arg-type]
        self._last = time.perf_counter()

    def write(self, framework: str, version: str) -> None:
        """Writes the JSON file."""
        self._dump(
            {
                "framework": framework,
                "version": version,
                "seconds": self.seconds,
                "first_round_end": self.first_round_end,
            }
        )

    def _dump(self, content: dict[str, Any]) -> None:
        with open(self.out, "w") as file:
            json.dump(content, file)

    def write_unsupported(self, reason: str) -> None:
        """Writes that this framework does not do the workload."""
        self._dump({"unsupported": reason})


def run(peer: Callable[[Request, Workload, Recorder], None]) -> None:
    """A peer's main: reads the workload, runs it, and says so if it cannot be expressed."""
    asked = request()
    workload = load(asked.workload)
    recorder = Recorder(asked.out, workload.settings.compared_after)
    try:
        peer(asked, workload, recorder)
    except Unsupported as error:
        recorder.write_unsupported(str(error))
