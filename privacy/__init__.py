"""Differential privacy for federated training: the plan, the ledger, the accounting and the report.

plan = PrivacyPlan(sampling=Poisson(0.01), population=10_000, rounds=200, noise_multiplier=1.0,
clip=FixedClip(0.5)) with plan.recording("ledger.jsonl") as ledger:
    ...                                    # the loop records each round before it releases anything
report.build(plan, ledger, {}).write("run")
"""

import models.extras  # noqa: F401
from privacy.budget import Budget
from privacy.dpsgd import KerasDPSGD
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from privacy.mean import BoundedMean, dp_mean, mean_in_ball
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
from privacy.quantile import dp_quantile
from privacy.sampling import Cyclic, FixedSize, Poisson

__all__ = [
    "AdaptiveClip",
    "BoundedMean",
    "Budget",
    "Cyclic",
    "FixedClip",
    "FixedSize",
    "KerasDPSGD",
    "Ledger",
    "Poisson",
    "PrivacyPlan",
    "PrivateMetrics",
    "RunKeys",
    "dp_mean",
    "dp_quantile",
    "mean_in_ball",
]
