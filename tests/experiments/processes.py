"""Helpers that run the command line, in this process and in processes of their own."""

import contextlib
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.cli import main


def call(*arguments: str, folder: Path) -> tuple[int, str, str]:
    """Runs a command in this process, with `folder` as working folder: a new process imports TensorFlow for seconds.

    Returns:
      Exit code, standard output, standard error.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
    assert isinstance(stop.value.code, int)
    return stop.value.code, out.getvalue(), err.getvalue()


def start(*arguments: str, folder: Path) -> subprocess.Popen:
    """Starts a command as a user's shell does, with `folder` as working folder: token stores go to its runs/data.

    TensorFlow logs as it does for a user, and computes with the same kernels as in this process.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
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
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False
