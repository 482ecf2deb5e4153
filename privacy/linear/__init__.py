"""Trains private linear classifiers.

`LinearDPSGD` is DP-SGD on softmax regression. `privacy.DPLinearClassifier` adds private preprocessing of the features
and scikit-learn's interface.
"""

from privacy.linear.linear_dpsgd import LinearDPSGD

__all__ = ["LinearDPSGD"]
