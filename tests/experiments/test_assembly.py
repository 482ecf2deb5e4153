"""Building a plan from a config: the metrics that a round releases, and the settings that are refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import assembly, config_file
from privacy import PrivateMetrics


def plan(*settings):
    return assembly.build_plan(config_file.parse("", "test", settings), 100, ())


def test_private_plan_splits_noise_between_update_and_metrics():
    with_metrics = plan(
        "privacy.epsilon=5.0", "privacy.clip_norm=0.5", "privacy.metrics_share=0.1", "privacy.loss_bound=7.0"
    )
    without = plan("privacy.epsilon=5.0", "privacy.clip_norm=0.5", "privacy.metrics_share=0")
    assert with_metrics.metrics == PrivateMetrics(0.1, 7.0)
    assert without.metrics is None
    assert with_metrics.noise_multiplier == without.noise_multiplier
    assert with_metrics.value_noise_multiplier == pytest.approx(without.noise_multiplier / 0.9**0.5)


@pytest.mark.parametrize(
    ("clients", "size", "rounds", "separation", "limit", "largest"),
    [
        (988, 700, 5, 1, 1, 197),  # 988 participations in all: rounds 2 to 4 would have no client
        (988, 197, 5, 1, 1, None),
        (988, 198, 5, 1, 1, 197),
        (100, 26, 12, 4, None, 25),  # 4 consecutive rounds have no client in common
        (100, 25, 12, 4, None, None),
        (100, 26, 12, 4, 3, 25),
        (100, 25, 12, 4, 2, 16),
        (100, 50, 2, 4, None, None),  # the run is shorter than the separation
        (100, 51, 2, 4, None, 50),
    ],
)
def test_check_in_that_runs_out_of_clients_is_warned_of(clients, size, rounds, separation, limit, largest):
    settings = ["cohort.sampler=check-in", f"cohort.size={size}", f"cohort.min_separation={separation}"]
    settings += [f"run.rounds={rounds}", *([] if limit is None else [f"cohort.max_participations={limit}"])]
    data: Any = SimpleNamespace(splits=SimpleNamespace(train=range(clients)))
    warning = assembly.check_clients(config_file.parse("", "test", settings), data)
    if largest is None:
        assert warning is None
        return
    assert warning is not None and "\n" not in warning
    assert f"{clients} clients fill run.rounds = {rounds} with at most {largest} each" in warning
    assert ("raise cohort.max_participations" in warning) == (limit is not None)


def test_private_plan_releases_metrics_by_default():
    assert plan("privacy.noise_multiplier=1.0", "privacy.clip_norm=0.5").metrics == PrivateMetrics(0.02, 10.0)
    assert plan().metrics is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["privacy.metrics_share=0.1"], "privacy.metrics_share has no effect in a run that is not private"),
        (["privacy.loss_bound=5.0"], "privacy.loss_bound has no effect in a run that is not private"),
        (
            ["privacy.noise_multiplier=1", "privacy.clip_norm=1", "privacy.metrics_share=1"],
            "privacy.metrics_share = 1.0: must be|metrics_share = 1: must be",
        ),
        (
            ["privacy.noise_multiplier=1", "privacy.clip_norm=1", "privacy.loss_bound=-1"],
            "privacy.loss_bound = -1.*: must be",
        ),
        (
            ["privacy.noise_multiplier=1", "privacy.clip_norm=1", "privacy.metrics_share=0", "privacy.loss_bound=1"],
            "privacy.loss_bound has no effect with privacy.metrics_share = 0",
        ),
    ],
)
def test_metrics_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(*settings)


def test_described_inputs_contain_number_of_clients_trained_at_once():
    data: Any = SimpleNamespace(store=SimpleNamespace(digest="d"))
    parsed, weights = config_file.parse("", "test", ()), {"w": np.zeros(2)}
    eight, nine = (assembly.describe_inputs(parsed, data, weights, number) for number in (8, 9))
    assert eight != nine and assembly.read_clients_at_once(eight) == 8
    assert assembly.describe_inputs(parsed, data, {"w": np.ones(2)}, 8) != eight
    with pytest.raises(ValueError, match="the ledger's inputs are 'data', not those of fedspeak train"):
        assembly.read_clients_at_once("data")
