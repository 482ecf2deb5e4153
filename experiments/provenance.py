"""Records what produced a result: the command as typed and the versions of the software."""

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("fedspeak", "tensorflow", "tensorflow-federated", "tensorflow-privacy", "dp-accounting", "numpy")


def command_line() -> str:
    """Returns the command as typed, quoted for a shell."""
    return shlex.join(["fedspeak", *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the key packages, by name."""
    by_name = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            by_name[package] = version(package)
        except PackageNotFoundError:
            by_name[package] = "not installed"
    return by_name
