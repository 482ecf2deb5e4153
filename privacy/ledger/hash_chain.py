"""Encodes and checks JSON lines that each carry a SHA-256 over the previous line's digest and their own content.

The chain reveals which line was altered, removed or moved.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any


def digest(previous: str, line: Mapping[str, Any]) -> str:
    """Returns the SHA-256 (hexadecimal) of the previous line's digest and this line's canonical JSON.

    Raises:
      ValueError: JSON cannot hold a value of the line, such as NaN.
    """
    try:
        body = json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()
    except (TypeError, ValueError) as error:
        subject = f"round {line.get('round')}" if line.get("kind") == "round" else f"this {line.get('kind')}"
        raise ValueError(f"{subject} cannot be recorded ({error}): give finite JSON values") from None


def encode(line: Mapping[str, Any], line_digest: str) -> bytes:
    """Returns the bytes of one line in the file."""
    return json.dumps({**line, "sha256": line_digest}, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def parse(raw: bytes, previous: str, number: int, path: pathlib.Path) -> tuple[dict[str, Any], str]:
    """Returns (line without its digest, digest). Raises ValueError naming the line unless it follows `previous`."""
    try:
        line = json.loads(raw)
        claimed = line.pop("sha256")
        if digest(previous, line) != claimed:
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ValueError(
            f"ledger {path} line {number} is damaged or out of place: restore the file, without it no ε holds"
        ) from None
    return line, claimed
