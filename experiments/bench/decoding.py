"""Defines `fedspeak bench decoding`: which mode of decoding is the fastest for a model, a drafter and a machine.

Every mode runs as its loop in a TFLite file, on one thread of the LiteRT runtime, beside plain decoding: from each
prompt both draw their tokens in turn, so that what else the machine does slows both. Reading the prompt is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras
from experiments.bench import options
from experiments.decoding_modes import LINES, Mode, parse
from experiments.drafting import FORMS, short_name
from experiments.intervals import format_interval, mean_interval

MODES = (
    *(f"{name}:{length}" for name in LINES for length in (2, 4, 6, 8)),
    *(f"spectr:{sizes}" for sizes in ("2x2", "2x4", "2x6", "4x2", "4x4", "8x2", "8x4")),
    *(f"tree:{shape}" for shape in ("4", "2,1", "3,1", "2,2", "2,1,1", "2,1,1,1", "2,2,1", "3,1,1,1", "2,2,2,1")),
    *("distinct-tree:2,1,1", "multi-path:2x4"),
)
_ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 17)
_PROMPT, _TOKENS = 32, 64


@click.command("decoding")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--drafter", "drafters", multiple=True, required=True, help=f"What drafts: {FORMS}. May be repeated.")
@click.option(
    "--mode",
    "modes",
    multiple=True,
    help="Mode to measure, as block:6, spectr:3x4, tree:2,2 or distinct-tree:2,2 (children drawn without replacement). "
    f"May be repeated. Default: {len(MODES)} modes.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(["float32", "float16", "int8"]),
    multiple=True,
    default=("float32",),
    show_default=True,
    help="Precision of the weights of target and drafter. May be repeated.",
)
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(0, 100),
    multiple=True,
    default=(0.0, 0.6, 1.0),
    show_default=True,
    help="Temperature to measure at. May be repeated.",
)
@click.option(
    "--text",
    "texts",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    help="Text file from which prompts are taken. May be repeated. Default: a tragedy, a comedy, Python's manual and "
    "Python source.",
)
@click.option(
    "--prompts", type=click.IntRange(1), default=4, show_default=True, help="Number of prompts from each text."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the draws.")
@options.output("runs/bench/decoding")
def decoding(
    run: Path,
    drafters: tuple[str, ...],
    modes: tuple[str, ...],
    precisions: tuple[str, ...],
    temperatures: tuple[float, ...],
    texts: tuple[Path, ...],
    prompts: int,
    seed: int,
    output: Path,
) -> None:
    """Find the fastest mode of decoding for the trained or imported model in RUN.

    Each mode draws 64 tokens after every prompt, in turn with plain decoding. From the trees among them the shape is
    computed that promises the most, and measured too. A benchmark that was interrupted goes on where it was, with the
    same --output.
    """
    extras.require("models")
    chosen = [parse(text) for text in dict.fromkeys(modes or MODES)]
    by_name = {short_name(name): name for name in drafters}
    if len(by_name) < len(drafters):
        raise ValueError("--drafter: two drafters have the same name: drop one, or rename a folder or file")
    from experiments import plots
    from experiments.bench.decoding_texts import choose_prompts, read_texts
    from experiments.bench.table import machine
    from experiments.bench.tree_search import propose
    from experiments.display import ConsoleDisplay
    from experiments.provenance import command_line, versions
    from experiments.runs import RunFolder, load_trained, write_json
    from privacy.files import write_public

    RunFolder(run).require_trained()
    output.mkdir(parents=True, exist_ok=True)
    model, weights, vocabulary = load_trained(run)
    starts = choose_prompts(read_texts(texts), vocabulary, _PROMPT, prompts, seed)
    asked = {
        "target": run.name,
        "weights": int(sum(np.size(weight) for weight in weights.values())),
        "vocabulary": vocabulary.digest,
        "prompts": {name: len(rows) for name, rows in starts.items()},
        "temperatures": list(temperatures),
        "seed": seed,
    }
    path = output / "results.json"
    found = _resume(path, asked) | {"command": command_line(), "machine": machine(), "versions": versions()}
    measure = _Measurement(model, weights, vocabulary, starts, temperatures, seed, ConsoleDisplay())
    for precision in precisions:
        if precision not in found["cost"]:
            found["cost"][precision] = measure.cost(precision)
        for name, form in by_name.items():

            def add(mode: Mode, name: str = name, form: str = form, precision: str = precision) -> None:
                key = {"drafter": name, "precision": precision, "mode": mode.text}
                if not any(key.items() <= row.items() for row in found["rows"]):
                    found["rows"] += [key | row for row in measure.rows(mode, form, precision)]
                    write_json(path, found)

            for mode in chosen:
                add(mode)
            for temperature in temperatures:
                pair = {"drafter": name, "precision": precision, "temperature": temperature}
                rows = [row for row in found["rows"] if pair.items() <= row.items()]
                proposed = propose(rows, found["cost"][precision])
                if proposed is not None:
                    add(parse(proposed))
    write_json(path, found)
    table = format_results(found)
    write_public(output / "table.md", table.encode())
    plots.speedups(output / "plot", found["rows"])
    click.echo(table, nl=False)


def _resume(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Returns the results so far; raises a ValueError if they answer another question."""
    from experiments.runs import read_json

    if not path.exists():
        return {**asked, "cost": {}, "rows": []}
    found = read_json(path, *asked, "cost", "rows")
    differs = next((name for name, value in asked.items() if found[name] != value), None)
    if differs is not None:
        raise ValueError(
            f"{path} holds a benchmark with {differs} = {found[differs]!r}, not {asked[differs]!r}: give another "
            "--output, or the options of before"
        )
    return found


