"""From a config to the plan: what else a round releases, and what is refused."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments import assembly, config_file
from privacy import PrivateMetrics


def plan(*settings):
    return assembly.build_plan(config_file.parse("", "test", settings), 100, ())


def test_a_private_run_releases_its_metrics_within_epsilon():
    found = plan("privacy.epsilon=5.0", "privacy.clip_norm=0.5", "privacy.metrics_share=0.1", "privacy.loss_bound=7.0")
    without = plan("privacy.epsilon=5.0", "privacy.clip_norm=0.5", "privacy.metrics_share=0")
    assert found.metrics == PrivateMetrics(0.1, 7.0)
    assert without.metrics is None
    assert found.noise_multiplier == without.noise_multiplier
    assert found.value_noise_multiplier == pytest.approx(without.noise_multiplier / 0.9**0.5)


def test_metrics_are_released_unless_told_otherwise():
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
def test_metrics_settings_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        plan(*settings)


def test_the_inputs_of_a_round_name_how_many_clients_are_trained_at_once():
    data: Any = SimpleNamespace(store=SimpleNamespace(digest="d"))
    parsed, weights = config_file.parse("", "test", ()), {"w": np.zeros(2)}
    eight, nine = (assembly.describe_inputs(parsed, data, weights, number) for number in (8, 9))
    assert eight != nine and assembly.read_clients_at_once(eight) == 8
    assert assembly.describe_inputs(parsed, data, {"w": np.ones(2)}, 8) != eight
    with pytest.raises(ValueError, match="the ledger's inputs are 'data', not those of fedspeak train"):
        assembly.read_clients_at_once("data")
