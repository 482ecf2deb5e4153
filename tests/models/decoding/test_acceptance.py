import json
import math
from dataclasses import replace

import numpy as np
import pytest

from models.decoding.acceptance import Acceptance

# Five blocks with (drafted, accepted) = (2, 2), (2, 0), (1, 1), (0, 0), (2, 1).
COUNTS = Acceptance(calls=5, decided=9, drafted=(4, 3), reached=(4, 2), accepted=(3, 1))
NONE = Acceptance(0, 0, (0, 0), (0, 0), (0, 0))


def test_from_counts_sums_the_rows():
    counts = {
        "calls": np.array([2, 3]),
        "decided": np.array([5, 4]),
        "drafted": np.array([[2, 2], [2, 1]]),
        "reached": np.array([[2, 1], [2, 1]]),
        "accepted": np.array([[2, 1], [1, 0]]),
    }
    assert Acceptance.from_counts(counts) == COUNTS


def test_total_sums_each_place():
    assert Acceptance.total([COUNTS, NONE, COUNTS]) == Acceptance(10, 18, (8, 6), (8, 4), (6, 2))


def test_rates_follow_their_definitions():
    assert COUNTS.block_efficiency == 9 / 5
    assert COUNTS.conditional_rates == (3 / 4, 1 / 2)
    assert COUNTS.unconditional_rates == (3 / 4, 1 / 3)
    assert COUNTS.acceptance_rate == 4 / 7
    assert COUNTS.lengths == (2, 2, 1)


def test_lengths_sum_to_the_calls_and_give_back_the_decided_tokens():
    assert sum(COUNTS.lengths) == COUNTS.calls
    assert sum((length + 1) * blocks for length, blocks in enumerate(COUNTS.lengths)) == COUNTS.decided


def test_interval_is_the_normal_one_of_the_tokens_per_block():
    tokens = np.array([3, 1, 2, 1, 2])
    half = 1.959963984540054 * np.std(tokens, ddof=1) / math.sqrt(5)
    np.testing.assert_allclose(COUNTS.block_efficiency_interval, [1.8 - half, 1.8 + half], rtol=1e-12)


def test_interval_covers_the_mean_at_its_level():
    """Intervals cover with 95 %; of 2000, less than 93 or more than 97 % do with probability 4e-5 (fixed seed)."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        accepted = generator.binomial(2, 0.6, 200)
        places = tuple(int((accepted > place).sum()) for place in range(2))
        found = Acceptance(200, int(accepted.sum()) + 200, (200, 200), (200, places[0]), places)
        low, high = found.block_efficiency_interval
        covered += low <= 2.2 <= high
    assert 0.93 <= covered / 2000 <= 0.97


def test_nothing_counted_gives_nan_and_none():
    assert math.isnan(NONE.block_efficiency) and math.isnan(NONE.acceptance_rate)
    assert all(map(math.isnan, (*NONE.block_efficiency_interval, *NONE.conditional_rates, *NONE.unconditional_rates)))
    written = json.loads(json.dumps(NONE.to_dict(), allow_nan=False))
    assert written["block_efficiency"] is None and written["block_efficiency_interval"] == [None, None]


def test_one_call_has_no_interval():
    one = Acceptance(1, 2, (1,), (1,), (1,))
    assert all(map(math.isnan, one.block_efficiency_interval))
    assert (
        str(one)
        == "2.00 tokens per target call over 1 calls; accepted 100% of the drafted tokens, by place once reached: 100%"
    )


def test_dict_holds_counts_rates_and_histogram():
    written = json.loads(json.dumps(COUNTS.to_dict(), allow_nan=False))
    assert written["calls"] == 5 and written["decided"] == 9
    assert (written["drafted"], written["reached"], written["accepted"]) == ([4, 3], [4, 2], [3, 1])
    assert written["accepted_lengths"] == [2, 2, 1]
    assert written["conditional_rates"] == [3 / 4, 1 / 2]
    assert written["acceptance_rate"] == 4 / 7


def test_share_of_the_optimum_is_that_of_the_sums():
    parts = [replace(COUNTS, by_k_seq=3.0, by_best=4.0), replace(COUNTS, by_k_seq=2.5, by_best=2.5)]
    total = Acceptance.total(parts)
    assert total.of_optimum == 5.5 / 6.5 and total.to_dict()["of_optimum"] == 5.5 / 6.5
    assert str(total).endswith("75%, 50%; K-SEQ accepts 84.6% of the optimum")
    assert COUNTS.to_dict()["of_optimum"] is None and "K-SEQ" not in str(COUNTS)


def test_share_of_a_rule_that_is_proved_to_be_the_best_is_one_where_anything_was_drafted():
    best, none = (replace(counts, is_best=True) for counts in (COUNTS, NONE))
    total = Acceptance.total([best, none])
    assert total.of_optimum == total.to_dict()["of_optimum"] == 1
    assert str(total).endswith("50%; the rule accepts 100% of the optimum for its drafts, as is proved")
    assert none.to_dict()["of_optimum"] is None and not Acceptance.total([best, COUNTS]).is_best


@pytest.mark.parametrize(
    ("counts", "end"),
    [
        (COUNTS, " over 5 calls; accepted 57% of the drafted tokens, by place once reached: 75%, 50%"),
        (Acceptance(3, 3, (2, 0), (2, 0), (0, 0)), "; accepted 0% of the drafted tokens, by place once reached: 0%, -"),
        (Acceptance(3, 3, (), (), ()), " over 3 calls, nothing drafted"),
    ],
)
def test_text_says_what_was_drafted_and_accepted(counts, end):
    assert str(counts).endswith(end)
