"""Every policy has, by enumeration of all draws, the distribution that it states, and keeps to the common bounds."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from models.alignment import BestOfN, Candidates, MajorityVote, Outcomes, Policy, RewindAndRepeat, SoftBestOfN
from models.alignment.policy import kl_bound
from models.alignment.quantile_tilt import best_win_rate
from tests.oracles.distributions import assert_law
from tests.oracles.selection import enumerate_best, enumerate_selection, rewarded, spread_kl

POLICIES = {
    "best-of-n": BestOfN,
    "soft": lambda n: SoftBestOfN(n, 0.7),
    "rewind": lambda n: RewindAndRepeat(n, 0.25),
    "majority": MajorityVote,
}
each_policy = pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)
P, REWARDS = np.array([0.2, 0.3, 0.1, 0.4]), np.array([0.0, 1.0, 1.0, 0.5])


@each_policy
@settings(max_examples=25)
@given(case=rewarded(most=4), n=st.integers(1, 4))
def test_distribution_is_that_of_all_draws(build, case, n):
    p, rewards = case
    policy = build(n)
    found = policy.distribution(Outcomes(p, rewards))
    np.testing.assert_allclose(found, enumerate_selection(policy, p, rewards), atol=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_best_of_n_with_ties_is_that_of_all_draws(n):
    found = BestOfN(n).distribution(Outcomes(P, REWARDS))
    np.testing.assert_allclose(found, enumerate_best(P, REWARDS, n), atol=1e-15)
    assert found[1] / found[2] == pytest.approx(3)  # as under the reference, whatever the order of the outcomes


@each_policy
@settings(max_examples=40)
@given(case=rewarded(most=12), n=st.integers(1, 8))
def test_no_policy_exceeds_the_bounds_of_kl_and_win_rate(build, case, n):
    p, rewards = case
    report = build(n).report(Outcomes(p, rewards))
    assert report.kl <= report.kl_bound + 1e-9
    assert report.kl_bound == kl_bound(n)
    assert report.win_rate <= n / (n + 1) + 1e-12
    assert report.win_rate <= best_win_rate(report.kl) + 1e-7


class Arbitrary(Policy):
    """Draws each set of candidates' weights from a generator of its own: any rule at all."""

    def log_weights(self, candidates):
        seed = [int(x) for x in candidates.samples]
        return 3 * np.random.default_rng(seed).normal(size=self.n)

    def distribution(self, outcomes):
        return enumerate_selection(self, outcomes.probabilities, outcomes.rewards)


@settings(max_examples=15)
@given(case=rewarded(least=2, most=4), n=st.integers(2, 4))
def test_bounds_hold_for_arbitrary_rules(case, n):
    report = Arbitrary(n).report(Outcomes(*case))
    assert report.kl <= report.kl_bound + 1e-12
    assert report.win_rate <= n / (n + 1) + 1e-12


@each_policy
def test_report_is_that_of_the_distribution(build):
    chosen, report = build(3).distribution(Outcomes(P, REWARDS)), build(3).report(Outcomes(P, REWARDS))
    beaten = [sum(P[REWARDS < r]) + sum(P[REWARDS == r]) / 2 for r in REWARDS]
    assert report.reward == pytest.approx(chosen @ REWARDS)
    assert report.reference_reward == pytest.approx(P @ REWARDS)
    assert report.win_rate == pytest.approx(chosen @ beaten)
    assert report.kl == pytest.approx(spread_kl(chosen, P))


@each_policy
def test_selected_samples_have_the_distribution(build):
    policy, generator = build(4), np.random.default_rng(5)
    drawn = generator.choice(4, size=(2000, 4), p=P)
    chosen = [row[policy.select(Candidates(row, REWARDS[row]), seed)] for seed, row in enumerate(drawn)]
    assert_law(np.array(chosen), policy.distribution(Outcomes(P, REWARDS)))


@each_policy
def test_selection_is_a_function_of_seed_and_candidates(build):
    candidates = Candidates([0, 1, 2, 1, 3], [0.0, 1.0, 1.0, 1.0, 0.5])
    assert len({build(5).select(candidates, seed=7) for _ in range(3)}) == 1


def test_tied_candidates_are_selected_equally_often_wherever_they_stand():
    candidates = Candidates([0, 1, 2], [1.0, 0.0, 1.0])
    chosen = np.array([BestOfN(3).select(candidates, seed) for seed in range(2000)])
    assert_law(chosen, np.array([0.5, 0.0, 0.5]))


