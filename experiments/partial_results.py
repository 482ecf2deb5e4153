"""Takes up the results of a study or benchmark that was interrupted, if they answer the same question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.runs import read_json


def resume(path: Path, asked: dict[str, Any], empty: dict[str, Any]) -> dict[str, Any]:
    """Returns the results so far.

    Args:
      path: the results' file; it need not exist.
      asked: what determines the results, as JSON can write it.
      empty: the other entries of results that hold nothing yet.

    Raises:
      ValueError: the file is damaged, or holds results for something else than `asked`; one line.
    """
    if not path.exists():
        return {**asked, **empty}
    found = read_json(path, *asked, *empty)
    differs = next((name for name, value in asked.items() if found[name] != value), None)
    if differs is not None:
        raise ValueError(f"{path} holds results of another {differs}: give another --output, or the options of before")
    return found


def digest(weights: Mapping[str, Any], more: Any) -> str:
    """Returns the SHA-256 of weights by name and of something else that JSON can write, in hex."""
    found = hashlib.sha256(json.dumps(more, sort_keys=True).encode())
    for name, weight in sorted(weights.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(weight).data)
    return found.hexdigest()
