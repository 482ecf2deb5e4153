"""Defines `fedspeak bench samplers`: speculative decoding in fedspeak, KerasHub and Hugging Face transformers.

All libraries decode with the same pairs of tiny models, whose exact distributions are known. Each runs in a process of
its own, on one thread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.bench.measure import Peer, environment
from experiments.bench.peers.samplers_common import DRAFT_LENGTH, LONG_TEXT, Pair, Sizes, save_pairs
from experiments.bench.processes import watch
from experiments.bench.sampler_statistics import (
    argmax_draft_distribution,
    build_pairs,
    sampling_floor,
    text_distribution,
    total_variation,
)
from experiments.bench.table import QUIET
from experiments.intervals import format_interval, mean_interval
from experiments.markdown import markdown_table

PEERS = (
    Peer("fedspeak", "samplers_fedspeak", None),
    Peer("keras-hub", "samplers_keras_hub", "keras-hub"),
    Peer("transformers", "samplers_transformers", "transformers"),
)
_LONG_TEXTS = 420  # in all turns
_ONE_THREAD = {
    "CUDA_VISIBLE_DEVICES": "",
    "KERAS_BACKEND": "tensorflow",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
}


@click.command("samplers")
@click.option(
    "--peer",
    "names",
    type=click.Choice([peer.name for peer in PEERS]),
    multiple=True,
    help="Library to run; may be repeated. By default, all.",
)
@click.option(
    "--texts",
    type=click.IntRange(100),
    default=15_000,
    show_default=True,
    help="Number of texts in all turns whose distribution is compared with the target's.",
)
@click.option(
    "--timings", type=click.IntRange(3), default=10, show_default=True, help="Number of timed texts in each turn."
)
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Processes per library.")
@options.timeout(3600)
@options.output("runs/bench/samplers")
def samplers(names: tuple[str, ...], texts: int, timings: int, turns: int, timeout: int, output: Path) -> None:
    """Compare the distribution and the speed of speculative decoding in fedspeak, KerasHub and transformers.

    Total variation is that of the first tokens' joint distribution from the target's. The table goes to OUTPUT/table.md
    and to standard output, all numbers to OUTPUT/results.json. `make bench-peers` installs the other libraries.
    """
    extras.require("models")
    from experiments.bench.results import write_results
    from experiments.bench.table import machine
    from experiments.display import ConsoleDisplay

    output.mkdir(parents=True, exist_ok=True)
    note = ConsoleDisplay().note
    pairs = build_pairs()
    save_pairs(str(output / "pairs.npz"), pairs)
    results: dict[str, dict[str, Any]] = {
        peer.name: {"peer": peer.name, "rows": [], "failed": False} for peer in PEERS if not names or peer.name in names
    }
    # The libraries take turns, so that a slow phase of the machine affects all of them.
    for turn in range(turns):
        for peer in PEERS:
            if peer.name in results and "problem" not in results[peer.name]:
                sizes = Sizes(turn + 1, texts // turns, _LONG_TEXTS // turns, timings)
                _run(peer, results[peer.name], sizes, output.resolve(), timeout)
                note(f"turn {turn + 1}: {peer.name}: {results[peer.name].get('problem', 'measured')}")
    found = {
        "machine": machine(),
        "texts": texts // turns * turns,
        "long_texts": _LONG_TEXTS // turns * turns,
        "timings": timings * turns,
        "libraries": [{name: value for name, value in result.items() if name != "rows"} for result in results.values()],
        "pairs": summarise(pairs, list(results.values())),
    }
    write_results(output, found, format_table(found))
    failed = [f"{result['peer']}: {result['problem']}" for result in results.values() if result["failed"]]
    if failed:
        raise click.ClickException("; ".join(failed))


def _run(peer: Peer, result: dict[str, Any], sizes: Sizes, folder: Path, timeout: float) -> None:
    """Runs a process of a library and adds what it measured to `result`, or "problem": what went wrong, in one line."""
    if not peer.python.is_file():
        result["problem"] = "not installed: make bench-peers"
        return
    command = [str(peer.python), "-m", f"experiments.bench.peers.{peer.module}", str(folder / "pairs.npz")]
    for name, value in sizes._asdict().items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    log = folder / f"{peer.name}.log"
    outcome = watch(command, folder=folder, environment=environment() | _ONE_THREAD, log=log, timeout=timeout)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    found, problem = None, None
    if outcome.return_code is None:
        problem = f"ended after its time limit of {timeout:.0f} s"
    elif outcome.return_code:
        problem = f"exit code {outcome.return_code}: {lines[-1].strip()}"
    else:
        try:
            found = json.loads(lines[-1])
        except ValueError:
            problem = f"its results cannot be read: {lines[-1].strip()}"
    if found is None:
        # What earlier turns measured is of fewer texts than the other libraries' distances.
        result.update(rows=[], failed=True, problem=problem)
        return
    rows = _pool(result["rows"], found["rows"]) if result["rows"] else found["rows"]
    result.update(found, rows=rows, others=max(outcome.others, result.get("others", 0.0)))


def _pool(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins what two processes of a library measured: adds counts, and appends texts and times."""
    return [
        row
        | {
            "counts": [one + other for one, other in zip(row["counts"], new["counts"], strict=True)],
            "decided": row["decided"] + new["decided"],
            "calls": row["calls"] + new["calls"],
            "microseconds": {name: times + new["microseconds"][name] for name, times in row["microseconds"].items()},
        }
        for row, new in zip(rows, others, strict=True)
    ]


