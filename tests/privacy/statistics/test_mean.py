"""Tests the private mean against closed forms of its error, and against an attack on the last bits of its noise.

Each Monte-Carlo comparison allows five standard errors of the mean squared error, so it fails by chance with
probability below 1e-6; seeds are fixed.
"""

import dataclasses
import functools
import logging
import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import dp_mean
from privacy.accounting import costs
from privacy.accounting.composition import gaussian_epsilon
from privacy.noise import exact
from privacy.noise.randomness import SeededRandomness
from privacy.statistics.mean import STEPS, BoundedMean, Mechanism, hourglass_core, worst_case

TRIALS = 50_000


@functools.cache
def scaled_errors(mechanism: Any, n, epsilon, mu, relation="add-or-remove-one", delta=0.0, seed=1, trials=TRIALS):
    """Returns n² (estimate - mu)² for each of `trials` releases at ε each, which are coordinates of one call."""
    mean = BoundedMean(0.0, 1.0, epsilon * trials, mechanism, relation, delta, trials)
    ones = round(mu * n)
    assert ones == pytest.approx(mu * n)
    sums = np.repeat(np.array([[ones * STEPS], [(n - ones) * STEPS]]), trials, axis=1)
    return n**2 * np.square(mean.release(sums, SeededRandomness(seed)).value - mu)


def agrees(errors, expected, slack=0.01):
    """Returns whether the mean is within five standard errors and `slack`, which allows for terms of order 1/n."""
    return abs(errors.mean() - expected) < 5 * errors.std() / math.sqrt(len(errors)) + slack * expected


FORMULAS = {
    "sum-count": lambda e, mu: 8 * (1 + mu**2) / e**2,
    "midpoint": lambda e, mu: (2 + 8 * (mu - 0.5) ** 2) / e**2,
    "transformed-laplace": lambda e, mu: 2 * (mu**2 + (1 - mu) ** 2) / e**2,
    "hourglass": lambda e, mu: worst_case(e) * (mu**2 + (1 - mu) ** 2),
}


@pytest.mark.parametrize("mechanism", FORMULAS)
@pytest.mark.parametrize(
    ("n", "epsilon", "mu"), [(1000, 1, 0.3), (1000, 1, 0.5), (1000, 1, 0.9), (200, 4, 0.1), (20_000, 0.1, 0.5)]
)
def test_error_of_each_mechanism_agrees_with_its_closed_form(mechanism, n, epsilon, mu):
    assert agrees(scaled_errors(mechanism, n, epsilon, mu), FORMULAS[mechanism](epsilon, mu))


@pytest.mark.parametrize(
    ("n", "epsilon", "mu", "measured"),
    [
        (1000, 1, 0.3, (8.73, 2.328, 1.161, 1.112)),
        (1000, 0.1, 0.5, (1006.6, 201.3, 100.3, 100.1)),
        (200, 4, 0.1, (0.504, 0.205, 0.1027, 0.0533)),
        (1000, 1, 0, (3.99, 1.99, 0.993, 0.954)),  # at μ = 0, clamping halves the error
    ],
)
def test_error_of_each_mechanism_agrees_with_another_program(n, epsilon, mu, measured):
    for mechanism, expected in zip(FORMULAS, measured, strict=True):
        assert agrees(scaled_errors(mechanism, n, epsilon, mu), expected, slack=0.015)


@pytest.mark.parametrize(("mechanism", "expected"), [("transformed-laplace", 2.0), ("hourglass", worst_case(1.0))])
def test_error_under_replace_one_agrees_with_its_closed_form(mechanism, expected):
    assert agrees(scaled_errors(mechanism, 1000, 1, 0.5, "replace-one"), expected)


@pytest.mark.parametrize("relation", ["add-or-remove-one", "replace-one"])
def test_error_of_gaussian_agrees_with_its_noise_multiplier(relation):
    epsilon, delta, mu = 1.0, 1e-6, 0.3
    one = BoundedMean(0, 1, epsilon, "gaussian", relation, delta)
    cost = one.release(one.sums([0.5])).guarantee.costs[0]
    assert isinstance(cost, costs.Gaussian)
    multiplier = cost.noise_multiplier
    assert costs.epsilon([costs.Gaussian(multiplier)], delta) == pytest.approx(epsilon, rel=1e-6)
    sums = one.sums(np.repeat([1.0, 0.0], [300, 700]))
    source = SeededRandomness(4)
    above, below = ([number] * 10_000 for (number,) in sums.tolist())
    shares = np.array([share for share, _ in one._release_pairs(above, below, source)])
    errors = 1000**2 * (shares - mu) ** 2
    shape = mu**2 + (1 - mu) ** 2 if relation == "add-or-remove-one" else 1.0
    assert agrees(errors, multiplier**2 * shape)


