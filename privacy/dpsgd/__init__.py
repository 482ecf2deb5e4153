"""Trains Keras models by DP-SGD with `KerasDPSGD`.

The other modules clip each example's gradient exactly and check that clipping protects it in a given model.
"""

from privacy.dpsgd.keras_dpsgd import KerasDPSGD

__all__ = ["KerasDPSGD"]
