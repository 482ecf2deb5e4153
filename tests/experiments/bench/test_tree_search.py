"""The proposed tree is the best one if blocks follow the law that the search takes them to follow."""

import math

import pytest

from experiments.bench.tree_search import _acceptance, propose
from models.decoding.tree_shapes import best_shape

SHAPES = ((4,), (2, 1), (3, 1), (2, 2), (2, 1, 1), (2, 1, 1, 1))
FIRST = [0.5, 0.65, 0.72, 0.76]  # share accepted of 1 to 4 children
DEEPER = 0.9
ONCE, BY_LEVEL, BY_NODE = 0.2, 0.05, 0.01


def call(tokens):
    """Returns the milliseconds of a call: a step at 8 tokens."""
    return 1 + 0.05 * tokens + 2.0 * (tokens >= 8)


def row(shape):
    nodes = sum(math.prod(shape[: depth + 1]) for depth in range(len(shape)))
    reached, accepted, alive = [], [], 10_000.0
    for depth, children in enumerate(shape):
        reached.append(alive)
        alive *= FIRST[children - 1] * DEEPER ** (depth > 0)
        accepted.append(alive)
    spent = call(nodes + 1) + ONCE + BY_LEVEL * len(shape) + BY_NODE * nodes
    name = f"tree:{','.join(map(str, shape))}"
    return {"mode": name, "milliseconds": spent, "reached": reached, "accepted": accepted}


def test_proposal_is_the_best_of_all_shapes():
    counts = (*range(1, 10), 13, 17)
    cost = {str(count): [0, call(count), 9] for count in counts}
    shares = [[share * DEEPER ** (depth > 0) for share in (*FIRST, *[FIRST[-1]] * 4)] for depth in range(4)]
    best = best_shape(
        shares,
        [call(count) + ONCE for count in range(1, 18)],
        [BY_LEVEL + BY_NODE * width for width in range(1, 9)],
    )
    line = row((1,) * 4) | {"mode": "block:4", "milliseconds": 0.0}
    found = propose([*(row(shape) for shape in SHAPES), line], cost)
    assert found == f"tree:{','.join(map(str, best.shape))}"
    # Eight tokens at once cost two milliseconds more than seven.
    assert 3 <= sum(math.prod(best.shape[: depth + 1]) for depth in range(len(best.shape))) <= 6


@pytest.mark.parametrize("rows", [[], [row(shape) for shape in SHAPES[:3]], [row(SHAPES[0]) | {"mode": "block:4"}] * 6])
def test_few_trees_give_no_proposal(rows):
    assert propose(rows, {"1": [1, 1, 1]}) is None


def test_nothing_is_proposed_where_nothing_was_drafted():
    empty = [row(shape) | {"reached": [0] * len(shape), "accepted": [0] * len(shape)} for shape in SHAPES]
    assert propose(empty, {"1": [1, 1, 1]}) is None


def test_children_that_are_never_accepted_give_no_numbers_that_are_not_finite():
    never = [row(shape) | {"accepted": [0.0] * len(shape)} for shape in SHAPES]
    assert propose(never, {"1": [1, 1, 1]}) is None


def test_times_below_the_targets_call_count_as_none():
    rows = [row(shape) | {"milliseconds": 0.01} for shape in SHAPES]
    assert propose(rows, {str(count): [0, call(count), 9] for count in (1, 7, 8, 17)}) is not None


def test_a_depth_that_was_never_reached_is_taken_to_be_as_the_one_above():
    measured = [
        ((1, 1, 1), {"reached": [100, 40, 0], "accepted": [40, 8, 0]}),
        ((2, 1, 1), {"reached": [100, 50, 0], "accepted": [50, 10, 0]}),
    ]
    shares = _acceptance(measured)
    assert shares[0][:2] == [0.4, 0.5]
    assert shares[1][0] == shares[2][0] == pytest.approx(0.2)
    assert shares[2][1] == pytest.approx(0.25)
