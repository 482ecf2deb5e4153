"""Tests of the division of rows into groups, and of the sums of groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl.fairness import columns, from_counts, from_rows
from fl.fairness.columns import divide_rows

LEVELS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.booleans()), min_size=1, max_size=30)


@given(LEVELS)
def test_each_row_has_the_name_of_its_group(rows):
    letters, numbers, flags = zip(*rows, strict=True)
    groups = divide_rows({"letter": letters, "number": np.array(numbers), "flag": list(flags)})
    assert [groups.names[code] for code in groups.codes] == rows
    assert groups.names == sorted(groups.names)
    assert len(groups.names) == len(set(letters)) * len(set(numbers)) * len(set(flags))


@given(LEVELS)
def test_beyond_the_listed_combinations_groups_are_those_with_rows(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_LISTED_GROUPS", 0)
        groups = divide_rows(dict(zip("xyz", zip(*rows, strict=True), strict=True)))
    assert groups.names == sorted(set(rows))
    assert [groups.names[code] for code in groups.codes] == rows
    assert len(groups.names) + groups.unlisted == np.prod([len(set(column)) for column in zip(*rows, strict=True)])


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "no column of groups is given: name at least one"),
        ({"a": []}, "columns a have no row: give at least two rows of each group"),
        ({"a": [1, 2], "b": ["x"]}, r"columns a, b have \[2, 1\] rows: give one value for each row"),
        ({"age": [1.5, 2.5, 3.0]}, r"column 'age' is continuous \(3 different numbers, such as 1.5\): give bands"),
        ({"age": np.arange(101)}, r"column 'age' is continuous \(101 different numbers, such as 0\)"),
        ({"a": ["x", None, "y", ""]}, "column 'a' has no value in 2 of 4 rows: leave them out, or give them a value"),
        ({"a": [1.0, float("nan")]}, "column 'a' has no value in 1 of 2 rows"),
        ({"a": "text"}, "column 'a' has type str: give a list or an array with one value for each row"),
        ({"a": np.zeros((2, 2))}, r"column 'a' has shape \(2, 2\): give one value for each row"),
        ({str(i): [0, 1] for i in range(63)}, "columns .* have 9.2e.18 combinations: give fewer columns"),
    ],
)
def test_bad_column_is_refused(features, message):
    with pytest.raises(ValueError, match=message):
        divide_rows(features)


def test_large_integers_are_names_of_groups():
    assert divide_rows({"a": [10**30, 10**400, 10**30]}).names == [(10**30,), (10**400,)]


def test_sums_of_rows_are_those_of_each_group():
    sums = from_rows([1.0, 3.0, 5.0, 2.0], np.array([0, 2, 2, 0]), 3, bounds=(1, 5))
    assert sums.counts.tolist() == [2, 0, 2]
    assert sums.sums.tolist() == [0.25, 0, 1.5]
    assert sums.squares.tolist() == [0.0625, 0, 1.25]
    assert sums.means.tolist()[::2] == [1.5, 4.0] and np.isnan(sums.means[1])
    given_sums = from_counts([2, 0, 2], [3, 0, 8], [5, 0, 34], bounds=(1, 5))
    assert given_sums.sums.tolist() == sums.sums.tolist() and given_sums.squares.tolist() == sums.squares.tolist()


@given(st.lists(st.integers(0, 1), min_size=1, max_size=9), st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_sums_are_binary_exactly_if_every_value_is_0_or_1(binary, scores):
    for values, expected in ((binary, True), (scores, set(scores) <= {0.0, 1.0})):
        # A score below 1e-154 has a square of 0; 0 or 1 is as good a description.
        if all(x in (0, 1) or 1e-150 < x < 1 - 1e-9 for x in values):
            assert from_rows(values, np.zeros(len(values), int), 2).is_binary == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([3], [1]), "there is 1 group: at least two are needed"),
        (([0, 0], [0, 0]), "no group has a row: give at least two rows of each group"),
        (([3, 2.5], [1, 1]), "counts hold 2.5: a number of rows must be an integer of at least 0"),
        (([3, -1], [1, 1]), "counts hold -1: a number of rows must be an integer"),
        (([3, np.nan], [1, 1]), "counts hold nan: every number must be finite"),
        (([3, 2], [1, 0.5]), "sums hold 0.5: values of 0 or 1 have integer sums; give squares for scores"),
        (([3, 2], [1, 3]), "group 1 has 2 rows, sum 3 and squares 3: no values between 0 and 1 add up to these"),
        (([3, 2], [1, 1], [1.0, 0.1]), "group 1 has 2 rows, sum 1 and squares 0.1: no values"),
        (([3, 2], [1, 1, 1]), r"counts have shape \(2,\), sums \(3,\), squares \(3,\): give one of each per group"),
    ],
)
def test_bad_sums_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        from_counts(*arguments)


def test_scores_within_other_bounds_need_squares():
    with pytest.raises(ValueError, match="squares are missing: values between -1 and 1 need the sum of their squares"):
        from_counts([3, 2], [1, 1], bounds=(-1, 1))


@pytest.mark.parametrize(
    ("values", "bounds", "message"),
    [
        ([0.5, np.nan], (0, 1), "1 of 2 values are nan: leave these rows out"),
        ([0.5, 2.0], (0, 1), r"1 of 2 values lie outside \[0, 1\], such as 2: give the least and the largest possible"),
        ([0.5, 1.0], (1, 0), r"bounds \(1, 0\) are wrong: give the least and the largest possible value"),
        ([], (0, 1), "there is no row: give at least two rows of each group"),
    ],
)
def test_bad_rows_are_refused(values, bounds, message):
    with pytest.raises(ValueError, match=message):
        from_rows(values, np.arange(len(values)), 2, bounds=bounds)
