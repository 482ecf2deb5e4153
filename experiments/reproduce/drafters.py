"""Defines `fedspeak reproduce drafters`: a target for speculative decoding and drafters, trained on public text.

A drafter's total variation from the target is the probability with which speculative decoding rejects a drafted token.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import config_file, extras, options
from experiments.display import ConsoleDisplay
from experiments.intervals import Interval, format_interval, mean_interval
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.runs import RunFolder, load_trained, write_json
from privacy.files import write_public

TARGET = "target"
# Changes of the shipped config `target`, by the name of the model.
MODELS = {
    TARGET: (),
    "transformer": ("model.embedding=96", "model.heads=4", "model.blocks=2", "model.feed_forward=384"),
    "si-transformer": (
        "model.preset=si-transformer-21m",
        "model.embedding=96",
        "model.heads=4",
        "model.blocks=2",
        "model.feed_forward=384",
    ),
    "si-cifg": (
        "model.preset=tiny",
        "model.heads=none",
        "model.blocks=none",
        "model.feed_forward=none",
        "model.embedding=96",
        "model.units=192",
    ),
}
TEMPERATURES = (1.0, 0.6)
_BATCH = 16


@click.command("drafters")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a key of the config target for all models. May be repeated.",
)
@options.output("runs/drafters", "the models, the table and the results; finished models in it are used again")
def drafters(overrides: tuple[str, ...], output: Path) -> None:
    """Train a target of 8 million weights and three drafters with its vocabulary, and compare their distributions.

    The text is Shakespeare's plays and, if Debian's package bible-kjv is installed, the King James Bible. Macbeth and
    Twelfth Night are held out.
    """
    extras.require("federated")
    from experiments import public_run

    show = ConsoleDisplay()
    output.mkdir(parents=True, exist_ok=True)
    text = write_bible(output / "bible.txt", show)
    configs = {
        name: config_file.load("target", (*_with_text(text), *overrides, *changes)) for name, changes in MODELS.items()
    }
    runs = {name: RunFolder(output / name) for name in MODELS}
    for name, run in runs.items():
        if run.config.exists() and run.read_config() != configs[name]:
            raise ValueError(
                f"{run.path} holds a model of another config (other --set, or with or without the King James Bible): "
                "repeat the --set that it was trained with, or give another --output"
            )
    for name, run in runs.items():
        if not run.config.exists():
            run.create(configs[name])
        public_run.train(run, command_line(), show)
    show.note("comparing the models on the held-out plays …")
    results = compare(output)
    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), "models": results})
    table = format_table(results)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def compare(folder: Path) -> dict[str, Any]:
    """Evaluates the trained models on the plays that the config holds out.

    Args:
      folder: folder that holds the model folders.

    Returns:
      For each model the number of its weights, the loss in nats per token and, for a drafter, the mean total variation
      from the target at each temperature; all with 95 % bootstrap intervals over speakers.

    Raises:
      OSError, ValueError: a model cannot be read, or a drafter has another vocabulary than the target; one line.
    """
    import tensorflow as tf

    from experiments import data
    from fl.clients import sequences

    config = RunFolder(folder / TARGET).read_config()
    source, _, _ = data.sources(config)
    model, weights, vocabulary = load_trained(folder / TARGET)
    length = config.clients.sequence_length
    speakers = [sequences(np.array(vocabulary.document("\n".join(lines)), np.int32), length) for _, lines in source]
    owners = np.repeat(np.arange(len(speakers)), [len(rows) for rows in speakers])
    rows = np.concatenate(speakers)
    loaded = {TARGET: (model, weights)}
    for name in MODELS:
        if name == TARGET:
            continue
        *drafter, own = load_trained(folder / name)
        if own.digest != vocabulary.digest:
            raise ValueError(
                f"{folder / name} has another vocabulary than {folder / TARGET}: delete it to train it anew"
            )
        loaded[name] = (drafter[0], drafter[1])
    constants = {
        name: (model.fit(length), {key: tf.constant(value) for key, value in weights.items()})
        for name, (model, weights) in loaded.items()
    }

    @tf.function(autograph=False)
    def measure(tokens: Any) -> dict[str, Any]:
        targets = tokens[:, 1:]
        real = tf.cast(tf.not_equal(targets, 0), tf.float32)
        logits = {
            name: model.extend(weights, tokens[:, :-1], model.initial_state(_BATCH))[0]
            for name, (model, weights) in constants.items()
        }
        found = {}
        for name, own in logits.items():
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, own)
            found[f"{name} loss"] = tf.reduce_sum(losses * real, 1)
            for temperature in TEMPERATURES if name != TARGET else ():
                difference = tf.nn.softmax(own / temperature) - tf.nn.softmax(logits[TARGET] / temperature)
                variation = 0.5 * tf.reduce_sum(tf.abs(difference), -1)
                found[f"{name} {temperature}"] = tf.reduce_sum(variation * real, 1)
        return found

    padded = np.concatenate([rows, np.zeros((-len(rows) % _BATCH, rows.shape[1]), np.int32)])
    parts = [measure(tf.constant(padded[i : i + _BATCH])) for i in range(0, len(padded), _BATCH)]
    tokens = np.bincount(owners, np.count_nonzero(rows[:, 1:], axis=1), len(speakers))

    def interval(key: str) -> Interval:
        sums = np.concatenate([part[key].numpy() for part in parts])[: len(rows)]
        return mean_interval(np.bincount(owners, sums, len(speakers)), tokens)

    return {
        name: {
            "weights": int(sum(value.size for value in weights.values())),
            "nats": interval(f"{name} loss")._asdict(),
            "total_variation": {
                f"{temperature:g}": interval(f"{name} {temperature}")._asdict()
                for temperature in TEMPERATURES
                if name != TARGET
            },
        }
        for name, (_, weights) in loaded.items()
    }


def format_table(results: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    about = "Held-out plays (Macbeth, Twelfth Night); 95 % bootstrap intervals over speakers."
    columns = [f"total variation from the target, T = {t:g}" for t in TEMPERATURES]
    cells = []
    for name, row in results.items():
        distances = row["total_variation"]
        shown = [format_interval(distances[f"{t:g}"], 3) if distances else "" for t in TEMPERATURES]
        cells.append((name, f"{row['weights'] / 1e6:.2f} M", format_interval(row["nats"], 3), *shown))
    return "\n".join([about, "", *markdown_table(("model", "weights", "nats per token", *columns), cells)]) + "\n"


def write_bible(path: Path, show: ConsoleDisplay) -> Path | None:
    """Writes the King James Bible, one verse per line, if Debian's program prints it; returns the file, or None."""
    program = shutil.which("bible")
    if program is None:
        show.note("without the King James Bible (it needs Debian's package bible-kjv): the target will be worse")
        return None
    if not path.exists():
        try:
            verses = subprocess.run([program, "-f", "gen1:1-rev22:21"], check=True, capture_output=True).stdout.decode()
        except (subprocess.CalledProcessError, UnicodeDecodeError) as error:
            raise ValueError(f"{program} did not print the King James Bible ({error}): repair or remove it") from None
        write_public(path, "\n".join(verse.partition(" ")[2] for verse in verses.splitlines()).encode() + b"\n")
    return path


def _with_text(file: Path | None) -> tuple[str, ...]:
    """Returns the override that adds a text file to the config's public text."""
    if file is None:
        return ()
    public = [*config_file.load("target").data.public, str(file.absolute())]
    # A JSON array of strings is one of TOML too.
    return (f"data.public={json.dumps(public, ensure_ascii=False)}",)
