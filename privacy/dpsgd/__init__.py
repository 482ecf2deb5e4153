"""Trains Keras models by DP-SGD with `KerasDPSGD`.

The other modules clip each example's gradient, with rounding errors bounded, and check that clipping protects each
example in a given model.
"""

from privacy.dpsgd.keras_dpsgd import KerasDPSGD

__all__ = ["KerasDPSGD"]
