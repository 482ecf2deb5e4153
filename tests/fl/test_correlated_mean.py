"""Tests of the mean with correlated noise in rounds, through kills and resumes, and as a TFF aggregator."""

import dataclasses
import functools
import math
from collections import OrderedDict

import tensorflow_federated as tff
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_privacy as tfp

from fl import gaussian
from fl.aggregation import Contribution, DPMean
from fl.audit.training_run import CanaryTask
from fl.correlated_factory import CorrelatedMeanQuery, correlated_mean_factory
from fl.correlated_mean import CorrelatedDPMean
from fl.correlated_noise import build_stream
from fl.engines import cohort
from fl.local_training import LocalSGD
from fl.rounds import Federation, RoundLog, final_state, run_rounds
from privacy import CheckIn, FixedClip, Poisson, PrivacyPlan, PrivateMetrics, RunKeys
from privacy.correlated import BLT, Banded, Tree, Workload
from tests.oracles import participation as oracle

CLIENTS, ROUNDS, CLIP = 12, 7, 0.5
MECHANISMS = [BLT((0.9, 0.5), (0.3, 0.4)), Banded((1.0, 0.5, 0.25)), Tree(), Tree(3)]
LOCAL = LocalSGD(learning_rate=1.0, batch_size=1, sequence_length=1, max_sequences=1)
KEYS = RunKeys.fixed(3)
SEED = np.array([5, 6], np.int64)


def plan_of(mechanism, rounds=ROUNDS):
    return PrivacyPlan(CheckIn(4, 3), CLIENTS, rounds, 2.0, FixedClip(CLIP), 1e-5, mechanism=mechanism)


def federation(plan, optimizer=None):
    """Trains a model of one weight for each client, whose update moves that weight by the clip norm."""
    engine = cohort.build(
        CanaryTask(4 * CLIP),
        {"canaries": np.zeros(CLIENTS, np.float32)},
        LOCAL,
        CorrelatedDPMean(plan),
        optimizer or tff.learning.optimizers.build_sgdm(1.0),
        shards=2,
    )
    return Federation(
        engine.process,
        engine.client_values,
        plan,
        KEYS,
        [f"client-{index}" for index in range(CLIENTS)],
        lambda index: np.full(1, index, np.int32),
        LOCAL,
        inputs="canaries",
        noise=engine.noise,
    )


def train(federation, folder, stop_after=ROUNDS):
    """Runs rounds until `stop_after` are done in the folder, and returns the models after each of these rounds."""
    models = []

    def keep(done, weights):
        models.append(np.array(weights["canaries"], np.float64))
        return {}, {}

    for row in run_rounds(federation, RoundLog(folder), keep):
        if row["round"] == stop_after:
            break
    return np.array(models)


def content(federation, folder):
    names = ("ledger.jsonl", "metrics.jsonl")
    state = final_state(federation, RoundLog(folder))
    arrays = [np.asarray(value).tobytes() for value in tf.nest.flatten(state)]
    return [(folder / name).read_bytes() for name in names] + arrays


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("mechanism", [MECHANISMS[0], MECHANISMS[3]])
def test_killed_and_resumed_run_is_the_same_to_the_bit(mechanism, tmp_path):
    trained = federation(plan_of(mechanism))  # rounds keep nothing in it
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(trained, whole)
    for stop_after in (2, 5, ROUNDS):
        train(trained, parts, stop_after)
    assert content(trained, whole) == content(trained, parts)


def expected_noise(mechanism):
    """Returns C^-1 Z with the fresh noise of the rounds' seeds; of a tree, each level has a stream of its own."""
    if not isinstance(mechanism, Tree):
        fresh = [
            gaussian.standard_normal(CLIENTS, gaussian.stream(KEYS.noise_seed(t), "update")) for t in range(ROUNDS)
        ]
        return np.linalg.solve(oracle.toeplitz(mechanism.column(ROUNDS), ROUNDS), np.array(fresh))
    stream = build_stream(mechanism, ROUNDS)
    history, rows = stream.initial(CLIENTS), []

    def draw(number, name):
        return gaussian.standard_normal(CLIENTS, gaussian.stream(KEYS.noise_seed(number), name))

    for number in range(ROUNDS):
        noise, history = stream.following(history, functools.partial(draw, number))
        rows.append(noise)
    return np.array(rows)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("mechanism", [*MECHANISMS[:2], MECHANISMS[3]])
