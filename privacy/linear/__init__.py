"""Private linear classifiers: `privacy.DPLinearClassifier`, and the features and the DP-SGD that it is made of."""

from privacy.linear.linear_dpsgd import LinearDPSGD

__all__ = ["LinearDPSGD"]
