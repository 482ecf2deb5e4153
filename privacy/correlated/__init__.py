"""Correlated noise (DP-FTRL): mechanisms, their sensitivity under participation limits, their error, and optimisers.

limits = Participation.by_round_distance(100, max_participations=20)
blt = optimize_blt(4, Workload(2000), limits)
blt.sensitivity(2000, limits).value * blt.error(2000)  # root mean square error of prefix sums, noise multiplier 1
"""

from privacy.correlated.factorisation import optimize_banded, optimize_blt
from privacy.correlated.lower_bound import least_loss
from privacy.correlated.mechanisms import BLT, Banded, Mechanism, Tree
from privacy.correlated.participation import Participation
from privacy.correlated.workload import Workload

__all__ = [
    "BLT",
    "Banded",
    "Mechanism",
    "Participation",
    "Tree",
    "Workload",
    "least_loss",
    "optimize_banded",
    "optimize_blt",
]
