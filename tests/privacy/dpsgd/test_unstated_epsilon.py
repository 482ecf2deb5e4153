"""Tests that DP-SGD on Keras models says so if its noise is too small for a finite ε."""

import warnings

import pytest

from tests.privacy.dpsgd.keras_training import compiled, examples, settings


def test_fit_warns_of_infinite_epsilon():
    x, y = examples()
    expected = "epsilon is infinite with noise_multiplier 0.003: above about 500, epsilon is not stated: use more noise"
    with pytest.warns(RuntimeWarning, match=expected):
        settings(noise_multiplier=0.003).fit(compiled(), x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings(noise_multiplier=1.0).fit(compiled(), x, y)


@pytest.mark.parametrize("multiplier", [1e-7, 1e9])
def test_settings_refuse_noise_that_has_no_accounting(multiplier):
    with pytest.raises(ValueError, match=r"noise_multiplier must lie in \[1e-6, 1e8\]"):
        settings(noise_multiplier=multiplier)
