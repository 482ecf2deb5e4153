"""Checks by enumeration that a verifier is lossless: its output has exactly the target's distribution.

    from models.decoding import check_lossless, block_rule
    print(check_lossless(block_rule))

The check draws tiny random language models: two or three tokens, contexts that matter, exact zeros, drafters equal to
the target or certain of one token. For each it enumerates the verifier's decisions about every possible draft, over one
block or several, completes the output with the target, and compares the joint distribution of the first tokens with the
target's, without any sampling.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.decoding.enumeration import Table, enumerate_output, joint_law, texts_up_to
from models.decoding.tree_enumeration import enumerate_tree
from models.decoding.tree_rules import TreeRule
from models.decoding.verification import Rule
from models.decoding.verifier import Verifier
from models.token_tree import TokenTree


@dataclass(frozen=True)
class Losslessness:
    """Holds what `check_lossless` found.

    Attributes:
      models: number of pairs of models that were enumerated.
      blocks: number of successive blocks.
      error: largest difference of a probability of the output from the target's.
      tolerance: largest error that rounding explains.
      accepted: expected number of accepted tokens of the first block, the mean over the models.
      sequential: the same for `token_rule`; a useful verifier does not accept fewer.
      worst: description of the model with the largest error.
    """

    models: int
    blocks: int
    error: float
    tolerance: float
    accepted: float
    sequential: float
    worst: str

    @property
    def is_lossless(self) -> bool:
        """Returns whether the output has the target's distribution."""
        return self.error <= self.tolerance

    @property
    def is_useful(self) -> bool:
        """Returns whether the verifier accepts at least as many tokens as `token_rule`."""
        return self.accepted >= self.sequential - self.tolerance

    @property
    def passed(self) -> bool:
        """Returns whether the verifier is lossless and useful."""
        return self.is_lossless and self.is_useful

    def __str__(self) -> str:
        verdict = "lossless" if self.is_lossless else "NOT lossless"
        if not self.is_useful:
            verdict += ", accepts fewer tokens than token by token"
        blocks = f", {self.blocks} blocks each" if self.blocks > 1 else ""
        text = f"{verdict}: largest error of a probability {self.error:.1e} over {self.models} pairs of models{blocks}"
        if not self.is_lossless:
            text += f", in {self.worst}"
        first = " of the first block" if self.blocks > 1 else ""
        return f"{text}; accepts {self.accepted:.4f} tokens{first} on average, token by token {self.sequential:.4f}"


def check_lossless(
    verifier: Verifier | Rule | TreeRule,
    *,
    blocks: int = 1,
    models: int = 60,
    seed: int = 0,
    dtype: Any = np.float64,
) -> Losslessness:
    """Enumerates the output of a verifier on random pairs of models.

    It examines the probabilities and residuals that the rule computes, of a rule for trees `TreeRule.stops`. A rule
    that draws in another way than from these, as `SpecTr.draw` does, needs a test of its draws beside it.

    Args:
      verifier: a rule like `models.decoding.verification.token_rule`, or a `Verifier` like
        `models.decoding.greedy_block.GREEDY_BLOCK` if something is carried from block to block; or a rule for trees,
        which gets small trees of several shapes.
      blocks: number of successive blocks, >= 1. A rule that carries nothing needs one only, and one for trees takes
        one. What a verifier carries is examined by two or more: the first G + `blocks` tokens are compared.
      models: number of pairs, >= 1.
      seed: seed of the models.
      dtype: NumPy type in which the verifier computes, float32 or float64.

    Raises:
      ValueError: `verifier` is a class, or `blocks` or `models` is outside its range.
    """
    if isinstance(verifier, type):
        name = verifier.__name__
        raise ValueError(f"verifier = {name}: is a class; give an instance, for example {name}()")
    if isinstance(verifier, TreeRule) and blocks != 1:
        raise ValueError(f"blocks = {blocks!r}: must be 1 for a rule for trees, which carries nothing")
    for option, value in (("blocks", blocks), ("models", models)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{option} = {value!r}: must be an integer >= 1")
    generator = np.random.default_rng(seed)
    errors, accepted, sequential, names = [], [], [], []
    for number in range(models):
        pair = draw_pair(generator, number)
        if isinstance(verifier, TreeRule):
            tree = _small_tree(verifier, pair.length, number)
            output = enumerate_tree(verifier, *pair.tables, pair.size, tree, dtype=dtype)
        else:
            output = enumerate_output(verifier, *pair.tables, pair.size, pair.length, blocks=blocks, dtype=dtype)
        expected = joint_law(pair.tables[0], pair.size, pair.length + blocks)
        errors.append(float(np.max(np.abs(output.law - expected))))
        accepted.append(float(output.accepted[0]))
        sequential.append(sequential_acceptance(*pair.tables, pair.size, pair.length))
        names.append(pair.name)
    worst = int(np.argmax(errors))
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    return Losslessness(
        models, blocks, errors[worst], tolerance, float(np.mean(accepted)), float(np.mean(sequential)), names[worst]
    )


def _small_tree(rule: TreeRule, length: int, number: int) -> TokenTree:
    """Returns a tree of depth `length`, in which nodes at one depth have two children; `number` selects the depth."""
    depth = 0 if rule.separate_chains else number % length
    return TokenTree.from_shape([1 + (place == depth) for place in range(length)])


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
            for prefix in texts_up_to(size, length)
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


def sequential_acceptance(target: Table, drafter: Table, size: int, length: int) -> float:
    """Returns the expected tau of `token_rule` in closed form."""
    return sum(
        float(np.prod([min(t[d], s[d]) for t, s, d in _along(target, drafter, prefix)]))
        for prefix in texts_up_to(size, length)
        if prefix
    )


def _along(target: Table, drafter: Table, prefix: tuple[int, ...]) -> Iterator[tuple[Any, Any, int]]:
    for place, token in enumerate(prefix):
        yield target[prefix[:place]], drafter[prefix[:place]], token
