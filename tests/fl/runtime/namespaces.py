"""Simulates hosts on one machine by network namespaces, each connected to the test's own by a veth pair."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

needs_stunnel = pytest.mark.skipif(
    not (shutil.which("stunnel") and shutil.which("openssl")) and "FEDSPEAK_NO_SKIPS" not in os.environ,
    reason="stunnel or openssl is not installed (Debian: apt install stunnel4 openssl)",
)


def skip(reason: str) -> None:
    """Skips the test, or fails it if FEDSPEAK_NO_SKIPS is set, as on the build machine."""
    if "FEDSPEAK_NO_SKIPS" in os.environ:
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True)
class Namespace:
    """A simulated host: the name of its namespace, its address, and the test's end of the link to it."""

    name: str
    address: str
    link: str

    def start(self, arguments: Sequence[str]) -> subprocess.Popen:
        """Starts `fedspeak ARGUMENTS` on that host and waits for its first line."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name, sys.executable, "-m", "experiments", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith("worker: "), "it did not start"
        return process

    def cut(self) -> None:
        """Cuts the link without closing any connection over it."""
        _ip("link", "set", self.link, "down")


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Creates hosts with addresses in 10.0.0.0/8 for the `with` block; skips the test if this is not possible."""
    if shutil.which("ip") is None:
        skip("iproute2 is not installed (Debian: apt install iproute2)")
    if os.geteuid() != 0:
        skip("network namespaces need root")
    net, hosts = 64 + os.getpid() % 190, []
    with contextlib.ExitStack() as stack:
        for index in range(count):
            name = f"fedspeak{os.getpid()}n{index}"
            link, there = f"fs{os.getpid()}h{index}", f"fs{os.getpid()}w{index}"
            try:
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "del", name)
                _ip("link", "add", link, "type", "veth", "peer", "name", there, "netns", name)
                stack.callback(_ip, "link", "del", link)
            except subprocess.CalledProcessError as error:
                skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
            _ip("addr", "add", f"10.{net}.{index}.1/30", "dev", link)
            _ip("link", "set", link, "up")
            _ip("-n", name, "addr", "add", f"10.{net}.{index}.2/30", "dev", there)
            _ip("-n", name, "link", "set", there, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            hosts.append(Namespace(name, f"10.{net}.{index}.2", link))
        yield hosts


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
