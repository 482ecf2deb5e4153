"""Tests that the audit of a whole run refutes planted faults, and does not refute a correct run.

The confidence is 0.9999 and the seeds are fixed. With other seeds, a correct run would be refuted in at most one of
10,000 runs.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from fl.aggregation import DPMean
from fl.audit import training_run as canary_run
from fl.audit.training_run import DELTA, CanaryTask
from fl.correlated_mean import CorrelatedDPMean
from privacy import accounting
from privacy.correlated import BLT
from privacy.keys import RunKeys
from tests.oracles import participation as oracle

pytestmark = pytest.mark.usefixtures("worker")

PLAN, CONFIDENCE = canary_run.four_rounds(2.0), 0.9999
CLAIMED = accounting.epsilon(PLAN).value


def train(aggregator) -> canary_run.CanaryRun:
    return canary_run.train(aggregator, RunKeys.fixed(1), np.random.default_rng(2))


@pytest.fixture(scope="module")
def correct_run(worker) -> canary_run.CanaryRun:
    return train(DPMean(PLAN))


def test_correct_run_is_not_refuted_and_bound_is_positive(correct_run):
    bound = correct_run.bound(PLAN.target_delta, CONFIDENCE)
    assert 0.05 * CLAIMED < bound.epsilon < CLAIMED


def test_canary_run_follows_plan(correct_run):
    """Each canary has two turns in four rounds, moves by one clip norm in each, and the noise is that of the plan.

    The means over about 1000 canaries of sums over two rounds have standard errors of 0.16; five of them are exceeded
    in less than one of a million runs. The standard deviation of the noise has a relative standard error of 1.6 %.
    """
    assert (correct_run.turns.sum(axis=0) == PLAN.max_participations).all() and PLAN.max_participations == 2
    moved = np.where(correct_run.turns, correct_run.released, 0).sum(axis=0) * PLAN.expected_cohort
    assert moved[correct_run.included].mean() == pytest.approx(2.0, abs=0.8)
    assert moved[~correct_run.included].mean() == pytest.approx(0.0, abs=0.8)
    assert moved[~correct_run.included].std() == pytest.approx(PLAN.noise_multiplier * 2**0.5, rel=0.12)


def test_noise_reused_on_resume_is_refuted(monkeypatch):
    """The run is resumed after its first round and counts the rounds of its noise from 0 again."""
    drawn = RunKeys.noise_seed
    monkeypatch.setattr(RunKeys, "noise_seed", lambda keys, round: drawn(keys, max(round - 1, 0)))
    assert train(DPMean(PLAN)).bound(PLAN.target_delta, CONFIDENCE).refutes(CLAIMED)


class Unclipped(DPMean):
    def client(self, state, update):
        return super().client({"clip": 1e30}, update)


class ATwelfthOfTheNoise(DPMean):
    """Adds a twelfth of the noise, but reports the plan's noise."""

    def server(self, state, total, noise_seed):
        less = dataclasses.replace(self.plan, noise_multiplier=self.plan.noise_multiplier / 12)
        mean = DPMean(less).server(state, total, noise_seed)
        return mean._replace(released=super().server(state, total, noise_seed).released)


@pytest.mark.parametrize("fault", [Unclipped, ATwelfthOfTheNoise])
def test_planted_fault_in_run_is_refuted(fault):
    assert train(fault(PLAN)).bound(PLAN.target_delta, CONFIDENCE).refutes(CLAIMED)


CORRELATED = canary_run.four_rounds(2.0, BLT((0.8,), (0.5,)))


def test_correct_run_with_correlated_noise_is_not_refuted_and_bound_is_positive():
    run = train(CorrelatedDPMean(CORRELATED))
    np.testing.assert_allclose(run.encoder, oracle.toeplitz(np.array([1, 0.5, 0.4, 0.32]), 4))
    bound = run.bound(DELTA, CONFIDENCE)
    assert 0.05 * CLAIMED < bound.epsilon < CLAIMED


class ATwelfthOfTheCorrelatedNoise(CorrelatedDPMean):
    """Adds a twelfth of the noise, but reports the plan's noise."""

    def _draw_update_noise(self, state, size, noise_seed):
        noise, history = super()._draw_update_noise(state, size, noise_seed)
        return noise / 12, history


class OneSeedForAllRounds(CorrelatedDPMean):
    """Draws the fresh noise of every round from one seed."""

    def _draw_update_noise(self, state, size, noise_seed):
        return super()._draw_update_noise(state, size, tf.zeros_like(noise_seed))


@pytest.mark.parametrize("fault", [ATwelfthOfTheCorrelatedNoise, OneSeedForAllRounds])
def test_planted_fault_in_correlated_noise_is_refuted(fault):
    assert train(fault(CORRELATED)).bound(DELTA, CONFIDENCE).refutes(CLAIMED)


def test_canary_task_gradient_moves_only_indexed_weight():
    """The gradient is minus `slope` for each real row; a client's other rows are padding and do not count."""
    task = CanaryTask(10.0)
    weights = tf.Variable([1.0, 2.0, 3.0])
    with tf.GradientTape() as tape:
        loss = task.loss({"canaries": weights}, tf.constant([2]), tf.constant(1))
    assert (float(loss.total), float(loss.count)) == (-30.0, 1.0)
    np.testing.assert_array_equal(tf.convert_to_tensor(tape.gradient(loss.total, weights)), [0, 0, -10])
    stacked = task.loss({"canaries": tf.stack([weights] * 2)}, tf.constant([[1, 1], [0, 0]]), tf.constant([1, 0]))
    np.testing.assert_array_equal(stacked.total, [-20, 0])
    np.testing.assert_array_equal(stacked.count, [1, 0])