def test_comparison_of_errors_detects_half_the_noise():
    """A planted fault: noise for half the sensitivity."""
    errors = scaled_errors("transformed-laplace", 1000, 2, 0.3)
    assert not agrees(errors, FORMULAS["transformed-laplace"](1, 0.3))


def test_hourglass_core_and_worst_case_agree_with_values_of_30_digits():
    for epsilon, core, largest in (
        (0.1, 0.49166667, 199.91668056),
        (0.5, 0.45833569, 7.91701722),
        (1, 0.41673743, 1.91810353),
        (2, 0.33513003, 0.42273285),
        (4, 0.19575655, 0.06497878),
        (8, 0.05483815, 0.00337983),
    ):
        assert hourglass_core(epsilon) == pytest.approx(core, abs=6e-9)
        assert worst_case(epsilon) == pytest.approx(largest, rel=2e-6)
    assert hourglass_core(1e-4) == pytest.approx(0.5, abs=1e-4)
    assert worst_case(1e-4) * 1e-8 / 2 == pytest.approx(1, rel=1e-6)


def test_dp_mean_returns_the_number_of_records_with_the_mechanisms_noise():
    for mechanism in get_args(Mechanism)[:-1]:
        mean = BoundedMean(0, 1, 1.0, mechanism)
        sums, source = mean.sums(np.linspace(0, 1, 500)), SeededRandomness(2)
        counts = np.array([mean.release(sums, source).records for _ in range(400)])
        assert abs(counts.mean() - 500) < 5 * counts.std() / 20 and 0.5 < counts.std() < 4
        if mechanism == "hourglass":
            assert (counts == np.rint(counts)).all()
    assert dp_mean([0.5] * 7, 0, 1, 1.0, relation="replace-one").records == 7


def test_dp_mean_moves_and_scales_with_its_bounds():
    values = np.array([1.0, 3.0, 3.0, 9.0])
    plain = dp_mean((values + 5) / 20, 0, 1, 1.0, randomness=SeededRandomness(3))
    moved = dp_mean(values, -5, 15, 1.0, randomness=SeededRandomness(3))
    assert moved.value == pytest.approx(20 * plain.value - 5) and moved.records == plain.records


@given(st.lists(st.floats(allow_nan=False, width=64), max_size=20), st.floats(-1e300, 1e300), st.floats(1e-3, 1e300))
def test_sums_of_any_finite_or_infinite_values_add_up(values, lower, width):
    upper = lower + width
    if not lower < upper or math.isinf(upper - lower):
        return
    mean = BoundedMean(lower, upper, 1.0)
    above, below = mean.sums(values)[:, 0]
    assert above + below == len(values) * STEPS and above >= 0 and below >= 0
    parts = sum((mean.sums([value])[:, 0] for value in values), np.zeros(2, np.int64))
    assert parts.tolist() == [above, below]
    assert lower <= mean.release([[above], [below]], SeededRandomness(0)).value <= upper


def test_sums_clamp_values_outside_bounds_and_skip_nan(caplog):
    mean = BoundedMean(0, 1, 1.0)
    assert mean.sums([-np.inf, -3, 5, np.inf]).tolist() == mean.sums([0, 0, 1, 1]).tolist()
    with caplog.at_level(logging.WARNING, "privacy.statistics.mean"):
        assert mean.sums([0.5, np.nan, 1]).tolist() == mean.sums([0.5, 1]).tolist()
    assert "1 of 3 records hold NaN" in caplog.text
    by_coordinate = BoundedMean(0, 1, 1.0, coordinates=2)
    assert by_coordinate.sums([[0.5, np.nan], [1, 0]]).tolist() == by_coordinate.sums([[1, 0]]).tolist()


def test_sums_under_replace_one_count_nan_as_the_middle():
    mean = BoundedMean(0, 2, 1.0, relation="replace-one")
    assert mean.sums([0.5, np.nan, 2]).tolist() == mean.sums([0.5, 1.0, 2]).tolist()
    assert dp_mean([0.5, np.nan], 0, 2, 1.0, relation="replace-one").records == 2


def test_sums_accept_large_integers_none_masked_arrays_and_booleans():
    mean = BoundedMean(0, 10, 1.0)
    assert mean.sums([5, 2**64, None]).tolist() == mean.sums([5.0, 10.0]).tolist()
    assert mean.sums(np.ma.array([1.0, 9.0], mask=[False, True])).tolist() == mean.sums([1.0]).tolist()
    assert mean.sums([True, False]).tolist() == mean.sums([1.0, 0.0]).tolist()
    assert 0 <= dp_mean([5.0], 0, 2**70, 1.0).value <= 2**70


