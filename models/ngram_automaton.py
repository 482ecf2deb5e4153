"""Defines the tables that n-gram models share: a finite automaton over contexts, its checks and its file.

The states are the stored contexts. Reading a token leads to the longest stored context that the text then ends with, so
that looking a context up needs no hash table. The probabilities that a model puts on the entries are its own; see
`models.ngram` and `models.katz`. This module needs NumPy alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.atomic_file import replace_file

LARGEST_ORDER = 5
_INTEGERS = ("first", "begins", "shorter", "tokens", "following")
_Model = TypeVar("_Model", bound="NGramAutomaton")


@dataclass(frozen=True, eq=False)
class NGramAutomaton:
    """Holds an n-gram model as an automaton; a subclass adds one float64 array `[entries]` and says what it means.

    Attributes:
      order: maximum number of tokens of an n-gram, n, 1 to 5.
      vocabulary_digest: digest of the vocabulary of the tokens; empty if it was not given.
      unigram: float64 `[V]`, the distribution after an unknown context.
      first: int32 `[V]`, the state after a token whose context is unknown.
      begins: int32 `[states + 1]`; the entries of a state s are those from `begins[s]` to before `begins[s + 1]`. State
        0 is the unknown context and has none.
      backoff: float64 `[states]`, the factor of the distribution of the shorter context.
      shorter: int32 `[states]`, the state of the longest stored context that ends this one; 0 at the end.
      tokens: int32 `[entries]`, the stored successors of each state.
      following: int32 `[entries]`, the state after the successor.

    Raises:
      ValueError: the arrays are not such a model.
    """

    file_format: ClassVar[str]

    order: int
    vocabulary_digest: str
    unigram: NDArray[np.float64]
    first: NDArray[np.int32]
    begins: NDArray[np.int32]
    backoff: NDArray[np.float64]
    shorter: NDArray[np.int32]
    tokens: NDArray[np.int32]
    following: NDArray[np.int32]

    def __post_init__(self) -> None:
        if problem := self._find_problem() or self._find_wrong_values():
            raise ValueError(f"not an n-gram model: {problem}")

    @property
    def vocabulary_size(self) -> int:
        """Returns the number of token ids, V."""
        return len(self.unigram)

    @property
    def max_successors(self) -> int:
        """Returns the largest number of stored successors of a state."""
        return int(np.diff(self.begins).max())

    @property
    def nbytes(self) -> int:
        """Returns the size of all tables in bytes."""
        return sum(getattr(self, field.name).nbytes for field in fields(self)[2:])

    def find(self, state: int, token: int) -> int | None:
        """Returns the entry of a token among the stored successors of a state; None if it is not one of them."""
        begin, end = self.begins[state : state + 2]
        found = np.flatnonzero(self.tokens[begin:end] == token)
        return int(begin + found[0]) if len(found) else None

    def advance(self, state: int, token: int) -> int:
        """Returns the state after one more token.

        Args:
          state: state before the token; 0 at the beginning of a text.
          token: integer in [0, V).
        """
        while state:
            entry = self.find(state, token)
            if entry is not None:
                return int(self.following[entry])
            state = int(self.shorter[state])
        return int(self.first[token])

    def contexts(self, text: Sequence[int]) -> list[int]:
        """Returns the states of the stored contexts that a text ends with, the longest first, without state 0.

        Args:
          text: integers in [0, V), any number.
        """
        state = 0
        for token in text:
            state = self.advance(state, token)
        states = []
        while state:
            states.append(state)
            state = int(self.shorter[state])
        return states

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to `path` as one `.npz` file; if writing fails, an existing file is left unchanged.

        Raises:
          OSError: `path` cannot be written.
        """
        content = io.BytesIO()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(content, format=np.array(self.file_format), **values)
        with replace_file(path) as file:
            file.write(content.getvalue())

    @classmethod
    def wrote(cls, path: str | os.PathLike[str]) -> bool:
        """Returns whether a file says that `save` of this class wrote it; it may be damaged.

        Raises:
          OSError: `path` cannot be read.
        """
        content = Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return str(arrays["format"]) == cls.file_format
        except Exception:  # NumPy, zipfile and zlib each raise exceptions of their own
            return False

    @classmethod
    def load(cls: type[_Model], path: str | os.PathLike[str]) -> _Model:
        """Reads a model that `save` wrote.

        Raises:
          OSError: `path` cannot be read.
          ValueError: `path` is another kind of file, or damaged.
        """
        content = Path(path).read_bytes()
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                if str(arrays["format"]) != cls.file_format:
                    raise ValueError(f"another format, {str(arrays['format'])!r}")
                values: dict[str, Any] = {field.name: arrays[field.name] for field in fields(cls)}
            values["order"], values["vocabulary_digest"] = int(values["order"]), str(values["vocabulary_digest"])
            return cls(**values)
        except Exception as error:  # NumPy, zipfile and zlib each raise exceptions of their own
            reason = " ".join(str(error).split())[:120]
            raise ValueError(f"{path}: not an n-gram model, or damaged ({reason}): learn it again") from None

    def _find_problem(self) -> str | None:
        """Returns what is wrong with the automaton; None if nothing is."""
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 1 <= self.order <= LARGEST_ORDER:
            return f"order = {self.order!r}: must be an integer from 1 to {LARGEST_ORDER}"
        states, entries, size = len(self.backoff), len(self.tokens), len(self.unigram)
        lengths = {"first": size, "begins": states + 1, "shorter": states}
        for field in fields(self)[2:]:
            array = getattr(self, field.name)
            length = {"unigram": size, "backoff": states}.get(field.name, lengths.get(field.name, entries))
            if array.dtype != (np.int32 if field.name in _INTEGERS else np.float64) or array.shape != (length,):
                return f"{field.name} has another type or size"
        if not size or not states or self.begins[0] != 0 or self.begins[-1] != entries:
            return "begins does not cover the entries"
        if (np.diff(self.begins) < 0).any():
            return "begins does not ascend"
        if self.begins[1] != 0 or self.backoff[0] != 1:
            return "state 0 has entries"
        for name, limit in (("first", states), ("shorter", states), ("following", states), ("tokens", size)):
            array = getattr(self, name)
            if array.size and not (array.min() >= 0 and array.max() < limit):
                return f"{name} is out of range"
        state = np.arange(states)
        for _ in range(self.order - 1):
            if not (self.shorter[state] < np.maximum(state, 1)).all():
                return "shorter does not lead to shorter contexts"
            state = self.shorter[state]
        if state.any():
            return "a context is longer than the order allows"
        if len(np.unique(self._keys())) != entries:
            return "a state has a successor twice"
        if not (self.unigram.min() > 0 and self.backoff.min() > 0 and np.isfinite(self.backoff).all()):
            return "a probability is not positive"
        return None if abs(self.unigram.sum() - 1) < 1e-9 else "probabilities do not sum to 1"

    def _find_wrong_values(self) -> str | None:
        """Returns what is wrong with the entries' values; None if nothing is. The automaton has no problem."""
        raise NotImplementedError

    def _owners(self) -> NDArray[np.int64]:
        """Returns the state of each entry."""
        return np.repeat(np.arange(len(self.backoff)), np.diff(self.begins))

    def _keys(self) -> NDArray[np.int64]:
        """Returns a number for each entry that no other pair of state and token has."""
        return self._owners() * self.vocabulary_size + self.tokens
