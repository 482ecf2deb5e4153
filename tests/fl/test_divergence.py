import numpy as np
import pytest

from fl.divergence import likely_cause, noise_norm
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Poisson


def plan(noise_multiplier: float = 1.0, clip: float | None = 2.0) -> PrivacyPlan:
    return PrivacyPlan(Poisson(0.1), 100, 5, noise_multiplier, None if clip is None else FixedClip(clip))


def test_noise_norm_is_that_of_drawn_noise():
    """10,000 values: the norm of Gaussian noise is within 5 % of its expectation but for a probability of 1e-11."""
    drawn = np.random.default_rng(0).normal(0, 1.5 * 2.0 / 10, 10_000)
    assert noise_norm(plan(1.5), 2.0, 10_000) == pytest.approx(np.linalg.norm(drawn), rel=0.05)


def test_the_cause_is_clip_and_noise_where_noise_exceeds_the_clipped_signal():
    text = likely_cause(plan(), 2.0, 10_000)
    assert text.startswith("clip norm 2 and noise multiplier 1 are too large for this model")
    assert "norm of about 20, its signal at most 2; lower the clip norm" in text


def test_the_cause_is_the_servers_step_where_noise_is_below_the_clipped_signal():
    text = likely_cause(plan(), 2.0, 81)
    assert text.startswith("the server learning rate is too large for this model; start a new run with a smaller one")
    assert text.endswith("or with a clip norm (privacy.clip_norm) below 2")


def test_the_cause_is_either_learning_rate_where_nothing_is_clipped():
    text = likely_cause(plan(0.0, None), None, 10_000)
    assert text.startswith("the clients' learning rate or the server's is too large for this model")
