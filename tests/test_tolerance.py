import math

import numpy as np
import pytest

from tests.tolerance import condition, conditions, rounding, weights_conditions


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


@pytest.mark.parametrize(
    ("operations", "magnitude"),
    [(10, math.inf), (10, math.nan), (10, -1.0), (math.inf, 1.0), (math.nan, 1.0), (-1, 1.0)],
)
def test_rounding_refuses_what_is_not_finite_or_negative(operations, magnitude):
    """A difference is never above an infinite tolerance."""
    with pytest.raises(ValueError, match="both must be finite and >= 0"):
        rounding(operations, magnitude)


def square(values):
    with np.errstate(over="ignore"):
        return [np.ones(2), np.square(values["x"])]


ALMOST_OVERFLOWS = np.sqrt(np.finfo(np.float32).max) * np.float32(1 - 1e-6)


@pytest.mark.parametrize(
    ("function", "value", "message"),
    [
        (square, ALMOST_OVERFLOWS, "a result is not finite"),
        (lambda v: [np.ones(2), v["x"] + np.nan], 1.0, "a result is not finite"),
        (lambda v: [v["x"], np.array([1.0, np.inf])], 1.0, "a result is not finite"),
        (lambda v: [v["x"], np.where(v["x"] > 1.0, np.nan, 1.0)], 1.0, "a result is not finite"),
        (lambda v: [v["x"], np.floor(v["x"])], 1.0, "result 1, of entries up to 1, changes by 1 if"),
        (lambda v: [v["x"], np.sign(v["x"] - 1.0) * 1e-5], 1.0, "result 1, of entries up to 0, changes by 1e-05"),
        (lambda v: [v["x"] ** 9000], 1.0, "result 0, of entries up to 1, changes by 0.03"),
    ],
)
def test_conditions_refuse_results_that_jump_or_are_not_finite(function, value, message):
    for measure in (condition, conditions):
        with pytest.raises(ValueError, match=message):
            measure(function, {"x": np.array([value])})


def test_conditions_of_long_chains_of_zero_and_of_what_cancels_are_measured():
    values = {"x": np.array([1.0])}
    found = conditions(lambda v: [v["x"] ** 2000, 0 * v["x"], np.zeros(0), v["x"] - 1.0], values)
    assert found == [pytest.approx(2000.0, rel=0.01), 0.0, 0.0, pytest.approx(1.0)]


def test_weights_conditions_refuse_and_leave_model_as_it_was():
    class Model:
        weights = [np.array([1.0])]

        def get_weights(self):
            return self.weights

        def set_weights(self, weights):
            self.weights = weights

    model = Model()
    assert weights_conditions(model, lambda: [model.weights[0] * 3]) == [pytest.approx(3.0)]
    with pytest.raises(ValueError, match="it jumps"):
        weights_conditions(model, lambda: [np.floor(model.weights[0])])
    assert model.weights == [np.array([1.0])]
