"""Runs TFF's worker processes: one on this machine (`local`) or several on other hosts (`hosts`, `tunnel`)."""

from fl.runtime.local import LocalRuntime, local_runtime

__all__ = ["LocalRuntime", "local_runtime"]
