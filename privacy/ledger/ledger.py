"""Keeps the ledger of a run, which records each round before anything of the round is released.

The file consists of JSON lines. The first line is a header with the whole plan; each further line is one round, one
further release that ε covers, or one stream of noise. Every line carries a SHA-256 over the previous line's digest and
its own content. A line that was altered, removed or moved causes an error that names it. The ledger adds nothing that
depends on the clock or the machine, so a run that was killed and resumed leaves the same bytes as one that was not. The
ledger names the clients of each round and is for the operator only. Reports for publication are computed from it and
name no client.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import pathlib
import reprlib
import sys
from collections.abc import Iterator, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks
from privacy.ledger import compliance
from privacy.ledger import hash_chain as chain
from privacy.ledger.append_only_file import ChainedFile
from privacy.ledger.compliance import Round
from privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from privacy.keys import RunKeys

FORMAT = 2  # version 0.1 refuses a ledger with a further release, whose kind it does not know
_TRUNCATED_NOISE = 1  # format of version 0.1, whose training noise had bounded tails


class Release(NamedTuple):
    """Describes one Gaussian release beside the rounds.

    Attributes:
      purpose: what was released.
      noise_multiplier: standard deviation of the noise / sensitivity under the plan's relation.
      noise_id: name that identifies the noise and reveals nothing about it.
      facts: further JSON-able facts, for the operator only.
    """

    purpose: str
    noise_multiplier: float
    noise_id: str
    facts: dict[str, Any]


class Ledger:
    """Keeps an append-only record of a run under one plan: `open` it to write or resume, `read` it to inspect.

    Attributes:
      path: path of the file.
      plan: the plan in the header.
      version: version of fedspeak that began the ledger.
      rounds: recorded rounds in order; `len(ledger.rounds)` is the index of the next round.
      releases: releases beside the rounds (`charge`) in order; ε covers them.
      streams: for each named stream of noise (`noise_stream`), the facts recorded about it.
    """

    def __init__(self, file: ChainedFile, plan: PrivacyPlan, version: str) -> None:
        self.path = file.path
        self.plan = plan
        self.version = version
        self.rounds: list[Round] = []
        self.releases: list[Release] = []
        self.streams: dict[str, dict[str, Any]] = {}
        self._file = file
        self._history = compliance.History()
        self._ends = [1]  # _ends[n]: number of lines up to the end of round n - 1, or of the header for n = 0
        self._in_use: set[str] = set()

    def head_after(self, rounds: int) -> str:
        """Returns the chained SHA-256 digest of the line of round `rounds - 1`, or of the header for 0.

        Raises:
          IndexError: that round is not recorded.
        """
        return self._file.digests[self._ends[rounds]]

    @property
    def head(self) -> str:
        """Returns the chained SHA-256 digest of the last line, which a checkpoint keeps to compare later."""
        return self._file.digests[-1]

    @staticmethod
    def open(path: str | pathlib.Path, plan: PrivacyPlan) -> Ledger:
        """Opens the ledger at `path` for writing, or begins it, and holds a lock on it until `close`.

        If a process was killed while it wrote the last line, that unfinished line is dropped: its round was not
        released.

        Args:
          path: path of the ledger's file.
          plan: plan of the run; must equal the one in the header of an existing ledger.

        Raises:
          ValueError: a line is damaged, or the plan differs from the header's.
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
            ledger = Ledger._replay(file, first[1], lines)
            if ledger.plan != plan:
                begun, given = ledger.plan.to_dict(), plan.to_dict()  # `mechanism` is left out of one without it
                names = [name for name in {**given, **begun} if begun.get(name) != given.get(name)]
                raise ValueError(
                    f"ledger {path} was begun under another plan (differs in {', '.join(names)}): "
                    "resume with that plan or begin a new run"
                )
        except BaseException:
            file.close()
            raise
        return ledger

    @staticmethod
    def read(path: str | pathlib.Path) -> Ledger:
        """Returns the ledger at `path` without changing it; its plan is the header's.

        Raises:
          ValueError: a line is damaged; the message names it.
        """
        file = ChainedFile.read(path)
        lines = file.lines()
        return Ledger._replay(file, next(lines)[1], lines)

    def close(self) -> None:
        """Releases the lock; nothing can be recorded afterwards."""
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
        """Records one round and returns once it is on the disk. Call it before anything of the round is released.

        A resumed run repeats the rounds since its checkpoint. So recording a round again with the same content is
        allowed and does nothing.

        Args:
          round: index of the round from 0: the next one, or one that is recorded already.
          cohort: ids (str) of the clients whose updates are in the sum; an empty cohort is a round of noise only.
          noise_id: name of the noise, different for each round (`RunKeys.noise_id`).
          noise_stddev: standard deviation of the noise on each coordinate of the sum; under the plan it is
            value_noise_multiplier * clip_norm.
          clip_norm: clip norm of the round; None only under a plan without clipping.
          **facts: JSON-able, finite facts for the operator only, for instance `non_finite=2` for the number of updates
            that were zeroed.

        Raises:
          ValueError: the round breaks the plan, or it is recorded already with other content.
          OSError: the line could not be written; the ledger is as before and nothing may be released.
        """
        if hasattr(round, "__index__") and not isinstance(round, bool):
            round = operator.index(round)  # NumPy integers are accepted too
        if isinstance(cohort, str) or not all(isinstance(client, str) for client in cohort):
            raise ValueError(
                f"round {round}: cohort {reprlib.repr(cohort)} is not a list of str: give the clients' ids as str"
            )
        if not isinstance(noise_id, str):
            raise ValueError(
                f"round {round}: noise_id {noise_id!r} is not a str: give a name such as RunKeys.noise_id(round)"
            )
        entry = Round(
            round,
            tuple(sorted(cohort)),
            noise_id,
            float(noise_stddev),
            None if clip_norm is None else float(clip_norm),
            MappingProxyType(facts),
        )
        line = _to_line(entry)
        with self._file.writing():
            if isinstance(round, int) and 0 <= round < len(self.rounds):
                end = self._ends[round + 1]
                if chain.digest(self._file.digests[end - 1], line) != self._file.digests[end]:
                    raise ValueError(
                        f"round {round} is in the ledger with other content: a resumed run must repeat it exactly"
                    )
                return
            compliance.check(self.plan, self._history, entry)
            self._file.append(line)
            self._add_round(entry)

    def charge(
        self, keys: RunKeys, purpose: str, values: bytes, noise_multiplier: float, **facts: Any
    ) -> npt.NDArray[np.int64]:
        """Charges one Gaussian release beside the rounds, and returns the seed of its noise once that is on the disk.

        The seed follows from the key, the purpose, the noise multiplier and the values. So a release that is repeated,
        because the process was killed before it showed the result, gets the same noise on the same values and is not
        charged again; and two different sets of values never get the same noise.

        Args:
          keys: keys of the run.
          purpose: what is released, for the report, which may be published: one line without data.
          values: the exact values to which the noise is added, and whatever else the release depends on.
          noise_multiplier: standard deviation of the noise / L2 sensitivity under the plan's relation, 1e-6 to 1e8.
          **facts: JSON-able facts for the operator only.

        Returns:
          The seed, int64 [2].

        Raises:
          ValueError: the plan is not private, or an argument is out of range.
          OSError: the line could not be written; nothing may be released.
        """
        if not self.plan.is_private:
            raise ValueError(
                "the plan adds no noise to the rounds, so that no epsilon holds for them and a further release: plan "
                "noise, or release without it"
            )
        if not isinstance(purpose, str) or not purpose:
            raise ValueError(f"purpose of the release is {purpose!r}: give a str that is not empty")
        multiplier = checks.noise_multiplier(noise_multiplier, "give noise / sensitivity")
        name = _release_name(purpose, values, multiplier)
        release = Release(purpose, multiplier, keys.stream_id(name), _as_json(facts))
        with self._file.writing():
            if all(earlier.noise_id != release.noise_id for earlier in self.releases):
                self._file.append({"kind": "release", **release._asdict()})
                self.releases.append(release)
        return keys.stream_seed(name)

    def has_charged(self, keys: RunKeys, purpose: str, values: bytes, noise_multiplier: float) -> bool:
        """Returns whether `charge` with these arguments has charged this release before, and would cost nothing."""
        noise_id = keys.stream_id(_release_name(purpose, values, noise_multiplier))
        return any(release.noise_id == noise_id for release in self.releases)

    def noise_stream(self, keys: RunKeys, name: str, *, resume: bool = False, **facts: Any) -> npt.NDArray[np.int64]:
        """Returns the seed of a stream of noise for releases other than the rounds, and records that it was issued.

        If two releases have the same noise, their difference contains no noise. So each stream is issued only once per
        ledger, except with `resume`. The plan's ε does not include what is released with this noise, and reports say
        so.

        Args:
          keys: keys of the run.
          name: name of the stream, for instance "accuracy".
          resume: True only in a run that restores the saved state of the process that draws from the stream (for
            instance an aggregator with a `BoundedMeanQuery`), so that no noise is drawn twice. A stream that was issued
            before the ledger was last opened is then issued again, for the same facts.
          **facts: JSON-able facts on what the noise is for, for instance `noise_multiplier=2.0`.

        Returns:
          The seed, int64 [2], for `fl.private_mean.private_mean_factory` or `fl.gaussian`.

        Raises:
          ValueError: the stream was issued before and `resume` does not allow it again, or it was issued for other
            facts, or `resume` is True and it was never issued.
          OSError: the line could not be written; nothing may be released.
        """
        if not isinstance(name, str) or not name:
            raise ValueError(f"name of the noise stream is {name!r}: give a str that is not empty")
        recorded = {"noise_id": keys.stream_id(name), **_as_json(facts)}
        with self._file.writing():
            earlier = self.streams.get(name)
            if name in self._in_use or (earlier is not None and not resume):
                raise ValueError(
                    f"noise stream {name!r} was issued before: give each release a name of its own, or resume=True "
                    "if it continues from saved state"
                )
            if earlier is None and resume:
                raise ValueError(f"noise stream {name!r} was never issued: leave out resume")
            if earlier not in (None, recorded):
                raise ValueError(f"noise stream {name!r} was issued for {earlier}: use another name for {recorded}")
            if earlier is None:
                self._file.append({"kind": "stream", "name": name, "facts": recorded})
                self.streams[name] = recorded
            self._in_use.add(name)
        return keys.stream_seed(name)

    def participations(self) -> dict[str, int]:
        """Returns the number of rounds of each client that took part in any. It is for the operator only."""
        return dict(self._history.participations)

    @staticmethod
    def _replay(file: ChainedFile, header: dict[str, Any], lines: Iterator[tuple[int, dict[str, Any]]]) -> Ledger:
        """Returns the ledger that the file's lines describe, after checking each round against the plan."""
        ledger = Ledger(file, _read_plan(header, file.path), header["version"])
        for number, line in lines:
            try:
                if line["kind"] == "release":
                    ledger.releases.append(_read_release(line))
                    continue
                if line["kind"] == "stream":
                    ledger.streams[line["name"]] = line["facts"]
                    continue
                entry = _from_line(line)
                compliance.check(ledger.plan, ledger._history, entry)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"ledger {file.path} line {number} breaks its own plan: {error}") from None
            ledger._add_round(entry)
        return ledger

    def _add_round(self, entry: Round) -> None:
        self.rounds.append(entry)
        self._history.add(entry)
        self._ends.append(len(self._file.digests) - 1)