def summarise(pairs: Sequence[Pair], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns for each pair its sampling floor and what each method of each library gave.

    Args:
      pairs: the pairs.
      results: what the libraries' processes printed; their rows have the fields of `peers.samplers_common.Measured`.

    Returns:
      For each pair "pair", "vocabulary", "tokens" and, if any library ran, "floor" and "methods". A method of KerasHub
      has "argmax_drafts" too, its distance from `argmax_draft_distribution` with the sampling floor of that.
    """
    found = []
    for pair in pairs:
        document: dict[str, Any] = {"pair": pair.name, "vocabulary": pair.target.shape[1], "tokens": pair.tokens}
        rows = [(result, row) for result in results for row in result["rows"] if row["pair"] == pair.name]
        if rows:
            probabilities, texts = text_distribution(pair), sum(rows[0][1]["counts"])
            document["floor"] = sampling_floor(probabilities, texts)._asdict()
            document["methods"] = []
            for result, row in rows:
                counts = np.array(row["counts"])
                method = _summarise_row(result["library"], row, total_variation(counts, probabilities))
                if result["peer"] == "keras-hub":
                    of_argmax = argmax_draft_distribution(pair)
                    method["argmax_drafts"] = {
                        "total_variation": total_variation(counts, of_argmax),
                        "floor": sampling_floor(of_argmax, texts)._asdict(),
                    }
                document["methods"].append(method)
        found.append(document)
    return found


def _summarise_row(library: str, row: dict[str, Any], distance: float) -> dict[str, Any]:
    quartiles = {
        runtime: [float(value) for value in np.quantile(values, [0.5, 0.25, 0.75])]
        for runtime, values in row["microseconds"].items()
    }
    return {
        "library": library,
        "method": row["method"],
        "total_variation": distance,
        "tokens_per_call": mean_interval(np.array(row["decided"]), np.array(row["calls"]))._asdict(),
        "microseconds": quartiles,
    }


def format_table(found: dict[str, Any]) -> str:
    """Returns the results as a Markdown table, and below it the settings, explanations, and what is missing.

    Args:
      found: the content of the results file.
    """
    rows = []
    for pair in found["pairs"]:
        about = f"{pair['pair']}, V = {pair['vocabulary']:,}, {pair['tokens']} token{'s' * (pair['tokens'] > 1)}"
        rows += [_format_row(about, pair["floor"], method) for method in pair.get("methods", [])]
    distances = ("total variation", "of a correct sampler: mean (99.9 %)")
    header = ("pair", "library: method", *distances, "tokens per target call", "µs per target call", "µs, XLA")
    parts = ["\n".join(markdown_table(header, rows)), _describe_settings(found), _explain(found)]
    if absent := [f"{peer['peer']}: {peer['problem']}." for peer in found["libraries"] if "problem" in peer]:
        parts.append("Missing: " + " ".join(absent))
    others = max((library.get("others", 0.0) for library in found["libraries"]), default=0.0)
    if others > QUIET:
        parts.append(f"NOISY: other processes used up to {others:.2f} cores during a run.")
    return "\n\n".join(filter(None, parts)) + "\n"


def _format_row(about: str, floor: dict[str, float], method: dict[str, Any]) -> list[str]:
    times = dict(method["microseconds"])
    compiled = _format_time(times.pop("XLA")) if "XLA" in times else "–"
    (uncompiled,) = times.values()
    mark = "**" if _is_above(method, floor) else ""
    return [
        about,
        f"{method['library']}: `{method['method']}`",
        f"{mark}{method['total_variation']:.4f}{mark}",
        _format_floor(floor),
        format_interval(method["tokens_per_call"], 2),
        _format_time(uncompiled),
        compiled,
    ]


def _describe_settings(found: dict[str, Any]) -> str:
    named = [f"{library['library']} {library['version']}" for library in found["libraries"] if "library" in library]
    if not named:
        return ""
    return (
        f"{'; '.join(named)}. {found['texts']:,} texts for each total variation; **bold** where it is above that of "
        f"99.9 % of correct samplers. Drafts of {DRAFT_LENGTH} tokens. Tokens per target call: {found['long_texts']} "
        f"texts of {LONG_TEXT} tokens, 95 % bootstrap intervals over texts. Times: median and quartiles of "
        f"{found['timings']} texts of {LONG_TEXT} tokens, one at a time, on one thread, table look-ups "
        "included; the libraries took turns. transformers ran in eager PyTorch, the others as a `tf.function`."
    )


def _explain(found: dict[str, Any]) -> str:
    """Returns what explains KerasHub's distances, if any is above that of a correct sampler, and its times with XLA."""
    rows = [
        (pair, method) for pair in found["pairs"] for method in pair.get("methods", []) if "argmax_drafts" in method
    ]
    text = ""
    if any("XLA" in method["microseconds"] for _, method in rows):
        text = "KerasHub's times with XLA are of fewer texts, and include a compilation for each. "
    distances = [
        f"{method['argmax_drafts']['total_variation']:.4f} for {pair['pair']} (a correct sampler of it: "
        f"{_format_floor(method['argmax_drafts']['floor'])})"
        for pair, method in rows
        if _is_above(method, pair["floor"])
    ]
    if distances:
        text += (
            "KerasHub's sampler drafts the drafter's likeliest token, and accepts it with probability min(1, p / q), "
            "where q is the drafter's softmax. The total variation of its texts from the enumerated distribution of "
            f"this procedure is {'; '.join(distances)}."
        )
    return text.strip()


def _is_above(method: dict[str, Any], floor: dict[str, float]) -> bool:
    return bool(method["total_variation"] > floor["bound"])


def _format_floor(floor: dict[str, float]) -> str:
    return f"{floor['mean']:.4f} ({floor['bound']:.4f})"


def _format_time(quartiles: Sequence[float]) -> str:
    middle, low, high = (f"{value:,.0f}" for value in quartiles)
    return f"{middle} ({low}–{high})"
