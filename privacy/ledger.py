"""The ledger: what really happened, round by round, written down before anything of the round is released.

JSON lines. The first line is a header with the whole plan; each further line is one round. Every line
carries the SHA-256 of the line before it and of itself, so that an altered, missing or reordered line is
found and named. Nothing in it depends on the clock or the machine: a run that was killed and resumed leaves
the same bytes as one that was not. The ledger names each round's clients and is the operator's secret;
reports for release are computed from it and name none.
"""

from __future__ import annotations

import dataclasses
import fcntl
import operator
import os
import pathlib
import sys
from collections.abc import Sequence
from types import MappingProxyType, TracebackType
from typing import Any

from privacy import chain, compliance
from privacy.compliance import Round
from privacy.plan import PrivacyPlan

FORMAT = 1
_HEADER_START = b'{"format": '  # sorted first: a header torn by a kill still shows what it was to be


class Ledger:
    """Append-only record of a run under one plan. `open` to write (and resume), `read` to look.

    Attributes:
      path: the file.
      plan: the plan in the header.
      version: kit version that began the ledger.
      rounds: recorded rounds in order; `len(ledger.rounds)` is the next round's index.
    """

    def __init__(self, path: pathlib.Path, plan: PrivacyPlan) -> None:
        self.path = path
        self.plan = plan
        self.version = ""
        self.rounds: list[Round] = []
        self._history = compliance.History()
        self._digests = [""]  # of the nothing before the header, the header, round 0, ...
        self._descriptor: int | None = None
        self._size = 0

    def head_after(self, rounds: int) -> str:
        """SHA-256 of the line of round `rounds - 1` (of the header for 0). Raises IndexError if it is not recorded."""
        return self._digests[rounds + 1]

    @property
    def head(self) -> str:
        """SHA-256 of the last line, for a checkpoint to remember."""
        return self._digests[-1]

    @staticmethod
    def open(path: str | pathlib.Path, plan: PrivacyPlan) -> Ledger:
        """Opens the ledger at `path` for writing, or begins it, and holds a lock on it until `close`.

        A last line that was never finished (a kill in the middle of a write) is dropped: its round was not
        released.

        Raises:
          ValueError: a damaged line, or a plan that differs from the header's.
          BlockingIOError: another process is writing this ledger.
          OSError: the file cannot be opened or written.
        """
        ledger = Ledger(pathlib.Path(path), plan)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        ledger._descriptor = descriptor
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(f"ledger {path} is being written by another process: let it end first") from None
            with os.fdopen(os.dup(descriptor), "rb") as file:
                content = file.read()
            ledger._size = content.rfind(b"\n") + 1
            if not ledger._size and not _HEADER_START.startswith(content[: len(_HEADER_START)]):
                raise ValueError(f"ledger {path} line 1 is damaged or no ledger: choose another file")
            if len(content) > ledger._size:
                os.ftruncate(descriptor, ledger._size)
                os.fsync(descriptor)
            if ledger._size:
                ledger._replay(content[: ledger._size])
                if ledger.plan != plan:
                    names = [k for k, v in plan.to_dict().items() if ledger.plan.to_dict()[k] != v]
                    raise ValueError(
                        f"ledger {path} was begun under another plan (differs in {', '.join(names)}): "
                        "resume with its plan or begin a new run"
                    )
            else:
                ledger.version = _version()
                ledger._append({"kind": "header", "format": FORMAT, "version": ledger.version, "plan": plan.to_dict()})
                _fsync_folder(ledger.path.parent)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @staticmethod
    def read(path: str | pathlib.Path) -> Ledger:
        """Reads a ledger without touching it; the plan is the header's. Raises ValueError naming a damaged
        line.
        """
        try:
            content = pathlib.Path(path).read_bytes()
        except FileNotFoundError:
            raise FileNotFoundError(f"ledger {path} is missing: give the folder of a run") from None
        content = content[: content.rfind(b"\n") + 1]
        if not content:
            raise ValueError(f"ledger {path} is empty: no round was recorded")
        header, _ = chain.parse(content.split(b"\n", 1)[0], "", 1, pathlib.Path(path))
        ledger = Ledger(pathlib.Path(path), _plan_of(header, pathlib.Path(path)))
        ledger._replay(content)
        return ledger

    def close(self) -> None:
        """Gives up the lock; recording is over."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def record(
        self,
        *,
        round: int,
        cohort: Sequence[str],
        noise_id: str,
        noise_stddev: float,
        clip: float | None,
        **facts: Any,
    ) -> None:
        """Writes down one round and returns once it is on the disk. Call it before anything of the round is
        released.

        Recording a round again with the same content does nothing (a resumed run replays the rounds since
        its checkpoint).

        Args:
          round: index from 0; the next one, or one already recorded.
          cohort: the ids of the clients whose updates are in the sum; empty is a noise-only round.
          noise_id: name of the noise; must be new with each round (`RunKeys.noise_id`).
          noise_stddev: standard deviation of the noise on each coordinate of the sum,
            value_noise_multiplier * clip.
          clip: the clip norm in force; None only under a plan without clipping.
          **facts: JSON-able, finite, the operator's only: for instance `non_finite=2`, updates zeroed.

        Raises:
          ValueError: the round breaks the plan, or differs from what is recorded for it.
          OSError: the disk would not take it; the ledger is as before and nothing may be released.
        """
        if self._descriptor is None:
            raise ValueError(f"ledger {self.path} is closed: record inside `with plan.recording(...)`")
        if hasattr(round, "__index__") and not isinstance(round, bool):
            round = operator.index(round)  # a NumPy integer counts too
        entry = Round(
            round,
            tuple(sorted(cohort)),
            noise_id,
            float(noise_stddev),
            None if clip is None else float(clip),
            MappingProxyType(facts),
        )
        line = _as_line(entry)
        if isinstance(round, int) and 0 <= round < len(self.rounds):
            if chain.digest(self._digests[round + 1], line) != self._digests[round + 2]:
                raise ValueError(f"round {round} is in the ledger with other content: a replay must repeat all of it")
            return
        compliance.check(self.plan, self._history, entry)
        self._append(line)
        self._note(entry)

    def participations(self) -> dict[str, int]:
        """Rounds in which each client took part; clients never seen are absent. The operator's only."""
        return dict(self._history.participations)

    def _append(self, line: dict[str, Any]) -> None:
        assert self._descriptor is not None
        digest = chain.digest(self.head, line)
        data = chain.encode(line, digest)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._size + written)
            os.fsync(self._descriptor)
        except OSError as error:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                pass  # an unfinished line is dropped when the ledger is opened next
            reason = f"ledger {self.path} could not be written ({error.strerror}): make room and resume"
            raise OSError(reason) from error
        self._size += len(data)
        self._digests.append(digest)

    def _replay(self, content: bytes) -> None:
        """Rebuilds the state from complete lines, checking the chain and the plan on the way."""
        for number, raw in enumerate(content[:-1].split(b"\n"), 1):
            line, digest = chain.parse(raw, self.head, number, self.path)
            self._digests.append(digest)
            if number == 1:
                self.plan = _plan_of(line, self.path)
                self.version = line["version"]
                continue
            try:
                entry = _from_line(line)
                compliance.check(self.plan, self._history, entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"ledger {self.path} line {number} breaks its own plan: {error}") from None
            self._note(entry)
        self._size = len(content)

    def _note(self, entry: Round) -> None:
        self.rounds.append(entry)
        self._history.add(entry)


def _as_line(entry: Round) -> dict[str, Any]:
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    return {"kind": "round", **fields, "cohort": list(entry.cohort), "facts": dict(entry.facts)}


def _from_line(line: dict[str, Any]) -> Round:
    fields = {field.name: line[field.name] for field in dataclasses.fields(Round)}
    # Ids recur in many rounds: interning keeps one copy of each.
    cohort = tuple(sys.intern(client) for client in line["cohort"])
    return Round(**{**fields, "cohort": cohort, "facts": MappingProxyType(line["facts"])})


def _plan_of(header: dict[str, Any], path: pathlib.Path) -> PrivacyPlan:
    if header.get("kind") != "header" or header.get("format") != FORMAT:
        raise ValueError(f"ledger {path} line 1 is no header of format {FORMAT}: use the version that wrote it")
    try:
        return PrivacyPlan.from_dict(header["plan"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"ledger {path} line 1 holds no valid plan: {error}") from None


def _fsync_folder(folder: pathlib.Path) -> None:
    """A new file survives a power cut only once its folder is on the disk too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("fedspeak")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
