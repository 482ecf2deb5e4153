"""Defines the command `costs`, which measures what drafts cost on this machine."""

from pathlib import Path

import click

from experiments.display import no_notices
from models.decoding.choices import DECODINGS
from privacy.files import require_writable


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--decoding",
    type=click.Choice(DECODINGS[1:]),
    help="Decoding to measure; by default the file's first one with a drafter.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write, by default costs.json beside the model."
)
def costs(model: Path, decoding: str | None, output: Path | None) -> None:
    """Measure the times of a block of an exported model whose draft lengths are chosen at run time.

    Texts then depend on the measured numbers too: give the written file to every run that must be repeatable.
    """
    path = output or model.with_name("costs.json")
    if path.parent.is_dir():
        require_writable(path.parent)
    from models import device, device_costs

    with no_notices():
        file = device.load(model)
        drafting = [one for one in file.facts.decodings if one != "autoregressive"]
        name = decoding or (drafting[0] if drafting else "block")
        measured = device_costs.measure(file, name)
    device_costs.save(measured, file, name, path)
    click.echo(
        f"wrote {path}: verifying {file.facts.draft_length} drafted tokens takes {measured.verify:.2f} times the time "
        f"of one token, and drafting one {measured.draft:.2f} ({name}, {device.runtime()}, 1 thread)"
    )