def test_release_accepts_parts_added_up_beyond_64_bits_and_refuses_invalid_sums():
    mean = BoundedMean(0, 1, 1.0)
    part = mean.sums(np.ones(3)) * 2**40
    assert mean.release(part + part, SeededRandomness(1)).value == pytest.approx(1.0, abs=1e-9)
    for bad, message in (
        ([[1, 2, 3]], r"sums have shape \[1, 3\]: \[2, 1\] is needed"),
        ([[0.5], [1]], "sums are not integers"),
        ([[-1], [1]], "sums are below 0"),
    ):
        with pytest.raises(ValueError, match=message):
            mean.release(bad)


def test_dp_mean_of_no_records_lies_within_bounds():
    for empty in ([], np.zeros((0,)), [float("nan")]):
        mean = dp_mean(empty, 2, 4, 1.0, randomness=SeededRandomness(1))
        assert 2 <= mean.value <= 4
    assert dp_mean([], 2, 4, 1.0, relation="replace-one", mechanism="transformed-laplace").value == 3


def test_release_accepts_sums_beyond_64_bits():
    mean = BoundedMean(0, 1, 1.0)
    result = mean.release([[3 * 2**80], [2**80]], SeededRandomness(1))
    assert result.value == pytest.approx(0.75) and result.records == pytest.approx(2**50)


def test_dp_mean_of_several_coordinates_spends_epsilon_once():
    values = np.full((1000, 4), [0.0, 0.2, 0.5, 1.0])
    mean = dp_mean(values, 0, 1, 2.0, randomness=SeededRandomness(1))
    assert mean.value.shape == (4,) and mean.guarantee.epsilon == 2.0
    np.testing.assert_allclose(mean.value, values[0], atol=0.03)
    joint = dp_mean(values, 0, 1, 2.0, "gaussian", delta=1e-6, randomness=SeededRandomness(1))
    assert joint.guarantee.epsilon == pytest.approx(2.0, rel=1e-6) and joint.guarantee.delta == 1e-6
    assert dp_mean(values[:, :1], 0, 1, 2.0).value.shape == (1,)


def test_guarantee_states_epsilon_with_unit_relation_sampler_mechanism_and_noise():
    text = str(dp_mean([0.5], 0, 1, 0.25).guarantee)
    for part in (
        "epsilon 0.250;",
        "unit record",
        "add-or-remove-one",
        "every record, once",
        "hourglass",
        "exact integers",
    ):
        assert part in text
    seeded = dp_mean([0.5], 0, 1, 1.0, "gaussian", "replace-one", 1e-6, SeededRandomness(1)).guarantee
    assert "SEED: not secure" in str(seeded) and "replace-one" in str(seeded) and "at delta 1e-06" in str(seeded)


def test_guarantee_of_gaussian_states_rho_of_zcdp():
    """ρ = Δ² / (2 σ²), for the noise that is drawn."""
    mean = BoundedMean(0, 100, 1.0, "gaussian", delta=1e-6, coordinates=4)
    guarantee = mean.release(mean.sums(np.ones((3, 4)))).guarantee
    assert guarantee.rho == pytest.approx(4 * 2.0**64 / (2 * mean._scale**2)) and "of zCDP" in str(guarantee)
    assert gaussian_epsilon((2 * (guarantee.rho or 0)) ** -0.5, 1e-6) == pytest.approx(1.0, rel=1e-6)
    assert dp_mean([0.5], 0, 1, 0.5).guarantee.rho == 0.125 and "zCDP" not in str(dp_mean([0.5], 0, 1, 0.5).guarantee)
    sampled = dataclasses.replace(guarantee, costs=(costs.Gaussian(1.0, 10, 0.5),))
    assert sampled.rho is None and "zCDP" not in str(sampled)


def sensitivity_over_stddev(epsilon, delta):
    from privacy.statistics.mean import sensitivity_over_stddev

    return sensitivity_over_stddev(epsilon, delta)


def test_gaussian_of_several_coordinates_has_noise_for_their_joint_sensitivity():
    for relation in ("add-or-remove-one", "replace-one"):
        mean = BoundedMean(0, 1, 1.0, "gaussian", relation, 1e-6, 9)  # type: ignore[arg-type]
        (cost,) = mean.release(mean.sums(np.full((500, 9), 0.5))).guarantee.costs
        assert isinstance(cost, costs.Gaussian)
        assert mean._scale / (STEPS * 3) == pytest.approx(cost.noise_multiplier, rel=1e-6)
        assert costs.epsilon([cost], 1e-6) == pytest.approx(1.0, rel=1e-6)


# Mironov 2012: the last bits of floating-point noise reveal which data it was added to.


