"""Tests which connections the shim lets through to a small server."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fl.runtime.worker import build_loopback_shim, shim_works
from tests.fl.runtime.strangers import as_nobody, start_as_nobody

# For each line on standard input it waits until a connection arrives, then tries to accept one and prints the peer's
# port and what it sent, or "nobody" if the shim refused it. A number in the line limits how many more files it may
# open.
_SERVER = """
import ctypes, errno, os, resource, select, socket, sys
family, address, function = int(sys.argv[1]), sys.argv[2], sys.argv[3]
libc = ctypes.CDLL(None, use_errno=True)
server = socket.socket(family)
server.bind(address if family == socket.AF_UNIX else (address, 0))
server.listen(1000)
server.setblocking(False)
def accept():
    if function == "accept4":
        connection, peer = server.accept()
        return connection, peer[1] if peer else ""
    descriptor = libc.accept(server.fileno(), None, None)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "")
    connection = socket.socket(fileno=descriptor)
    return connection, connection.getpeername()[1]
print("" if family == socket.AF_UNIX else server.getsockname()[1], flush=True)
for line in sys.stdin:
    if line.strip():
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + int(line), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    select.select([server], [], [], 300)
    try:
        connection, port = accept()
    except BlockingIOError:
        print("nobody", flush=True)
        continue
    connection.setblocking(True)
    sent = connection.recv(5).decode()
    connection.close()
    print(port, sent, flush=True)
"""
# Another account that connects a number of times and ends each connection in a given way, and one that stays connected.
_STRANGER = """
import socket, sys
from tests.fl.runtime.test_loopback import connect
become_nobody()
for _ in range(int(sys.argv[2])):
    connect(socket.AF_INET, "127.0.0.1", int(sys.argv[1]), b"steal", sys.argv[3]).close()
"""
_STAYING_STRANGER = """
import socket, sys
become_nobody()
connection = socket.socket(int(sys.argv[1]))
connection.settimeout(300)
connection.connect((sys.argv[2], int(sys.argv[3])))
connection.sendall(b"steal")
print("connected", flush=True)
try:
    print(connection.recv(1))
except ConnectionError:
    print(b"")
"""
WAYS = ["sends and closes", "closes while it sends", "resets", "closes its half"]


class Server:
    """A server that is preloaded with the shim."""

    def __init__(self, shim: Path, family: int, address: str, function: str = "accept4") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _SERVER, str(int(family)), address, function],
            env=dict(os.environ, LD_PRELOAD=str(shim)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline().strip() or 0)

    def accept(self, spare_files: str = "") -> str:
        """Lets the server accept once and returns the line that it prints."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(spare_files + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def connect(family: int, address: str, port: int, sent: bytes, way: str = "stays", own_port: int = 0) -> socket.socket:
    """Opens a connection, sends `sent` and then ends the connection in a given way, or keeps it open ("stays")."""
    connection = socket.socket(family)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if own_port:
        connection.bind((address, own_port))
    connection.connect((address, port))
    connection.sendall(sent)
    if way == "closes its half":
        connection.shutdown(socket.SHUT_WR)
    elif way == "resets":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif way == "closes while it sends":  # the server reads nothing, so the kernel keeps the rest and goes on trying
        connection.setblocking(False)
        try:
            while connection.send(bytes(100_000)):
                pass
        except BlockingIOError:
            pass
    if way not in ("stays", "closes its half"):
        connection.close()
    return connection


def as_nobody_connects(server: Server, way: str, times: int = 1) -> None:
    """Connects as another account, sends and ends; the connections wait to be accepted when this returns."""
    as_nobody(_STRANGER, str(server.port), str(times), way)


@pytest.fixture(scope="module")
def shim(tmp_path_factory) -> Path:
    library = build_loopback_shim(tmp_path_factory.mktemp("shim"))
    assert library is not None
    return library


