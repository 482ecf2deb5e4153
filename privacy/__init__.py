"""Provides differential privacy for federated training and for single statistics: plan, ledger, accounting, report.

    plan = PrivacyPlan(
        sampling=Poisson(0.01), population=10_000, rounds=200, noise_multiplier=1.0, clip=FixedClip(0.5)
    )
    with Ledger.open("ledger.jsonl", plan) as ledger:
        ...  # the training loop records each round before it releases anything
    report.build(plan, ledger, {}).write("run")

Importing this package loads none of its modules. Each name in `__all__` loads its module when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privacy.budget import Budget, Releases
    from privacy.dpsgd import KerasDPSGD
    from privacy.keys import RunKeys
    from privacy.ledger import Ledger
    from privacy.linear.classifier import DPLinearClassifier
    from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan, PrivateMetrics
    from privacy.sampling import CheckIn, Cyclic, CyclicPoisson, FixedSize, Poisson
    from privacy.statistics.mean import BoundedMean, dp_mean
    from privacy.statistics.mean_in_ball import mean_in_ball
    from privacy.statistics.quantile import dp_quantile

_HOME = {
    "AdaptiveClip": "privacy.plan",
    "BoundedMean": "privacy.statistics.mean",
    "Budget": "privacy.budget",
    "CheckIn": "privacy.sampling",
    "Cyclic": "privacy.sampling",
    "CyclicPoisson": "privacy.sampling",
    "DPLinearClassifier": "privacy.linear.classifier",
    "FixedClip": "privacy.plan",
    "FixedSize": "privacy.sampling",
    "KerasDPSGD": "privacy.dpsgd",
    "Ledger": "privacy.ledger",
    "Poisson": "privacy.sampling",
    "PrivacyPlan": "privacy.plan",
    "PrivateMetrics": "privacy.plan",
    "Releases": "privacy.budget",
    "RunKeys": "privacy.keys",
    "dp_mean": "privacy.statistics.mean",
    "dp_quantile": "privacy.statistics.quantile",
    "mean_in_ball": "privacy.statistics.mean_in_ball",
}
__all__ = [
    "AdaptiveClip",
    "BoundedMean",
    "Budget",
    "CheckIn",
    "Cyclic",
    "CyclicPoisson",
    "DPLinearClassifier",
    "FixedClip",
    "FixedSize",
    "KerasDPSGD",
    "Ledger",
    "Poisson",
    "PrivacyPlan",
    "PrivateMetrics",
    "Releases",
    "RunKeys",
    "dp_mean",
    "dp_quantile",
    "mean_in_ball",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'privacy' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOME[name]), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"privacy.{name} needs {error.name}, which is not installed: pip install 'fedspeak[models]'",
            name=error.name,
        ) from None


def __dir__() -> list[str]:
    return __all__
