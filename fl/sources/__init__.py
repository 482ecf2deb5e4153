"""Reads clients' text from Shakespeare's plays, folders, tables and TFF's client data.

Each kind of source has a module of its own, whose `load` checks a path or an object and returns a `Source`:
`shakespeare`, `folder`, `csv_rows`, `jsonl`, `parquet`, `sqlite` and `client_data`.
"""

from fl.sources.base import BadRow, BadRows, Source

__all__ = ["BadRow", "BadRows", "Source"]
