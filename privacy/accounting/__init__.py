"""Computes the ε of a whole plan, of single releases, and of several releases together.

The functions exported here account for a plan of many rounds; `privacy.accounting.costs` accounts for single releases.
"""

from privacy.accounting.plan_epsilon import Epsilon, calibrate_noise, calibrate_rounds, epsilon, epsilon_curve

__all__ = ["Epsilon", "calibrate_noise", "calibrate_rounds", "epsilon", "epsilon_curve"]
