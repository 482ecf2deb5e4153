"""Names the likely cause of a diverged training run from its privacy plan and the size of its model."""

from __future__ import annotations

import math

from privacy.plan import PrivacyPlan


def noise_norm(plan: PrivacyPlan, clip: float, weights: int) -> float:
    """Returns the root mean square of the L2 norm of the Gaussian noise on a round's mean update.

    With a thousand weights or more, the norm in a single round differs from this value by a few per cent.

    Args:
      plan: privacy plan of the run.
      clip: clip norm of the round, > 0.
      weights: number of the model's weights; each gets independent noise.
    """
    return plan.value_noise_multiplier * clip * math.sqrt(weights) / plan.expected_cohort


def likely_cause(plan: PrivacyPlan, clip: float | None, weights: int) -> str:
    """Returns one line with the likely cause, and the fix, of a model or losses that became NaN or infinite.

    A round moves the model by the clients' mean update, whose L2 norm is at most the clip norm, and by noise. If the
    norm of the noise is larger than the clip norm, the likely cause is that clip norm and noise multiplier are too
    large. Otherwise it is the server's learning rate. Without a clip norm nothing bounds the clients' updates, so that
    the clients' learning rate may be the cause, too.

    Args:
      plan: privacy plan of the run.
      clip: clip norm of the round; None without clipping.
      weights: number of the model's weights.
    """
    if clip is not None and (noise := noise_norm(plan, clip, weights)) > clip:
        return (
            f"clip norm {clip:g} and noise multiplier {plan.value_noise_multiplier:.3g} are too large for this model: "
            f"the noise on a round's mean update has an L2 norm of about {noise:.3g}, its signal at most {clip:g}; "
            "lower the clip norm (privacy.clip_norm) or take larger cohorts"
        )
    if clip is None:
        return (
            "the clients' learning rate or the server's is too large for this model; start a new run with smaller ones"
        )
    return (
        "the server learning rate is too large for this model; start a new run with a smaller one, or with a clip norm "
        f"(privacy.clip_norm) below {clip:g}"
    )
