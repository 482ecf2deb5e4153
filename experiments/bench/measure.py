"""Runs one workload in all frameworks, in turns and on the same file, and compares their weights.

A "peer" is a framework in one configuration; fedspeak is one of them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.processes import watch
from experiments.bench.workloads import RECIPES, Weights

ROOT = Path(__file__).resolve().parents[2]
UNSUPPORTED = "unsupported"
"""Stands in `Run.framework` where a framework cannot express the workload."""

NOISE_MULTIPLIER = 0.01
"""Noise multiplier of timed private runs. The time does not depend on it, and so little noise keeps training stable."""


@dataclass(frozen=True)
class Peer:
    """Describes a framework in one configuration.

    Attributes:
      name: name in the table and on the command line.
      module: name of its module in `experiments.bench.peers`.
      environment: folder of its environment below .venv-bench; None: fedspeak's own environment.
      processes: number of processes that share the clients; frameworks without such a setting ignore it.
    """

    name: str
    module: str
    environment: str | None
    processes: int = 1

    @property
    def python(self) -> Path:
        """Returns the path of the Python interpreter of the peer's environment, which may not be installed."""
        if self.environment is None:
            return Path(sys.executable)
        return ROOT / ".venv-bench" / self.environment / "bin" / "python"


@dataclass
class Run:
    """Holds the results of one process of a peer, or what went wrong.

    Attributes:
      peer: name of the peer.
      repetition: number of the repetition from 0; -1 for the untimed run whose weights are compared.
      problem: what went wrong, in one line; None if nothing did.
      framework: name of the framework, as its process reports it; `UNSUPPORTED` if it cannot express the workload.
      version: version of the framework.
      seconds: seconds of each round.
      first_round: seconds from the start of the process to the end of its first round.
      memory: peak resident memory of the process tree in bytes.
      others: processor cores that the rest of the machine used during the run; close to 0 on a quiet machine.
      difference: L2 distance of the weights from the reference's, divided by the distance that training moved the
        reference; None if the weights were not compared.
    """

    peer: str
    repetition: int
    problem: str | None = None
    framework: str = ""
    version: str = ""
    seconds: list[float] = field(default_factory=list)
    first_round: float = 0.0
    memory: int = 0
    others: float = 0.0
    difference: float | None = None


@dataclass
class Case:
    """Holds all runs of one workload, with or without privacy.

    Attributes:
      workload: key of `RECIPES`.
      private: whether updates are clipped, averaged uniformly and noised.
      examples: number of examples in each round.
      reference: name of the peer whose weights are the reference; None before a peer has run.
      missing: why a peer did not run, by its name.
      runs: all runs, in the order in which they took place.
    """

    workload: str
    private: bool
    examples: list[int] = field(default_factory=list)
    reference: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Returns the name of the case, as on the command line."""
        return self.workload + ("-dp" if self.private else "")

    def timed(self, peer: str) -> list[Run]:
        """Returns the timed runs of a peer that had no problem."""
        return [run for run in self.runs if run.peer == peer and run.problem is None and run.repetition >= 0]

    def failed(self) -> list[Run]:
        """Returns the runs that failed. A framework that cannot express the workload has not failed."""
        return [run for run in self.runs if run.problem is not None and run.framework != UNSUPPORTED]

    def problem(self, peer: str) -> str | None:
        """Returns the first problem of a peer, or None."""
        problems = [run.problem for run in self.runs if run.peer == peer and run.problem is not None]
        return self.missing.get(peer) or (problems[0] if problems else None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the case as JSON-able values."""
        return asdict(self)


