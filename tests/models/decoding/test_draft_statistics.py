"""What the oracle counts bounds every refined draft from the same position; repetition is counted by hand."""

import math
from typing import Any

import numpy as np
import pytest

from models import katz
from models.decoding.draft_statistics import measure_repetition, oracle_lengths, successive_blocks
from models.decoding.drafters import ModelDrafter
from models.decoding.heads_drafter import HeadsDrafter
from models.decoding.katz_tables import KatzTables
from models.decoding.lattice_drafter import LatticeDrafter
from tests.models.decoding.table_heads import decode, draw_heads
from tests.models.decoding.table_model import TableModel

SIZE, HEADS, BEGIN, POSITIONS = 8, 4, 2, 16  # all paths of two candidates are 8
SEEDS = range(3)


class Text:
    """Holds a greedy text of a model without equal logits, and the heads' tokens by rank at its positions."""

    def __init__(self, seed):
        self.own = draw_heads(seed, SIZE, HEADS, is_right=0.4, values=0)
        text = np.random.default_rng(seed).integers(0, SIZE, BEGIN).tolist()
        while len(text) < BEGIN + POSITIONS + HEADS:
            text.append(self.own.greedy(text))
        self.prompts = [text[: BEGIN + place] for place in range(POSITIONS)]
        heads = np.array([self.own.heads(prompt[:-1]) for prompt in self.prompts])
        self.ranked = np.argsort(-heads, axis=2)
        self.greedy = text[BEGIN : BEGIN + POSITIONS + HEADS - 2]

    def oracle(self, top_k):
        return oracle_lengths(self.ranked[..., :top_k], self.greedy)

    def lengths(self, drafter, paths=1):
        """Returns the length of the block that the decoder gives at each position."""
        return np.array([len(block) for (block,) in decode(self.own, drafter, self.prompts, 1, paths)])


@pytest.fixture(scope="module", params=SEEDS)
def text(request):
    return Text(request.param)


def test_oracle_of_one_candidate_counts_the_blocks_of_the_heads_own_drafts(text):
    np.testing.assert_array_equal(text.oracle(1), text.lengths(HeadsDrafter()))
    (blocks,) = decode(text.own, HeadsDrafter(), text.prompts[:1], 4)
    assert successive_blocks(text.oracle(1))[:4].tolist() == [len(block) for block in blocks]


def test_more_candidates_never_shorten_a_block_and_all_tokens_give_the_longest(text):
    lengths = np.array([text.oracle(top_k) for top_k in range(1, SIZE + 1)])
    assert (np.diff(lengths, axis=0) >= 0).all() and (lengths[-1] == HEADS).all() and lengths[0].min() == 1


def test_no_refined_draft_of_the_same_candidates_is_accepted_further_than_the_oracle(text):
    small: Any = TableModel(np.random.default_rng(3).normal(size=[SIZE] * 3))
    for top_k, alpha in ((2, 0.5), (3, 5.0)):
        refined = text.lengths(HeadsDrafter(ModelDrafter(small, {}), top_k, alpha))
        assert (refined <= text.oracle(top_k)).all()


def test_more_best_paths_never_shorten_a_block_and_all_paths_reach_the_oracle(text):
    texts = np.random.default_rng(1).integers(1, SIZE, [20, 12])
    for tables in (None, KatzTables(katz.learn(texts, SIZE, 2))):
        lengths = [text.lengths(LatticeDrafter(tables, 2, 0.5), paths) for paths in (1, 3, 2 ** (HEADS - 1))]
        assert (np.diff(lengths, axis=0) >= 0).all()
        np.testing.assert_array_equal(lengths[-1], text.oracle(2))


def test_hand_counted_blocks():
    candidates = [[[3, 4], [4, 2]], [[1, 2], [3, 0]], [[1, 0], [2, 3]], [[3, 4], [2, 1]]]
    assert oracle_lengths(candidates, [4, 2, 2, 3, 1]).tolist() == [3, 2, 1, 3]
    assert successive_blocks([3, 1, 2, 1, 5]).tolist() == [3, 1, 5]
    assert successive_blocks([2, 1, 2]).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("drafts", "neighbours", "longest_run"),
    [
        ([[7, 7, 7, 2], [1, 2, 3, 4]], 2 / 6, (3 + 1) / 2),
        ([[1, 1, 2, 2], [5, 1, 1, 5], [4, 4, 4, 4]], (2 + 1 + 3) / 9, (2 + 2 + 4) / 3),
        ([[1, 1, 2, 1, 1, 1]], 3 / 5, 3),
        ([[1], [1]], math.nan, 1),
        (np.zeros([0, 3], np.int32), math.nan, math.nan),
    ],
)
def test_hand_counted_repetition(drafts, neighbours, longest_run):
    np.testing.assert_array_equal(measure_repetition(drafts), (neighbours, longest_run))


def test_shapes_that_do_not_fit_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"candidates of shape \(2, 1, 1\) and text of shape \(3,\): must be \[T"):
        oracle_lengths([[[1]], [[2]]], [1, 2, 3])
    with pytest.raises(ValueError, match=r"drafts of shape \(3,\): must be a matrix \[drafts, h\]"):
        measure_repetition([1, 2, 3])
