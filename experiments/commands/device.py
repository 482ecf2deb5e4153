"""Defines the commands for models on devices: `export` writes .tflite files, `generate` draws text from one."""

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from experiments import extras
from experiments.commands.renamed import renamed
from experiments.display import no_notices
from experiments.memory import resident
from privacy.files import require_writable

if TYPE_CHECKING:
    from models.parity import Parity

_PRECISIONS = ("float32", "float16", "int8")


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
    default=64,
    show_default=True,
    help="Maximum number of tokens that the file reads at once, and that a prompt of the graph's own loop may have.",
)
@click.option(
    "--max-new-tokens",
    default=128,
    show_default=True,
    help="Maximum number of tokens that the graph's own loop generates. A transformer's file has room for this number "
    "and --max-prompt together.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, by default model.tflite, model-float16.tflite or model-int8.tflite in RUN. With "
    "--precision all it is the float32 file, and the other two are named after it.",
)
def export(run: Path, precision: str, max_prompt: int, max_new_tokens: int, output: Path | None) -> None:
    """Write the trained model of a run, or an imported model, as .tflite files, and compare each with the model.

    Ends with an error if a file fails the comparison (docs/export.md).
    """
    extras.require("models")
    from experiments.runs import load_trained

    if precision == "all":
        paths = all_precisions(output or run / "model.tflite")
    else:
        paths = {precision: output or _name_file(run / "model.tflite", precision)}
    folder = next(iter(paths.values())).parent
    if folder.is_dir():  # checked before TensorFlow loads, which takes seconds
        require_writable(folder)
    model, weights, vocabulary = load_trained(run)
    export_and_check(model, weights, vocabulary, paths, max_prompt=max_prompt, max_new_tokens=max_new_tokens)


