"""Defines `fedspeak reproduce invariance`: how often a text of the decoding "invariant" stays the same.

In exact arithmetic its text depends neither on the drafter nor on the draft length nor on the batch. In float32 the
target's logits differ by rounding between calls of different shapes, and a token changes where the two largest sums of
logit and noise are as near to each other as that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from experiments import extras, options
from experiments.display import ConsoleDisplay
from experiments.invariance_runs import VARIANTS, Family, compare
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.runs import RunFolder, load_trained, write_json
from privacy.files import write_public

_SIZE = 2000
# Untrained presets, made small; the two transformers and the two cells differ in what rounds.
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "si-cifg": ("tiny", {}),
    "cifg": ("cifg-4.7m", {"embedding": 96, "units": 192}),
    "transformer": ("transformer-4m", {"blocks": 2, "feed_forward": 512}),
    "si-transformer": ("si-transformer-4m", {"blocks": 2, "feed_forward": 512}),
}


@click.command("invariance")
@click.option(
    "--models",
    type=click.Path(path_type=Path),
    help="Folder of trained models, one run folder each, as `fedspeak reproduce drafters` writes it. "
    "Without it, untrained presets are compared.",
)
@click.option("--texts", type=click.IntRange(1, 100_000), default=300, show_default=True, help="Number of texts.")
@click.option("--tokens", type=click.IntRange(1, 1000), default=32, show_default=True, help="Tokens per text.")
@options.output("runs/invariance")
def invariance(models: Path | None, texts: int, tokens: int, output: Path) -> None:
    """Measure how often texts of the decoding "invariant" stay the same for other drafts, drafters and batches."""
    extras.require("models")
    show = ConsoleDisplay()
    families = load_families(models) if models else build_families()
    output.mkdir(parents=True, exist_ok=True)
    results = {}
    for family in families:
        show.note(f"drawing {texts} texts of {family.name} in {1 + len(VARIANTS)} ways …")
        results[family.name] = compare(family, texts, tokens)
    content = {"command": command_line(), "versions": versions(), "texts": texts, "tokens": tokens, "models": results}
    write_json(output / "metrics.json", content)
    table = format_table(results, texts, tokens)
    write_public(output / "table.md", table.encode())
    click.echo(table)


def build_families() -> list[Family]:
    """Returns the untrained presets, with weights that give logits a standard deviation of some 2 nats."""
    from models.presets import preset

    families = []
    for name, (of, changes) in PRESETS.items():
        model = preset(of, _SIZE, **changes)
        weights = model.init(0)
        scales = {"embedding": 4, "projection": 5} if "projection" in weights else {"embedding": 2}
        spread = {key: value * scales.get(key, 1) for key, value in weights.items()}
        families.append(Family(name, model, spread, start=1))
    return families


def load_families(folder: Path) -> list[Family]:
    """Returns the trained models of a folder.

    Raises:
      ValueError: it holds none, or one is damaged.
    """
    runs = sorted(path for path in folder.iterdir() if RunFolder(path).config.exists()) if folder.is_dir() else []
    if not runs:
        raise ValueError(f"models = {folder}: has no folder of a trained model; train some by `fedspeak train`")
    families = []
    for path in runs:
        model, weights, vocabulary = load_trained(path)
        families.append(Family(path.name, model, weights, vocabulary.start))
    return families


def format_table(results: dict[str, Any], texts: int, tokens: int) -> str:
    """Returns the results as Markdown."""
    about = f"{texts} texts of {tokens} tokens; share equal to those drawn without a draft, one row at a time."
    columns = ("largest difference of a logit", "smallest margin of a token", "largest margin of a changed token")
    cells = []
    for name, row in results.items():
        shares = [f"{row['equal'][str(variant)] / texts:.2%}" for variant in VARIANTS]
        margins = [found["margin"] for found in row["changed"]]
        worst = f"{max(margins):.1e}" if margins else "none changed"
        numbers = [f"{row['logit_difference']:.1e}", f"{row['smallest_margin']:.1e}", worst]
        cells.append((name, *shares, *numbers))
    return "\n".join([about, "", *markdown_table(("model", *map(str, VARIANTS), *columns), cells)]) + "\n"
