"""The best shape has the most tokens per time of all shapes that fit."""

import itertools
from typing import Any

import numpy as np
import pytest

from models.decoding.tree_shapes import best_shape
from models.token_tree import TokenTree


def by_brute_force(acceptance, target_times, draft_times, max_nodes):
    """Returns the largest speed of any shape, with every shape tried and every tree built."""
    speeds = [1 / target_times[0]]
    for depth in range(1, len(acceptance) + 1):
        for shape in itertools.product(range(1, len(acceptance[0]) + 1), repeat=depth):
            if np.sum(np.cumprod(shape)) > max_nodes:
                continue
            tree = TokenTree.from_shape(shape)
            reached = np.cumprod([acceptance[i][children - 1] for i, children in enumerate(shape)])
            steps = sum(draft_times[len(level) - 1] for level in tree.levels)
            speeds.append((1 + reached.sum()) / (target_times[len(tree) - 1] + steps))
    return max(speeds)


def test_best_shape_is_the_best_of_all_on_random_measurements():
    generator, depths = np.random.default_rng(0), set()
    for _ in range(60):
        acceptance = np.sort(generator.uniform(0.2, 0.95, [4, 3]), axis=1).tolist()
        target_times = (1 + np.cumsum(generator.exponential(generator.choice([0.003, 0.03, 0.3]), 11))).tolist()
        draft_times = (0.03 + np.cumsum(generator.exponential(0.02, 12))).tolist()
        found = best_shape(acceptance, target_times, draft_times, max_nodes=10)
        assert found.speed == pytest.approx(by_brute_force(acceptance, target_times, draft_times, 10), rel=1e-12)
        depths.add(len(found.shape))
    assert len(depths) > 2


def test_nothing_is_drafted_where_no_draft_pays():
    found = best_shape([[0.3, 0.4]] * 3, [1.0] + [9.0] * 16, [0.1] * 8)
    assert found.shape == () and found.speed == 1


def test_free_drafts_make_the_tree_as_large_as_it_may_be():
    found = best_shape([[0.5, 0.9]] * 2, [1.0] * 17, [0.0] * 8)
    assert found.shape == (2, 2) and found.tokens == pytest.approx(1 + 0.9 + 0.81)


def test_a_depth_has_as_many_nodes_as_there_are_times_of_the_drafter():
    assert best_shape([[0.5, 0.9]] * 2, [1.0] * 17, [0.0] * 2).shape == (2, 1)


def test_measurements_may_be_iterators_and_arrays():
    acceptance, target_times, draft_times = [[0.5, 0.9]] * 2, [1.0] * 17, [0.0] * 8
    expected = best_shape(acceptance, target_times, draft_times)
    iterators: Any = ((iter(row) for row in acceptance), iter(target_times), (time for time in draft_times))
    arrays: Any = map(np.array, (acceptance, target_times, draft_times))
    assert best_shape(*iterators) == best_shape(*arrays) == expected and expected.shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_nodes": 64}, "^max_nodes = 64: must be an integer from 0 to 63$"),
        ({"target_times": [1.0] * 3}, "^target_times: 3 times are too few for max_nodes = 16; give 17$"),
        ({"target_times": [0.0] * 17}, "^target_times: 0.0 must be a number > 0$"),
        ({"draft_times": [float("nan")]}, "^draft_times: nan must be a number >= 0$"),
        ({"acceptance": [[1.5]]}, r"^acceptance\[0\]: 1.5 must be a number from 0 to 1$"),
        ({"acceptance": [[0.5], ["a"]]}, r"^acceptance\[1\]: 'a' must be a number from 0 to 1$"),
        ({"acceptance": [[True]]}, r"^acceptance\[0\]: True must be a number from 0 to 1$"),
        ({"acceptance": [0.5]}, r"^acceptance\[0\] = 0.5: must be a sequence of numbers from 0 to 1$"),
        ({"acceptance": 0.5}, "^acceptance = 0.5: must be a sequence of numbers from 0 to 1 for each depth$"),
        ({"target_times": 1.0}, "^target_times = 1.0: must be a sequence of numbers > 0$"),
        ({"target_times": ["1"] * 17}, "^target_times: '1' must be a number > 0$"),
        ({"draft_times": [float("inf")]}, "^draft_times: inf must be a number >= 0$"),
    ],
)
def test_bad_measurements_are_refused_in_one_line(changes, message):
    arguments: dict[str, Any] = {
        "acceptance": [[0.5]],
        "target_times": [1.0] * 17,
        "draft_times": [0.1],
        "max_nodes": 16,
    }
    with pytest.raises(ValueError, match=message):
        best_shape(**{**arguments, **changes})
