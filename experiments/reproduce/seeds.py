"""Summarises the results of runs that differ in their seed only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def interval(values: Sequence[float]) -> dict[str, float]:
    """Returns the mean of at least two values ("mean") and half the width of its 95 % Student's t interval ("half")."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": float(np.mean(values)), "half": half}
