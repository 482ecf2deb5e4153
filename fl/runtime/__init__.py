"""Runs TFF's computations on worker processes: on this machine (`local`) and on other hosts (`hosts`, `tunnel`).

Where there is a C compiler, a worker on loopback accepts connections of its own account only. Importing this package is
instant: the names below load their module on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl.runtime.local import LocalRuntime, local_runtime

_HOME = {
    "LocalRuntime": "fl.runtime.local",
    "local_runtime": "fl.runtime.local",
}
__all__ = ["LocalRuntime", "local_runtime"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fl.runtime' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
