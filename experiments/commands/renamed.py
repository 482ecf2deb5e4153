"""Refuses the option names of earlier versions with a message that gives the new name."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def renamed(old: str, new: str) -> Callable[[Command], Command]:
    """Returns a decorator that refuses an option's old name in a command and names the new one.

    The old name is a hidden option that takes one value. It is processed before all other options, so that its message
    is the one that the user sees.

    Args:
      old: former name of the option, as in "--users".
      new: present name of the option, as in "--clients".
    """

    def refuse(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        if value is not None:
            raise click.UsageError(f"{old} is now {new}")

    return click.option(old, hidden=True, expose_value=False, is_eager=True, callback=refuse)
