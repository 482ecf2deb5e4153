"""Chooses among samples and says what the choice costs: best-of-n, its relatives, the optimal tilt, asymptotics.

Importing the package loads no other module. Each name below loads its module on first use. The modules `best_of_n`,
`pools`, `quantile_tilt`, `tilt` and `asymptotics` hold functions and are public too: `from models.alignment import
best_of_n`. All need NumPy alone.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "BestOfN": "models.alignment.best_of_n",
    "Candidates": "models.alignment.candidates",
    "InferenceTimeOptimum": "models.alignment.inference_time",
    "KLEstimate": "models.alignment.best_of_n",
    "MajorityVote": "models.alignment.majority",
    "Optimality": "models.alignment.tilt",
    "Outcomes": "models.alignment.outcomes",
    "Policy": "models.alignment.policy",
    "Report": "models.alignment.policy",
    "RewindAndRepeat": "models.alignment.rewind",
    "SoftBestOfN": "models.alignment.soft_best_of_n",
    "Tilt": "models.alignment.tilt",
    "align_for_best_of_n": "models.alignment.inference_time",
    "approximate_guided_rewards": "models.alignment.guided",
    "best_of_n_rewards": "models.alignment.pools",
    "optimality": "models.alignment.tilt",
    "pass_at_k": "models.alignment.pools",
    "tilt_to_kl": "models.alignment.tilt",
    "tilt_to_reward": "models.alignment.tilt",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'models.alignment' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
