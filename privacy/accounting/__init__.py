"""Accounting: computes the ε of a whole plan, of single releases, and of several releases together.

`accounting.epsilon(plan)` and its kin answer for a plan of many rounds; `privacy.accounting.costs` for single releases.
"""

from privacy.accounting.plan_epsilon import Epsilon, calibrate_noise, calibrate_rounds, epsilon, epsilon_curve

__all__ = ["Epsilon", "calibrate_noise", "calibrate_rounds", "epsilon", "epsilon_curve"]
