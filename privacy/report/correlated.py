"""Describes correlated noise (DP-FTRL) in a report: the mechanism, its error, what is assumed and what is not."""

from __future__ import annotations

import math
from typing import Any

from privacy.accounting.plan_epsilon import is_amplified
from privacy.correlated.lower_bound import least_loss
from privacy.plan import PrivacyPlan


def describe(plan: PrivacyPlan) -> dict[str, Any] | None:
    """Returns the report's part on correlated noise; None for a plan without a mechanism.

    Errors are root mean squares, over the rounds, of the noise on one coordinate of the sum of all clipped updates so
    far, in clip norms. `least_error` is a lower bound for every matrix under the same limits on participation.
    """
    if plan.mechanism is None:
        return None
    sensitivity = plan.sensitivity(plan.rounds)
    least = plan.noise_multiplier / math.sqrt(1 - plan.metrics_share) * least_loss(plan.rounds, plan.participation)
    return {
        "mechanism": plan.mechanism.describe(),
        "min_separation": plan.participation.min_separation,
        "max_participations": plan.participation.max_participations,
        "sensitivity": sensitivity.value,
        "sensitivity_is_exact": sensitivity.is_exact,
        "sensitivity_method": sensitivity.method,
        "error": plan.value_noise_multiplier * plan.mechanism.error(plan.rounds),
        "least_error": least,
        "history_vectors": plan.mechanism.vectors(plan.rounds),
        "assumed": _list_assumed(plan),
        "not_assumed": _list_not_assumed(plan),
    }


def _list_assumed(plan: PrivacyPlan) -> list[str]:
    separation, participations = plan.participation
    assumed = [
        f"Participation limit: no client's text enters more than {participations} of the {plan.rounds} rounds.",
        f"Separation: two rounds that a client's text enters are at least {separation} apart (|i - j| >= {separation}, "
        f"with at least {separation - 1} other rounds between them).",
        "The ledger refused every round that would have broken these limits, for the client ids that it was given. It "
        "cannot know that two ids are one person.",
        "Which rounds a client is in does not depend on any client's text.",
        "The independent noise and its history, which is in the server's state and its checkpoints, stay secret.",
    ]
    if is_amplified(plan):
        assumed.append(
            "Cohorts: a fixed partition of the clients into cohorts, and each client of the round's cohort takes part "
            "independently with probability q. The ledger refused every client that changed its cohort. It cannot know "
            "how a cohort was sampled."
        )
        assumed.append("Secrecy of sampling: who of a cohort was drawn in its turn is random and stays secret.")
    return assumed


def _list_not_assumed(plan: PrivacyPlan) -> list[str]:
    not_assumed = [
        "That clients come at random times, are drawn at random or are equally likely to come.",
        "That the server computes only prefix sums: momentum, learning rates and averaging are post-processing.",
    ]
    if not is_amplified(plan):
        not_assumed.insert(0, "Secrecy of sampling: who took part in which round may be known to everybody.")
    return not_assumed
