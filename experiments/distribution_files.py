"""Reads distributions over tokens from JSON files: a list of probabilities, or an object from token to probability."""

import json
import math
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_FILE = 1 << 26
LARGEST_SUPPORT = 1 << 20
_SUM_TOLERANCE = 1e-4  # a file with probabilities of few digits is a distribution too; it is normalised


def read_pair(p_path: Path, q_path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reads two distributions over the same tokens.

    Args:
      p_path: file of the first one: a JSON list of probabilities, or an object from token to probability.
      q_path: file of the second one, of the same kind. Lists have the same length. Objects may have different tokens: a
        token that one of them lacks has probability 0 there.

    Returns:
      Two float64 `[n]` whose sums are 1. Tokens of objects are in alphabetical order.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is too large or holds no distribution, or the two do not fit together; one line.
    """
    p, q = _read(p_path), _read(q_path)
    if isinstance(p, dict) != isinstance(q, dict):
        kinds = [
            f"{path} holds {'an object' if isinstance(x, dict) else 'a list'}" for path, x in ((p_path, p), (q_path, q))
        ]
        raise ValueError(f"{kinds[0]}, {kinds[1]}: give two lists or two objects")
    if isinstance(p, dict) and isinstance(q, dict):
        tokens = sorted(p.keys() | q.keys())
        p, q = ([x.get(token, 0.0) for token in tokens] for x in (p, q))
    if len(p) != len(q):
        raise ValueError(
            f"{p_path} has {len(p)} probabilities, {q_path} has {len(q)}: give one for each token of one vocabulary"
        )
    if len(p) > LARGEST_SUPPORT:
        raise ValueError(f"{p_path} and {q_path} have {len(p)} tokens: the maximum is {LARGEST_SUPPORT}")
    first, second = (np.array(x) for x in (p, q))
    return first / first.sum(), second / second.sum()


def _read(path: Path) -> list[float] | dict[str, float]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a file: give a file of JSON")
    if status.st_size > LARGEST_FILE:
        raise ValueError(f"{path} has {status.st_size} bytes: the maximum is {LARGEST_FILE}")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply: give a list of probabilities or an object") from None
    except ValueError as error:  # bad JSON, bad UTF-8, a number of thousands of digits, a token twice
        raise ValueError(f"{path} is not the JSON of a distribution ({error}): repair it") from None
    if not isinstance(content, (list, dict)) or not content:
        raise ValueError(
            f"{path} must hold a non-empty JSON list of probabilities, or an object from token to probability"
        )
    entries = list(content.items() if isinstance(content, dict) else enumerate(content))
    for token, value in entries:
        # Written so that NaN, for which every comparison is False, is refused.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1 + _SUM_TOLERANCE:
            raise ValueError(
                f"{path}: probability of token {_shown(token)} = {_shown(value)}: must be a number from 0 to 1"
            )
    numbers = [float(value) for _, value in entries]
    total = math.fsum(numbers)
    if not abs(total - 1) <= _SUM_TOLERANCE:
        raise ValueError(
            f"{path}: the probabilities add up to {total:.6g}: they must add up to 1, up to {_SUM_TOLERANCE:g}"
        )
    return numbers if isinstance(content, list) else dict(zip(content, numbers, strict=True))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a token stands there twice")
    return content


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"
