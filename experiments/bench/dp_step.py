"""Defines `fedspeak bench dp-step`: a DP-SGD step beside a plain one, in fedspeak and in other DP-SGD libraries."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.bench.measure import Peer, environment
from experiments.bench.processes import watch
from experiments.bench.ratios import paired_ratio
from experiments.bench.table import QUIET, machine, ratio
from experiments.commands.renamed import renamed
from experiments.markdown import markdown_table
from experiments.runs import write_json

OURS = "fedspeak"
# The clipped gradients of the first library that runs are the reference for those of the others.
PEERS = (
    Peer("tensorflow-privacy", "dp_tensorflow_privacy", None),
    Peer(OURS, "dp_fedspeak", None),
    Peer("opacus", "dp_opacus", "dp-optimizers"),
    Peer("jax-privacy", "dp_jax_privacy", "dp-optimizers"),
)
TASKS = {
    "linear": "softmax regression 784 → 10, batch 256 of 60,000 records",
    "mlp": "784 → 256 → 10 with ReLU, batch 256",
    "lstm": "embedding 2000 × 64, LSTM 128, output 2000, batch 64 × 20 tokens",
}
STEPS = {"linear": 5 * 234, "mlp": 20, "lstm": 5}
"""Number of consecutive steps in one timing, by task; 234 steps of "linear" are an epoch."""

TOLERANCE = 1e-3
"""Relative tolerance for the L2 norm of the mean clipped gradient."""


@click.command("dp-step")
@click.option(
    "--task",
    "tasks",
    type=click.Choice(list(TASKS)),
    multiple=True,
    help="Task to run; may be repeated. By default, all.",
)
@click.option(
    "--peer",
    "names",
    type=click.Choice([p.name for p in PEERS]),
    multiple=True,
    help="Library to run; may be repeated. By default, all.",
)
@click.option(
    "--processes", type=click.IntRange(1, 100), default=5, show_default=True, help="Processes per library and task."
)
@click.option(
    "--repetitions", type=click.IntRange(1, 100), default=3, show_default=True, help="Timings within each process."
)
@options.timeout()
@options.output("runs/bench")
@renamed("--out", "--output")
def dp_step(
    tasks: tuple[str, ...], names: tuple[str, ...], processes: int, repetitions: int, timeout: int, output: Path
) -> None:
    """Time DP-SGD steps in fedspeak, TensorFlow Privacy, Opacus (ghost clipping) and JAX Privacy.

    Each library's private step is timed beside its plain step. All libraries do the same work; the L2 norms of their
    clipped gradients are compared. The table goes to OUTPUT/dp-step.md and to standard output, all measurements to
    OUTPUT/dp-step.json. `make bench-peers` installs the other libraries.
    """
    extras.require("federated")
    from experiments.display import ConsoleDisplay

    peers = [peer for peer in PEERS if not names or peer.name in names]
    output.mkdir(parents=True, exist_ok=True)
    note = ConsoleDisplay().note
    results: dict[str, list[Timings]] = {}
    text = [f"Machine: {machine()}. {processes} processes of {repetitions} repetitions.\n"]
    for task in tasks or TASKS:
        results[task] = measure(
            task, peers, processes, repetitions, folder=output.resolve(), timeout=timeout, note=note
        )
        text.append(task_table(task, results[task]))
        # Written after each task, so that an interruption loses no finished task.
        document = {name: [asdict(timings) for timings in rows] for name, rows in results.items()}
        write_json(output / "dp-step.json", {"machine": machine(), "tasks": document})
        (output / "dp-step.md").write_text("\n".join(text))
    click.echo("\n".join(text))
    failed = [f"{name}: {row.peer}: {row.failed}" for name, rows in results.items() for row in rows if row.failed]
    if failed:
        raise click.ClickException("; ".join(failed))


@dataclass
class Timings:
    """Holds the timings of one library on one task, from all of its processes.

    Attributes:
      peer: name of the library.
      lines: the JSON that each process printed; see `experiments.bench.peers.dp_common.measure`.
      missing: why the library did not run; None if it ran.
      failed: what went wrong, in one line; None if nothing did.
      others: processor cores that the rest of the machine used during a process, the maximum over the processes.
    """

    peer: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    missing: str | None = None
    failed: str | None = None
    others: float = 0.0

    def seconds(self, loop: str) -> list[float]:
        """Returns the median seconds per step of each process.

        Args:
          loop: "private" or "plain".
        """
        return [line[loop]["median"] for line in self.lines]


def measure(
    task: str,
    peers: Sequence[Peer],
    processes: int,
    repetitions: int,
    *,
    folder: Path,
    timeout: float,
    note: Callable[[str], None],
) -> list[Timings]:
    """Times a task in all libraries.

    The libraries take turns, one process at a time, so that a slow phase of the machine affects all of them.

    Args:
      task: key of `TASKS`.
      peers: libraries to run; the clipped gradients of the first one that runs are the reference.
      processes: processes per library.
      repetitions: timings within each process.
      folder: folder for the processes' output.
      timeout: seconds after which a process is ended.
      note: called with a line after each process.
    """
    results = {peer.name: Timings(peer.name) for peer in peers}
    for peer in peers:
        if not peer.python.is_file():
            results[peer.name].missing = "not installed: make bench-peers"
    for number in range(processes):
        for peer in peers:
            timings = results[peer.name]
            if timings.missing or timings.failed:
                continue
            _run(peer, task, timings, repetitions, folder, timeout)
            if not (timings.missing or timings.failed):
                seconds = timings.seconds("private")[-1]
                note(f"{task}: {peer.name}, process {number + 1}: {1e3 * seconds:.3g} ms per private step")
            else:
                note(f"{task}: {peer.name}: {timings.missing or timings.failed}")
    lines = [(timings, line) for timings in results.values() for line in timings.lines]
    for timings, line in lines:
        reference, first = lines[0]
        difference = abs(line["clipped"] / first["clipped"] - 1)
        if not difference <= TOLERANCE:
            timings.failed = (
                f"clipped gradients differ from those of {reference.peer}: their norms by {difference:.1e} (relative)"
            )
    return list(results.values())


def _run(peer: Peer, task: str, timings: Timings, repetitions: int, folder: Path, timeout: float) -> None:
    """Runs one process of a library and adds its timings, or the reason why there are none."""
    command = [str(peer.python), "-m", f"experiments.bench.peers.{peer.module}", task]
    command += ["--steps", str(STEPS[task]), "--repetitions", str(repetitions)]
    log = folder / f"dp-step.{task}.{peer.name}.log"
    outcome = watch(command, folder=folder, environment=environment(), log=log, timeout=timeout)
    timings.others = max(timings.others, outcome.others)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    if outcome.return_code is None:
        timings.failed = f"ended after its time limit of {timeout:.0f} s"
    elif outcome.return_code:
        timings.failed = f"exit code {outcome.return_code}: {lines[-1].strip()}"
    else:
        line = json.loads(lines[-1])
        timings.missing = line.get("unsupported")
        if timings.missing is None:
            timings.lines.append(line)


def task_table(task: str, results: Sequence[Timings]) -> str:
    """Returns the results on one task as Markdown.

    The table has the milliseconds per step and their ratios, with 95 % intervals over the processes.

    Args:
      task: key of `TASKS`.
      results: timings of each library.
    """
    rows = []
    ours = next((timings for timings in results if timings.peer == OURS and timings.lines), None)
    for timings in results:
        if timings.lines:
            private, plain = timings.seconds("private"), timings.seconds("plain")
            over = "–"
            if ours and timings is not ours and len(ours.lines) == len(private):
                over = ratio(paired_ratio(private, ours.seconds("private")))
            first = timings.lines[0]
            cells = [
                f"{timings.peer} ({first['framework']} {first['version']})",
                *(
                    f"{1e3 * np.median(seconds):.3g} ({1e3 * min(line[loop]['min'] for line in timings.lines):.3g})"
                    for loop, seconds in (("private", private), ("plain", plain))
                ),
                ratio(paired_ratio(private, plain)),
                over,
            ]
            rows.append(cells)
    steps = [f"{loop} step, ms: median (minimum)" for loop in ("private", "plain")]
    header = ("library", *steps, "private / plain", f"private step / {OURS}'s")
    text = "\n".join([f"### {task}: {TASKS[task]}", "", *markdown_table(header, rows)]) + "\n"
    if absent := [f"{f.peer}: {f.missing or f.failed}." for f in results if f.missing or f.failed]:
        text += "\nMissing or incomplete: " + " ".join(absent) + "\n"
    others = max((timings.others for timings in results), default=0.0)
    if others > QUIET:
        text += f"\nNOISY: other processes used up to {others:.1f} cores during a run.\n"
    return text