def test_rewind_takes_the_first_that_is_enough_and_says_how_many_it_draws():
    assert RewindAndRepeat(3, 0.5).select(Candidates("abc", [0.0, 0.5, 1.0]), 0) == 1
    assert RewindAndRepeat(3, 2.0).select(Candidates("abc", [0.0, 0.5, 1.0]), 0) == 2
    outcomes = Outcomes([0.75, 0.25], [0, 1])
    assert RewindAndRepeat(2, 1).expected_draws(outcomes) == pytest.approx(1 + 0.75)
    assert RewindAndRepeat(1000, 1).expected_draws(outcomes) == pytest.approx(4)
    assert RewindAndRepeat(1000, 1).report(outcomes).kl == pytest.approx(np.log(4))
    assert RewindAndRepeat(5, 2).expected_draws(outcomes) == 5
    assert RewindAndRepeat(5, 0).expected_draws(outcomes) == 1


@pytest.mark.parametrize("rare", [1e-10, 1e-17, 1e-300])
def test_rewind_keeps_the_digits_of_rare_outcomes(rare):
    for outcomes, good in ((Outcomes([1 - rare, rare], [0, 1]), 1), (Outcomes([0.5, 0.5 - rare, rare], [0, 0, 1]), 2)):
        policy = RewindAndRepeat(10, 1)
        assert policy.expected_draws(outcomes) == pytest.approx(10, rel=1e-8)
        assert policy.distribution(outcomes)[good] == pytest.approx(10 * rare, rel=1e-8)
        assert policy.report(outcomes).kl == pytest.approx(rare * (10 * np.log(10) - 9), rel=1e-7)
    likely = Outcomes([rare, 1 - rare], [0, 1])
    np.testing.assert_allclose(RewindAndRepeat(3, 1).distribution(likely), [rare**3, 1], atol=1e-310)


def test_rewind_needs_no_samples_after_the_first_that_is_enough():
    policy = RewindAndRepeat(4, 0.5)
    complete = [policy.is_complete(Candidates(range(n), [0.0, 0.1, 0.9, 0.0][:n])) for n in (1, 2, 3, 4)]
    assert complete == [False, False, True, True]
    assert policy.select(Candidates("abc", [0.0, 0.1, 0.9]), 0) == 2
    assert not policy.is_complete(Candidates(range(5), [0.0] * 5))
    with pytest.raises(ValueError, match="candidates has 2 samples: must be complete, here n = 4"):
        policy.select(Candidates("ab", [0.0, 0.1]), 0)


def test_majority_vote_selects_an_answer_and_reads_no_reward():
    candidates = Candidates(["x", "y", "y"], [9.0, 0.0, 0.0])
    assert {candidates.samples[MajorityVote(3).select(candidates, seed)] for seed in range(20)} == {"y"}


def test_majority_vote_among_two_answers_is_a_binomial_tail():
    found = MajorityVote(51).distribution(Outcomes([0.4, 0.6], [1, 1]))
    assert found[1] == pytest.approx(binom.sf(25, 51, 0.6), rel=1e-12)
    found = MajorityVote(169).distribution(Outcomes([0.4, 0.6], [1, 1]))
    assert found[1] == pytest.approx(binom.sf(84, 169, 0.6), rel=1e-12)


@each_policy
@pytest.mark.parametrize("n", [0, -1, 1.5, True, np.nan])
def test_policies_refuse_an_impossible_number_of_samples(build, n):
    with pytest.raises(ValueError, match=f"n = {n}: must be an integer >= 1"):
        build(n)


@each_policy
def test_policies_refuse_a_number_of_samples_that_no_float_holds(build):
    with pytest.raises(ValueError, match="n = 10+: must be a finite number"):
        build(10**400)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MajorityVote(171).distribution(Outcomes([0.4, 0.6], [0, 1])), "n = 171: must be an integer from 1 to"),
        (lambda: SoftBestOfN(2, 0.0), "temperature = 0.0: must be a finite number > 0"),
        (lambda: SoftBestOfN(2, np.nan), "temperature = nan: must be a finite number > 0"),
        (lambda: RewindAndRepeat(2, np.inf), "threshold = inf: must be a finite number"),
        (
            lambda: BestOfN(3).select(Candidates("ab", [0, 1]), 0),
            "candidates has 2 samples: must be complete, here n = 3",
        ),
        (lambda: BestOfN(2).select(Candidates("ab", [0, 1]), -1), "seed = -1: must be an integer >= 0"),
    ],
)
def test_policies_refuse_what_is_outside_its_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_policies_are_frozen():
    with pytest.raises(FrozenInstanceError):
        BestOfN(3).n = 4  # type: ignore[misc]
