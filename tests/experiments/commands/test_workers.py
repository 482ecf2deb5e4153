"""Tests `fedspeak worker`, `certificates` and `train --workers` as a user runs them."""

import json
import os
import re
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import portpicker
import pytest

from experiments.cli import main
from fl.runtime import tunnel
from fl.runtime.kernels import describe_kernels
from fl.runtime.owned_process import is_loopback, listening_addresses
from tests.experiments.processes import call, ended, finish, start, wait_for_rounds
from tests.fl.runtime.namespaces import needs_stunnel
from tests.fl.runtime.strangers import assert_refuses_nobody


def children(pid: int) -> list[int]:
    result = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in result.stdout.split()]


def start_worker(*options: str) -> tuple[subprocess.Popen, int, str]:
    """Starts a worker and returns its process, its port and its first line."""
    port = portpicker.pick_unused_port()
    process = start("worker", "--port", str(port), "--cores", "1", *options, folder=Path.cwd())
    assert process.stdout is not None
    return process, port, process.stdout.readline()


@pytest.fixture
def own_temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_worker_command_listens_on_loopback_and_leaves_nothing_behind(number, own_temporary_folder):
    process, port, line = start_worker()
    assert line == f"worker: 1 core; listens on loopback, port {port}; Ctrl-C ends it\n"
    running = children(process.pid)
    assert len(running) == 1
    addresses = listening_addresses(running[0])
    assert addresses and all(map(is_loopback, addresses))
    assert_refuses_nobody(port)
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out, err) == (0, "worker: ended\n", "")
    assert ended(running[0]) and not list(own_temporary_folder.iterdir())


@needs_stunnel
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_worker_command_ends_tunnel_and_worker_process(number, tmp_path, own_temporary_folder):
    _, worker_folder = tunnel.make_certificates(tmp_path / "certificates")
    process, port, line = start_worker("--certificates", str(worker_folder))
    assert (
        f"listens on all interfaces, port {port}, for the driver whose certificate is {worker_folder}/peer.pem" in line
    )
    running = children(process.pid)
    assert len(running) == 2
    names = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in running}
    assert all(map(is_loopback, listening_addresses(names["worker_binary"])))
    command = Path(f"/proc/{names['worker_binary']}/cmdline").read_text()
    match = re.search(r"--port=(\d+)", command)
    assert match is not None
    assert_refuses_nobody(int(match[1]))
    process.send_signal(number)
    code, _, _ = finish(process)
    assert code == (0 if number == signal.SIGTERM else -number)
    assert all(map(ended, running))
    assert number == signal.SIGKILL or not list(own_temporary_folder.iterdir())


def test_worker_command_warns_with_insecure_network():
    process, port, line = start_worker("--insecure-network")
    assert f"ALL INTERFACES, port {port}, WITHOUT AUTHENTICATION" in line
    assert not all(map(is_loopback, listening_addresses(children(process.pid)[0])))
    process.terminate()
    code, _, err = finish(process)
    assert code == 0 and "accepts connections from ANY host without authentication" in err


def test_worker_command_ends_when_worker_process_dies():
    process, _, _ = start_worker()
    os.kill(children(process.pid)[0], signal.SIGKILL)
    code, _, err = finish(process)
    assert code == 2
    assert re.fullmatch(
        r"fedspeak: error: TFF's worker process \d+ ended with code -9 .*: start the worker again.\n", err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["worker"], "Missing option '--port'"),
        (["worker", "--port", "70000"], "70000 is not in the range"),
        (["worker", "--port", "7000", "--certificates", "x", "--insecure-network"], "contradict each other"),
        (["worker", "--port", "7000", "--certificates", "none"], "none holds no key.pem"),
        (
            ["train", "demo", "--workers", "10.0.0.2:7000"],
            "would get the clients' text unencrypted: give --certificates DIR, connect to an ssh tunnel on localhost, "
            "or give --insecure-network",
        ),
        (["train", "demo", "--workers", "nonsense"], "'nonsense' is not host:port"),
        (["train", "demo", "--workers", "a:1", "--certificates", "none"], "none holds no key.pem"),
        (["train", "demo", "--workers", "a:1", "--certificates", "x", "--insecure-network"], "contradict each other"),
        (["train", "demo", "--certificates", "x"], "need --workers"),
        (["train", "demo", "--insecure-network"], "need --workers"),
        (["train", "demo", "--set", "run.recycle_worker=0"], "run.recycle_worker = 0: must be an integer, at least 1"),
    ],
)
def test_invalid_worker_options_are_refused_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@needs_stunnel
def test_certificates_command_says_where_each_folder_goes(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["certificates", str(tmp_path / "made")])
    assert stop.value.code == 0
    driver, worker = capsys.readouterr().out.splitlines()
    assert driver.startswith(f"{tmp_path}/made/driver: stays here") and worker.startswith(
        f"{tmp_path}/made/worker: copy"
    )


@needs_stunnel
@pytest.mark.slow
def test_train_on_workers_equals_train_on_one_machine(folder, tmp_path):
    """Both workers are killed in turn; the run resumes with a new worker, then with none, and recycles its own."""
    config = str(folder / "config.toml")
    driver, worker_folder = tunnel.make_certificates(tmp_path / "certificates")
    settings = ["--set", "run.clients_at_once=1"]
    here, there = tmp_path / "here", tmp_path / "there"
    code, _, err = call("train", config, "--output", str(here), *settings, folder=folder)
    assert code == 0, err

    workers: list[subprocess.Popen] = []

    def options(count: int) -> list[str]:
        new = [start_worker("--certificates", str(worker_folder)) for _ in range(count)]
        workers.extend(process for process, _, _ in new)
        addresses = ",".join(f"localhost:{port}" for _, port, _ in new)
        return ["--workers", addresses, "--certificates", str(driver)]

    try:
        recycled = ["--set", "run.recycle_worker=1", "--set", "run.evaluate_every=1"]
        driving = start("train", config, "--output", str(there), *settings, *recycled, *options(2), folder=folder)
        wait_for_rounds(there, driving, 1)
        workers[0].kill()
        wait_for_rounds(there, driving, 2)
        workers[1].kill()
        code, _, err = finish(driving)
        assert code == 2 and "no worker is left" in err and "resume the run" in err and "Traceback" not in err, err
        assert "is lost" in err

        driving = start("train", "--resume", str(there), *options(1), folder=folder)
        wait_for_rounds(there, driving, 3)
        driving.send_signal(signal.SIGINT)
        code, _, err = finish(driving)
        assert code == 130 and "resume with: fedspeak train --resume" in err, err

        code, _, err = call("train", "--resume", str(there), folder=folder)
        assert code == 0, err
    finally:
        for process in workers:
            process.terminate()
            finish(process)
    kernels = json.loads((there / "facts.json").read_text())["kernels"]
    assert kernels[0] == "unknown kernels on 2 workers"
    # The second process may have been interrupted before its first round, which then records nothing.
    assert set(kernels[1:]) <= {"unknown kernels on 1 worker", describe_kernels()}
    with np.load(here / "weights.npz") as alone, np.load(there / "weights.npz") as spread:
        assert all(np.abs(alone[name] - spread[name]).max() < 1e-6 for name in alone.files)
    assert len((there / "ledger.jsonl").read_bytes().splitlines()) == 6  # the plan and five rounds
    assert (here / "ledger.jsonl").read_bytes().splitlines()[1] in (there / "ledger.jsonl").read_bytes()
