"""Tests of audits: their confidence, their power, and the faults that they must find. Seeds are fixed."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from privacy import audit
from privacy.accounting import costs
from privacy.audit import bounds
from privacy.audit import cases as audited
from privacy.linear.linear_dpsgd import LinearDPSGD
from privacy.noise.randomness import SeededRandomness
from privacy.statistics.mean import STEPS, BoundedMean


def laplace(epsilon: float, count: int, seed: int):
    generator = np.random.default_rng(seed)
    return generator.laplace(0, 1 / epsilon, count), generator.laplace(1, 1 / epsilon, count)


def from_laplace(count: int, seed: int, confidence: float) -> audit.Bound:
    without, with_ = laplace(1.0, count, seed)
    return audit.from_scores(without, with_, 0.0, confidence)


def test_from_scores_holds_with_its_confidence():
    """200 audits of a mechanism that is exactly as private as it claims, at confidence 0.9.

    More than 35 false alarms have a probability below 0.1 %.
    """
    alarms = sum(from_laplace(2000, seed, 0.9).refutes(1.0) for seed in range(200))
    assert alarms <= 35
    assert stats.binom.sf(35, 200, 0.1) < 1e-3


def test_from_scores_finds_most_of_epsilon_on_either_side():
    without, with_ = laplace(1.0, 200_000, 1)
    for first, second in ((without, with_), (with_, without), (-without, -with_)):
        assert 0.85 < audit.from_scores(first, second).epsilon < 1.02
    assert audit.from_scores(without, without[::-1]).epsilon < 0.05


def test_from_scores_subtracts_delta():
    """An outcome of probability 1e-3 that identifies the record is allowed by δ = 1e-3."""
    generator = np.random.default_rng(2)
    without, with_ = generator.random(100_000), generator.random(100_000)
    with_[generator.random(100_000) < 1e-3] = 5.0
    assert audit.from_scores(without, with_).epsilon > 1.0
    assert audit.from_scores(without, with_, delta=1.5e-3).epsilon < 0.2


def test_bound_uses_clopper_pearson_intervals():
    low, high = stats.binomtest(30, 100).proportion_ci(0.9, "exact")
    bound = bounds._bound(30, 100, 30, 100, 0.0, 0.9)
    assert bound == 0.0
    _, high = stats.binomtest(10, 100).proportion_ci(0.9, "exact")
    low, _ = stats.binomtest(90, 100).proportion_ci(0.9, "exact")
    assert bounds._bound(90, 100, 10, 100, 0.0, 0.9) == pytest.approx(math.log(low / high), rel=1e-6)
    assert bounds._bound(90, 100, 10, 100, 0.1, 0.9) == pytest.approx(math.log((low - 0.1) / high), rel=1e-6)
    assert bounds._bound(0, 100, 0, 100, 0.0, 0.9) == 0.0 and bounds._bound(100, 100, 100, 100, 0.0, 0.9) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "trials", "share"),
    [
        (2.0, 100_000, 0.6),
        pytest.param(1.0, 400_000, 0.7, marks=pytest.mark.slow),
        pytest.param(4.0, 400_000, 0.7, marks=pytest.mark.slow),
    ],
)
def test_every_mechanism_stands_with_a_bound_near_its_claim(epsilon, trials, share):
    """Each bound has confidence 0.9999. A bound of zero would prove nothing; fewer trials find less of ε."""
    cases = audited.cases(epsilon, 1e-3, SeededRandomness(1))
    assert len(cases) == 10
    for case in cases:
        bound = audit.from_scores(*case.scores(trials // case.slow), case.delta, 0.9999)
        assert not bound.refutes(case.claimed), case.name
        least = 0.3 if case.name == "DP-SGD, one step" else share
        assert bound.epsilon > least * epsilon, (case.name, bound.epsilon)


def test_noise_for_half_the_sensitivity_is_refuted():
    one, source = BoundedMean(0.0, 1.0, 2.0), SeededRandomness(2)
    scores = []
    for more in (0, 1):
        released = one._release_pairs([(500 + more) * STEPS] * 100_000, [500 * STEPS] * 100_000, source)
        shares, counts = np.array(released).T
        scores.append(shares * counts)
    assert audit.from_scores(scores[0], scores[1], confidence=0.9999).refutes(1.0)


# Canaries in one run: each has a direction of its own, and a gradient longer than the clip norm.

CANARIES, CLIP = 2000, 1.0


def step(coins, noise, clip: Callable[[float], float] | None = None, scale=1.0, length=1000.0):
    """Returns the noised sum of a step, in which coordinate i holds what canary i adds."""
    norm = min(length, CLIP) if clip is None else clip(length)
    return coins * norm + scale * noise


def one_run(seed, z, **changes):
    generator = np.random.default_rng(seed)
    coins = generator.random(CANARIES) < 0.5
    return coins, step(coins, z * CLIP * generator.normal(size=CANARIES), **changes)


def bound_of_one_run(delta, confidence, seed, z, **changes) -> audit.Bound:
    coins, scores = one_run(seed, z, **changes)
    return audit.in_one_run(coins, scores, delta, confidence)


def test_in_one_run_bounds_correct_step_above_zero_and_below_claim():
    for z in (0.5, 1.0, 3.0):
        claimed = costs.epsilon([costs.Gaussian(z)], 1e-7)
        bound = bound_of_one_run(1e-7, 0.99, 1, z)
        assert 0.15 * claimed < bound.epsilon < claimed


@pytest.mark.parametrize(
    ("fault", "changes"),
    [
        ("an unclipped client", {"clip": lambda length: length}),
        ("noise scaled by a realised batch of a twelfth", {"scale": 1 / 12}),
    ],
)
def test_in_one_run_refutes_faulty_step(fault, changes):
    claimed = costs.epsilon([costs.Gaussian(3.0)], 1e-7)
    assert bound_of_one_run(1e-7, 0.999, 3, 3.0, **changes).refutes(claimed)
    assert not bound_of_one_run(1e-7, 0.999, 3, 3.0).refutes(claimed)


def test_sensitivity_off_by_factor_two_is_refuted_by_many_runs():
    generator = np.random.default_rng(4)
    claimed = costs.epsilon([costs.Gaussian(3.0)], 1e-3)
    without, with_ = (generator.normal(move, 3.0, 200_000) for move in (0.0, 2.0))
    assert audit.from_scores(without, with_, 1e-3, 0.999).refutes(claimed)
    assert not audit.from_scores(without, with_ - 1.0, 1e-3, 0.999).refutes(claimed)


def test_noise_used_twice_is_refuted():
    """A round is run again after a crash with the same noise and other clients: the difference has no noise."""
    generator = np.random.default_rng(5)
    for again, refuted in ((True, True), (False, False)):
        scores = []
        for canary in (0.0, CLIP):
            first = generator.normal(size=20_000)
            second = first if again else generator.normal(size=20_000)
            scores.append((canary + second) - first)
        claimed = costs.epsilon([costs.Gaussian(1.0, 2)], 1e-3)
        assert audit.from_scores(scores[0], scores[1], 1e-3, 0.999).refutes(claimed) is refuted


def test_clip_after_sum_is_refuted():
    """A client of -C stands beside one of +1000 C. If the sum is clipped, the second moves it by 2 C."""
    generator = np.random.default_rng(6)
    noise = generator.normal(size=(2, 200_000))
    claimed = costs.epsilon([costs.Gaussian(1.0)], 1e-3)
    clipped_sum = [np.clip(total, -CLIP, CLIP) for total in (-CLIP, -CLIP + 1000 * CLIP)]
    each_clipped = [-CLIP, -CLIP + CLIP]
    for sums, refuted in ((clipped_sum, True), (each_clipped, False)):
        scores = [total + noise[i] for i, total in enumerate(sums)]
        assert audit.from_scores(scores[0], scores[1], 1e-3, 0.999).refutes(claimed) is refuted


# A step of DP-SGD, with and without faults.


def make_correct_step(step, **changes) -> LinearDPSGD:
    return LinearDPSGD(**(dataclasses.asdict(step) | changes))


def without_noise_and_clip(step) -> LinearDPSGD:
    return make_correct_step(step, clip_norm=math.inf, noise_multiplier=0.0)


class ClipAfterSum(LinearDPSGD):
    def train(self, features, labels, classes, generator):
        summed = without_noise_and_clip(self).train(features, labels, classes, generator)
        clipped = summed * min(1.0, self.clip_norm / np.linalg.norm(summed))
        return clipped + generator.normal(0, self.noise_multiplier * self.clip_norm, clipped.shape)


class NoiseByRealisedBatch(LinearDPSGD):
    def train(self, features, labels, classes, generator):
        noise = self.noise_multiplier * len(features) / self.expected_batch
        return make_correct_step(self, noise_multiplier=noise).train(features, labels, classes, generator)


class HalfTheNoise(LinearDPSGD):
    def train(self, features, labels, classes, generator):
        return make_correct_step(self, noise_multiplier=self.noise_multiplier / 2).train(
            features, labels, classes, generator
        )


class OneUnclipped(LinearDPSGD):
    def train(self, features, labels, classes, generator):
        clipped = make_correct_step(self).train(features[:-1], labels[:-1], classes, generator)
        return clipped + without_noise_and_clip(self).train(features[-1:], labels[-1:], classes, generator)


@pytest.mark.parametrize(
    ("step", "refuted"),
    [
        (LinearDPSGD, False),
        (ClipAfterSum, True),
        (NoiseByRealisedBatch, True),
        (HalfTheNoise, True),
        (OneUnclipped, True),
    ],
)
def test_faulty_step_of_dp_sgd_is_refuted(step, refuted):
    """The confidence is 0.9999: a correct step is refuted with fewer than one seed in ten thousand."""
    faulty = step(**dataclasses.asdict(audited.linear_step(2.0, 0.05)))
    case = audited.training_step(faulty, 2.0, 0.05, np.random.default_rng(7))
    bound = audit.from_scores(*case.scores(6000), case.delta, 0.9999)
    assert bound.refutes(case.claimed) is refuted
    assert bound.epsilon > 0.65 * case.claimed


def test_p_value_without_delta_is_binomial_tail_and_grows_with_delta():
    """With δ = 0 it is the tail of a binomial; it grows with δ and is at most 1."""
    assert bounds._p_value(70, 100, 1000, 0.5, 0.0) == pytest.approx(stats.binom.sf(69, 100, 1 / (1 + math.exp(-0.5))))
    without = bounds._p_value(90, 100, 1000, 0.5, 0.0)
    assert without < bounds._p_value(90, 100, 1000, 0.5, 1e-6) < bounds._p_value(90, 100, 1000, 0.5, 1e-4) <= 1
    assert bounds._p_value(0, 100, 1000, 0.5, 1e-5) == 1.0


def test_p_value_term_of_delta_equals_theorem():
    """The term is 2 m δ times the largest mean of the i probabilities just below the number of right guesses (theorem
    5.2).

    The example has 3 of 4 guesses right at ε = 0, where each guess is a fair coin.
    """
    below = [6 / 16, 4 / 16, 1 / 16]  # probabilities of 2, 1 and 0 right guesses
    steepest = max(sum(below[:i]) / i for i in (1, 2, 3))
    p_value = bounds._p_value(3, 4, 10, 0.0, 1e-3)
    assert p_value == pytest.approx(5 / 16 + 2 * 10 * 1e-3 * steepest, rel=1e-12)


def test_in_one_run_holds_with_its_confidence():
    """100 audits at confidence 0.9. Randomised response on each canary is the worst that ε-DP allows."""
    epsilon, alarms = 1.0, 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        coins = generator.random(200) < 0.5
        told = np.where(generator.random(200) < 1 / (1 + math.exp(-epsilon)), coins, ~coins)
        alarms += audit.in_one_run(coins, told + 1e-3 * generator.random(200), 0.0, 0.9).refutes(epsilon)
    assert alarms <= 20 and stats.binom.sf(20, 100, 0.1) < 1e-3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: audit.from_scores([1.0] * 3, [1.0] * 9),
            "without has shape .3. and 0 NaN: give a 1-D array of at least",
        ),
        (lambda: audit.from_scores([1.0] * 9, [math.nan] * 9), "with_ has shape .9. and 9 NaN"),
        (lambda: audit.from_scores([1.0] * 9, [2.0] * 9, 1.0), "delta must lie"),
        (lambda: audit.from_scores([1.0] * 9, [2.0] * 9, 0, 1.0), "confidence must lie"),
        (lambda: audit.in_one_run([True] * 9, [1.0] * 9), "at least ten canaries"),
        (lambda: audit.in_one_run([True] * 12, [1.0] * 11), "included has shape .12. and scores .11."),
        (lambda: audit.in_one_run(["False"] * 12, [1.0] * 12), "included has dtype <U5: give the coins as bool"),
        (lambda: audit.in_one_run([True] * 12, [1.0] * 12, -1), "delta must lie"),
        (lambda: audit.in_one_run([True] * 12, [1.0] * 12, 0, 0), "confidence must lie"),
    ],
)
def test_invalid_arguments_are_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