@pytest.fixture
def start(shim) -> Iterator:
    servers = []

    def start_one(*arguments) -> Server:
        servers.append(Server(shim, *arguments))
        return servers[-1]

    yield start_one
    for server in servers:
        server.process.kill()
        server.process.communicate()


# The server's family and address, and the client's: their families may differ.
IPV4 = [(socket.AF_INET, "0.0.0.0", socket.AF_INET, "127.0.0.1")]
IPV6 = [
    (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1"),
    (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::", socket.AF_INET6, "::ffff:127.0.0.1"),
    (socket.AF_INET6, "::1", socket.AF_INET6, "::1"),
]
EVERYWHERE = (socket.AF_INET6, "::") if socket.has_dualstack_ipv6() else (socket.AF_INET, "0.0.0.0")


@pytest.mark.parametrize("function", ["accept", "accept4"])
@pytest.mark.parametrize(("family", "address", "dialled_family", "dialled"), IPV4 + IPV6 * socket.has_dualstack_ipv6())
def test_shim_accepts_own_account_and_refuses_other(family, address, dialled_family, dialled, function, start):
    server = start(family, address, function)
    with start_as_nobody(_STAYING_STRANGER, str(int(dialled_family)), dialled, str(server.port)) as stranger:
        assert stranger.stdout is not None and stranger.stdout.readline() == "connected\n"
        assert server.accept() == "nobody"
        assert stranger.stdout.readline() == "b''\n", "the connection was not closed"
    with connect(dialled_family, dialled, server.port, b"hello") as connection:
        assert server.accept() == f"{connection.getsockname()[1]} hello"


@pytest.mark.parametrize("way", WAYS)
def test_shim_refuses_connection_whose_other_end_closed(way, start):
    """This holds for its own account, too: the kernel knows no owner of such a socket and may report user id 0."""
    server = start(*EVERYWHERE)
    left = connect(socket.AF_INET, "127.0.0.1", server.port, b"steal", way)
    assert server.accept() == "nobody"
    left.close()
    with connect(socket.AF_INET, "127.0.0.1", server.port, b"hello"):
        assert server.accept().endswith(" hello")


@pytest.mark.parametrize("way", WAYS)
def test_shim_refuses_closed_connection_of_other_account(way, start):
    server = start(*EVERYWHERE)
    as_nobody_connects(server, way)
    assert server.accept() == "nobody"


def test_shim_refuses_reset_connection_despite_later_one_from_same_port(start):
    server = start(*EVERYWHERE)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    connect(socket.AF_INET, "127.0.0.1", server.port, b"steal", "resets", port)
    with connect(socket.AF_INET, "127.0.0.1", server.port, b"hello", "stays", port):
        assert server.accept() == f"{port} hello"


def test_shim_refuses_connection_without_answer_of_kernel(start):
    """The server may open one more file, which is enough for the connection but not for the question to the kernel."""
    server = start(*EVERYWHERE)
    with connect(socket.AF_INET, "127.0.0.1", server.port, b"steal"):
        assert server.accept(spare_files="1") == "nobody"
    with connect(socket.AF_INET, "127.0.0.1", server.port, b"hello"):
        assert server.accept(spare_files="2").endswith(" hello")


def test_shim_leaks_no_file_for_refused_connections(start):
    server = start(*EVERYWHERE)
    before = server.open_files()
    as_nobody_connects(server, "sends and closes", times=500)
    with connect(socket.AF_INET, "127.0.0.1", server.port, b"hello"):
        assert server.accept().endswith(" hello")  # this connection arrived after all of them
    assert server.open_files() == before


def test_shim_accepts_unix_sockets(start, tmp_path):
    server = start(socket.AF_UNIX, str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(tmp_path / "socket"))
        connection.sendall(b"hello")
        assert server.accept() == "hello"


def test_shim_works_is_false_for_blind_or_missing_shim(shim, blind_shim, tmp_path):
    assert shim_works(shim)
    assert not shim_works(blind_shim)
    assert not shim_works(tmp_path / "missing.so")
