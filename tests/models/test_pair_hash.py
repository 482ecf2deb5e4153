import numpy as np
import pytest

from models.pair_hash import hash_pairs


def draw_pairs(count, lefts, rights, seed=0):
    codes = np.random.default_rng(seed).choice(lefts * rights, count, replace=False)
    return codes // rights, codes % rights


@pytest.mark.parametrize(
    ("count", "lefts", "rights"),
    [(0, 1, 5), (1, 1, 1), (2, 2, 1), (9, 3, 3), (36, 6, 6), (40, 1, 40), (500, 20, 30), (1000, 300, 200)],
)
def test_every_pair_has_a_slot_of_its_own_among_few_more_slots_than_pairs(count, lefts, rights):
    left, right = draw_pairs(count, lefts, rights)
    pairs = hash_pairs(left, right, lefts, rights)
    slots = pairs.slots_of(left, right)
    assert len(np.unique(slots)) == count
    assert pairs.slots <= (1.2 if count > 100 else 2) * count + 2
    every = pairs.slots_of(*np.indices((lefts, rights)).reshape(2, -1))
    assert every.min() >= 0 and every.max() < pairs.slots
    buckets = len(pairs.displacement)
    assert buckets & (buckets - 1) == 0 and max(pairs.left_bucket.max(), pairs.right_bucket.max()) < buckets
    # A sum of one number of each kind and a displacement is below twice the number of slots.
    assert max(pairs.left_slot.max(), pairs.right_slot.max()) <= (pairs.slots - 1) // 2
    assert pairs.displacement.min() >= 0 and pairs.displacement.max() < pairs.slots


def test_the_same_pairs_have_the_same_hash():
    left, right = draw_pairs(300, 50, 40)
    one, other = (hash_pairs(left, right, 50, 40) for _ in range(2))
    for name, expected in other._asdict().items():
        np.testing.assert_array_equal(getattr(one, name), expected)
