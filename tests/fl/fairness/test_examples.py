"""Runs the examples in docstrings of `fl.fairness`."""

import doctest
import importlib
import pkgutil

import pytest

import fl.fairness

MODULES = [f"fl.fairness.{module.name}" for module in pkgutil.iter_modules(fl.fairness.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name: str):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
