"""Writes the results of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from experiments.provenance import command_line, versions
from experiments.runs import write_json
from privacy.files import write_public


def write_results(folder: Path, results: Mapping[str, Any], table: str) -> None:
    """Writes results with the command and versions that they are from to `results.json`, and prints the table.

    Args:
      folder: folder of the files; it exists.
      results: what was measured, as JSON can write it.
      table: the same as Markdown, which is also written to `table.md`.
    """
    write_json(folder / "results.json", {"command": command_line(), "versions": versions(), **results})
    write_public(folder / "table.md", table.encode())
    click.echo(table, nl=False)
