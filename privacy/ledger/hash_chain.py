"""JSON lines that each carry the SHA-256 of the line before and of themselves: what was altered is found
and named.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any


def digest(previous: str, line: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the previous line's digest and this line's canonical JSON.

    Raises ValueError for values JSON cannot hold, NaN among them.
    """
    try:
        body = json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()
    except (TypeError, ValueError) as error:
        what = f"round {line.get('round')}" if line.get("kind") == "round" else f"this {line.get('kind')}"
        raise ValueError(f"{what} cannot be recorded ({error}): give finite JSON values") from None


def encode(line: Mapping[str, Any], line_digest: str) -> bytes:
    """The bytes of one line in the file."""
    return json.dumps({**line, "sha256": line_digest}, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def parse(raw: bytes, previous: str, number: int, path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """(line without its digest, digest); raises ValueError naming the line unless it follows `previous`."""
    try:
        line = json.loads(raw)
        claimed = line.pop("sha256")
        if digest(previous, line) != claimed:
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(
            f"ledger {path} line {number} is damaged or out of place: restore the file, no ε holds without it"
        ) from None
    return line, claimed
