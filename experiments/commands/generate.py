"""Defines the command `generate`, which draws text from an exported model."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from experiments.commands import selection
from experiments.commands.renamed import renamed
from experiments.display import no_notices
from experiments.memory import resident
from models.alignment.rewards import FORMS
from models.decoding.choices import DECODINGS
from privacy.files import require_writable_file, write_public


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
    "--decoding",
    type=click.Choice(DECODINGS),
    help="How to draw: one of the decodings that the file was exported with; by default the first of them.",
)
@click.option(
    "--costs",
    type=click.Path(path_type=Path),
    help="File of measured costs (fedspeak costs), for models that choose draft lengths at run time.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the draws, 0 to 2^64 - 1; equal seeds give equal text."
)
@click.option(
    "--stop",
    "stop_texts",
    multiple=True,
    metavar="TEXT",
    help="Text before which to end, wherever tokens divide it. May be repeated.",
)
@click.option(
    "--count", default=1, show_default=True, help="Number of independent texts to generate, one after the other."
)
@click.option(
    "--best-of",
    type=click.IntRange(2, 1 << 16),
    help="Draw this number of texts for each one that is written, and write the one with the largest --reward.",
)
@click.option("--reward", help=f"What rates the texts of --best-of: {FORMS}.")
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON file to write with the acceptance of drafts, for each text and in total; of several drafts also as a "
    "share of the best rule's, for which spectr takes time after drawing. With --best-of, with rewards and KL; the "
    "texts of spectr are then drawn twice.",
)
@renamed("--max-tokens", "--max-new-tokens")
def generate(
    model: Path,
    prompt: str | None,
    chat: str | None,
    count: int,
    decoding: str | None,
    costs: Path | None,
    stop_texts: tuple[str, ...],
    report_path: Path | None,
    best_of: int | None,
    reward: str | None,
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
    if (best_of is None) != (reward is None):
        raise click.UsageError("--best-of and --reward belong together: give both, or drop one")
    if best_of is not None and stop_texts:
        raise click.UsageError("--stop does not go with --best-of, which rates whole texts: drop one")
    if "" in stop_texts:
        raise click.BadParameter("the text must not be empty: drop it", param_hint="--stop")
    _check_options(options)
    if report_path is not None:
        require_writable_file(report_path)
    from models import device, device_costs
    from models.decoding.acceptance import Acceptance
    from models.decoding.choices import Choices
    from models.device_blocks import BlockDraw
    from models.text_stream import stop_before
    from models.vocabulary import EOS

    with no_notices():
        loaded = device.load(model)
        text = (prompt or "") if chat is None else chat
        tokens = loaded.encode(text, chat=chat is not None)
        choices = [Choices(request=request, stop=EOS, **options) for request in range(count)]
        chosen = decoding or loaded.facts.decodings[0]
        if costs is None and loaded.facts.automatic and chosen != DECODINGS[0]:
            raise click.UsageError(
                f"{model} chooses draft lengths by measured costs: give --costs FILE from fedspeak costs {model}"
            )
        if report_path is not None and chosen == DECODINGS[0] and best_of is None:
            raise click.UsageError(f"--report has no use with decoding {chosen}, which makes no drafts: drop it")
        measured = None if costs is None else device_costs.read(costs, loaded, chosen)
        if best_of is not None and reward is not None:
            found = selection.select(
                loaded,
                tokens,
                choices,
                best_of,
                reward,
                text,
                lambda one: _write(f"{prompt or ''}{one}\n"),
                report_path is not None,
                decoding=decoding,
                costs=measured,
            )
            click.echo(found.describe(), err=True)
            if report_path is not None:
                write_public(report_path, f"{json.dumps(found.report, indent=1)}\n".encode())
            return
        compare = report_path is not None
        drawn = loaded.draws(tokens, choices, decoding=decoding, costs=measured, compare=compare)
    seconds, count = 0.0, 0
    in_blocks: list[Acceptance] = []
    while drawn:
        draw = drawn.pop(0)  # so that its state is released after its text
        timed = _Timed(draw)
        _write(prompt or "")
        for piece in stop_before(device.decode_stream(loaded.vocabulary, timed), stop_texts):
            _write(piece)
            if isinstance(draw, BlockDraw):
                draw.compare()  # here it is not timed
        _write("\n")
        seconds, count = seconds + timed.seconds, count + timed.count
        if isinstance(draw, BlockDraw):
            in_blocks.append(draw.acceptance)
    speed = f", {count / seconds:,.0f} tokens/s" if seconds else ""
    click.echo(
        f"{count} token{'s' * (count != 1)}{speed}{_describe_peak_memory()} ({device.runtime()}, 1 thread)",
        err=True,
    )
    if in_blocks:
        total = Acceptance.total(in_blocks)
        click.echo(str(total), err=True)
        if report_path is not None:
            report = {"requests": [one.to_dict() for one in in_blocks], "total": total.to_dict()}
            write_public(report_path, f"{json.dumps(report, indent=1)}\n".encode())


def _describe_peak_memory() -> str:
    try:
        return f", peak memory {resident('VmHWM'):,.0f} MB"
    except OSError:  # not Linux
        return ""


class _Timed:
    """Passes on tokens, and counts them and the time that they take; the prompt was read before."""

    def __init__(self, tokens: Iterator[int]) -> None:
        self._tokens = tokens
        self.count, self.seconds = 0, 0.0

    def __iter__(self) -> Iterator[int]:
        begin = time.perf_counter()
        for token in self._tokens:
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


def _write(text: str) -> None:
    if sys.stdout.isatty():
        # A model may draw control characters, which a terminal would obey.
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()
