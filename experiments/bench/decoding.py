"""Defines `fedspeak bench decoding`: which mode of decoding is the fastest for a model, a drafter and a machine.

Every mode runs as its loop in a TFLite file, on one thread of the LiteRT runtime, beside plain decoding: from each
prompt both draw their tokens in turn, so that what else the machine does slows both. Reading the prompt is not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.decoding_modes import LINES, Mode, parse
from experiments.drafting import FORMS, short_name
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.partial_results import digest, resume
from models.decoding.choices import MIN_TEMPERATURE

MODES = (
    *(f"{name}:{length}" for name in LINES for length in (2, 4, 6, 8)),
    *(f"spectr:{sizes}" for sizes in ("2x2", "2x4", "2x6", "4x2", "4x4", "8x2", "8x4")),
    *(f"tree:{shape}" for shape in ("4", "2,1", "3,1", "2,2", "2,1,1", "2,1,1,1", "2,2,1", "3,1,1,1", "2,2,2,1")),
    *("distinct-tree:2,1,1", "multi-path:2x4"),
)
_RULES = {
    "spectr": "SpecTr's rule",
    "multi-path": "The rule of multi-path",
    "distinct-tree": "The rule of distinct-tree",
}
_LARGEST_PROPOSAL = 16
_MAX_TEMPERATURE = 100.0


def _check_temperatures(
    context: click.Context, option: click.Parameter, values: tuple[float, ...]
) -> tuple[float, ...]:
    """Returns the temperatures as they are, or raises click.BadParameter."""
    for value in values:
        # Written so that NaN, for which every comparison is False, is refused.
        if not (value == 0 or MIN_TEMPERATURE <= value <= _MAX_TEMPERATURE):
            raise click.BadParameter(
                f"{value!r}: must be 0 (greedy) or from {MIN_TEMPERATURE:g} to {_MAX_TEMPERATURE:g}"
            )
    return values


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
    type=float,
    callback=_check_temperatures,
    multiple=True,
    default=(0.0, 0.6, 1.0),
    show_default=True,
    help="Temperature to measure at: 0, or from 1e-6 to 100. May be repeated.",
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
    "--prompts", type=click.IntRange(2), default=4, show_default=True, help="Number of prompts from each text."
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
    from experiments.bench.decoding_measurement import PROMPT, TOKENS, Measurement
    from experiments.bench.decoding_texts import choose_prompts, read_texts
    from experiments.bench.table import machine
    from experiments.bench.tree_search import propose
    from experiments.display import ConsoleDisplay
    from experiments.drafting import load_drafter
    from experiments.provenance import command_line, versions
    from experiments.runs import RunFolder, load_trained, write_json
    from privacy.files import write_public

    RunFolder(run).require_trained()
    temperatures = tuple(dict.fromkeys(temperatures))
    show = ConsoleDisplay()
    output.mkdir(parents=True, exist_ok=True)
    target = load_trained(run)
    model, weights, vocabulary = target
    room = PROMPT + TOKENS + max(_LARGEST_PROPOSAL, *(mode.drafted for mode in chosen)) + 1
    loaded = {name: load_drafter(form, *target, room) for name, form in by_name.items()}
    starts = choose_prompts(read_texts(texts), vocabulary, PROMPT, prompts, seed)
    asked = {
        "target": run.name,
        "weights": int(sum(np.size(weight) for weight in weights.values())),
        "prompts": {name: len(rows) for name, rows in starts.items()},
        "temperatures": list(temperatures),
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "digest": digest(weights, {"vocabulary": vocabulary.digest, "prompts": starts}),
    }
    path = output / "results.json"
    found = _resume(path, asked, {name: _identify(form) for name, form in by_name.items()})
    found["command"] = command_line()
    measurement = Measurement(model, weights, starts, temperatures, seed)
    for precision in precisions:
        if precision not in found["cost"]:
            show.note(f"{precision}: calls of the target …")
            found["cost"][precision] = measurement.cost(precision)
        for name in by_name:

            def add(mode: Mode, name: str = name, precision: str = precision) -> None:
                key = {"drafter": name, "precision": precision, "mode": mode.text}
                if not any(key.items() <= row.items() for row in found["rows"]):
                    show.note(f"{precision}, {name}, {mode.text} …")
                    found["rows"] += [key | row for row in measurement.rows(mode, loaded[name], precision)]
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


def _resume(path: Path, asked: dict[str, Any], drafters: dict[str, str]) -> dict[str, Any]:
    """Returns the results so far; raises a ValueError if they answer another question.

    Args:
      path: the results' file.
      asked: what determines the results beside drafters, precisions and modes.
      drafters: what identifies each drafter, by its name in the results.
    """
    found = resume(path, asked, {"drafters": drafters, "cost": {}, "rows": []})
    known = found["drafters"]
    changed = next((name for name, own in drafters.items() if known.get(name, own) != own), None)
    if changed is not None:
        raise ValueError(
            f"{path} holds results of another drafter {changed}: give another --output, or the options of before"
        )
    return found | {"drafters": known | drafters}


def _identify(form: str) -> str:
    """Returns what tells a drafter from others: its name's form, or a digest of what the name stands for."""
    from experiments.runs import load_trained

    if form.startswith("ngram:"):
        return hashlib.sha256(Path(form.removeprefix("ngram:")).read_bytes()).hexdigest()
    if Path(form).is_dir():
        _, weights, vocabulary = load_trained(Path(form))
        return digest(weights, vocabulary.digest)
    return form