def test_encoded_models_hold_the_updates_and_independent_noise(mechanism, tmp_path):
    plan = plan_of(mechanism)
    models = train(federation(plan), tmp_path)
    sums = np.diff(models, axis=0, prepend=0) * plan.expected_cohort
    exact = sums - plan.value_noise_multiplier * CLIP * expected_noise(mechanism)
    # What is left are the clipped updates: the clip norm where a client took part (4 a round), else 0. Sums and noise
    # are below 64 in float32, and there are up to 7 roundings.
    assert np.abs(exact - CLIP * np.round(exact / CLIP)).max() < 64 * 7 * 2.0**-23
    assert np.array_equal(np.round(exact / CLIP).sum(1), [4] * ROUNDS)
    assert np.round(exact / CLIP).sum(0).max() <= plan.max_participations


@pytest.mark.usefixtures("worker")
def test_servers_momentum_is_that_of_the_workload_and_applied_once(tmp_path):
    plan = plan_of(MECHANISMS[1])
    plain = np.diff(train(federation(plan), tmp_path / "plain"), axis=0, prepend=0)
    optimizer = tff.learning.optimizers.build_sgdm(1.0, 0.9)
    with_momentum = train(federation(plan, optimizer), tmp_path / "momentum")
    expected = Workload(ROUNDS, momentum=0.9).matrix() @ plain
    # Sums of up to 7 products of numbers below 16.
    assert with_momentum == pytest.approx(expected, rel=0, abs=16 * 14 * 2.0**-23)
    assert np.abs(with_momentum - Workload(ROUNDS, momentum=0.9).matrix() @ expected).max() > 0.1


def test_aggregator_fits_plans_with_a_mechanism_alone():
    plan = plan_of(MECHANISMS[0])
    with pytest.raises(ValueError, match="use fl.correlated_mean.CorrelatedDPMean for plans with a mechanism"):
        DPMean(plan)
    with pytest.raises(ValueError, match="the plan's mechanism is None"):
        CorrelatedDPMean(PrivacyPlan(Poisson(0.5), CLIENTS, ROUNDS, 2.0, FixedClip(CLIP)))


