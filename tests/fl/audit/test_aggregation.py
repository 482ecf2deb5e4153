"""Tests that audits refute planted faults in `DPMean`, and do not refute the correct aggregator.

Each audit has confidence 0.9999 and fixed seeds. With other seeds, one of the four correct cases would be refuted in at
most one of 2500 runs. A fault moves the bound far above the claim: every fault was detected with each of eight seeds.
"""

import dataclasses
import math

import pytest
import tensorflow as tf

from fl.aggregation import DPMean, Noised
from fl.audit import aggregation as audit
from fl.exact_mean import ExactDPMean
from privacy import accounting
from privacy.audit.bounds import from_scores
from privacy.keys import RunKeys
from privacy.plan import FixedClip

EPSILON, DELTA, CONFIDENCE = 2.0, 0.05, 0.9999
PLAN = audit.two_rounds(EPSILON, DELTA)
KEYS = RunKeys.fixed(1)
UNCLIPPED = {"clip": 1e30}


def compute_bound(case, trials=10_000):
    without, with_ = case.scores(trials)
    return from_scores(without, with_, case.delta, CONFIDENCE)


def test_cases_claim_epsilon_of_plan():
    assert PLAN.relation == "zero-out" and PLAN.max_participations == 1
    assert EPSILON * 0.98 < accounting.epsilon(PLAN).value <= EPSILON
    cases = audit.cases(EPSILON, DELTA, KEYS)
    assert [(case.relation, case.delta) for case in cases] == [("zero-out", DELTA)] * 4
    assert len({case.name for case in cases}) == 4
    assert all(case.claimed == accounting.epsilon(PLAN).value for case in cases)


@pytest.mark.parametrize(("number", "minimum"), [(0, 0.7), (1, 0.7), (2, 0.3), (3, 0.65)])
def test_correct_aggregator_is_not_refuted_and_bound_is_near_claim(number, minimum):
    case = audit.cases(EPSILON, DELTA, KEYS)[number]
    bound = compute_bound(case, 20_000)
    assert not bound.refutes(case.claimed), case.name
    assert bound.epsilon > minimum * case.claimed, (case.name, bound.epsilon)


@pytest.mark.slow
def test_correct_aggregator_is_not_refuted_at_small_delta():
    for case in audit.cases(1.0, 1e-3, KEYS):
        bound = compute_bound(case, 200_000)
        assert not bound.refutes(case.claimed), case.name
        assert bound.epsilon > (0.4 if "next" in case.name else 0.65), (case.name, bound.epsilon)


class ClipAfterSum(DPMean):
    def client(self, state, update):
        return super().client(UNCLIPPED, update)

    def server(self, state, total, noise_seed):
        norm = tf.linalg.global_norm(list(total.update.values()))
        factor = state["clip"] / tf.maximum(norm, state["clip"])
        clipped = {name: factor * value for name, value in total.update.items()}
        return super().server(state, total._replace(update=clipped), noise_seed)


class ClipEachTensor(DPMean):
    def client(self, state, update):
        parts = [
            super(ClipEachTensor, self).client(state, update._replace(delta={name: value}))
            for name, value in update.delta.items()
        ]
        return parts[0]._replace(update={name: value for part in parts for name, value in part.update.items()})


class NoiseByRealisedCohort(DPMean):
    def server(self, state, total, noise_seed):
        mean = super().server(state, total, noise_seed)
        exact = {name: value / self.plan.expected_cohort for name, value in total.update.items()}
        share = total.clients / self.plan.expected_cohort
        return mean._replace(
            update={name: exact[name] + share * (value - exact[name]) for name, value in mean.update.items()}
        )


class DividedByRealisedCohort(DPMean):
    def server(self, state, total, noise_seed):
        mean = super().server(state, total, noise_seed)
        factor = self.plan.expected_cohort / tf.maximum(total.clients, 1.0)
        return mean._replace(update={name: factor * value for name, value in mean.update.items()})


class HalfTheNoise(DPMean):
    def server(self, state, total, noise_seed):
        half = dataclasses.replace(self.plan, noise_multiplier=self.plan.noise_multiplier / 2)
        return DPMean(half).server(state, total, noise_seed)


class TwiceTheClip(DPMean):
    def client(self, state, update):
        return super().client({"clip": 2 * state["clip"]}, update)


class OneUnclipped(DPMean):
    """Leaves the last of the stacked clients unclipped."""

    def client(self, state, update):
        last = tf.nest.map_structure(lambda value: value[-1:], update)
        parts = [super(OneUnclipped, self).client(how, who) for how, who in ((state, update), (state, last))]
        kept = super().client(UNCLIPPED, last)
        changed = {name: parts[0].update[name] - parts[1].update[name] + value for name, value in kept.update.items()}
        return parts[0]._replace(update=changed)


class NoiseOnceInTwoRounds(RunKeys):
    """Draws the same noise in two successive rounds, like a resumed run that repeats a round's number."""

    def noise_seed(self, round):
        return super().noise_seed(round - round % 2)


