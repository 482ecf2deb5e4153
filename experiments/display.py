"""How a run's course is shown: a progress bar with ETA on a terminal, plain lines elsewhere."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments import interrupt

LABELS = {
    "public_loss": "loss on public text set aside",
    "loss": "train loss*",
    "train_loss": "train loss (DP)",
    "train_accuracy": "train acc (DP)",
    "train_clients": "clients (DP)",
    "validation_loss": "val loss",
    "validation_accuracy": "val acc",
    "held_out_loss": "held-out loss*",
    "non_finite": "updates zeroed*",
    "epsilon": "ε",
    "epsilon_fixed_key": "ε that does not hold (fixed key)",
}
PRIVATE_METRICS = ("train_loss", "train_accuracy", "train_clients")
OPERATOR_ONLY = ("loss", "held_out_loss", "non_finite")  # read from training clients
FOOTNOTE = (
    "* read without noise in a simulation: operator only, outside ε; "
    "val loss and acc are exact values of clients outside training, outside ε too"
)
FIXED_KEY = "BUT ε DOES NOT HOLD: run.fixed_key is set, and whoever knows it can redraw the noise and the cohorts"


def rounded_up(epsilon: float) -> str:
    """Epsilon with three decimals, never less than it is: what is printed must hold."""
    return f"{math.ceil(epsilon * 1000 - 1e-9) / 1000:.3f}" if math.isfinite(epsilon) else "inf"


def _shown(key: str, value: float) -> str:
    if key in ("epsilon", "epsilon_fixed_key"):
        return rounded_up(value)
    return f"{value:.0f}" if key == "non_finite" else f"{value:.3f}"


class ConsoleDisplay:
    """Shows notes and tasks on standard error, so that standard output stays for results."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """One line; a wish to stop ends the command here."""
        interrupt.check()
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Yields `advance(done, values)`; the newest of each value stays on show."""
        latest: dict[str, float] = {}
        columns = [
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}", markup=False),
        ]
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            handle = progress.add_task(name, total=total, values="")

            def advance(done: int, values: dict[str, float]) -> None:
                interrupt.check()
                latest.update(values)
                text = "  ".join(
                    f"{LABELS.get(key, key)} {_shown(key, value)}"
                    for key, value in latest.items()
                    if key != "non_finite" or value
                )
                progress.update(handle, completed=done, values=text)
                if not self.console.is_terminal:
                    self.note(f"{name} {done}/{total}  {text}")

            yield advance


@contextmanager
def no_notices() -> Iterator[None]:
    """Keeps from standard error what no setting turns off: that TensorFlow and LiteRT use their fast kernels, and that
    there is no GPU."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
