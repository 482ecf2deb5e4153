"""The ledger: what really happened, round by round, written down before anything of the round is released.

JSON lines. The first line is a header with the whole plan; each further line is one round. Every line
carries the SHA-256 of the line before it and of itself, so that an altered, missing or reordered line is
found and named. Nothing in it depends on the clock or the machine: a run that was killed and resumed leaves
the same bytes as one that was not. The ledger names each round's clients and is the operator's secret;
reports for release are computed from it and name none.
"""

from __future__ import annotations

import dataclasses
import json
import operator
import pathlib
import reprlib
import sys
from collections.abc import Iterator, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from privacy.ledger import compliance
from privacy.ledger import hash_chain as chain
from privacy.ledger.append_only_file import ChainedFile
from privacy.ledger.compliance import Round
from privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from privacy.keys import RunKeys

FORMAT = 2
_TRUNCATED_NOISE = 1  # the format of version 0.1


class Ledger:
    """Append-only record of a run under one plan. `open` to write (and resume), `read` to look.

    Attributes:
      path: the file.
      plan: the plan in the header.
      version: kit version that began the ledger.
      rounds: recorded rounds in order; `len(ledger.rounds)` is the next round's index.
      streams: what was recorded of each named stream of noise (`noise_stream`).
    """

    def __init__(self, file: ChainedFile, plan: PrivacyPlan, version: str) -> None:
        self.path = file.path
        self.plan = plan
        self.version = version
        self.rounds: list[Round] = []
        self.streams: dict[str, dict[str, Any]] = {}
        self._file = file
        self._history = compliance.History()
        self._ends = [1]  # number of lines after so many rounds
        self._in_use: set[str] = set()

    def head_after(self, rounds: int) -> str:
        """SHA-256 of the line of round `rounds - 1` (of the header for 0). Raises IndexError if it is not recorded."""
        return self._file.digests[self._ends[rounds]]

    @property
    def head(self) -> str:
        """SHA-256 of the last line, for a checkpoint to remember."""
        return self._file.digests[-1]

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
        file = ChainedFile.open(path)
        try:
            lines = file.lines()
            if (first := next(lines, None)) is None:
                ledger = Ledger(file, plan, version())
                with file.writing():
                    file.append({"kind": "header", "format": FORMAT, "version": ledger.version, "plan": plan.to_dict()})
                return ledger
            ledger = Ledger._replayed(file, first[1], lines)
            if ledger.plan != plan:
                names = [k for k, v in plan.to_dict().items() if ledger.plan.to_dict()[k] != v]
                raise ValueError(
                    f"ledger {path} was begun under another plan (differs in {', '.join(names)}): "
                    "resume with its plan or begin a new run"
                )
        except BaseException:
            file.close()
            raise
        return ledger

    @staticmethod
    def read(path: str | pathlib.Path) -> Ledger:
        """Reads a ledger without touching it; the plan is the header's. Raises ValueError naming a damaged
        line.
        """
        file = ChainedFile.read(path)
        lines = file.lines()
        return Ledger._replayed(file, next(lines)[1], lines)

    def close(self) -> None:
        """Gives up the lock; recording is over."""
        self._file.close()

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
        clip_norm: float | None,
        **facts: Any,
    ) -> None:
        """Writes down one round and returns once it is on the disk. Call it before anything of the round is
        released.

        Recording a round again with the same content does nothing (a resumed run replays the rounds since
        its checkpoint).

        Args:
          round: index from 0; the next one, or one already recorded.
          cohort: the ids, texts, of the clients whose updates are in the sum; empty is a noise-only round.
          noise_id: name of the noise; must be new with each round (`RunKeys.noise_id`).
          noise_stddev: standard deviation of the noise on each coordinate of the sum,
            value_noise_multiplier * clip_norm.
          clip_norm: the clip norm in force; None only under a plan without clipping.
          **facts: JSON-able, finite, the operator's only: for instance `non_finite=2`, updates zeroed.

        Raises:
          ValueError: the round breaks the plan, or differs from what is recorded for it.
          OSError: the disk would not take it; the ledger is as before and nothing may be released.
        """
        if hasattr(round, "__index__") and not isinstance(round, bool):
            round = operator.index(round)  # a NumPy integer counts too
        if isinstance(cohort, str) or not all(isinstance(client, str) for client in cohort):
            raise ValueError(f"round {round}: cohort {reprlib.repr(cohort)} is no list of texts: record ids as str")
        if not isinstance(noise_id, str):
            raise ValueError(f"round {round}: noise id {noise_id!r} is no text: record it as str")
        entry = Round(
            round,
            tuple(sorted(cohort)),
            noise_id,
            float(noise_stddev),
            None if clip_norm is None else float(clip_norm),
            MappingProxyType(facts),
        )
        line = _as_line(entry)
        with self._file.writing():
            if isinstance(round, int) and 0 <= round < len(self.rounds):
                end = self._ends[round + 1]
                if chain.digest(self._file.digests[end - 1], line) != self._file.digests[end]:
                    raise ValueError(
                        f"round {round} is in the ledger with other content: a replay must repeat all of it"
                    )
                return
            compliance.check(self.plan, self._history, entry)
            self._file.append(line)
            self._note(entry)

    def noise_stream(self, keys: RunKeys, name: str, *, resume: bool = False, **facts: Any) -> npt.NDArray[np.int64]:
        """Returns the seed of a stream of noise for releases beside the rounds, and writes down that it was given out.

        Two releases with the same noise differ by the exact difference of what they hide. So each name is given out
        once in the life of a ledger. What is released with the noise is not in the plan's ε: reports say so.

        Args:
          keys: the run's.
          name: of the stream, for instance "accuracy".
          resume: True only in a run that goes on from saved state of what draws from the stream (the state of a
            `BoundedMeanQuery`'s process, for instance), so that no noise is drawn a second time. Then a name that
            was given out before this opening of the ledger is given out again, for the same facts.
          **facts: JSON-able: what the noise is for, for instance `noise_multiplier=2.0`.

        Returns:
          int64 [2], for `fl.private_mean.private_mean_factory` or `fl.gaussian`.

        Raises:
          ValueError: the stream was given out, or for other facts; or there is none to resume.
          OSError: the disk would not take it; nothing may be released.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"noise stream name is {name!r}: give a text")
        recorded = {"noise_id": keys.stream_id(name), **_as_json(facts)}
        with self._file.writing():
            before = self.streams.get(name)
            if name in self._in_use or (before is not None and not resume):
                raise ValueError(
                    f"noise stream {name!r} was given out before: give each release a name of its own, or resume=True "
                    "if it goes on from saved state"
                )
            if before is None and resume:
                raise ValueError(f"noise stream {name!r} was never given out: leave out resume")
            if before not in (None, recorded):
                raise ValueError(f"noise stream {name!r} was given out for {before}: take another name for {recorded}")
            if before is None:
                self._file.append({"kind": "stream", "name": name, "facts": recorded})
                self.streams[name] = recorded
            self._in_use.add(name)
        return keys.stream_seed(name)

    def participations(self) -> dict[str, int]:
        """Rounds in which each client took part; clients never seen are absent. The operator's only."""
        return dict(self._history.participations)

    @staticmethod
    def _replayed(file: ChainedFile, header: dict[str, Any], lines: Iterator[tuple[int, dict[str, Any]]]) -> Ledger:
        """The state that the file's lines give, with the plan checked on the way."""
        ledger = Ledger(file, _plan_of(header, file.path), header["version"])
        for number, line in lines:
            try:
                if line["kind"] == "stream":
                    ledger.streams[line["name"]] = line["facts"]
                    continue
                entry = _from_line(line)
                compliance.check(ledger.plan, ledger._history, entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"ledger {file.path} line {number} breaks its own plan: {error}") from None
            ledger._note(entry)
        return ledger

    def _note(self, entry: Round) -> None:
        self.rounds.append(entry)
        self._history.add(entry)
        self._ends.append(len(self._file.digests) - 1)