class _Measurement:
    """Measures modes of one target from the same prompts."""

    def __init__(
        self,
        model: Any,
        weights: Any,
        vocabulary: Any,
        starts: Mapping[str, Sequence[Sequence[int]]],
        temperatures: Sequence[float],
        seed: int,
        show: Any,
    ) -> None:
        self._target = model, weights
        self._vocabulary, self._starts, self._temperatures = vocabulary, starts, temperatures
        self._seed, self._show = seed, show
        self._plain: dict[str, Any] = {}

    def cost(self, precision: str) -> dict[str, list[float]]:
        """Returns milliseconds of a call of the target by its number of tokens: quartiles."""
        from experiments.bench.decoding_loop import time_rows
        from experiments.display import no_notices

        self._show.note(f"{precision}: calls of the target …")
        with no_notices():
            times = time_rows(*self._target, precision, _ROWS, _PROMPT + _TOKENS + max(_ROWS))
        return {str(count): np.quantile(values, [0.25, 0.5, 0.75]).tolist() for count, values in times.items()}

    def rows(self, mode: Mode, form: str, precision: str) -> list[dict[str, Any]]:
        """Returns the results of a mode at each temperature."""
        from experiments.bench.decoding_loop import Loop, context_of
        from experiments.display import no_notices
        from experiments.drafting import load_drafter

        self._show.note(f"{precision}, {short_name(form)}, {mode.text} …")
        drafter = load_drafter(form, *self._target, self._vocabulary, context_of(mode, _PROMPT, _TOKENS))
        with no_notices():
            loop = Loop(mode, *self._target, drafter, precision, _PROMPT, _TOKENS)
            if precision not in self._plain:
                self._plain = {precision: Loop(None, *self._target, None, precision, _PROMPT, _TOKENS)}
        plain = self._plain[precision]
        prompts = [(name, prompt) for name, rows in self._starts.items() for prompt in rows]
        for each in (loop, plain):  # the first calls pack the weights
            each.draw(prompts[0][1], 1.0, self._seed)
        found = []
        for temperature in self._temperatures:
            drawn = [
                [each.draw(prompt, temperature, self._seed + place) for each in (loop, plain)]
                for place, (_, prompt) in enumerate(prompts)
            ]
            row = {"temperature": temperature, **summarise([name for name, _ in prompts], drawn)}
            if mode.decoding == "spectr" and temperature > 0:
                row |= self._of_optimum(drafter, mode.options.num_drafts, temperature)
            found.append(row)
        return found

    def _of_optimum(self, drafter: Any, num_drafts: int, temperature: float) -> dict[str, float]:
        """Returns what K-SEQ accepts after the prompts as a share of what the best rule accepts, if that is not 0."""
        from experiments.reproduce.tree_efficiency import first_level

        model, weights = self._target
        prompts = np.array([prompt for rows in self._starts.values() for prompt in rows], np.int32)
        model = model.fit(prompts.shape[1])
        level = first_level(model, weights, drafter, prompts, temperature, [num_drafts])[0]
        return {"of_optimum": level["k_seq"] / level["independent"]} if level["independent"] else {}


