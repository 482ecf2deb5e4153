import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fl.runtime.owned_process import OwnedProcess, WorkerLostError, is_loopback, listening_addresses, require_free_port

SLEEP = ["/bin/sleep", "600"]


def start(command=SLEEP) -> OwnedProcess:
    process = OwnedProcess("the sleeper's")
    process._launch(command, os.environ)
    return process


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("0100007F", True),  # 127.0.0.1
        ("0200007F", True),  # 127.0.0.2
        ("00000000", False),  # 0.0.0.0
        ("0101A8C0", False),  # 192.168.1.1
        ("7F00A8C0", False),  # 192.168.0.127
        ("00000000000000000000000001000000", True),  # ::1
        ("0000000000000000FFFF00000100007F", True),  # ::ffff:127.0.0.1
        ("00000000000000000000000000000000", False),  # ::
        ("0000000000000000FFFF00000101A8C0", False),
    ],
)
def test_is_loopback_reads_addresses_as_kernel_prints_them(address, loopback):
    assert is_loopback(address) is loopback


def test_stop_ends_process_and_removes_folder():
    process = start()
    folder = process._folder
    assert folder.exists()
    process.check_alive()
    process.stop()
    process.stop()
    assert not folder.exists() and not Path(f"/proc/{process.pid}").exists()


def test_check_alive_raises_when_process_died():
    process = start()
    os.kill(process.pid, signal.SIGKILL)
    process._process.wait()
    with pytest.raises(WorkerLostError, match=f"sleeper's process {process.pid} ended with code -9.*: wake it"):
        process.check_alive("wake it")
    process.stop()


def test_output_is_read_while_process_writes():
    process = start(["/bin/sh", "-c", "seq 1000; sleep 0.2; seq 1000 1100; sleep 600"])
    deadline = time.monotonic() + 300
    while not process.output().endswith("\n1100"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.output().splitlines()[-102:] == ["1000", *map(str, range(1000, 1101))]
    process.stop()


def test_wait_until_it_listens_reports_output_of_ended_process():
    process = start(["/bin/sh", "-c", "echo no such port; exit 3"])
    with pytest.raises(WorkerLostError, match="ended with code 3 .*no such port"):
        process.wait_until_it_listens()
    process.stop()


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_require_free_port_refuses_taken_port(address):
    with socket.create_server((address, 0), reuse_port=True) as server:
        port = server.getsockname()[1]
        assert listening_addresses(os.getpid())
        with pytest.raises(OSError, match=f"port {port} cannot be used .*in use.*choose another"):
            require_free_port(port)
    require_free_port(port)


# "ignored": the parent ignores Ctrl-C, as if started by nohup or in the background.
@pytest.mark.parametrize("ending", ["success", "error", "SIGINT", "SIGTERM", "SIGKILL", "ignored"])
def test_child_ends_with_parent(ending, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    script = textwrap.dedent(
        """
        import sys, time
        from fl.runtime.owned_process import OwnedProcess
        process = OwnedProcess("a")
        process._launch([sys.executable, "-c", sys.argv[2]], {})
        process.wait_until_it_listens()
        print(process.pid, flush=True)
        if sys.argv[1] == "error":
            raise RuntimeError("on purpose")
        if sys.argv[1] not in ("success", "ignored"):
            time.sleep(600)
        """
    )
    listens = "import socket, time; server = socket.create_server(('127.0.0.1', 0)); time.sleep(600)"
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN if ending == "ignored" else signal.SIG_DFL)
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", script, ending, listens],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, previous)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    if ending.startswith("SIG"):
        process.send_signal(getattr(signal, ending))
    process.wait(timeout=300)
    process.stdout.close()
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if not Path(f"/proc/{pid}").exists():
            assert not list(tmp_path.iterdir())
            return
        time.sleep(0.05)
    pytest.fail(f"process {pid} is still there after {ending}")