def format_results(found: Mapping[str, Any]) -> str:
    """Returns the results as Markdown: cost of a call, a table for each precision and drafter, and the best modes."""
    from experiments.bench.table import QUIET

    counts = sorted(next(iter(found["cost"].values())), key=int)
    cells = [(precision, *(f"{costs[count][1]:.2f}" for count in counts)) for precision, costs in found["cost"].items()]
    lines = ["Milliseconds of a call of the target that reads 1, 2, … tokens; median.", ""]
    lines += markdown_table(("tokens", *counts), cells)
    rows = found["rows"]
    for precision, drafter in dict.fromkeys((row["precision"], row["drafter"]) for row in rows):
        of_pair = [row for row in rows if (row["precision"], row["drafter"]) == (precision, drafter)]
        lines += ["", *_format_pair(precision, drafter, of_pair, found["temperatures"])]
    lines += ["", *_best_modes(rows, found["temperatures"])]
    others = max(row["others"] for row in rows)
    if others > QUIET:
        lines += ["", f"NOISY: other processes used up to {others:.1f} cores during a measurement."]
    return "\n".join(lines) + "\n"


def _format_pair(
    precision: str, drafter: str, rows: Sequence[Mapping[str, Any]], temperatures: Sequence[float]
) -> list[str]:
    heads = [f"{what}, T = {value:g}" for value in temperatures for what in ("speed", "tokens per call")]
    cells = []
    for mode in dict.fromkeys(row["mode"] for row in rows):
        of_mode = {row["temperature"]: row for row in rows if row["mode"] == mode}
        gains = [format_interval(of_mode[value][key], 2) for value in temperatures for key in ("speed", "tokens")]
        spent = np.mean([row["milliseconds"] for row in of_mode.values()])
        cells.append((mode, parse(mode).drafted, *gains, f"{spent:.2f}"))
    table = markdown_table(("mode", "drafted", *heads, "ms per call"), cells)
    return [f"{precision}, drafter {drafter}:", "", *table, *_format_shares(rows)]


def _format_shares(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what the rules for several drafts accept beside the best rules for their drafts, a line for each."""
    lines = []
    for decoding, name in _RULES.items():
        of_rule = [row for row in rows if parse(row["mode"]).decoding == decoding]
        shares = [row["of_optimum"] for row in of_rule if "of_optimum" in row]
        if shares:
            low, high = (f"{100 * share:.1f}" for share in (min(shares), max(shares)))
            lines += ["", f"{name} accepts {low} to {high} % of what the best rule for its drafts accepts."]
        known = {row["mode"] for row in of_rule if "of_optimum" in row}
        missing = [mode for mode in dict.fromkeys(row["mode"] for row in of_rule) if mode not in known]
        if missing:
            lines += ["", f"{name}: what it accepts beside the best rule was not computed for {', '.join(missing)}."]
    if any(parse(row["mode"]).decoding == "tree" for row in rows):
        lines += ["", "The rule of tree accepts 100 % of what the best rule for its drafts accepts, as is proved."]
    return lines


def _best_modes(rows: Sequence[Mapping[str, Any]], temperatures: Sequence[float]) -> list[str]:
    """Returns a line for each precision and temperature that names the fastest mode of a file, or plain decoding.

    A mode must be faster than plain decoding beyond its interval.
    """
    lines: list[str] = []
    for precision in dict.fromkeys(row["precision"] for row in rows):
        for temperature in temperatures:
            wanted = {"precision": precision, "temperature": temperature}
            here = [row for row in rows if wanted.items() <= row.items() and parse(row["mode"]).flags]
            if not here:
                continue
            best = max(here, key=lambda row: float(row["speed"]["estimate"]))
            name, speed = best["mode"], format_interval(best["speed"], 2)
            if best["speed"]["low"] > 1:
                how = f"{name} with drafter {best['drafter']}, {speed} times as fast as plain decoding"
                how += f"; the fastest of {len(here)} (fedspeak export {parse(name).flags})"
            else:
                how = f"plain decoding; the fastest of {len(here)} others, {name}, has {speed} times its speed"
            lines += ["", f"The best mode for you is, {precision} at temperature {temperature:g}: {how}."]
    return lines[1:]
