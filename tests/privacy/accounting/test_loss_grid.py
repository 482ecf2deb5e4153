import math

import pytest

from privacy.accounting import loss_grid
from privacy.accounting.costs import Gaussian

DELTA = 1e-5


@pytest.mark.parametrize("noise_multiplier", [0.003, 0.06, 0.2, 1.0, 100.0, 1e8])
@pytest.mark.parametrize("rate", [1e-9, 1e-3, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 1000, 10**6])
def test_a_grid_has_at_most_the_points_asked_for_whatever_the_noise(noise_multiplier, rate, count):
    cost = Gaussian(noise_multiplier, count, rate)
    interval = loss_grid.choose_interval(cost.largest_loss, cost.renyi, loss_grid.FINE)
    assert cost.largest_loss / interval <= loss_grid.FINE
    if math.isfinite(interval):
        assert interval == 2.0 ** round(math.log2(interval)) <= loss_grid.WIDEST_INTERVAL


def failing_below(interval, error):
    """A composition that the library can do on grids of `interval` or wider; its ε is the interval's."""

    class Distribution:
        def __init__(self, epsilon):
            self.epsilon = epsilon

        def get_epsilon_for_delta(self, delta):
            assert delta == DELTA
            return self.epsilon

    def compose(asked):
        if asked < interval:
            raise error
        return Distribution(asked)

    return compose


@pytest.mark.parametrize(
    ("compose", "want"),
    [
        (failing_below(0.0, ValueError()), 0.25),
        (failing_below(2.0, ValueError("deltas are not in non-increasing order:\ndeltas=[0.1 0.2]")), 2.0),
        (failing_below(1000.0, ValueError()), math.inf),
        (failing_below(2.0, OverflowError()), math.inf),
    ],
)
def test_a_grid_that_defeats_the_library_is_replaced_by_a_wider_one(compose, want):
    assert loss_grid.read_epsilon(compose, 0.25, DELTA) == want


def test_no_interval_means_no_epsilon():
    assert loss_grid.read_epsilon(failing_below(0.0, ValueError()), math.inf, DELTA) == math.inf


def test_the_least_delta_grows_with_the_rounding_of_the_releases():
    assert loss_grid.least_delta(1) == loss_grid.least_delta(1000) == 1e-12
    assert loss_grid.least_delta(10**6) == pytest.approx(1e-9)
    assert loss_grid.least_delta(10**6 + 1) == math.inf


@pytest.mark.parametrize("count", [100, 10_000, 1_000_000])
def test_rounding_of_a_power_is_below_a_hundredth_of_the_least_delta(count):
    """Of a Gaussian, whose composed δ is known exactly; the grid widens it by a share that falls with its interval."""
    from privacy.accounting.composition import gaussian_epsilon

    z, delta = math.sqrt(count), loss_grid.least_delta(count)
    composed = loss_grid.gaussian(z, 1.0, 2.0**-13).self_compose(count)
    exact = gaussian_epsilon(1.0, delta * 1.01)
    assert composed.get_epsilon_for_delta(delta) >= exact