def export_and_check(
    model: Any, weights: Any, vocabulary: Any, paths: dict[str, Path], **limits: int
) -> "list[Parity]":
    """Exports one file per precision, compares each file with the model, and prints the comparison.

    The files appear when they have been compared, also those that fail. An interruption before leaves none, and files
    that were there before stay.

    Args:
      model: the language model.
      weights: the model's weights by name.
      vocabulary: the vocabulary that the model was trained with.
      paths: the file to write for each precision.
      **limits: `max_prompt` and `max_new_tokens` of `models.export.export`.

    Raises:
      click.ClickException: a file fails the comparison.
    """
    from models.export import export
    from models.parity import check_parity

    drafts = {precision: path.with_name(f".{path.name}.draft") for precision, path in paths.items()}
    try:
        for precision, path in paths.items():
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            click.echo(f"converting the model with {precision} weights …", err=True)
            try:
                export(model, weights, vocabulary, drafts[precision], precision, **limits)
            except OSError as error:
                if error.filename == str(drafts[precision]):
                    error.filename = str(path)
                raise
        click.echo(f"comparing {len(paths)} file{'s' * (len(paths) > 1)} with the trained model …", err=True)
        with no_notices():
            results = check_parity(model, weights, list(drafts.values()))
        for precision, path in paths.items():
            drafts[precision].replace(path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    results = [replace(result, path=str(path)) for result, path in zip(results, paths.values(), strict=True)]
    _print_table(results)
    failed = [result.path for result in results if not result.passed]
    if failed:
        raise click.ClickException(
            f"{', '.join(failed)}: failed the comparison with the trained model or with the file's own token-by-token "
            "generation (FAILED in the table above): do not ship it; export again, or report a bug"
        )
    return results


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", help="Text to continue; by default the model begins a new text.")
@click.option(
    "--chat", help="Message to answer, instead of a text to continue; for imported models with a chat template."
)
@click.option("--max-new-tokens", default=64, show_default=True, help="Maximum number of tokens to generate per text.")
@click.option(
    "--temperature",
    default=1.0,
    show_default=True,
    help="Sampling temperature, 1e-6 to 1e6; 0 always takes the likeliest token.",
)
@click.option(
    "--top-k", default=0, show_default=True, help="Number of likeliest tokens to draw from; 0 draws from all."
)
@click.option(
    "--top-p",
    default=1.0,
    show_default=True,
    help="Draw from the smallest set of likeliest tokens whose probability reaches this number, above 0 to 1; 1 draws "
    "from all.",
)
@click.option(
    "--min-p",
    default=0.0,
    show_default=True,
    help="Draw only from tokens whose probability is at least this fraction of the likeliest token's, 0 to below 1; 0 "
    "draws from all.",
)
@click.option(
    "--repetition-penalty",
    default=1.0,
    show_default=True,
    help="Number by which positive logits of tokens of the prompt and the text are divided, and negative ones "
    "multiplied, 0.01 to 100; 1 is off.",
)
@click.option(
    "--presence-penalty",
    default=0.0,
    show_default=True,
    help="Number subtracted from the logit of each token that was already generated, -100 to 100; 0 is off.",
)
@click.option(
    "--frequency-penalty",
    default=0.0,
    show_default=True,
    help="Number subtracted from a token's logit as many times as the token was generated, -100 to 100; 0 is off.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the draws, 0 to 2^64 - 1; equal seeds give equal text."
)
@click.option(
    "--count", default=1, show_default=True, help="Number of independent texts to generate, one after the other."
)
@renamed("--max-tokens", "--max-new-tokens")
def generate(
    model: Path,
    prompt: str | None,
    chat: str | None,
    count: int,
    **options: Any,
) -> None:
    """Generate text from an exported model, up to the end of the sentence or answer.

    Writes prompt and continuation (or the answer to --chat) to standard output, piece by piece, and then the speed and
    the peak memory to standard error. The model runs on NumPy and the LiteRT runtime; TensorFlow is used only if LiteRT
    is not installed.
    """
    if count < 1:
        raise click.BadParameter(f"{count} is below the minimum of 1", param_hint="--count")
    if prompt is not None and chat is not None:
        raise click.UsageError("--prompt and --chat are both given: drop one")
    _check_options(options)
    from models import device
    from models.decoding.choices import Choices
    from models.vocabulary import EOS

    with no_notices():
        loaded = device.load(model)
        text = (prompt or "") if chat is None else chat
        tokens = loaded.encode(text, chat=chat is not None)
        choices = [Choices(request=request, stop=EOS, **options) for request in range(count)]
        draws = [_Timed(tokens) for tokens in loaded.draws(tokens, choices)]
    for draw in draws:
        _write(prompt or "")
        for piece in device.decode_stream(loaded.vocabulary, draw):
            _write(piece)
        _write("\n")
    seconds, count = sum(draw.seconds for draw in draws), sum(draw.count for draw in draws)
    speed = f", {count / seconds:,.0f} tokens/s" if seconds else ""
    total = count + len(draws)
    click.echo(
        f"{total} token{'s' * (total != 1)}{speed}{_describe_peak_memory()} ({device.runtime()}, 1 thread)",
        err=True,
    )


def _describe_peak_memory() -> str:
    try:
        return f", peak memory {resident('VmHWM'):,.0f} MB"
    except OSError:  # not Linux
        return ""


class _Timed:
    """Passes on tokens, and counts them and the time that they take after the first one, which waits for the prompt."""

    def __init__(self, tokens: Iterator[int]) -> None:
        self._tokens = tokens
        self.count, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[int]:
        begin = None
        for token in self._tokens:
            if begin is not None:
                self.seconds += time.perf_counter() - begin
                self.count += 1
            yield token
            begin = time.perf_counter()


def _check_options(options: dict[str, Any]) -> None:
    """Raises click.BadParameter, which names the option, if a value is outside the range that `Choices` gives it."""
    from models.decoding.choices import Choices

    for name, value in options.items():
        try:
            Choices(**{name: value})
        except ValueError as error:
            problem = str(error).removeprefix(f"{name} = ")
            raise click.BadParameter(problem, param_hint=f"--{name.replace('_', '-')}") from None


def all_precisions(path: Path) -> dict[str, Path]:
    """Returns the file for each precision: `path` itself for float32, and names derived from it for the others."""
    return {name: _name_file(path, name) for name in _PRECISIONS}


def _name_file(path: Path, precision: str) -> Path:
    return path if precision == "float32" else path.with_name(f"{path.stem}-{precision}{path.suffix}")


def _write(text: str) -> None:
    if sys.stdout.isatty():
        # A model may draw control characters, which a terminal would obey.
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


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
            "equal" if result.random_bits_equal else "DIFFER",
            f"{result.equal_to_model}/{result.sequences}",
            f"{result.tokens_per_second:,.0f} ({low:,.0f}-{high:,.0f})",
            "ok" if result.passed else "FAILED",
        )
    console = Console(highlight=False)
    console.print(table)
    for result in results:
        console.print(f"wrote {result.path}", markup=False, soft_wrap=True)
