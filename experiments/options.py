"""Defines options that several benchmarks and studies share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

seed = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the study."
)


def timeout(default: int = 600) -> Callable[[Any], Any]:
    """Returns the option for the time limit of a benchmark's processes, with a default in seconds."""
    return click.option(
        "--timeout",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help="Seconds after which a process is ended and counted as failed.",
    )


def output(default: str, contents: str = "the table and the results") -> Callable[[Any], Any]:
    """Returns the option for the folder that a command writes to.

    Args:
      default: the folder, if the option is not given.
      contents: what the folder is for, in the help text.
    """
    return click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=Path(default),
        show_default=True,
        help=f"Folder for {contents}.",
    )