def summarise(texts: Sequence[str], drawn: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Returns tokens per call and the speed of a mode, with 95 % bootstrap intervals over prompts.

    Args:
      texts: for each prompt the text that it is from.
      drawn: for each prompt what drawing with the mode and with plain decoding took
        (`experiments.bench.decoding_loop.Drawn`).

    Returns:
      "tokens" per call of the target; "by_text" the same by text, without intervals; "speed", tokens per second divided
      by those of plain decoding from the same prompts; "milliseconds" of a call; "per_second", tokens of the mode;
      "reached" and "accepted", the number of drafted tokens by place.
    """
    mode, plain = (np.array([pair[place][:3] for pair in drawn], np.float64).T for place in (0, 1))
    seconds, tokens, calls = mode
    plain_seconds, plain_tokens, _ = plain
    by_text = {
        name: float(tokens[here].sum() / calls[here].sum())
        for name in dict.fromkeys(texts)
        if (here := np.array([text == name for text in texts])).any()
    }
    return {
        "tokens": mean_interval(tokens, calls)._asdict(),
        "by_text": by_text,
        "speed": mean_interval(plain_seconds / plain_tokens * tokens, seconds)._asdict(),
        "milliseconds": float(1000 * seconds.sum() / calls.sum()),
        "per_second": float(tokens.sum() / seconds.sum()),
        **{name: np.sum([getattr(own, name) for own, _ in drawn], axis=0).tolist() for name in ("reached", "accepted")},
    }


def format_results(found: Mapping[str, Any]) -> str:
    """Returns the results as Markdown: cost of a call, a table for each precision and drafter, and the best modes."""
    lines = ["Milliseconds of a call of the target that reads 1, 2, … tokens; median.", ""]
    counts = sorted(next(iter(found["cost"].values())), key=int)
    lines += [f"| tokens | {' | '.join(counts)} |", "|---" * (1 + len(counts)) + "|"]
    for precision, costs in found["cost"].items():
        lines.append(f"| {precision} | " + " | ".join(f"{costs[count][1]:.2f}" for count in counts) + " |")
    rows = found["rows"]
    for precision, drafter in dict.fromkeys((row["precision"], row["drafter"]) for row in rows):
        of_pair = [row for row in rows if (row["precision"], row["drafter"]) == (precision, drafter)]
        lines += ["", *_format_pair(precision, drafter, of_pair, found["temperatures"])]
    return "\n".join([*lines, "", *_best_modes(rows, found["temperatures"])]) + "\n"


def _format_pair(
    precision: str, drafter: str, rows: Sequence[Mapping[str, Any]], temperatures: Sequence[float]
) -> list[str]:
    heads = [f"{what}, T = {value:g}" for value in temperatures for what in ("speed", "tokens per call")]
    lines = [f"{precision}, drafter {drafter}:", "", f"| mode | drafted | {' | '.join(heads)} | ms per call |"]
    lines.append("|---" * (3 + len(heads)) + "|")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        of_mode = {row["temperature"]: row for row in rows if row["mode"] == mode}
        cells = [format_interval(of_mode[value][key], 2) for value in temperatures for key in ("speed", "tokens")]
        spent = np.mean([row["milliseconds"] for row in of_mode.values()])
        lines.append(f"| {mode} | {parse(mode).drafted} | {' | '.join(cells)} | {spent:.2f} |")
    shares = [row["of_optimum"] for row in rows if "of_optimum" in row]
    if shares:
        low, high = (f"{100 * share:.1f}" for share in (min(shares), max(shares)))
        lines += ["", f"SpecTr's rule accepts {low} to {high} % of what the best rule for its drafts accepts."]
    return lines


def _best_modes(rows: Sequence[Mapping[str, Any]], temperatures: Sequence[float]) -> list[str]:
    """Returns a line for each precision and temperature that names the fastest mode, or plain decoding."""
    lines = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        for temperature in temperatures:
            here = [row for row in rows if (row["precision"], row["temperature"]) == (precision, temperature)]
            best = max(here, key=lambda row: float(row["speed"]["estimate"]))
            name, flags = best["mode"], parse(best["mode"]).flags
            if best["speed"]["estimate"] > 1:
                how = f" (fedspeak export {flags})" if flags else ""
                named = f"{name} with drafter {best['drafter']}{how}, {format_interval(best['speed'], 2)} times plain"
            else:
                named = f"plain decoding: {name} comes next with {format_interval(best['speed'], 2)} times its speed"
            lines.append(f"The best mode for you is, {precision} at temperature {temperature:g}: {named}.")
    return [line for pair in zip(lines, [""] * len(lines), strict=True) for line in pair][:-1]
