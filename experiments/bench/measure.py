"""Runs of one workload by all peers: interleaved, on the same file, their weights compared."""

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
UNSUPPORTED = "unsupported"  # in place of a framework's name
NOISE_MULTIPLIER = 0.01  # of timed private runs: noise costs the same at any size, and this one lets training go on


@dataclass(frozen=True)
class Peer:
    """A framework in one configuration.

    Attributes:
      name: in the table and on the command line.
      module: below `experiments.bench.peers`.
      environment: folder below .venv-bench; None for this kit's own.
      processes: that share the clients; None: the framework has no such number.
    """

    name: str
    module: str
    environment: str | None
    processes: int = 1

    @property
    def python(self) -> Path:
        """Its interpreter, which may not be there."""
        if self.environment is None:
            return Path(sys.executable)
        return ROOT / ".venv-bench" / self.environment / "bin" / "python"


@dataclass
class Run:
    """One process: what it wrote and what the harness saw, or why there is nothing.

    Attributes:
      peer, repetition: which run.
      problem: one line; None if all went well.
      framework, version: as the process said.
      seconds: of each round.
      first_round: seconds from the start of the process to the end of its first round.
      memory: peak resident memory of the process tree, bytes.
      others: cores that everything else on the machine used meanwhile: a quiet machine has next to none.
      difference: of the compared weights from the reference's, over the distance moved; None if not compared.
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
    """All runs of one workload, with or without privacy.

    Attributes:
      workload: key of `RECIPES`.
      private: whether updates are clipped, averaged uniformly and noised.
      examples: of each round.
      reference: the peer whose weights the others' are compared with.
      missing: peer → why it did not run at all.
      runs: in the order they took place.
    """

    workload: str
    private: bool
    examples: list[int] = field(default_factory=list)
    reference: str | None = None
    missing: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.workload + ("-dp" if self.private else "")

    def timed(self, peer: str) -> list[Run]:
        """The good runs of a peer that count for the figures."""
        return [run for run in self.runs if run.peer == peer and run.problem is None and run.repetition >= 0]

    def failed(self) -> list[Run]:
        """The runs that went wrong; not being able to express a workload is no failure."""
        return [run for run in self.runs if run.problem is not None and run.framework != UNSUPPORTED]

    def problem(self, peer: str) -> str | None:
        """The first thing that went wrong with a peer."""
        found = [run.problem for run in self.runs if run.peer == peer and run.problem is not None]
        return self.missing.get(peer) or (found[0] if found else None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
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

    Each repetition runs every peer once, in an order that turns from one to the next, so that a slow spell of the
    machine falls on all. A private case has one more run a peer before, without noise, whose weights are compared;
    otherwise those of the timed runs are.

    Args:
      workload: key of `RECIPES`.
      private: whether with DP-FedAvg.
      peers: the first of them that runs is the reference for the weights.
      rounds: of each process, the first of which is not counted; at least 3.
      repetitions: processes a peer.
      folder: takes the workload's file, the processes' output and what they wrote.
      timeout: seconds after which a process is ended.
      note: told each step.
    """
    case = Case(workload, private)
    file = folder / f"{workload}.npz"
    RECIPES[workload].write(file, rounds)
    with np.load(file) as stored:
        initial = {name.removeprefix("weight/"): stored[name] for name in stored.files if name.startswith("weight/")}
        case.examples = np.diff(stored["offsets"])[stored["cohorts"]].sum(axis=1).tolist()
    waiting = []
    for peer in peers:
        if peer.python.is_file():
            waiting.append(peer)
        else:
            case.missing[peer.name] = "not installed: make bench-peers"
            note(f"{case.name}: {peer.name} is not installed (make bench-peers)")
    checks = range(-1, repetitions) if private else range(repetitions)
    reference: Weights | None = None
    least = _least_noise(workload, initial)
    for repetition in checks:
        compared = repetition < 0 or not private
        noise = (0.0 if compared else NOISE_MULTIPLIER) if private else None
        turn = max(repetition, 0) % len(waiting) if waiting else 0
        for peer in waiting[turn:] + waiting[:turn]:
            if peer.name in case.missing or case.problem(peer.name):
                continue
            length = RECIPES[workload].settings.compared_after if repetition < 0 else rounds
            run, weights = _run(peer, case.name, repetition, file, length, noise, folder, timeout)
            if run.problem is None and compared and weights is not None:
                if reference is None:
                    case.reference, reference = peer.name, weights
                run.difference = difference(weights, reference, initial)
                if not run.difference <= RECIPES[workload].tolerance:
                    run.problem = f"other weights than {case.reference}: {run.difference:.1e} of the distance moved"
            elif run.problem is None and weights is not None and reference is not None:
                if not _distance(weights, reference) >= least:
                    run.problem = "less noise in the weights than asked for"
            # A framework that cannot express the workload is no failure.
            if run.problem is not None and run.framework == UNSUPPORTED:
                case.missing[peer.name] = run.problem
            case.runs.append(run)
            note(f"{case.name}: {_told(run)}")
    return case


