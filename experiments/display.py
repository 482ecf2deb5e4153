"""Shows the progress of a run: a progress bar with ETA on a terminal, plain lines elsewhere."""

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
from privacy.accounting.guarantee import format_epsilon

LABELS = {
    "public_loss": "loss on held-out public text",
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
OPERATOR_ONLY = ("loss", "held_out_loss", "non_finite")  # computed from training clients without noise
FOOTNOTE = (
    "* computed without noise, which only a simulation can do: operator only, outside ε; "
    "val loss and val acc are exact values of clients outside training, outside ε too"
)
FIXED_KEY = "BUT ε DOES NOT HOLD: run.fixed_key is set, and whoever knows it can recompute the noise and the cohorts"


def _format_value(key: str, value: float) -> str:
    if key in ("epsilon", "epsilon_fixed_key"):
        return format_epsilon(value)
    return f"{value:.0f}" if key == "non_finite" else f"{value:.3f}"


class ConsoleDisplay:
    """Displays notes and progress on standard error; standard output is left for results."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """Prints one line.

        Raises:
          KeyboardInterrupt: the user has asked the command to stop.
        """
        interrupt.check()
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
        """Shows the progress of a task while the `with` block runs.

        Args:
          name: name of the task, shown before the progress.
          total: number of steps.

        Yields:
          A function `advance(done, values)`, to be called after each step with the number of finished steps and the
          metrics that are new. The last value of every metric stays visible. It raises KeyboardInterrupt if the user
          has asked the command to stop.
        """
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
            task = progress.add_task(name, total=total, values="")

            def advance(done: int, values: dict[str, float]) -> None:
                interrupt.check()
                latest.update(values)
                text = "  ".join(
                    f"{LABELS.get(key, key)} {_format_value(key, value)}"
                    for key, value in latest.items()
                    if key != "non_finite" or value
                )
                progress.update(task, completed=done, values=text)
                if not self.console.is_terminal:
                    self.note(f"{name} {done}/{total}  {text}")

            yield advance


@contextmanager
def no_notices() -> Iterator[None]:
    """Hides standard error while the `with` block runs.

    TensorFlow and LiteRT print there that they use fast kernels and that there is no GPU; no setting turns this off.
    """
    sys.stderr.flush()
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
