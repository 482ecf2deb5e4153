"""What made a training diverge, judged from its plan and the size of its model."""

from __future__ import annotations

import math

from privacy.plan import PrivacyPlan


def noise_norm(plan: PrivacyPlan, clip: float, weights: int) -> float:
    """Returns the L2 norm that the noise on a round's mean update has, but for a few per cent.

    Args:
      plan: the run's.
      clip: clip norm of the round.
      weights: number of the model's weights; each has noise of its own.
    """
    return plan.value_noise_multiplier * clip * math.sqrt(weights) / plan.expected_cohort


def likely_cause(plan: PrivacyPlan, clip: float | None, weights: int) -> str:
    """Says why a model is no longer finite, or its losses, after the server has changed it: cause, numbers and fix.

    A round moves the model by the clients' mean update, whose L2 norm is at most the clip norm, and by noise. Where
    the noise is the larger one, clip and noise are the likely cause; otherwise the server's step, or without a clip
    norm the clients' too, which nothing bounds.

    Args:
      plan: the run's.
      clip: clip norm of the round; None without clipping.
      weights: number of the model's weights.
    """
    if clip is not None and (noise := noise_norm(plan, clip, weights)) > clip:
        return (
            f"clip norm {clip:g} and noise multiplier {plan.value_noise_multiplier:.3g} are too large for this model: "
            f"the noise on a round's mean update has an L2 norm of about {noise:.3g}, its signal at most {clip:g}; "
            "lower the clip norm (privacy.clip) or take larger cohorts"
        )
    if clip is None:
        return (
            "the clients' learning rate or the server's is too large for this model; start a new run with smaller ones"
        )
    return (
        "the server learning rate is too large for this model; start a new run with a smaller one, or with a clip norm "
        f"(privacy.clip) below {clip:g}"
    )
