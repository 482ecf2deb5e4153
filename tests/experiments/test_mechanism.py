"""Tests of correlated noise in a run's config: what is built, what is kept on resume, and what is refused."""

import dataclasses

import numpy as np
import pytest

from experiments import assembly, config_file, mechanism
from fl.correlated_mean import CorrelatedDPMean
from privacy import CheckIn, CyclicPoisson, accounting
from privacy.correlated import BLT, Banded, Tree, Workload

# scipy 1.9 calls a function that is deprecated in NumPy 1.25.
pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

BASE = ("cohort.sampler=check-in", "cohort.size=10", "cohort.min_separation=5", "privacy.clip_norm=0.5")
PRIVATE = (*BASE, "privacy.epsilon=4.0", "run.rounds=20")


def parse(*settings):
    return config_file.parse("", "test", settings)


def plan(*settings, begun=None):
    return assembly.build_plan(parse(*PRIVATE, *settings), 100, (), begun)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (["privacy.mechanism=tree", "privacy.restart_every=8"], Tree),
        (["privacy.mechanism=banded", "privacy.bands=4"], Banded),
        (["privacy.mechanism=blt", "privacy.buffers=2"], BLT),
        (["privacy.mechanism=blt", "privacy.horizon=500"], BLT),
    ],
)
def test_config_builds_a_mechanism_whose_plan_keeps_the_budget(settings, kind):
    built = plan(*settings)
    assert isinstance(built.mechanism, kind) and built.participation == (5, 4)
    assert 3.8 < accounting.epsilon(built).value <= 4.0
    assert isinstance(assembly.build_aggregator(parse(*PRIVATE, *settings), built), CorrelatedDPMean)
    if "privacy.horizon=500" in settings:
        assert "over 500 rounds" in built.mechanism.optimized_for


def test_samplers_are_built_with_their_limits():
    built = assembly.build_sampling(parse(*BASE, "cohort.max_participations=2"))
    assert built == CheckIn(10, 5, 2)
    cyclic = parse("cohort.sampler=cyclic-poisson", "cohort.cohorts=4", "cohort.sampling_probability=0.5")
    assert assembly.build_sampling(cyclic) == CyclicPoisson(4, 0.5)


def test_resumed_run_keeps_the_matrix_of_its_ledger():
    first = plan("privacy.mechanism=blt")
    nudged = BLT(
        first.mechanism.decays, tuple(w * (1 - 1e-9) for w in first.mechanism.weights), first.mechanism.optimized_for
    )
    begun = dataclasses.replace(first, mechanism=nudged)
    assert plan("privacy.mechanism=blt", begun=begun) == begun != first
    # A config that asks for something else gets it, and the ledger then refuses the plan.
    assert plan("privacy.mechanism=blt", "privacy.optimize_for=optimizer", begun=begun).mechanism != nudged
    assert isinstance(plan("privacy.mechanism=banded", begun=begun).mechanism, Banded)


@pytest.mark.parametrize("cooldown", ["0.0", "0.5"])
def test_momentum_and_cooldown_in_the_objective_are_those_of_the_servers_optimizer(cooldown):
    settings = ("privacy.mechanism=banded", "privacy.bands=4", "run.rounds=8", f"server.cooldown={cooldown}")
    config = parse(
        *PRIVATE, *settings, "privacy.optimize_for=optimizer", "server.momentum=0.8", "server.learning_rate=2"
    )
    optimizer = assembly.build_server_optimizer(config)
    import tensorflow as tf

    columns = []
    for unit in np.eye(8, dtype=np.float32):
        state, weights, trace = optimizer.initialize(tf.TensorSpec([])), tf.constant(0.0), []
        for update in unit:
            state, weights = optimizer.next(state, weights, tf.constant(-update))
            trace.append(float(weights))
        columns.append(trace)
    rates = None if cooldown == "0.0" else (1, 1, 1, 1, 0.7625, 0.525, 0.2875, 0.05)
    workload = Workload(8, momentum=0.8, learning_rates=rates)
    # Up to 16 float32 operations on numbers below 10.
    assert np.array(columns).T == pytest.approx(2 * workload.matrix(), rel=0, abs=10 * 16 * 2.0**-23)
    built = assembly.build_plan(config, 100, ()).mechanism
    assert isinstance(built, Banded) and built.optimized_for == workload.describe()


def test_cooldown_falls_linearly_to_a_twentieth_in_the_last_rounds():
    rates = mechanism.relative_learning_rates(parse("run.rounds=8", "server.cooldown=0.25"))
    assert rates == pytest.approx([1.0] * 6 + [0.525, 0.05])
    assert mechanism.relative_learning_rates(parse("run.rounds=3")) == [1.0] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([*BASE, "privacy.mechanism=blt"], 'privacy.mechanism = "blt" in a run that adds no noise'),
        (
            [*PRIVATE, "privacy.mechanism=blt", "privacy.clip_quantile=0.5"],
            "privacy.clip_quantile = 0.5 with privacy.mech",
        ),
        (
            [*PRIVATE, "privacy.mechanism=blt", "privacy.noise=exact"],
            'privacy.noise = "exact" with privacy.mechanism = "b',
        ),
        ([*PRIVATE, "privacy.bands=4"], 'privacy.bands = 4 has no effect with "gaussian", only with "banded"'),
        ([*PRIVATE, "privacy.mechanism=tree", "privacy.buffers=4"], 'privacy.buffers = 4 has no effect with "tree"'),
        (
            ["privacy.mechanism=tree", "privacy.epsilon=4", "privacy.clip_norm=1"],
            'with cohort.sampler = "poisson", which',
        ),
        (
            [*PRIVATE, "privacy.mechanism=blt", "privacy.optimize_for=optimizer", "server.optimizer=adam"],
            'privacy.optimize_for = "optimizer" with server.optimizer = "adam", which is not linear',
        ),
        (["cohort.sampler=check-in", "cohort.size=3"], "cohort.min_separation is missing: cohort.sampler = "),
        (["cohort.sampler=cyclic-poisson"], "cohort.cohorts is missing"),
        (["cohort.min_separation=3"], 'cohort.min_separation = 3 has no effect with "poisson"'),
    ],
)
def test_keys_that_contradict_each_other_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse(*settings)
    assert "\n" not in str(caught.value)
