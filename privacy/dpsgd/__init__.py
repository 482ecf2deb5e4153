"""DP-SGD for Keras models: `KerasDPSGD` trains, the other modules clip exactly and check that clipping protects."""

from privacy.dpsgd.keras_dpsgd import KerasDPSGD

__all__ = ["KerasDPSGD"]
