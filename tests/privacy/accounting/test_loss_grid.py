"""Tests of the grids of privacy loss distributions."""

import math

import pytest

from privacy.accounting import loss_grid
from privacy.accounting.costs import Gaussian

DELTA = 1e-5


@pytest.mark.parametrize("noise_multiplier", [0.003, 0.06, 0.2, 1.0, 100.0, 1e8])
@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 1000, 10**6])
def test_chosen_interval_needs_at_most_the_given_points(noise_multiplier, rate, count):
    cost = Gaussian(noise_multiplier, count, rate)
    interval = loss_grid.choose_interval(cost.largest_loss, cost.renyi, loss_grid.FINE)
    assert cost.largest_loss / interval <= loss_grid.FINE
    if math.isfinite(interval):
        assert interval == 2.0 ** round(math.log2(interval)) <= loss_grid.WIDEST_INTERVAL


def compose_failing_below(interval, error):
    """Returns a `compose` that raises `error` on grids finer than `interval`; its ε is the grid's interval."""

    class Distribution:
        def __init__(self, epsilon):
            self.epsilon = epsilon

        def get_epsilon_for_delta(self, delta):
            assert delta == DELTA
            return self.epsilon

    def compose(width):
        if width < interval:
            raise error
        return Distribution(width)

    return compose


@pytest.mark.parametrize(
    ("compose", "expected"),
    [
        (compose_failing_below(0.0, ValueError()), 0.25),
        (compose_failing_below(2.0, ValueError("deltas are not in non-increasing order:\ndeltas=[0.1 0.2]")), 2.0),
        (compose_failing_below(1000.0, ValueError()), math.inf),
        (compose_failing_below(2.0, OverflowError()), math.inf),
    ],
)
def test_read_epsilon_widens_grid_on_which_library_fails(compose, expected):
    assert loss_grid.read_epsilon(compose, 0.25, DELTA) == expected


def test_read_epsilon_is_infinite_without_interval():
    assert loss_grid.read_epsilon(compose_failing_below(0.0, ValueError()), math.inf, DELTA) == math.inf


def test_least_delta_grows_with_number_of_releases():
    assert loss_grid.least_delta(1) == loss_grid.least_delta(1000) == 1e-12
    assert loss_grid.least_delta(10**6) == pytest.approx(1e-9)
    assert loss_grid.least_delta(10**6 + 1) == math.inf


@pytest.mark.parametrize("count", [100, 10_000, 1_000_000])
def test_rounding_of_composition_is_below_one_percent_of_least_delta(count):
    """The mechanism is a Gaussian, whose composed δ is known exactly.

    The grid itself widens the distribution by a share that falls with the interval.
    """
    from privacy.accounting.composition import gaussian_epsilon

    z, delta = math.sqrt(count), loss_grid.least_delta(count)
    composed = loss_grid.gaussian(z, 1.0, 2.0**-13).self_compose(count)
    exact = gaussian_epsilon(1.0, delta * 1.01)
    assert composed.get_epsilon_for_delta(delta) >= exact
