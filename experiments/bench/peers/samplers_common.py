"""Holds what the processes of `bench samplers` share: their arguments, the pairs of models, and what they measure.

A process reads the pairs from a `.npz` file, decodes with each of them, and prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

DRAFT_LENGTH = 4
"""Number of drafted tokens of a block."""

LONG_TEXT = 64
"""Number of tokens of the texts whose target calls are counted and timed."""


class Pair(NamedTuple):
    """Holds a target and a drafter whose next token depends on the last token only.

    Attributes:
      name: name in the results.
      target: float32 `[R, V]`, the target's logits; those after token t are in row t mod R.
      drafter: float32 `[R, V]`, the drafter's.
      tokens: number of first tokens of a text whose joint distribution is measured. A text begins after token 0.
    """

    name: str
    target: np.ndarray
    drafter: np.ndarray
    tokens: int


class Sizes(NamedTuple):
    """Holds how much one process measures, and its seed.

    Attributes:
      seed: seed of the random numbers; processes with different seeds draw different texts.
      texts: number of texts of `Pair.tokens` tokens.
      long_texts: number of texts of `LONG_TEXT` tokens.
      timings: number of timed texts of `LONG_TEXT` tokens.
    """

    seed: int
    texts: int
    long_texts: int
    timings: int


class Measured(NamedTuple):
    """Holds what one method of a library gave with one pair.

    Attributes:
      method: name of the method in the library's words.
      pair: name of the pair.
      counts: how often each text of `Pair.tokens` tokens came, the last token varying fastest.
      decided: for each long text, number of tokens of the counted blocks.
      calls: for each long text, number of counted blocks; each is one call of the target.
      microseconds: for each runtime, the time of each timed text divided by its target calls.
    """

    method: str
    pair: str
    counts: list[int]
    decided: list[int]
    calls: list[int]
    microseconds: dict[str, list[float]]


def save_pairs(path: str, pairs: list[Pair]) -> None:
    """Writes pairs to a `.npz` file."""
    arrays: dict[str, Any] = {}
    for pair in pairs:
        arrays |= {f"{pair.name}/{field}": value for field, value in pair._asdict().items() if field != "name"}
    np.savez(path, **arrays)


def load_pairs(path: str) -> list[Pair]:
    """Reads the pairs that `save_pairs` wrote."""
    with np.load(path) as stored:
        names = dict.fromkeys(key.partition("/")[0] for key in stored.files)
        return [
            Pair(name, stored[f"{name}/target"], stored[f"{name}/drafter"], int(stored[f"{name}/tokens"]))
            for name in names
        ]


def count_texts(texts: np.ndarray, size: int) -> list[int]:
    """Counts texts, integers `[N, T]` from 0 to `size` - 1: V^T numbers, the last token varying fastest."""
    length = texts.shape[1]
    numbers = texts.astype(np.int64) @ size ** np.arange(length - 1, -1, -1, dtype=np.int64)
    counts: list[int] = np.bincount(numbers, minlength=size**length).tolist()
    return counts


def time_calls(run: Callable[[], int], timings: int) -> list[float]:
    """Times a function that decodes a text and returns its number of target calls, after two calls that are not timed.

    Returns:
      Microseconds per target call, one value for each of `timings` texts.
    """
    run(), run()
    values = []
    for _ in range(timings):
        begin = time.perf_counter()
        calls = run()
        values.append(1e6 * (time.perf_counter() - begin) / calls)
    return values


def main(library: str, version: str, measure: Callable[[Pair, Sizes], Iterator[Measured]]) -> None:
    """Runs a library's process and prints its results as one line of JSON.

    Args:
      library: name of the library.
      version: its version, and that of what it computes with.
      measure: measures all methods of the library with a pair.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("pairs")
    for name in Sizes._fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, required=True)
    arguments = parser.parse_args()
    sizes = Sizes(*(getattr(arguments, name) for name in Sizes._fields))
    rows = [found._asdict() for pair in load_pairs(arguments.pairs) for found in measure(pair, sizes)]
    print(json.dumps({"library": library, "version": version, "rows": rows}), flush=True)
