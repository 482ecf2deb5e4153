"""TFF's processes: the worker on this machine (`local`), those of other hosts (`hosts`, `tunnel`), and their guards."""

from fl.runtime.local import LocalRuntime, local_runtime

__all__ = ["LocalRuntime", "local_runtime"]
