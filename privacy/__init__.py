"""Differential privacy for federated training: the plan, the ledger, the accounting and the report.

    plan = PrivacyPlan(
        sampling=Poisson(0.01), population=10_000, rounds=200, noise_multiplier=1.0, clip=FixedClip(0.5)
    )
    with plan.recording("ledger.jsonl") as ledger:
        ...  # the loop records each round before it releases anything
    report.build(plan, ledger, {}).write("run")

Importing this package is instant: the names below load their module on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import privacy.extras  # noqa: F401

if TYPE_CHECKING:
    from privacy.budget import Budget
    from privacy.dpsgd import KerasDPSGD
    from privacy.keys import RunKeys
    from privacy.ledger import Ledger
    from privacy.mean import BoundedMean, dp_mean, mean_in_ball
    from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
    from privacy.quantile import dp_quantile
    from privacy.sampling import Cyclic, FixedSize, Poisson

_HOME = {
    "AdaptiveClip": "privacy.plan",
    "BoundedMean": "privacy.mean",
    "Budget": "privacy.budget",
    "Cyclic": "privacy.sampling",
    "FixedClip": "privacy.plan",
    "FixedSize": "privacy.sampling",
    "KerasDPSGD": "privacy.dpsgd",
    "Ledger": "privacy.ledger",
    "Poisson": "privacy.sampling",
    "PrivacyPlan": "privacy.plan",
    "PrivateMetrics": "privacy.plan",
    "RunKeys": "privacy.keys",
    "dp_mean": "privacy.mean",
    "dp_quantile": "privacy.quantile",
    "mean_in_ball": "privacy.mean",
}
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'privacy' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