def test_clients_receive_nothing_of_the_history():
    aggregator = CorrelatedDPMean(plan_of(MECHANISMS[0]))
    assert set(aggregator.initial_state()) == {"clip"} and set(aggregator.initial_history(5)) == {"buffers", "done"}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_aggregator_refuses_a_round_after_the_planned_ones(mechanism):
    aggregator = CorrelatedDPMean(plan_of(mechanism))

    @tf.function
    def server(state, number):
        total = Contribution({"weights": tf.zeros([5])}, *[tf.constant(0.0)] * 8 + [tf.zeros([0, 2], tf.int64)])
        mean = aggregator.server(state, total, tf.stack([number, number]))
        return mean.update, mean.state

    state = {**aggregator.initial_state(), **aggregator.initial_history(5)}
    for number in range(ROUNDS):
        update, state = server(state, tf.constant(number, tf.int64))
        assert np.all(update["weights"] != 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the plan has 7 rounds and all are done"):
        server(state, tf.constant(ROUNDS, tf.int64))


SPECS = OrderedDict(a=tf.TensorSpec([3]), b=tf.TensorSpec([2, 2]))


def updates(scale):
    generator = np.random.default_rng(1)
    return [
        OrderedDict(a=scale * generator.normal(size=3).astype(np.float32), b=np.full((2, 2), scale, np.float32))
        for _ in range(3)
    ]


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_factorys_means_are_clipped_updates_plus_the_noise_of_the_mechanism(mechanism):
    plan = plan_of(mechanism)
    process = correlated_mean_factory(plan, SPECS, SEED).create(
        tff.types.to_type(OrderedDict(a=tff.TensorType(np.float32, (3,)), b=tff.TensorType(np.float32, (2, 2))))
    )
    with_updates, without = process.initialize(), process.initialize()
    for _ in range(4):
        with_updates, moved = run(process, with_updates, updates(10.0))
        without, noise = run(process, without, updates(0.0))
        difference = (moved - noise) * plan.expected_cohort
        clipped = sum(flat(u) / np.linalg.norm(flat(u)) * CLIP for u in updates(10.0))
        # Differences of sums below 16, and the margin of the clip, 2^-21 of the clip norm for each client.
        assert difference == pytest.approx(clipped, rel=0, abs=16 * 4 * 2.0**-23 + 3 * CLIP * 2.0**-21)


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_query_and_factory_refuse_a_round_after_the_planned_ones(mechanism):
    plan = plan_of(mechanism, 3)
    query = CorrelatedMeanQuery(plan, tf.TensorSpec([5]), SEED)
    state = query.initial_global_state()
    process = correlated_mean_factory(plan, tf.TensorSpec([5]), SEED).create(tff.TensorType(np.float32, (5,)))
    factory_state, zeros = process.initialize(), np.zeros(5, np.float32)
    for _ in range(3):
        noise, state, _ = query.get_noised_result(tf.zeros([5]), state)
        output = process.next(factory_state, [zeros])
        factory_state = output.state
        assert np.all(noise != 0) and np.all(output.result != 0)
    with pytest.raises(tf.errors.InvalidArgumentError, match="the plan has 3 rounds and all are done"):
        query.get_noised_result(tf.zeros([5]), state)
    with pytest.raises(Exception, match="the plan has 3 rounds and all are done"):  # as TFF's runtime passes it on
        process.next(factory_state, [zeros])


def flat(update):
    return np.concatenate([np.ravel(update["a"]), np.ravel(update["b"])]).astype(np.float64)


def run(process, state, values):
    output = process.next(state, values)
    return output.state, flat(output.result)


@pytest.mark.parametrize("restart_every", [None, 4])
def test_query_has_the_noise_distribution_of_tensorflow_privacys_tree(restart_every):
    """Both are Gaussian and linear in their node noise, so the covariance of the rounds decides."""
    size, rounds = 20_000, 6
    plan = dataclasses.replace(plan_of(Tree(restart_every), rounds), sampling=CheckIn(1, 3))
    ours = CorrelatedMeanQuery(plan, tf.TensorSpec([size]), SEED)
    # TensorFlow Privacy's noise multiplier is relative to the clip norm, not to the sensitivity.
    theirs = tfp.TreeResidualSumQuery.build_l2_gaussian_query(
        CLIP, plan.value_noise_multiplier, tf.TensorSpec([size]), noise_seed=7
    )
    if restart_every is not None:
        from tensorflow_privacy.privacy.dp_query import restart_query

        indicator = restart_query.PeriodicRoundRestartIndicator(restart_every)
        theirs = restart_query.RestartQuery(theirs, indicator)
    covariances = []
    for query in (ours, theirs):
        state, rows = query.initial_global_state(), []
        for _ in range(rounds):
            noise, state, _ = query.get_noised_result(tf.zeros([size]), state)
            rows.append(np.asarray(noise, np.float64))
        covariances.append(np.cov(rows) / (plan.value_noise_multiplier * CLIP) ** 2)
    # An entry of the covariance, of variances up to 2.4, has a standard deviation of at most 2.4 sqrt(2 / size); the
    # difference of two is 6 of these off with probability below 1e-7 for the 36 entries.
    assert np.abs(covariances[0] - covariances[1]).max() < 6 * 2.4 * math.sqrt(2 * 2 / size)
    # Without the variance reduction, round 2's prefix sum would have variance 1 in place of 2/3.
    assert np.sum(covariances[0][:2, :2]) == pytest.approx(2 / 3, abs=0.05)


def test_query_draws_fresh_noise_in_a_restarted_tree():
    query = CorrelatedMeanQuery(plan_of(Tree(4)), tf.TensorSpec([5]), SEED)
    state, rows = query.initial_global_state(), []
    for _ in range(5):
        noise, state, _ = query.get_noised_result(tf.zeros([5]), state)
        rows.append(noise.numpy())
    # The first round of each tree has one leaf's noise.
    assert np.all(rows[0] != rows[4])


def test_query_refuses_plans_and_seeds_that_do_not_fit():
    query = functools.partial(CorrelatedMeanQuery, specs=SPECS)
    with pytest.raises(ValueError, match="give a plan with a mechanism and without metrics"):
        query(PrivacyPlan(Poisson(0.5), CLIENTS, ROUNDS, 2.0, FixedClip(CLIP)), seed=SEED)
    with pytest.raises(ValueError, match="give a plan with a mechanism and without metrics"):
        query(dataclasses.replace(plan_of(MECHANISMS[0]), metrics=PrivateMetrics()), seed=SEED)
    with pytest.raises(ValueError, match=r"seed has shape \[3\]"):
        query(plan_of(MECHANISMS[0]), seed=np.zeros(3, np.int64))


def test_query_replaces_an_update_that_is_not_finite_by_zero():
    query = CorrelatedMeanQuery(plan_of(MECHANISMS[0]), SPECS, SEED)
    record = OrderedDict(a=tf.constant([1.0, math.nan, 2.0]), b=tf.ones([2, 2]))
    assert not np.any(flat(query.preprocess_record((), record)))