def _as_line(entry: Round) -> dict[str, Any]:
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    return {"kind": "round", **fields, "cohort": list(entry.cohort), "facts": dict(entry.facts)}


def _from_line(line: dict[str, Any]) -> Round:
    fields = {field.name: line[field.name] for field in dataclasses.fields(Round)}
    # Ids recur in many rounds: interning keeps one copy of each.
    cohort = tuple(sys.intern(client) for client in line["cohort"])
    return Round(**{**fields, "cohort": cohort, "facts": MappingProxyType(line["facts"])})


def _as_json(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts as they come back from the file."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts of the noise stream cannot be recorded ({error}): give finite JSON values") from None
    return found


def _plan_of(header: dict[str, Any], path: pathlib.Path) -> PrivacyPlan:
    if header.get("kind") == "header" and header.get("format") == _TRUNCATED_NOISE:
        raise ValueError(
            f"ledger {path} was begun by version 0.1, whose training noise ended at 5.68 standard deviations: no "
            "epsilon of it holds at its delta (CHANGELOG, Security); train anew"
        )
    if header.get("kind") != "header" or header.get("format") != FORMAT:
        raise ValueError(f"ledger {path} line 1 is no header of format {FORMAT}: use the version that wrote it")
    try:
        return PrivacyPlan.from_dict(header["plan"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"ledger {path} line 1 holds no valid plan: {error}") from None


def version() -> str:
    """Of this kit, as installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("fedspeak")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
