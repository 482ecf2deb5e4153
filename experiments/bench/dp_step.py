"""A private training step beside a plain one, in this kit and in other libraries for DP-SGD."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras
from experiments.bench.measure import Peer, environment
from experiments.bench.processes import watch
from experiments.bench.ratios import paired_ratio
from experiments.bench.table import QUIET, machine, ratio
from experiments.runs import write_json

OURS = "fedspeak"
PEERS = (
    Peer("tensorflow-privacy", "dp_tensorflow_privacy", None),  # the first that runs is the reference for the gradients
    Peer(OURS, "dp_fedspeak", None),
    Peer("opacus", "dp_opacus", "dp-optimizers"),
    Peer("jax-privacy", "dp_jax_privacy", "dp-optimizers"),
)
TASKS = {
    "linear": "softmax regression 784 → 10, batch 256 of 60,000 records",
    "mlp": "784 → 256 → 10 with ReLU, batch 256",
    "lstm": "embedding 2000 × 64, LSTM 128, output 2000, batch 64 × 20 tokens",
}
STEPS = {"linear": 5 * 234, "mlp": 20, "lstm": 5}  # timed at once; 234 are an epoch
TOLERANCE = 1e-3  # of the clipped gradients' length, relative


@click.command("dp-step")
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, help="Only this one; may be repeated.")
@click.option(
    "--peer", "names", type=click.Choice([p.name for p in PEERS]), multiple=True, help="Only this; may be repeated."
)
@click.option("--processes", type=click.IntRange(1, 100), default=5, show_default=True, help="Of each peer and task.")
@click.option("--repetitions", type=click.IntRange(1, 100), default=3, show_default=True, help="Within a process.")
@click.option("--timeout", type=click.IntRange(1), default=600, show_default=True, help="Seconds of one process.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True, help="Folder."
)
def dp_step(
    tasks: tuple[str, ...], names: tuple[str, ...], processes: int, repetitions: int, timeout: int, output: Path
) -> None:
    """Steps of DP-SGD: this kit, TensorFlow Privacy, Opacus (ghost clipping), JAX Privacy, each beside its plain step.

    All do the same work; the lengths of their clipped gradients are compared. The table goes to OUTPUT/dp-step.md and
    standard output, all figures to OUTPUT/dp-step.json. The peers' environment: `make bench-peers`.
    """
    extras.require("federated")
    from experiments.display import ConsoleDisplay

    peers = [peer for peer in PEERS if not names or peer.name in names]
    output.mkdir(parents=True, exist_ok=True)
    note = ConsoleDisplay().note
    found: dict[str, list[Figures]] = {}
    text = [f"Machine: {machine()}. {processes} processes of {repetitions} repetitions.\n"]
    for task in tasks or TASKS:
        found[task] = measure(task, peers, processes, repetitions, folder=output.resolve(), timeout=timeout, note=note)
        text.append(task_table(task, found[task]))
        # After each task: what is measured is kept when a later one is interrupted.
        listed = {name: [asdict(figures) for figures in rows] for name, rows in found.items()}
        write_json(output / "dp-step.json", {"machine": machine(), "tasks": listed})
        (output / "dp-step.md").write_text("\n".join(text))
    click.echo("\n".join(text))
    failed = [f"{name}: {row.peer}: {row.failed}" for name, rows in found.items() for row in rows if row.failed]
    if failed:
        raise click.ClickException("; ".join(failed))


@dataclass
class Figures:
    """All processes of one peer on one task.

    Attributes:
      peer: its name.
      lines: what the processes printed; see `experiments.bench.peers.dp_common.measure`.
      missing: why it did not run at all; None if it did.
      failed: what went wrong, in one line; None if all went well.
      others: cores that everything else on the machine used meanwhile, the most of a process.
    """

    peer: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    missing: str | None = None
    failed: str | None = None
    others: float = 0.0

    def seconds(self, loop: str) -> list[float]:
        """Of a step of the loop "private" or "plain": each process's median."""
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
) -> list[Figures]:
    """Runs every peer once in turn, as often as `processes` says, so that a slow spell of the machine falls on all.

    Args:
      task: key of `TASKS`.
      peers: the first of them that runs is the reference for the clipped gradients' length.
      processes: of each peer.
      repetitions: within a process.
      folder: takes the processes' output.
      timeout: seconds after which a process is ended.
      note: told each step.
    """
    found = {peer.name: Figures(peer.name) for peer in peers}
    for peer in peers:
        if not peer.python.is_file():
            found[peer.name].missing = "not installed: make bench-peers"
    for number in range(processes):
        for peer in peers:
            figures = found[peer.name]
            if figures.missing or figures.failed:
                continue
            _run(peer, task, figures, repetitions, folder, timeout)
            if not (figures.missing or figures.failed):
                seconds = figures.seconds("private")[-1]
                note(f"{task}: {peer.name}, process {number + 1}: {1e3 * seconds:.3g} ms a private step")
            else:
                note(f"{task}: {peer.name}: {figures.missing or figures.failed}")
    lines = [(figures, line) for figures in found.values() for line in figures.lines]
    for figures, line in lines:
        reference, first = lines[0]
        apart = abs(line["clipped"] / first["clipped"] - 1)
        if not apart <= TOLERANCE:
            figures.failed = f"other clipped gradients than {reference.peer}'s: their length is {apart:.1e} apart"
    return list(found.values())