def _release_name(purpose: str, values: bytes, multiplier: float) -> str:
    return f"release {purpose} {multiplier!r} {hashlib.sha256(values).hexdigest()}"


def _to_line(entry: Round) -> dict[str, Any]:
    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    return {"kind": "round", **fields, "cohort": list(entry.cohort), "facts": dict(entry.facts)}


def _from_line(line: dict[str, Any]) -> Round:
    fields = {field.name: line[field.name] for field in dataclasses.fields(Round)}
    # Ids recur in many rounds: interning keeps one copy of each.
    cohort = tuple(sys.intern(client) for client in line["cohort"])
    return Round(**{**fields, "cohort": cohort, "facts": MappingProxyType(line["facts"])})


def _read_release(line: dict[str, Any]) -> Release:
    release = Release(**{name: line[name] for name in Release._fields})
    checks.noise_multiplier(release.noise_multiplier, "restore the file")
    return release


def _as_json(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts as they will be read back from the file."""
    try:
        values: dict[str, Any] = json.loads(json.dumps(facts, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts of the noise stream cannot be recorded ({error}): give finite JSON values") from None
    return values


def _read_plan(header: dict[str, Any], path: pathlib.Path) -> PrivacyPlan:
    if header.get("kind") == "header" and header.get("format") == _TRUNCATED_NOISE:
        raise ValueError(
            f"ledger {path} was begun by version 0.1, whose training noise ended at 5.68 standard deviations, so "
            "that no epsilon holds at its delta (CHANGELOG, Security): train anew"
        )
    if header.get("kind") != "header" or header.get("format") != FORMAT:
        raise ValueError(
            f"ledger {path} line 1 is not a header of format {FORMAT}: use the version of fedspeak that wrote it"
        )
    try:
        return PrivacyPlan.from_dict(header["plan"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"ledger {path} line 1 does not hold a valid plan: {error}") from None


def version() -> str:
    """Returns the installed version of fedspeak, or "unknown" if it is not installed."""
    import importlib.metadata

    try:
        return importlib.metadata.version("fedspeak")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
