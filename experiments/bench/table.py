"""Formats the results of `fedspeak bench simulation` as Markdown."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.bench.measure import Case, Peer, Run
from experiments.bench.ratios import paired_ratio, paired_time_ratio
from experiments.bench.workloads import RECIPES
from experiments.intervals import Interval
from experiments.markdown import markdown_table
from fl.runtime.kernels import describe_kernels

QUIET = 0.1
"""Processor cores in use by other programs above which a table is marked as noisy."""


def case_table(case: Case, peers: Sequence[Peer], ours: str) -> str:
    """Returns the results of a case as Markdown: a description, the table, and the peers that did not run and why.

    Args:
      case: the case with its runs.
      peers: peers in the order of the rows.
      ours: name of the peer that all others are compared with.
    """
    recipe = RECIPES[case.workload]
    about = recipe.about + ("; uniform mean, clip and noise" if case.private else "; mean weighted by examples")
    rows, absent = [], []
    for peer in peers:
        runs = case.timed(peer.name)
        if problem := case.problem(peer.name):
            absent.append(f"{peer.name}: {problem}.")
        if runs:
            rows.append(_format_row(peer.name, runs, case, ours))
    header = (
        "framework",
        "s per round: median (quartiles)",
        f"{recipe.unit}/s",
        "memory, MB",
        "first round, s",
        f"{ours} is faster by",
        f"{ours}'s memory / this",
        "weight difference",
    )
    text = "\n".join([f"### {case.name}", "", f"{about}.", "", *markdown_table(header, rows)]) + "\n"
    if absent:
        text += "\nMissing or incomplete: " + " ".join(absent) + "\n"
    others = max((run.others for run in case.runs), default=0.0)
    if others > QUIET:
        text += f"\nNOISY: other processes used up to {others:.2f} cores during a run.\n"
    return text


def overview(cases: Sequence[Case], peers: Sequence[Peer], ours: str) -> str:
    """Returns a Markdown table with a row for each case: seconds per round of `ours`, and how much faster it is.

    Args:
      cases: cases with their runs.
      peers: peers in the order of the columns; those without a run are left out.
      ours: name of the peer that all others are compared with.
    """
    others = [peer.name for peer in peers if peer.name != ours and any(case.timed(peer.name) for case in cases)]
    rows = []
    for case in cases:
        rounds = [run.seconds[1:] for run in case.timed(ours)]
        cells = [case.name, f"{np.median(np.concatenate(rounds)):.3g}" if rounds else "–"]
        for name in others:
            pairs = _pairs(case.timed(name), case, ours)
            cells.append(_time_ratio(pairs) if pairs else "–")
        rows.append(cells)
    header = ("case", f"{ours}, s per round", *(f"faster than {name} by" for name in others))
    return "\n".join(markdown_table(header, rows)) + "\n"


def machine() -> str:
    """Describes this machine in one line: processor, cores, system, and the kernels that TensorFlow computes with."""
    try:
        model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    cores = len(os.sched_getaffinity(0))
    name = model[1] if model else platform.machine()
    return f"{name}, {cores} cores, {platform.system()} {platform.machine()}; {describe_kernels()}"


def _format_row(peer: str, runs: Sequence[Run], case: Case, ours: str) -> list[str]:
    rounds = np.concatenate([run.seconds[1:] for run in runs])
    low, median, high = np.quantile(rounds, [0.25, 0.5, 0.75])
    speeds = [sum(case.examples[1 : len(run.seconds)]) / sum(run.seconds[1:]) for run in runs]
    memory = np.median([run.memory for run in runs]) / 2**20
    first = np.median([run.first_round for run in runs])
    faster = lighter = "–"
    pairs = _pairs(runs, case, ours)
    if pairs and peer != ours:
        faster = _time_ratio(pairs)
        # Memory is looked at five times a second: that of a process which ended before the first look is unknown, 0.
        memories = [(own.memory, run.memory) for run, own in pairs if own.memory and run.memory]
        if memories:
            lighter = ratio(paired_ratio(*zip(*memories, strict=True)))
    differences = [run.difference for run in case.runs if run.peer == peer and run.difference is not None]
    return [
        f"{peer} ({runs[0].framework} {runs[0].version})",
        f"{median:.3g} ({low:.3g}–{high:.3g})",
        f"{np.median(speeds):.0f}",
        f"{memory:.0f}",
        f"{first:.1f}",
        faster,
        lighter,
        "reference" if peer == case.reference else f"{max(differences):.0e}" if differences else "–",
    ]


def _pairs(runs: Sequence[Run], case: Case, ours: str) -> list[tuple[Run, Run]]:
    """Pairs each run with that of `ours` in the same repetition."""
    our_runs = {run.repetition: run for run in case.timed(ours)}
    return [(run, our_runs[run.repetition]) for run in runs if run.repetition in our_runs]


def _time_ratio(pairs: Sequence[tuple[Run, Run]]) -> str:
    return ratio(paired_time_ratio([run.seconds for run, _ in pairs], [own.seconds for _, own in pairs]))


def ratio(interval: Interval) -> str:
    """Formats a ratio with its interval; the ratio of a single pair has no interval."""
    ends = "" if math.isinf(interval.high) else f" ({interval.low:.2f}–{interval.high:.2f})"
    return f"{interval.estimate:.2f} ×{ends}"
