"""Texts that are drafted as trees, through the real loop, have exactly the target's joint distribution.

The tests are those of `test_loop_law`: Pearson's, on all texts of D + 2 tokens for trees of depth D, at significance
level 1e-6 with fixed seeds.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from models.decoding.block_decoder import BlockDecoder
from models.decoding.choices import Processing
from models.decoding.spectr import SpecTr
from models.decoding.traversal import Traversal
from models.decoding.tree_speculation import TreeSpeculation
from models.token_tree import TokenTree
from tests.models.decoding.test_loop_law import PENALTIES, TARGET, TOP_K, Case, p_value

RULES: dict[str, Any] = {
    "spectr": SpecTr(),
    "tree": Traversal("greedy"),
    "independent": Traversal("independent"),
    "without-replacement": Traversal("without-replacement"),
}


@dataclass(frozen=True)
class TreeCase(Case):
    """Says how many texts are drawn, and with which tree."""

    shape: tuple[int, ...] = ()

    def __str__(self):
        return super().__str__() + "-" + "x".join(map(str, self.shape))

    def build(self) -> BlockDecoder:
        return TreeSpeculation(
            TARGET,
            {},
            RULES[self.method],
            self.drafter(),
            TokenTree.from_shape(self.shape),
            penalties=self.processing != Processing(),
            log_probs=False,
        )


def case(method, shape, **options):
    return TreeCase(method, len(shape), shape=shape, **options)


CASES = [
    case("tree", (2, 1)),
    case("tree", (3, 2), hesitant=True, processing=PENALTIES, stop=2),
    case("spectr", (3, 1), hesitant=True, processing=PENALTIES, sequence=(0, 1), rows=1 << 12),
    case("independent", (2, 2), processing=TOP_K),
    case("without-replacement", (2, 1), hesitant=True, stop=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_joint_law_of_texts_drafted_as_trees_is_that_of_the_target(case):
    assert p_value(case) > 1e-6
