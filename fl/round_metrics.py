"""The rows of `metrics.jsonl`, and the running SHA-256 over them that a run's checkpoints hold.

A row is appended after its round's checkpoint, which holds it too: a kill between the two loses nothing. Older rows are
in the file alone, so the checkpoint's digest tells whether they are still all there, and unchanged.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy import files
from privacy.json_values import plain

log = logging.getLogger(__name__)

_FIX = (
    "restore the file from a copy; if there is none, fedspeak train --resume with --set-aside-metrics goes on without "
    "the older rows"
)


@dataclass(frozen=True)
class Running:
    """What stands in a checkpoint about the rows so far.

    Attributes:
      first: round of the first row; above 1 if older rows were set aside.
      digest: SHA-256 (hex) of the previous digest and the newest row's line; "" before the first row.
    """

    first: int = 1
    digest: str = ""

    def after(self, row: dict[str, Any]) -> Running:
        """With one more row."""
        return self.after_line(line(row))

    def after_line(self, raw: bytes) -> Running:
        """With one more row, given as its line in the file."""
        return Running(self.first, hashlib.sha256(self.digest.encode() + raw).hexdigest())

    def document(self, newest: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's part that `check` and `restore` read."""
        return {"metrics": newest, "metrics_first": self.first, "metrics_sha256": self.digest}


def line(row: dict[str, Any]) -> bytes:
    """A row as it stands in the file. It holds no NaN: `fl.rounds` makes rows of values that JSON has."""
    return json.dumps(row, sort_keys=True).encode() + b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`; an unfinished last line (a kill in the middle of a write) is left out.

    A value that is not finite is None, also where an earlier version wrote NaN. Raises ValueError naming a damaged
    line.
    """
    return [plain(row) for _, row in _lines(path)]


def check(path: Path, rounds: int, document: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The rows of the file, which must be all of those up to the checkpoint's round, unchanged.

    Args:
      path: `metrics.jsonl`.
      rounds: the newest checkpoint's round; 0 if there is none.
      document: that checkpoint's document; None if there is none.

    Raises:
      ValueError: in one line that names the file, the line if it is known, and the fix.
    """
    return [plain(row) for _, row in _checked(path, rounds, document)[0]]


def restore(path: Path, rounds: int, document: dict[str, Any] | None) -> Running:
    """Leaves exactly the rows up to `rounds` in the file: later ones will come again, the checkpoint holds the newest.

    Takes the arguments of `check` and raises as it does. Returns what the next checkpoint goes on from.
    """
    if document is None:  # all rounds come again
        files.write_private(path, b"")
        return Running()
    rows, running = _checked(path, rounds, document)
    files.write_private(path, b"".join(raw for raw, row in rows if row["round"] <= rounds))
    return running


def _checked(
    path: Path, rounds: int, document: dict[str, Any] | None
) -> tuple[list[tuple[bytes, dict[str, Any]]], Running]:
    """The rows with their lines, the checkpoint's among them, and the digest over those up to its round."""
    rows = _lines(path)
    first = 1 if document is None else document["metrics_first"]
    if first > 1:
        log.warning("%s begins with round %d: older rows were lost and set aside", path, first)
    for number, (_, row) in enumerate(rows, 1):
        if row["round"] != first + number - 1:
            raise ValueError(
                f"metrics {path} line {number} is of round {row['round']!r} and not of round {first + number - 1}: "
                f"rows are lost, {_FIX}"
            )
    if document is None:
        return rows, Running()
    last = first + len(rows) - 1
    if last < rounds - 1:
        raise ValueError(
            f"metrics {path} ends with round {last if rows else 0} and the checkpoint is of round {rounds}: rows are "
            f"lost, {_FIX}"
        )
    newest = line(document["metrics"])
    if last == rounds - 1:
        rows.append((newest, document["metrics"]))
    running = Running(first)
    for raw, _ in rows[: rounds - first + 1]:
        running = running.after_line(raw)
    if rows[rounds - first][0] != newest:
        raise ValueError(f"metrics {path} line {rounds - first + 1} is not the checkpoint's row: {_FIX}")
    if running.digest != document["metrics_sha256"]:
        raise ValueError(f"metrics {path} was changed in lines 1 to {rounds - first}: {_FIX}")
    return rows, running


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each whole line with the row that it holds."""
    if not path.exists():
        return []
    content = path.read_bytes()
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, raw in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], 1):
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict) or not {"round", "operator"} <= set(row):
            raise ValueError(f"metrics {path} line {number} is damaged: {_FIX}")
        rows.append((raw + b"\n", row))
    return rows
