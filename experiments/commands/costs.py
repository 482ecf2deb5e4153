"""Defines the command `costs`, which measures what drafts cost on this machine."""

from pathlib import Path

import click

from experiments.display import no_notices
from models.decoding.choices import DECODINGS
from privacy.files import require_writable_file


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
    path = model.parent / "costs.json" if output is None else output
    if output is not None or path.parent.is_dir():
        require_writable_file(path)
    from models import device, device_costs

    with no_notices():
        file = device.load(model)
        drafting = [one for one in file.facts.decodings if one != "autoregressive"]
        name = decoding or (drafting[0] if drafting else "block")
        measured = device_costs.measure(file, name)
    device_costs.save(measured, file, name, path)
    longest = file.facts.draft_length
    one, most = measured.verify + measured.draft, measured.verify + longest * measured.draft
    click.echo(
        f"wrote {path} ({name}, {device.runtime()}, 1 thread)\n"
        f"In times of one plain token: a block without a draft takes {measured.nothing:.2f}, with one drafted token "
        f"{one:.2f}, with {longest} {most:.2f}.\n" + _advise(most, longest)
    )


def _advise(most: float, longest: int) -> str:
    """Says from what acceptance on drafts of full length pay, against plain decoding."""
    for percent in range(1, 101):
        if sum((percent / 100) ** k for k in range(longest + 1)) > most:
            return f"Drafts of {longest} tokens pay where {percent} % or more of them are accepted."
    return f"Drafts of {longest} tokens never pay on this machine: use decoding autoregressive."
