"""Defines `fedspeak demo`, which trains a private keyboard model on public plays and exports it for a device."""

from pathlib import Path

import click

from experiments import config_file, extras
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line
from experiments.runs import RunFolder, load_trained
from privacy.files import require_writable, write_public

_PROMPTS = ("I will", "My lord,", "What is", "O,")
_SAMPLES_PER_PROMPT = 3


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("runs") / "demo",
    show_default=True,
    help="Folder of the run; an interrupted demo is resumed from it.",
)
def demo(output: Path) -> None:
    """Train, report, export and generate on Shakespeare's plays."""
    extras.require("federated")
    from experiments import results, training
    from experiments.commands.export import all_precisions, export_and_check

    show, run = ConsoleDisplay(), RunFolder(output)
    if not run.config.exists():
        run.create(config_file.load("demo"))
    elif run.weights.exists():
        show.note(f"{output} holds a finished demo: only its results are written again (delete it to train again)")
    require_writable(output)
    if not run.weights.exists():
        training.train(run, command_line(), show)

    show.note("evaluating on the test clients …")
    table = results.evaluate(run)
    reports = results.write_reports(run, show.note)
    model, weights, vocabulary = load_trained(output)
    show.note("exporting the model and comparing each file with it …")
    export_and_check(model, weights, vocabulary, all_precisions(output / "model.tflite"))
    samples = _generate_samples(output / "model.tflite")
    write_public(output / "samples.txt", samples.encode())

    click.echo(table)
    click.echo("The exported model continues some prompts:\n")
    click.echo(samples)
    for path in [*reports, output / "samples.txt"]:
        click.echo(str(path))


def _generate_samples(path: Path) -> str:
    """Generates a few continuations of each prompt with the exported model in the LiteRT runtime."""
    from models import device

    loaded = device.load(path)
    lines = [
        prompt + loaded.text(prompt, max_new_tokens=40, temperature=0.8, seed=1, request=number)
        for prompt in _PROMPTS
        for number in range(_SAMPLES_PER_PROMPT)
    ]
    return "\n".join(lines) + "\n"
