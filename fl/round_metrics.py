"""Reads the rows of `metrics.jsonl` and checks them by a running SHA-256, which the run's checkpoints hold.

The round loop appends a round's row after it has saved the round's checkpoint, which holds the same row: a kill between
the two loses nothing. Older rows are in the file only; the checkpoint's digest shows whether all of them are still
there, unchanged.
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

FIX = (
    "restore the file from a copy; if there is none, fl.rounds.set_aside_metrics lets the run go on without older rows"
)
"""What a message about lost or changed rows tells the reader to do."""


@dataclass(frozen=True)
class Running:
    """Holds the state of the running digest over the rows so far, as a checkpoint stores it.

    Attributes:
      first: round of the first row; above 1 if older rows were set aside.
      digest: SHA-256 (hex) of the previous digest and the newest row's line; "" before the first row.
    """

    first: int = 1
    digest: str = ""

    def after(self, row: dict[str, Any]) -> Running:
        """Returns the state after one more row."""
        return self.after_line(line(row))

    def after_line(self, raw: bytes) -> Running:
        """Returns the state after one more row, which is given as its line in the file."""
        return Running(self.first, hashlib.sha256(self.digest.encode() + raw).hexdigest())

    def document(self, newest: dict[str, Any]) -> dict[str, Any]:
        """Returns the entries of a checkpoint's document that `check` and `restore` read."""
        return {"metrics": newest, "metrics_first": self.first, "metrics_sha256": self.digest}


def line(row: dict[str, Any]) -> bytes:
    """Returns a row as its line in the file: JSON with sorted keys, and a line feed. The row must hold no NaN."""
    return json.dumps(row, sort_keys=True).encode() + b"\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of `metrics.jsonl`, without an unfinished last line (left by a kill during a write).

    A value that is not finite is returned as None, even if an earlier version wrote it as NaN.

    Raises:
      ValueError: a line is damaged; the message names it.
    """
    return [plain(row) for _, row in _read_lines(path)]


def check(path: Path, rounds: int, document: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the rows of the file after checking that those up to the checkpoint's round are complete and unchanged.

    Args:
      path: `metrics.jsonl`.
      rounds: round of the newest checkpoint; 0 if there is none.
      document: JSON document of that checkpoint; None if there is none.

    Raises:
      ValueError: rows are lost, changed or damaged. The message is one line that names the file, the line in it if
        that is known, and the fix.
    """
    return [plain(row) for _, row in _check_rows(path, rounds, document)[0]]


def restore(path: Path, rounds: int, document: dict[str, Any] | None) -> Running:
    """Leaves exactly the rows up to `rounds` in the file: it drops later ones and adds the checkpoint's row if missing.

    It takes the arguments of `check` and raises the same errors.

    Returns:
      The digest state from which the next checkpoint continues.
    """
    if document is None:  # without a checkpoint, every round runs again
        files.write_private(path, b"")
        return Running()
    rows, running = _check_rows(path, rounds, document)
    files.write_private(path, b"".join(raw for raw, row in rows if row["round"] <= rounds))
    return running


def _check_rows(
    path: Path, rounds: int, document: dict[str, Any] | None
) -> tuple[list[tuple[bytes, dict[str, Any]]], Running]:
    """Returns (rows with their lines, including the checkpoint's row; digest over the rows up to that one)."""
    rows = _read_lines(path)
    first = 1 if document is None else document["metrics_first"]
    if first > 1:
        log.warning("%s begins with round %d: older rows were lost and set aside", path, first)
    for number, (_, row) in enumerate(rows, 1):
        if row["round"] != first + number - 1:
            raise ValueError(
                f"metrics {path} line {number} holds round {row['round']!r} instead of round {first + number - 1}: "
                f"rows are lost, {FIX}"
            )
    if document is None:
        return rows, Running()
    last = first + len(rows) - 1
    if last < rounds - 1:
        raise ValueError(
            f"metrics {path} ends with round {last if rows else 0} and the checkpoint is of round {rounds}: rows are "
            f"lost, {FIX}"
        )
    newest = line(document["metrics"])
    if last == rounds - 1:
        rows.append((newest, document["metrics"]))
    running = Running(first)
    for raw, _ in rows[: rounds - first + 1]:
        running = running.after_line(raw)
    if rows[rounds - first][0] != newest:
        raise ValueError(f"metrics {path} line {rounds - first + 1} differs from the row in the checkpoint: {FIX}")
    if running.digest != document["metrics_sha256"]:
        raise ValueError(f"metrics {path} was changed in lines 1 to {rounds - first}: {FIX}")
    return rows, running


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns each complete line with the row that it holds."""
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
            raise ValueError(f"metrics {path} line {number} is damaged: {FIX}")
        rows.append((raw + b"\n", row))
    return rows
