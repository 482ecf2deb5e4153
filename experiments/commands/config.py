"""Defines `fedspeak config`, which prints the configuration's JSON Schema and its reference page."""

import json

import click


@click.group()
def config() -> None:
    """Describe the configuration of a run."""


@config.command()
def schema() -> None:
    """Print a JSON Schema of the configuration, for editors that complete and check TOML."""
    from experiments import config_reference

    click.echo(json.dumps(config_reference.schema(), indent=2))


@config.command()
def reference() -> None:
    """Print the reference of all keys as Markdown (docs/config.md)."""
    from experiments import config_reference

    click.echo(config_reference.markdown(), nl=False)
