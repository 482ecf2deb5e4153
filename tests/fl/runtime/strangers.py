"""Runs scripts as another account of this machine, `nobody`, which a server under test must refuse."""

import os
import subprocess
import sys

from tests.fl.runtime.namespaces import skip

_BECOME = """
import os
def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""
# Connects a number of times without sending anything and checks that the server closes each connection.
_LISTEN = """
import socket, sys
become_nobody()
for _ in range(int(sys.argv[2])):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=300) as connection:
        try:
            received = connection.recv(1)
        except ConnectionError:
            received = b""
        assert received == b"", received
print("refused")
"""


def start_as_nobody(script: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a Python script, which must call `become_nobody`; skips the test unless it runs as root."""
    if os.geteuid() != 0:
        skip("becoming another user needs root")
    command = [sys.executable, "-c", _BECOME + script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def as_nobody(script: str, *arguments: str) -> str:
    """Runs a script as `start_as_nobody` does and returns what it printed."""
    with start_as_nobody(script, *arguments) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def assert_refuses_nobody(port: int, times: int = 1) -> None:
    """Connects as `nobody`, one connection after another, and checks that each is closed without an answer."""
    assert as_nobody(_LISTEN, str(port), str(times)) == "refused\n"
