"""Trains models by federated averaging: clients' data, cohorts, local SGD, aggregation, the round loop, TFF's runtime.

Importing this package loads neither TensorFlow nor TFF: each public name below imports its module on first use. These
modules are public, too, and are imported by their full path: `fl.aggregation`, `fl.clients`, `fl.cohorts`,
`fl.evaluation`, `fl.exact_mean`, `fl.gaussian`, `fl.keras_models`, `fl.local_training`, `fl.near_ids`,
`fl.private_mean`, `fl.rounds`, `fl.splits`, all modules of `fl.sources` and `fl.audit`, `fl.engines.averaging`,
`fl.engines.calibration`, `fl.engines.cohort`, `fl.engines.per_client`, `fl.runtime.hosts`, `fl.runtime.kernels` and
`fl.runtime.tunnel`. `fl.fairness`, which tests the fairness of any model, needs no TFF either when it is used.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "DPMean": "fl.aggregation",
    "Evaluator": "fl.evaluation",
    "ExactDPMean": "fl.exact_mean",
    "ExampleWeightedMean": "fl.aggregation",
    "Federation": "fl.rounds",
    "LanguageModelling": "fl.local_training",
    "LocalSGD": "fl.local_training",
    "RoundLog": "fl.rounds",
    "TokenStore": "fl.clients",
    "UniformMean": "fl.aggregation",
    "draw_cohort": "fl.cohorts",
    "local_runtime": "fl.runtime",
    "run_rounds": "fl.rounds",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fl' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
