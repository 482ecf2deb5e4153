import numpy as np
import pytest

from fl.divergence import likely_cause, noise_norm
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
from privacy.sampling import Poisson


def plan(noise_multiplier: float = 1.0, clip: float | None = 2.0) -> PrivacyPlan:
    return PrivacyPlan(Poisson(0.1), 100, 5, noise_multiplier, None if clip is None else FixedClip(clip))


def test_noise_norm_is_that_of_drawn_noise():
    """10,000 values: the norm of Gaussian noise is within 5 % of its expectation but for a probability of 1e-11."""
    drawn = np.random.default_rng(0).normal(0, 1.5 * 2.0 / 10, 10_000)
    assert noise_norm(plan(1.5), 2.0, 10_000) == pytest.approx(np.linalg.norm(drawn), rel=0.05)


@pytest.mark.parametrize("clip", [FixedClip(2.0), AdaptiveClip(2.0, count_stddev=1.0)])
@pytest.mark.parametrize("metrics", [None, PrivateMetrics(share=0.5)])
def test_noise_norm_and_cause_are_those_of_the_updates_noise(clip, metrics):
    """Metrics and the count of adaptive clipping take their part of the privacy, so the update gets more noise."""
    shared = PrivacyPlan(Poisson(0.1), 100, 5, 1.0, clip, metrics=metrics)
    variance = 1 / ((0.5 if metrics else 1) - (0.25 if isinstance(clip, AdaptiveClip) else 0))
    assert noise_norm(shared, 2.0, 10_000) == pytest.approx(variance**0.5 * 2.0 * 100 / 10)
    weights = int(100 / variance)  # the noise multiplier that is planned in total is below the signal here
    assert likely_cause(shared, 2.0, 2 * weights).startswith(
        f"clip norm 2 and noise multiplier {variance**0.5:.3g} are"
    )
    assert likely_cause(shared, 2.0, weights // 2).startswith("the server learning rate is too large")


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
