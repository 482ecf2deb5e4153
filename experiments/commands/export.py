"""Defines the command `export`, which writes trained models as .tflite files."""

import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from experiments import extras
from experiments.commands.heads_options import FORM, HeadsOptions, heads_options
from experiments.display import no_notices
from experiments.drafting import FORMS, load_drafter
from models.decoding.choices import DECODINGS, LONGEST_TEXT
from models.decoding.draft_options import DraftOptions
from models.token_tree import MAX_NODES, format_shape, parse_shape
from privacy.files import require_writable_file

if TYPE_CHECKING:
    from models.parity import Parity

_PRECISIONS = ("float32", "float16", "int8")
_LONGEST_DRAFT = 32
LARGEST_BEST_OF = 1024


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice([*_PRECISIONS, "all"]),
    default="all",
    show_default=True,
    help="Weight precision of the exported file, or all for one file of each; int8 is dynamic-range quantisation.",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(1, LONGEST_TEXT),
    default=64,
    show_default=True,
    help="Maximum number of tokens that the file reads at once, and that a prompt of the graph's own loop may have.",
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1, LONGEST_TEXT),
    default=128,
    show_default=True,
    help="Maximum number of tokens that the graph's own loop generates. A transformer's file has room for this number "
    "and --max-prompt together.",
)
@click.option(
    "--decoding",
    "decodings",
    type=click.Choice(DECODINGS),
    multiple=True,
    help="How the file draws text; may be repeated for a file with several. All but autoregressive take --drafter. "
    "Default: block with a drafter, else autoregressive.",
)
@click.option("--drafter", help=f"What drafts for the model: {FORMS}.")
@click.option(
    "--draft-length",
    show_default="4",
    help="Number of tokens that the drafter proposes at once; or auto, or auto:N with N as the maximum, to choose it "
    "at run time by measured costs (fedspeak costs).",
)
@click.option(
    "--num-drafts",
    type=click.IntRange(1, MAX_NODES - 1),
    show_default=str(DraftOptions.num_drafts),
    help="Number of drafts of decoding spectr, each of --draft-length tokens.",
)
@click.option(
    "--tree",
    show_default=format_shape(DraftOptions.tree),
    help="Number of drafted children of each text by depth, separated by commas, for decoding tree.",
)
@heads_options
@click.option(
    "--best-of",
    type=click.IntRange(2, LARGEST_BEST_OF),
    help="Number of texts after one prompt that the file can draw together, for fedspeak generate --best-of.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, by default model.tflite, model-float16.tflite or model-int8.tflite in RUN. With "
    "--precision all it is the float32 file, and the other two are named after it.",
)
def export(
    run: Path,
    precision: str,
    max_prompt: int,
    max_new_tokens: int,
    decodings: tuple[str, ...],
    drafter: str | None,
    draft_length: str | None,
    num_drafts: int | None,
    tree: str | None,
    best_of: int | None,
    output: Path | None,
    **heads: Any,
) -> None:
    """Write the trained model of a run, or an imported model, as .tflite files, and compare each with the model.

    Ends with an error if a file fails the comparison (docs/export.md).
    """
    extras.require("models")
    from experiments.runs import load_trained

    own_heads = HeadsOptions(**heads)
    own_heads.check(decodings, drafter, draft_length)
    if "blockwise" in decodings:
        drafter = FORM
    longest, automatic = parse_draft_length("4" if draft_length is None else draft_length)
    if drafter == "":
        raise click.BadParameter(f"'' must be {FORMS}", param_hint="--drafter")
    if drafter is None and draft_length is not None:
        raise click.UsageError("--draft-length has no use without --drafter: drop it, or give --drafter")
    twice = next((name for name in decodings if decodings.count(name) > 1), None)
    if twice is not None:
        raise click.UsageError(f"--decoding {twice} is given twice: name it once")
    decodings = decodings or (("autoregressive",) if drafter is None else ("block",))
    if drafter is None and decodings != ("autoregressive",):
        raise click.UsageError(f"--decoding {_first_drafting(decodings)} needs a drafter: give --drafter")
    if drafter is not None and decodings == ("autoregressive",):
        raise click.UsageError("--drafter has no use with --decoding autoregressive: drop it, or choose another")
    for option, value, name in (("--num-drafts", num_drafts, "spectr"), ("--tree", tree, "tree")):
        if value is not None and name not in decodings:
            raise click.UsageError(f"{option} has no use without --decoding {name}: drop it, or name the decoding")
    if draft_length is not None and decodings == ("tree",):
        raise click.UsageError("--draft-length has no use with --decoding tree alone: drop it, or give --tree")
    fixed = next((name for name in decodings if name in ("greedy-block", "spectr", "tree", "blockwise")), None)
    if automatic and fixed is not None:
        raise click.UsageError(
            f"--draft-length {draft_length} does not go with --decoding {fixed}, whose drafts have one size: "
            "give a number, or --decoding block"
        )
    given: dict[str, Any] = {"num_drafts": num_drafts, "tree": None if tree is None else _parse_tree(tree)}
    try:
        sizes = DraftOptions(longest, automatic, **{name: value for name, value in given.items() if value is not None})
        draft_room = max(map(sizes.count, decodings))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if precision == "all":
        paths = all_precisions(output or run / "model.tflite")
    else:
        paths = {precision: output or _name_file(run / "model.tflite", precision)}
    if output is not None or run.is_dir():  # checked before TensorFlow loads, which takes seconds
        for path in paths.values():
            require_writable_file(path)
    model, weights, vocabulary = load_trained(run)
    if drafter == FORM:
        drafted = own_heads.draft_length(model, None if draft_length is None else longest)
        if "tree" in decodings:
            own_heads.check_tree(model, sizes.tree)
        sizes = replace(sizes, draft_length=drafted, paths=own_heads.paths or 1)
        draft_room = max(map(sizes.count, decodings))
    options: dict[str, Any] = {"max_prompt": max_prompt, "max_new_tokens": max_new_tokens, "decodings": decodings}
    options["best_of"] = best_of or 1
    if drafter is not None:
        context = max_prompt + max_new_tokens + draft_room
        target = model, weights, vocabulary
        if drafter == FORM:
            own = own_heads.drafter(*target, context, sizes.draft_length)
        else:
            own = load_drafter(drafter, *target, context)
        options |= {"drafter": own, **vars(sizes)}
    export_and_check(model, weights, vocabulary, paths, **options)


