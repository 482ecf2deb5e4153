"""The bench's figures as Markdown."""

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
from fl.runtime.kernels import describe_kernels

QUIET = 0.1  # cores in use by others, above which figures are marked
_HEADER = (
    "| framework | s a round: median (quartiles) | {unit}/s | memory, MB | first round, s "
    "| {ours} is faster by | {ours}'s memory over its | weights apart |\n"
    "|---|---|---|---|---|---|---|---|\n"
)


def case_table(case: Case, peers: Sequence[Peer], ours: str) -> str:
    """One case: a line of description, the table, and what did not run and why.

    Args:
      case: the runs.
      peers: in the order of the rows.
      ours: the peer that the ratios are of.
    """
    recipe = RECIPES[case.workload]
    about = recipe.about + ("; uniform mean, clip and noise" if case.private else "; mean weighted by examples")
    lines = [f"### {case.name}\n", f"{about}.\n", _HEADER.format(unit=recipe.unit, ours=ours).rstrip()]
    absent = []
    for peer in peers:
        runs = case.timed(peer.name)
        if problem := case.problem(peer.name):
            absent.append(f"{peer.name}: {problem}.")
        if runs:
            lines.append(_row(peer.name, runs, case, ours))
    text = "\n".join(lines) + "\n"
    if absent:
        text += "\nNot in the table, or in part: " + " ".join(absent) + "\n"
    others = max((run.others for run in case.runs), default=0.0)
    if others > QUIET:
        text += f"\nNOISY: other processes used up to {others:.1f} cores during a run.\n"
    return text


def machine() -> str:
    """Returns one line: processor, cores, system, and the kernels that TensorFlow computes with."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    cores = len(os.sched_getaffinity(0))
    name = found[1] if found else platform.machine()
    return f"{name}, {cores} cores, {platform.system()} {platform.machine()}; {describe_kernels()}"


def _row(peer: str, runs: Sequence[Run], case: Case, ours: str) -> str:
    rounds = np.concatenate([run.seconds[1:] for run in runs])
    low, median, high = np.quantile(rounds, [0.25, 0.5, 0.75])
    speeds = [sum(case.examples[1 : len(run.seconds)]) / sum(run.seconds[1:]) for run in runs]
    memory = np.median([run.memory for run in runs]) / 2**20
    first = np.median([run.first_round for run in runs])
    faster = lighter = "–"
    mine = {run.repetition: run for run in case.timed(ours)}
    pairs = [(run, mine[run.repetition]) for run in runs if run.repetition in mine]
    if pairs and peer != ours:
        faster = ratio(paired_time_ratio([run.seconds for run, _ in pairs], [own.seconds for _, own in pairs]))
        lighter = ratio(paired_ratio([own.memory for _, own in pairs], [run.memory for run, _ in pairs]))
    apart = [run.difference for run in case.runs if run.peer == peer and run.difference is not None]
    cells = [
        f"{peer} ({runs[0].framework} {runs[0].version})",
        f"{median:.3g} ({low:.3g}–{high:.3g})",
        f"{np.median(speeds):.0f}",
        f"{memory:.0f}",
        f"{first:.1f}",
        faster,
        lighter,
        "reference" if peer == case.reference else f"{max(apart):.0e}" if apart else "–",
    ]
    return "| " + " | ".join(cells) + " |"


def ratio(interval: Interval) -> str:
    """Estimate and ends; of a single pair the estimate alone."""
    ends = "" if math.isinf(interval.high) else f" ({interval.low:.2f}–{interval.high:.2f})"
    return f"{interval.estimate:.2f} ×{ends}"
