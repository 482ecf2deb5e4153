import numpy as np
import pytest

from tests.tolerance import condition, rounding


@pytest.mark.parametrize("size", [10, 1000])
def test_rounding_covers_sums_in_any_order_and_no_term_left_out(size):
    terms = np.random.default_rng(0).normal(size=size).astype(np.float32)
    exact = np.sum(terms, dtype=np.float64)
    allowed = rounding(size, np.abs(terms).sum())
    sums = [np.cumsum(order, dtype=np.float32)[-1] for order in (terms, terms[::-1], np.sort(terms))]
    assert max(abs(found - exact) for found in sums) < allowed < np.abs(terms).max()


def test_condition_of_a_product_is_the_sum_of_its_terms_and_of_a_recurrence_grows():
    """Of (x·w): between the largest term's size and Σ|terms|, which all signs together reach; of w^n: n·w^n."""
    values = {"w": np.array([3.0, -2.0, 1.0])}
    assert 2.0 <= condition(lambda v: [v["w"] @ np.ones(3)], values) <= 6.0 + 1e-9
    assert condition(lambda v: [v["w"] ** 9], {"w": np.array([2.0])}) == pytest.approx(9 * 2.0**9, rel=0.01)
