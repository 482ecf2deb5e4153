"""Checks by enumeration that a verifier is lossless: its output has exactly the target's distribution.

    from models.decoding import check_lossless, block_rule
    print(check_lossless(block_rule))

The check draws tiny random language models: two or three tokens, contexts that matter, exact zeros, drafters equal to
the target or certain of one token. For each it runs the verifier on every possible draft, completes the output with the
target, and compares the joint distribution of the first G + 1 tokens with the target's, without any sampling.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from models.decoding.verification import Rule, residuals

Table = dict[tuple[int, ...], NDArray[np.float64]]  # the distribution of the next token after each prefix


@dataclass(frozen=True)
class Losslessness:
    """Holds what `check_lossless` found.

    Attributes:
      models: number of pairs of models that were enumerated.
      error: largest difference of a probability of the output from the target's.
      tolerance: largest error that rounding explains.
      accepted: expected number of accepted tokens, the mean over the models.
      sequential: the same for `token_rule`; a useful verifier does not accept fewer.
      worst: description of the model with the largest error.
    """

    models: int
    error: float
    tolerance: float
    accepted: float
    sequential: float
    worst: str

    @property
    def passed(self) -> bool:
        """Returns whether the verifier is lossless."""
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "lossless" if self.passed else "NOT lossless"
        text = f"{verdict}: largest error of a probability {self.error:.1e} over {self.models} pairs of models"
        if not self.passed:
            text += f", in {self.worst}"
        return f"{text}; accepts {self.accepted:.4f} tokens on average, token by token {self.sequential:.4f}"


def check_lossless(rule: Rule, *, models: int = 60, seed: int = 0, dtype: Any = np.float64) -> Losslessness:
    """Enumerates the output of a verifier on random pairs of models.

    Args:
      rule: the verifier, a function like `models.decoding.verification.token_rule`. A rule that changes the target of
        later blocks, as `greedy_block_rule` does, is not lossless by itself.
      models: number of pairs, >= 1.
      seed: seed of the models.
      dtype: NumPy type in which the verifier computes, float32 or float64.
    """
    generator = np.random.default_rng(seed)
    errors, accepted, sequential, names = [], [], [], []
    for number in range(models):
        pair = draw_pair(generator, number)
        law, mean = output_law(rule, *pair.tables, pair.size, pair.length, dtype)
        expected = joint_law(pair.tables[0], pair.size, pair.length + 1)
        errors.append(float(np.max(np.abs(law - expected))))
        accepted.append(mean)
        sequential.append(sequential_acceptance(*pair.tables, pair.size, pair.length))
        names.append(pair.name)
    worst = int(np.argmax(errors))
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    return Losslessness(
        models, errors[worst], tolerance, float(np.mean(accepted)), float(np.mean(sequential)), names[worst]
    )


@dataclass(frozen=True)
class Pair:
    """Holds a target and a drafter as tables.

    Attributes:
      size: number of tokens V.
      length: number of drafted tokens G.
      tables: distributions of the target and of the drafter after every prefix of up to G tokens.
      name: description.
    """

    size: int
    length: int
    tables: tuple[Table, Table]
    name: str


_KINDS = ("random", "zeros", "equal", "half equal", "certain drafter", "certain target")


def draw_pair(generator: np.random.Generator, number: int) -> Pair:
    """Draws a pair of models; `number` selects their kind in turn."""
    kind = _KINDS[number % len(_KINDS)]
    size = int(generator.integers(2, 4))
    length = int(generator.integers(1, 5 if size == 2 else 4))
    zeros = 0.4 if kind == "zeros" else 0.0

    def table(is_certain: bool) -> Table:
        return {
            prefix: np.eye(size)[generator.integers(size)] if is_certain else _draw(generator, size, zeros)
            for prefix in _prefixes(size, length)
        }

    target, drafter = table(kind == "certain target"), table(kind == "certain drafter")
    for prefix in target:
        if kind == "equal" or (kind == "half equal" and generator.random() < 0.5):
            drafter[prefix] = target[prefix]
    return Pair(size, length, (target, drafter), f"{kind}, V = {size}, G = {length}")


def _draw(generator: np.random.Generator, size: int, zeros: float) -> NDArray[np.float64]:
    weights = generator.gamma(generator.choice([0.3, 1.0, 3.0]), size=size) + 1e-12
    keep = generator.random(size) >= zeros
    keep[generator.integers(size)] = True
    weights = weights * keep
    return np.asarray(weights / weights.sum())


def _prefixes(size: int, length: int) -> Iterator[tuple[int, ...]]:
    for count in range(length + 1):
        yield from itertools.product(range(size), repeat=count)


def joint_law(table: Table, size: int, length: int) -> NDArray[np.float64]:
    """Returns the probability of each sequence of `length` tokens, `[V, ..., V]`."""
    law = np.ones([size] * length)
    for sequence in itertools.product(range(size), repeat=length):
        for place in range(length):
            law[sequence] *= table[sequence[:place]][sequence[place]]
    return law


def output_law(
    rule: Rule, target: Table, drafter: Table, size: int, length: int, dtype: Any = np.float64
) -> tuple[NDArray[np.float64], float]:
    """Returns the law of the first G + 1 tokens of the output, completed by the target, and the expected tau."""
    drafts = list(itertools.product(range(size), repeat=length))
    drafted = joint_law(drafter, size, length)
    along_target = np.array([[target[draft[:i]] for i in range(length + 1)] for draft in drafts], dtype)
    along_drafter = np.array([[drafter[draft[:i]] for i in range(length)] for draft in drafts], dtype)
    arguments = tf.constant(along_target), tf.constant(along_drafter)
    lengths = tf.fill([len(drafts)], length)
    stops = rule(*arguments, tf.constant(drafts, tf.int32), lengths)
    tokens = residuals(stops, *arguments).numpy().astype(np.float64)
    probabilities = stops.probability.numpy().astype(np.float64)
    law, mean = np.zeros([size] * (length + 1)), 0.0
    for row, draft in enumerate(drafts):
        for count in range(length + 1):
            weight = drafted[draft] * probabilities[row, count]
            if weight == 0:
                continue
            mean += weight * count
            for token in range(size):
                prefix = (*draft[:count], token)
                if tokens[row, count, token]:
                    law[prefix] += weight * tokens[row, count, token] * _continuations(target, prefix, size, length)
    return law, mean


def _continuations(target: Table, prefix: tuple[int, ...], size: int, length: int) -> Any:
    """Returns the target's law of the tokens after `prefix` up to G + 1 tokens, `[V, ..., V]`."""
    rest = length + 1 - len(prefix)
    law = np.ones([size] * rest)
    for tail in itertools.product(range(size), repeat=rest):
        for place in range(rest):
            law[tail] *= target[(*prefix, *tail[:place])][tail[place]]
    return law


def sequential_acceptance(target: Table, drafter: Table, size: int, length: int) -> float:
    """Returns the expected tau of `token_rule` in closed form."""
    return sum(
        float(np.prod([min(t[d], s[d]) for t, s, d in _along(target, drafter, prefix)]))
        for prefix in _prefixes(size, length)
        if prefix
    )


def _along(target: Table, drafter: Table, prefix: tuple[int, ...]) -> Iterator[tuple[Any, Any, int]]:
    for place, token in enumerate(prefix):
        yield target[prefix[:place]], drafter[prefix[:place]], token
