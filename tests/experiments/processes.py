"""Helpers that run the command line in processes of their own."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest


def start(*arguments: str) -> subprocess.Popen:
    # The variables that the test run sets for TensorFlow are removed, since a user's shell does not have them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tempfile.gettempdir(),  # token stores are written to runs/data in the working folder
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_rounds(run: Path, process: subprocess.Popen, rounds: int) -> None:
    while process.poll() is None:
        if (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n") >= rounds:
            return
        time.sleep(0.01)
    pytest.fail(f"ended too early: {finish(process)}")


def ended(pid: int) -> bool:
    for _ in range(1200):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False
