"""Defines options that several benchmarks share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

timeout = click.option(
    "--timeout",
    type=click.IntRange(1),
    default=600,
    show_default=True,
    help="Seconds after which a process is ended and counted as failed.",
)


def output(default: str) -> Callable[[Any], Any]:
    """Returns the option for the folder that a benchmark writes to, with this default."""
    return click.option(
        "--output",
        type=click.Path(path_type=Path),
        default=Path(default),
        show_default=True,
        help="Folder for the table and the results.",
    )
