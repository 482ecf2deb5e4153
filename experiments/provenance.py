"""Which software produced a result."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("fedspeak", "tensorflow", "tensorflow-federated", "tensorflow-privacy", "dp-accounting", "numpy")


def versions() -> dict[str, str]:
    """Interpreter and key packages, by name."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