def reachable(output: float, centre: float) -> bool:
    """Returns whether centre + NumPy's Laplace noise of scale 1, which has only 2^53 values, can be `output`."""
    away = output - centre
    share = math.exp(away) / 2 if away < 0 else 1 - math.exp(-away) / 2
    nearest = round(share * 2**53)
    for step in range(max(1, nearest - 64), nearest + 65):
        u = step * 2.0**-53
        if u < 1 and output == (centre + math.log(u + u) if u < 0.5 else centre - math.log(2 - u - u)):
            return True
    return False


def told_apart(release, count: int) -> float:
    """Returns by how much the attack answers "data 0" more often on data 0 than on data 1."""

    def says_zero(centre):
        outputs = [release(centre) for _ in range(count)]
        return np.mean([reachable(output, 0.0) and not reachable(output, 1.0) for output in outputs])

    return float(says_zero(0) - says_zero(1))


def test_attack_on_last_bits_succeeds_on_numpy_noise_and_fails_on_exact_noise():
    generator = np.random.default_rng(1)
    assert told_apart(lambda centre: centre + float(generator.laplace()), 500) > 0.5
    source = SeededRandomness(1)
    ours = told_apart(lambda centre: (centre * STEPS + int(exact.laplace(source, STEPS, 1)[0])) / STEPS, 500)
    assert abs(ours) < 5 * math.sqrt(2 * 0.25 / 500)


def test_sums_are_grid_integers_whatever_the_data():
    """Before the division a release is an integer that every neighbouring data set can give too."""
    mean = BoundedMean(0, 1, 1.0, "transformed-laplace")
    for values in ([0.1] * 10, [0.1] * 9, [0.1, 0.2, 0.30000000000000004], [1e-300, 1.0]):
        sums = mean.sums(values)[:, 0].tolist()
        assert all(type(number) is int for number in sums) and sum(sums) == len(values) * STEPS


def test_sums_do_not_depend_on_the_order_of_records():
    """Floating-point sums do, so that one record more can change them by more than its own value."""
    values = np.random.default_rng(2).uniform(size=10_000) ** 8
    mean = BoundedMean(0, 1, 1.0)
    assert np.array_equal(mean.sums(values), mean.sums(values[::-1]))
    assert np.array_equal(mean.sums(values) - mean.sums(values[1:]), mean.sums(values[:1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lower": 1, "upper": 0}, "lower 1 is not below upper 0: "),
        ({"lower": 1, "upper": 1}, "lower 1 is not below upper 1"),
        ({"lower": float("nan")}, "lower must lie in .*, got nan: give a finite bound"),
        ({"upper": float("inf")}, "upper must lie in .*, got inf"),
        ({"lower": -1e308, "upper": 1e308}, "upper - lower overflows"),
        ({"epsilon": 0}, "epsilon must be a finite number above 0, got 0"),
        ({"epsilon": -1}, "epsilon must be .* got -1"),
        ({"epsilon": float("nan")}, "epsilon must be .* got nan"),
        ({"epsilon": float("inf")}, "epsilon must be .* got inf"),
        ({"epsilon": 1e-12}, "epsilon 1e-12 is 1e-12 for each coordinate: give 1e-06"),
        ({"epsilon": 1e3}, "epsilon 1000 is 1000 for each coordinate: .* to 50 .more protects nobody"),
        (
            {"lower": -(10**400)},
            "lower must be a number that a double can hold|lower must be a number within the range",
        ),
        ({"upper": np.complex64(1)}, "upper must be a number, got"),
        ({"delta": "x"}, "delta must be a number, got 'x'"),
        ({"mechanism": "laplace"}, "mechanism 'laplace' is unknown: use one of hourglass"),
        ({"relation": "replace"}, "relation 'replace' is unknown: use add-or-remove-one or replace-one"),
        ({"mechanism": "midpoint", "relation": "replace-one"}, "spends half of epsilon on a count"),
        ({"mechanism": "gaussian"}, "delta must lie in .0, 1., got 0.0: gaussian noise needs one"),
        ({"mechanism": "gaussian", "delta": 1}, "delta must lie in .0, 1., got 1"),
        ({"delta": 1e-6}, "delta is 1e-06 and hourglass is pure: leave it out"),
        ({"values": "abc"}, "numbers are needed"),
        ({"values": [[[1.0]]]}, r"values have shape \[1, 1, 1\]"),
        ({"values": [1j]}, "dtype complex128: numbers are needed"),
    ],
)
def test_dp_mean_refuses_bad_arguments_in_one_line(changes, message):
    arguments = {"values": [0.5], "lower": 0, "upper": 1, "epsilon": 1.0, **changes}
    with pytest.raises(ValueError, match=message) as error:
        dp_mean(**arguments)
    assert "\n" not in str(error.value)