def _run(peer: Peer, task: str, figures: Figures, repetitions: int, folder: Path, timeout: float) -> None:
    command = [str(peer.python), "-m", f"experiments.bench.peers.{peer.module}", task]
    command += ["--steps", str(STEPS[task]), "--repetitions", str(repetitions)]
    log = folder / f"dp-step.{task}.{peer.name}.log"
    watched = watch(command, folder=folder, environment=environment(), log=log, timeout=timeout)
    figures.others = max(figures.others, watched.others)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    if watched.return_code is None:
        figures.failed = f"no end after {timeout:.0f} s"
    elif watched.return_code:
        figures.failed = f"exit code {watched.return_code}: {lines[-1].strip()}"
    else:
        line = json.loads(lines[-1])
        figures.missing = line.get("unsupported")
        if figures.missing is None:
            figures.lines.append(line)


def task_table(task: str, found: Sequence[Figures]) -> str:
    """One task as Markdown: milliseconds of a step and their ratios, with 95 % intervals over the processes."""
    lines = [
        f"### {task}: {TASKS[task]}\n",
        f"| library | private step, ms: median (least) | plain step, ms | private / plain | private step / {OURS}'s |",
        "|---|---|---|---|---|",
    ]
    ours = next((figures for figures in found if figures.peer == OURS and figures.lines), None)
    for figures in found:
        if figures.lines:
            private, plain = figures.seconds("private"), figures.seconds("plain")
            over = "–"
            if ours and figures is not ours and len(ours.lines) == len(private):
                over = ratio(paired_ratio(private, ours.seconds("private")))
            first = figures.lines[0]
            cells = [
                f"{figures.peer} ({first['framework']} {first['version']})",
                *(
                    f"{1e3 * np.median(seconds):.3g} ({1e3 * min(line[loop]['min'] for line in figures.lines):.3g})"
                    for loop, seconds in (("private", private), ("plain", plain))
                ),
                ratio(paired_ratio(private, plain)),
                over,
            ]
            lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    if absent := [f"{f.peer}: {f.missing or f.failed}." for f in found if f.missing or f.failed]:
        text += "\nNot in the table, or in part: " + " ".join(absent) + "\n"
    others = max((figures.others for figures in found), default=0.0)
    if others > QUIET:
        text += f"\nNOISY: other processes used up to {others:.1f} cores during a run.\n"
    return text
