"""Writes the results of `fedspeak reproduce blockwise` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.bench.table import QUIET
from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.reproduce.blockwise_study import LINES, PLAIN, WAYS


def format_tables(found: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    rows = found["rows"]
    first = rows[0]
    lines = []
    for heads in first["tokens"]:
        cells = [
            (row["text"], row["h_max"], *(_format(name, row["tokens"][heads][name]) for name in WAYS)) for row in rows
        ]
        lines += [
            f"### Tokens per call at temperature 0, {heads} heads",
            "",
            f"{first['texts']} prompts per text, blocks from {first['places']} tokens each. For refined drafts: gain "
            "over the heads alone in percent. 95 % bootstrap intervals over prompts.",
            "",
            *markdown_table(("text", "h_max", *WAYS), cells),
            "",
            *_format_correlations(rows, heads),
            "",
        ]
    more = [*_format_alphas(rows), "", *_format_repeats(rows), "", *_format_sampled(rows), *_format_speed(found)]
    return "\n".join([*lines, *more]) + "\n"


def _format(name: str, entry: dict[str, Any]) -> str:
    if name == PLAIN or name.startswith("oracle"):
        return format_interval(entry["tokens"], 2)
    return format_interval(entry["gain"], 1, "+")


def _format_correlations(rows: Sequence[Mapping[str, Any]], heads: str) -> list[str]:
    plain = [row["tokens"][heads][PLAIN]["tokens"]["estimate"] for row in rows]
    others = {"h_max": [row["h_max"] for row in rows]} | {
        f"gain by {name}": [row["tokens"][heads][name]["gain"]["estimate"] for row in rows] for name in LINES[1:]
    }
    return [
        f"Correlation over the {len(rows)} texts with the tokens per call of the heads alone, and a 95 % interval that "
        "takes the texts as independent:",
        "",
        *markdown_table(tuple(others), [[correlate(plain, values) for values in others.values()]]),
    ]


def correlate(first: Sequence[float], second: Sequence[float]) -> str:
    """Returns the correlation with its 95 % interval by Fisher's transformation; "-" if it cannot be computed."""
    values = np.array([first, second], float)
    if values.shape[1] < 4 or not values.std(axis=1).all():
        return "-"
    correlation = float(np.corrcoef(values)[0, 1])
    half = 1.96 / np.sqrt(values.shape[1] - 3)
    low, high = np.tanh(np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12)) + np.array([-half, half]))
    return f"{correlation:+.2f} [{low:+.2f}, {high:+.2f}]"


def _format_alphas(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [(row["text"], *(format(row["alphas"][name], "g") for name in LINES[1:])) for row in rows]
    return [
        "### Weight α of each rescorer",
        "",
        "The one with the most tokens per call of all heads at temperature 0, on a third of the prompts. Several paths "
        "take that of the 2-gram model, which is tuned for one draft, for all numbers of heads and paths.",
        "",
        *markdown_table(("text", *LINES[1:]), cells),
    ]


def _format_repeats(rows: Sequence[Any]) -> list[str]:
    repairs = ("improved", "worse", "repetitions", "wrong_repetitions")
    cells = [
        (
            row["text"],
            *(f"{100 * own['neighbours']:.1f} ({own['longest_run']:.2f})" for own in map(row["repeats"].get, LINES)),
            *(f"{100 * row['repairs'][key]:.1f}" for key in repairs),
        )
        for row in rows
    ]
    return [
        "### Repetition",
        "",
        "Neighbouring tokens of a draft that are equal, in percent, and the mean of the longest run of them. Last: "
        "of all drafts, those with more right tokens after the 2-gram model, those with fewer, how many of the former "
        "repaired a repetition, and how many of all first wrong tokens are repetitions, in percent. At all places of "
        "the greedy texts.",
        "",
        *markdown_table(("text", *LINES, "improved", "worse", "repairs", "of all wrong"), cells),
    ]


def _format_sampled(rows: Sequence[Any]) -> list[str]:
    columns = [f"{own['drafts']}, T = {own['temperature']:g}" for own in rows[0]["sampled"]]
    cells = [(row["text"], *(format_interval(own["tokens"], 2) for own in row["sampled"])) for row in rows]
    return [
        f"### Tokens per call of sampled texts, {max(map(int, rows[0]['tokens']))} heads",
        "",
        *markdown_table(("text", *columns), cells),
    ]


def _format_speed(found: dict[str, Any]) -> list[str]:
    if "files" not in found:
        return []
    temperatures = list(dict.fromkeys(row["temperature"] for row in found["files"]))
    columns = [f"{what}, T = {value:g}" for value in temperatures for what in ("speed", "tokens per call")]
    cells = []
    for graph in found["tensorflow"]:
        own = {row["temperature"]: row for row in found["files"] if row["name"] == graph["name"]}
        intervals = [*(own[value][key] for value in temperatures for key in ("speed", "tokens")), graph["speed"]]
        cells.append((graph["name"], *(format_interval(interval, 2) for interval in intervals)))
    lines = [
        "",
        "### Tokens per second beside plain decoding",
        "",
        "float32, one text at a time: in a TFLite file on one thread, and in TensorFlow (T = 0). α is 1, or best at "
        "temperature 0 for these texts. 95 % bootstrap intervals over prompts.",
        "",
        *markdown_table(("decoding", *columns, "in TensorFlow, T = 0"), cells),
    ]
    others = max(row["others"] for row in found["files"])
    return [*lines, "", f"NOISY: other processes used up to {others:.1f} cores."] if others > QUIET else lines
