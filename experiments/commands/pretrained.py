"""Defines the command `import`, which turns a pretrained model into a model folder."""

from pathlib import Path

import click

from experiments import extras
from experiments.display import no_notices
from experiments.provenance import command_line
from privacy.files import require_writable


@click.command("import")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to make, by default named after the checkpoint, in the current folder.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Maximum number of tokens of a text, at most the checkpoint's own, which is the default.",
)
def import_model(checkpoint: Path, output: Path | None, context: int | None) -> None:
    """Turn a pretrained model into a model folder, which evaluate, export and train read.

    CHECKPOINT is a GGUF file, or a folder with config.json, tokenizer.json and safetensors files, of a Llama (SmolLM2,
    TinyLlama) or Qwen2 model.
    """
    extras.require("models")
    extras.require("pretrained")
    from experiments import imported

    if not checkpoint.exists():
        raise FileNotFoundError(f"{checkpoint} does not exist: give a GGUF file or a folder")
    folder = output or Path(checkpoint.stem.lower() if checkpoint.is_file() else checkpoint.resolve().name.lower())
    imported.require_new(folder)
    require_writable(folder.parent)
    imported.remove_stale_drafts(folder)
    with no_notices():
        from models.pretrained.checkpoint import load

        loaded = load(checkpoint, context)
    imported.write(loaded, checkpoint, folder, command_line())
    count = sum(weight.size for weight in loaded.weights.values())
    click.echo(
        f"wrote {folder}: {loaded.description}, {count / 1e6:,.1f} M weights, {loaded.vocabulary.size:,} tokens, "
        f"context {loaded.model.context:,}"
    )
