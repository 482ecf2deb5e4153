"""What every test run shares: quiet, single-purpose TensorFlow and reproducible property tests."""

import os

from hypothesis import settings

# Set before any test imports TensorFlow; worker processes that a test starts inherit them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MPLBACKEND", "Agg")

# The same examples on every machine, and no time limit on one: the first may trace a TensorFlow function.
settings.register_profile("house", derandomize=True, deadline=None, database=None)
settings.load_profile("house")