def parse_draft_length(text: str) -> tuple[int, bool]:
    """Returns the largest draft length, and whether it is chosen at run time.

    Raises:
      click.BadParameter: the text is neither a positive integer nor auto nor auto:N.
    """
    word, _, number = text.partition(":")
    digits = (number or "4") if word == "auto" else text
    # Python refuses to convert thousands of digits.
    is_number = digits.isdecimal() and len(digits) < 10
    if not is_number or not 1 <= int(digits) <= _LONGEST_DRAFT or text.endswith(":"):
        shown = text if len(text) < 40 else f"{text[:40]}…"
        raise click.BadParameter(
            f"{shown!r} must be an integer from 1 to {_LONGEST_DRAFT}, auto or auto:N",
            param_hint="--draft-length",
        )
    return int(digits), word == "auto"


def _parse_tree(text: str) -> tuple[int, ...]:
    try:
        return parse_shape(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--tree") from None


def _first_drafting(decodings: Sequence[str]) -> str:
    return next(name for name in decodings if name != "autoregressive")


def export_and_check(
    model: Any, weights: Any, vocabulary: Any, files: dict[str, Path], **options: Any
) -> "list[Parity]":
    """Exports one file per precision, compares each file with the model, and prints the comparison.

    The files appear when they have been compared, also those that fail. An interruption before leaves none, and files
    that were there before stay.

    Args:
      model: the language model.
      weights: the model's weights by name.
      vocabulary: the vocabulary that the model was trained with.
      files: the file to write for each precision.
      **options: other arguments of `models.export.export`.

    Raises:
      click.ClickException: a file fails the comparison.
    """
    from models.export import export
    from models.parity import check_parity

    drafts = {precision: path.with_name(f".{path.name}.draft") for precision, path in files.items()}
    try:
        for precision, path in files.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            click.echo(f"converting the model with {precision} weights …", err=True)
            try:
                export(model, weights, vocabulary, drafts[precision], precision, **options)
            except OSError as error:
                if error.filename == str(drafts[precision]):
                    error.filename = str(path)
                raise
        click.echo(f"comparing {len(files)} file{'s' * (len(files) > 1)} with the trained model …", err=True)
        with no_notices():
            results = check_parity(model, weights, list(drafts.values()))
        for precision, path in files.items():
            drafts[precision].replace(path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    results = [replace(result, path=str(path)) for result, path in zip(results, files.values(), strict=True)]
    _print_table(results)
    failed = [result.path for result in results if not result.passed]
    if failed:
        raise click.ClickException(
            f"{', '.join(failed)}: failed the comparison with the trained model or with the file's own token-by-token "
            "generation (FAILED in the table above): do not ship it; export again, or report a bug"
        )
    return results


def all_precisions(path: Path) -> dict[str, Path]:
    """Returns the file for each precision: `path` itself for float32, and names derived from it for the others."""
    return {name: _name_file(path, name) for name in _PRECISIONS}


def _name_file(path: Path, precision: str) -> Path:
    return path if precision == "float32" else path.with_name(f"{path.stem}-{precision}{path.suffix}")


def _print_table(results: "Sequence[Parity]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from models.device import runtime

    title = f"Exported files against the trained model ({runtime()}, 1 thread)"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("weights", "size", "logit\nerror", "random\nbits", "same\ntexts", "tokens/s", ""):
        table.add_column(heading, no_wrap=heading != "tokens/s")
    for result in results:
        low, high = result.tokens_per_second_range
        table.add_row(
            result.precision,
            f"{result.bytes / 1e6:.2f} MB",
            f"{result.max_logit_error:.0e} of {result.logit_spread:.0f}",
            {True: "equal", False: "DIFFER", None: "-"}[result.random_bits_equal],
            f"{result.equal_to_model}/{result.sequences}",
            f"{result.tokens_per_second:,.0f} ({low:,.0f}-{high:,.0f})",
            "ok" if result.passed else "FAILED",
        )
    console = Console(highlight=False)
    console.print(table)
    for result in results:
        for one in result.drafting:
            low, high = one.tokens_per_second_range
            console.print(
                f"{result.precision}, {one.decoding}: {one.tokens_per_second:,.0f} ({low:,.0f}-{high:,.0f}) tokens/s, "
                f"{one.acceptance}; {'ok' if one.passed else 'FAILED'}",
                soft_wrap=True,
            )
    for result in results:
        for own in result.samples:
            console.print(
                f"{result.precision}, {own.decoding}: {own.equal} of {own.texts} texts drawn together equal those "
                f"drawn alone, {own.speedup:.1f} times as fast; {'ok' if own.passed else 'FAILED'}",
                soft_wrap=True,
            )
    for result in results:
        console.print(f"wrote {result.path}", markup=False, soft_wrap=True)
