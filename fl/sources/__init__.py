"""Where clients' text comes from: plays, folders, tables, and TFF's client data. Each module has a `load`."""

from fl.sources.base import BadRow, BadRows, Source

__all__ = ["BadRow", "BadRows", "Source"]