@pytest.mark.parametrize(
    ("fault", "view"),
    [
        (ClipAfterSum, "opposed"),
        (ClipEachTensor, "alone"),
        (NoiseByRealisedCohort, "alone"),
        (DividedByRealisedCohort, "opposed"),
        (HalfTheNoise, "alone"),
        (TwiceTheClip, "alone"),
        (OneUnclipped, "alone"),
    ],
)
def test_planted_fault_is_refuted(fault, view):
    case = audit.case(fault(PLAN), view, KEYS)
    bound = compute_bound(case)
    assert bound.refutes(case.claimed), bound.epsilon


def test_repeated_noise_is_refuted():
    again = NoiseOnceInTwoRounds(b"1" * 32, is_fixed=True)
    case = audit.case(DPMean(PLAN), "minus the next round", again)
    assert compute_bound(case).refutes(case.claimed)


def test_bound_does_not_depend_on_clip_norm():
    """A plan with twice the clip norm and the same noise multiplier has the same bound."""
    plan = dataclasses.replace(PLAN, clip=FixedClip(2.0))
    one, two = (compute_bound(audit.case(DPMean(p), "alone", KEYS), 2000).epsilon for p in (PLAN, plan))
    assert one == pytest.approx(two, rel=1e-3)


def test_two_rounds_refuses_delta_out_of_range():
    with pytest.raises(ValueError, match="delta must lie"):
        audit.two_rounds(1.0, 1.0)


class NoiseThatEnds(DPMean):
    """Cuts off the noise at `end` standard deviations."""

    end = 3.6

    def server(self, state, total, noise_seed):
        mean = super().server(state, total, noise_seed)
        scale = self.plan.value_noise_multiplier * state["clip"] / self.plan.expected_cohort
        exact = {name: value / self.plan.expected_cohort for name, value in total.update.items()}
        cut = {
            name: exact[name] + tf.clip_by_value(value - exact[name], -self.end * scale, self.end * scale)
            for name, value in mean.update.items()
        }
        return mean._replace(update=cut)


def test_tail_refutes_truncated_noise_only():
    """An end at 3.6 standard deviations is detected in 10^7 numbers; that of version 0.1 takes 2·10^9 (a slow test)."""
    claimed, bound = audit.tail(NoiseThatEnds(audit.tail_plan()), KEYS, CONFIDENCE, releases=5, weights=2**21)
    assert claimed == pytest.approx(9.4, abs=0.05) and bound.refutes(claimed)
    claimed, bound = audit.tail(DPMean(audit.tail_plan()), KEYS, CONFIDENCE, releases=5, weights=2**21)
    assert 0.2 * claimed < bound.epsilon <= claimed


class NoiseOfVersion01(DPMean):
    """Draws version 0.1's noise: sums of two neighbouring TensorFlow outputs, the sine and cosine of one radius."""

    def _add_noise(self, state, total, noise_seed):
        stddev = self.plan.value_noise_multiplier * state["clip"]
        update = {}
        for name, value in total.update.items():
            both = tf.random.stateless_normal([*value.shape, 2], noise_seed, alg="philox")
            update[name] = value + stddev * tf.reduce_sum(both, axis=-1) * math.sqrt(0.5)
        return Noised(update, total.within_clip, total.pairs)


@pytest.mark.slow
def test_tail_refutes_noise_of_version_0_1_only():
    claimed, bound = audit.tail(NoiseOfVersion01(audit.tail_plan()), KEYS, CONFIDENCE)
    assert bound.refutes(claimed)
    claimed, bound = audit.tail(DPMean(audit.tail_plan()), KEYS, CONFIDENCE)
    assert 0.5 * claimed < bound.epsilon <= claimed


class ClipOfVersion01(DPMean):
    """Computes version 0.1's norms, from float32 products over all weights at once."""

    def client(self, state, update):
        rows = [tf.reshape(value, [value.shape[0], 1, -1]) for value in update.delta.values()]
        norm = tf.sqrt(tf.add_n([tf.matmul(row, row, transpose_b=True)[:, 0, 0] for row in rows]))
        factor = tf.where(norm > state["clip"], state["clip"] / tf.maximum(norm, state["clip"]), 1.0)
        moved = {name: tf.tensordot(factor, value, 1) for name, value in update.delta.items()}
        return super().client(state, update)._replace(update=moved)


def test_dusty_refutes_norms_of_version_0_1_only():
    claimed, bound = audit.dusty(ClipOfVersion01(PLAN), CONFIDENCE)
    assert bound.refutes(claimed)
    claimed, bound = audit.dusty(DPMean(PLAN), CONFIDENCE)
    assert 0.999 * claimed < bound.epsilon <= claimed == accounting.epsilon(PLAN).value


def test_exact_mean_is_not_refuted_but_half_its_noise_is():
    exact = dataclasses.replace(PLAN, noise="exact")
    bound = compute_bound(audit.case(ExactDPMean(exact), "alone", KEYS), 4000)
    assert 0.5 * EPSILON < bound.epsilon <= accounting.epsilon(exact).value

    class HalfTheExactNoise(ExactDPMean):
        def noise(self, keys, round, weights):
            return super().noise(keys, round, weights) // 2

    case = audit.case(HalfTheExactNoise(exact), "alone", KEYS)
    assert compute_bound(case, 4000).refutes(case.claimed)
