"""What a device's draws say about K-SEQ beside the best rule for the same drafts."""

from typing import Any

import numpy as np
import pytest

from models import device_blocks
from models.decoding.block_decoder import Block
from models.decoding.choices import Choices
from models.decoding.transport import k_seq_acceptance, optimal_acceptance
from models.device_blocks import BlockDraw
from models.signatures import _name_block
from tests.models.fake_device import FIRST_DRAFTER, FIRST_TARGET, fake


def test_acceptance_of_independent_drafts_is_compared_with_the_best_rule():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
    row = np.zeros([1, 3], np.float32)
    parts = {"tokens": np.ones([1, 3], np.int32), "log_probs": row, "unprocessed_log_probs": row}
    # The second block drafts nothing, and does not count.
    blocks = [
        {**parts, "count": [2], "drafted": [2], "first_target": [1.00001 * q], "first_drafter": [p]},
        {**parts, "count": [1], "drafted": [0], "first_target": [q], "first_drafter": [np.zeros(3)]},
    ]
    signatures: Any = (lambda **inputs: blocks.pop(0), None)
    drawn = BlockDraw(signatures, {}, 1, {}, Choices(3), context=None, num_drafts=2)
    assert len(list(drawn)) == 3
    expected = k_seq_acceptance(p, q, 2), optimal_acceptance(p, q, 2)
    assert (drawn.acceptance.by_k_seq, drawn.acceptance.by_best) == pytest.approx(expected, abs=1e-12)


def draw(decoding, **options):
    calls: list[str] = []
    (drawn,) = fake(decoding, 3, calls.append).draws([1, 5], [Choices(6)], **options)
    assert isinstance(drawn, BlockDraw)
    assert list(drawn) == [100, 101] * 3
    return drawn, calls


def test_prompt_is_read_and_blocks_are_drawn_by_the_signatures_of_their_kind():
    drawn, calls = draw("spectr")
    assert calls == ["read", "block", "block", "block"]
    assert (drawn.acceptance.calls, drawn.acceptance.accepted) == (3, (3,))


def test_k_seq_is_compared_for_the_number_of_drafts_of_the_file_if_that_is_asked_for():
    p, q = (row.astype(np.float64) for row in (FIRST_DRAFTER, FIRST_TARGET))
    found = draw("spectr", compare=True)[0].acceptance
    expected = 3 * k_seq_acceptance(p / p.sum(), q / q.sum(), 3), 3 * optimal_acceptance(p / p.sum(), q / q.sum(), 3)
    assert (found.by_k_seq, found.by_best) == pytest.approx(expected, rel=1e-12)
    assert draw("spectr")[0].acceptance.by_best == 0


def test_the_rule_of_a_tree_is_the_best_for_its_drafts():
    assert draw("tree", compare=True)[0].acceptance.of_optimum == 1
    assert not draw("block", compare=True)[0].acceptance.is_best


def test_drawing_leaves_the_comparison_to_the_acceptance(monkeypatch):
    compared: list[int] = []

    def count(drafter, target, num_drafts):
        compared.append(num_drafts)
        return 0.5

    monkeypatch.setattr(device_blocks, "k_seq_acceptance", count)
    monkeypatch.setattr(device_blocks, "optimal_acceptance", lambda p, q, count: 1.0)
    drawn, _ = draw("spectr", compare=True)
    assert compared == []
    assert drawn.acceptance.by_best == drawn.acceptance.by_best == 3
    assert compared == [3, 3, 3]


def test_block_of_a_signature_names_the_distributions_of_target_and_drafter():
    block = Block(0, 0, 0, 0, 0, ("of target", "of drafter"))
    found = _name_block(block)
    assert (found["first_target"], found["first_drafter"]) == ("of target", "of drafter")
    assert set(_name_block(block._replace(first=()))) == set(found) - {"first_target", "first_drafter"}
