"""What a device's draws say about K-SEQ beside the best rule for the same drafts."""

from typing import Any

import numpy as np
import pytest

from models.decoding.choices import Choices
from models.decoding.transport import k_seq_acceptance, optimal_acceptance
from models.device_blocks import BlockDraw


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