def measure(
    workload: str,
    private: bool,
    peers: Sequence[Peer],
    *,
    rounds: int,
    repetitions: int,
    folder: Path,
    timeout: float,
    note: Callable[[str], None],
) -> Case:
    """Runs one case.

    Each repetition runs every peer once, in an order that rotates from one repetition to the next, so that a slow phase
    of the machine affects all of them. In a private case every peer first makes one run without noise, whose weights
    are compared. Otherwise the weights of the timed runs are compared.

    Args:
      workload: key of `RECIPES`.
      private: whether updates are clipped, averaged uniformly and noised (DP-FedAvg).
      peers: peers to run; the weights of the first one that runs are the reference.
      rounds: rounds per process, at least 3; the first one is not counted.
      repetitions: timed processes per peer.
      folder: folder for the workload's file and for the processes' output and results.
      timeout: seconds after which a process is ended.
      note: called with a line after each process.

    Returns:
      The case with all its runs, failed ones included.
    """
    case = Case(workload, private)
    file = folder / f"{workload}.npz"
    RECIPES[workload].write(file, rounds)
    with np.load(file) as stored:
        initial = {name.removeprefix("weight/"): stored[name] for name in stored.files if name.startswith("weight/")}
        case.examples = np.diff(stored["offsets"])[stored["cohorts"]].sum(axis=1).tolist()
    installed = []
    for peer in peers:
        if peer.python.is_file():
            installed.append(peer)
        else:
            case.missing[peer.name] = "not installed: make bench-peers"
            note(f"{case.name}: {peer.name} is not installed (make bench-peers)")
    reference: Weights | None = None
    min_distance = _min_noise_distance(workload, initial)
    for repetition in range(-1 if private else 0, repetitions):
        is_compared = repetition < 0 or not private
        noise = (0.0 if is_compared else NOISE_MULTIPLIER) if private else None
        turn = max(repetition, 0) % len(installed) if installed else 0
        for peer in installed[turn:] + installed[:turn]:
            if peer.name in case.missing or case.problem(peer.name):
                continue
            rounds_to_run = RECIPES[workload].settings.compared_after if repetition < 0 else rounds
            run, weights = _run(peer, case.name, repetition, file, rounds_to_run, noise, folder, timeout)
            if run.problem is None and is_compared and weights is not None:
                if reference is None:
                    case.reference, reference = peer.name, weights
                run.difference = difference(weights, reference, initial)
                if not run.difference <= RECIPES[workload].tolerance:
                    run.problem = (
                        f"weights differ from those of {case.reference} by {run.difference:.1e} of the distance moved"
                    )
            elif run.problem is None and weights is not None and reference is not None:
                if not _distance(weights, reference) >= min_distance:
                    run.problem = "the weights show less noise than was asked for"
            if run.problem is not None and run.framework == UNSUPPORTED:
                case.missing[peer.name] = run.problem
            case.runs.append(run)
            note(f"{case.name}: {_describe(run)}")
    return case


def environment() -> dict[str, str]:
    """Returns the environment variables of a peer's process.

    Variables that begin with PYTHON are dropped, so that the process sees its own packages and fedspeak's sources only.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return inherited | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def difference(weights: Weights, reference: Weights, initial: Weights) -> float:
    """Returns the L2 distance between two models, relative to how far training moved the reference.

    Args:
      weights: weights of the one model, by name.
      reference: weights of the other.
      initial: weights from which both were trained.

    Returns:
      |weights - reference| / |reference - initial|; inf if names or shapes differ, or if the reference did not move.
    """
    moved = _distance(reference, initial)
    return _distance(weights, reference) / moved if moved > 0 else math.inf


def _distance(one: Weights, other: Weights) -> float:
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        return math.inf
    return math.sqrt(sum(float(np.sum(np.square(one[name].astype(float) - other[name]))) for name in one))


def _min_noise_distance(workload: str, initial: Weights) -> float:
    """Returns half the expected L2 norm of the noise in the compared weights.

    If a peer adds no noise, its weights are nearer than this to the reference, whose run had no noise.
    """
    recipe = RECIPES[workload]
    draws = recipe.settings.compared_after * sum(value.size for value in initial.values())
    return 0.5 * NOISE_MULTIPLIER * recipe.settings.clip / recipe.cohort * math.sqrt(draws)


def _run(
    peer: Peer, case: str, repetition: int, file: Path, rounds: int, noise: float | None, folder: Path, timeout: float
) -> tuple[Run, Weights | None]:
    """Runs one process of a peer; returns its results and its weights, None if it wrote none."""
    output = folder / f"{case}.{peer.name}.json"
    log = folder / f"{case}.{peer.name}.log"
    weights = folder / f"{output.name}.npz"
    for old in (output, weights):
        old.unlink(missing_ok=True)
    command = [str(peer.python), "-m", f"experiments.bench.peers.{peer.module}", str(file)]
    command += ["--rounds", str(rounds), "--processes", str(peer.processes), "--output", str(output)]
    if noise is not None:
        command += ["--dp", str(noise)]
    run = Run(peer.name, repetition)
    outcome = watch(command, folder=folder, environment=environment(), log=log, timeout=timeout)
    run.memory, run.others = outcome.peak_memory, outcome.others
    if outcome.return_code is None:
        run.problem = f"ended after its time limit of {timeout:.0f} s"
        return run, None
    if outcome.return_code or not output.is_file():
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        run.problem = f"exit code {outcome.return_code}: {lines[-1].strip()}"
        return run, None
    try:
        result = json.loads(output.read_text())
        if "unsupported" in result:
            run.framework, run.problem = UNSUPPORTED, result["unsupported"]
            return run, None
        run.framework, run.version, run.seconds = result["framework"], result["version"], result["seconds"]
        run.first_round = result["first_round_end"] - outcome.started
        with np.load(weights) as stored:
            return run, {name: stored[name] for name in stored.files}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        run.problem = f"its results cannot be read: {error}"
        return run, None


def _describe(run: Run) -> str:
    if run.problem is not None:
        return f"{run.peer}: {run.problem}"
    if run.repetition < 0:
        return f"{run.peer}: weights compared"
    mean = sum(run.seconds[1:]) / len(run.seconds[1:])
    return f"{run.peer}, run {run.repetition + 1}: {mean:.3f} s per round, {run.memory / 2**20:.0f} MB"