def environment() -> dict[str, str]:
    """Of a peer's process, without PYTHON… of ours: it must see its own packages and this kit's sources only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def difference(weights: Weights, reference: Weights, initial: Weights) -> float:
    """Distance between two models over the distance of the reference from the start; inf if names or shapes differ."""
    moved = _distance(reference, initial)
    return _distance(weights, reference) / moved if moved > 0 else math.inf


def _distance(one: Weights, other: Weights) -> float:
    if {name: value.shape for name, value in one.items()} != {name: value.shape for name, value in other.items()}:
        return math.inf
    return math.sqrt(sum(float(np.sum(np.square(one[name].astype(float) - other[name]))) for name in one))


def _least_noise(workload: str, initial: Weights) -> float:
    """Half the expected length of the noise in the weights that are compared: a peer that forgets it stays below."""
    recipe = RECIPES[workload]
    numbers = recipe.settings.compared_after * sum(value.size for value in initial.values())
    return 0.5 * NOISE_MULTIPLIER * recipe.settings.clip / recipe.cohort * math.sqrt(numbers)


def _run(
    peer: Peer, case: str, repetition: int, file: Path, rounds: int, noise: float | None, folder: Path, timeout: float
) -> tuple[Run, Weights | None]:
    out = folder / f"{case}.{peer.name}.json"
    log = folder / f"{case}.{peer.name}.log"
    weights = folder / f"{out.name}.npz"
    for old in (out, weights):
        old.unlink(missing_ok=True)
    command = [str(peer.python), "-m", f"experiments.bench.peers.{peer.module}", str(file)]
    command += ["--rounds", str(rounds), "--processes", str(peer.processes), "--out", str(out)]
    if noise is not None:
        command += ["--dp", str(noise)]
    run = Run(peer.name, repetition)
    watched = watch(command, folder=folder, environment=environment(), log=log, timeout=timeout)
    run.memory, run.others = watched.peak_memory, watched.others
    if watched.return_code is None:
        run.problem = f"no end after {timeout:.0f} s"
        return run, None
    if watched.return_code or not out.is_file():
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        run.problem = f"exit code {watched.return_code}: {lines[-1].strip()}"
        return run, None
    try:
        written = json.loads(out.read_text())
        if "unsupported" in written:
            run.framework, run.problem = UNSUPPORTED, written["unsupported"]
            return run, None
        run.framework, run.version, run.seconds = written["framework"], written["version"], written["seconds"]
        run.first_round = written["first_round_end"] - watched.started
        with np.load(weights) as stored:
            return run, {name: stored[name] for name in stored.files}
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        run.problem = f"what it wrote cannot be read: {error}"
        return run, None


def _told(run: Run) -> str:
    if run.problem is not None:
        return f"{run.peer}: {run.problem}"
    if run.repetition < 0:
        return f"{run.peer}: weights compared"
    what, rounds = f"run {run.repetition + 1}", run.seconds[1:]
    return f"{run.peer}, {what}: {sum(rounds) / len(rounds):.3f} s a round, {run.memory / 2**20:.0f} MB"
