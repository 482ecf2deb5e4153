"""The way between machines: TLS tunnels (Debian's stunnel) in which each end knows the other's certificate.

TFF's workers speak plain gRPC, so they listen on loopback only. In front of a worker stands a tunnel's far end, on the
driver its near end; either accepts exactly one certificate, that in its folder's `peer.pem`. No authority is involved.
The driver reaches its near end over a Unix socket in a folder of its own (mode 0700): a port on loopback would lend the
driver's certificate to every account of the machine.
"""

import logging
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

from fl.runtime.owned_process import OwnedProcess, require_free_port

KEY, CERTIFICATE, PEER = "key.pem", "certificate.pem", "peer.pem"
SIDES = ("driver", "worker")
_DAYS = 3650
_PATH_BYTES = 107  # the longest name of a Unix socket

log = logging.getLogger(__name__)


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """Makes `folder`/driver and `folder`/worker, one for either end, each with a key of its own (mode 0600).

    The second is to be copied to the workers' hosts; it does not hold the driver's key.

    Raises:
      FileExistsError: there are certificates already.
      FileNotFoundError: openssl is not installed.
      OSError: it failed.
    """
    if shutil.which("openssl") is None:
        raise FileNotFoundError("openssl is not installed (Debian: apt install openssl): certificates need it")
    driver, worker = (folder / side for side in SIDES)
    for made in (driver, worker):
        if made.exists():
            raise FileExistsError(f"{made} exists: choose another folder, or delete the old certificates")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as making:
        sides = [Path(making) / side for side in SIDES]
        for made in sides:
            _make_certificate(made)
        for made, other in (sides, reversed(sides)):
            shutil.copy(other / CERTIFICATE, made / PEER)
        for made in sides:
            made.rename(folder / made.name)
    return driver, worker


def _make_certificate(made: Path) -> None:
    made.mkdir(mode=0o700)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", f"/CN={_common_name(made.name)}", "-days", str(_DAYS)]
    files = ["-keyout", str(made / KEY), "-out", str(made / CERTIFICATE)]
    done = subprocess.run(
        ["openssl", "req", "-x509", *curve, *name, *files], capture_output=True, text=True, check=False, umask=0o077
    )
    if done.returncode:
        raise OSError(f"openssl made no certificate in {made}: {done.stderr.strip()[-300:]}")


def check_certificates(folder: Path, side: str) -> None:
    """Raises OSError or ValueError, in one line, if `folder` is not the certificates of `side`, or stunnel is missing.

    Args:
      folder: of `make_certificates`.
      side: "driver" or "worker".
    """
    for name in (KEY, CERTIFICATE, PEER):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: give the folder driver or worker of those that fedspeak certificates made"
            )
    if (mode := (folder / KEY).stat().st_mode & 0o777) & 0o077:
        raise ValueError(
            f"{folder / KEY} can be read by others (mode {mode:o}): chmod 600 it, or make new certificates"
        )
    if (folder / CERTIFICATE).read_bytes() == (folder / PEER).read_bytes():
        raise ValueError(f"{folder}: both ends have the same certificate: make new ones with fedspeak certificates")
    other = next(name for name in SIDES if name != side)
    if _common_name(other).encode() in _der(folder / CERTIFICATE):
        raise ValueError(f"{folder} holds the {other}'s certificate: give the folder {side} here")
    if shutil.which("stunnel") is None:
        raise FileNotFoundError(
            "stunnel is not installed (Debian: apt install stunnel4): install it, or join the hosts by ssh -L"
        )


def _common_name(side: str) -> str:
    return f"fedspeak {side}"


def _der(certificate: Path) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(certificate.read_text().strip())
    except ValueError:  # UnicodeDecodeError and base64's errors among them
        raise ValueError(f"{certificate} is no certificate: make new ones with fedspeak certificates") from None


class Tunnel(OwnedProcess):
    """One end of a tunnel: a running stunnel process. See `to_worker` and `before_worker`.

    Attributes:
      path: the Unix socket on which it listens, for this account only; None if it listens on an address.
    """

    def __init__(self, accept: str | None, connect: str, certificates: Path, is_client: bool) -> None:
        """`accept` is the address on which it listens; None: a Unix socket."""
        check_certificates(certificates, SIDES[not is_client])
        super().__init__("stunnel")
        self.path = self._folder / "socket" if accept is None else None
        if self.path is not None and len(os.fsencode(self.path)) > _PATH_BYTES:
            self._output.close()
            self._remove_folder()
            raise OSError(f"{self.path} is too long for a socket's name: set TMPDIR to a folder with a shorter path")
        files = certificates.resolve()
        lines = [
            "foreground = yes",
            "pid =",
            "syslog = no",
            "debug = warning",
            "[worker]",
            f"client = {'yes' if is_client else 'no'}",
            f"accept = {self.path or accept}",
            f"connect = {connect}",
            f"cert = {files / CERTIFICATE}",
            f"key = {files / KEY}",
            f"CAfile = {files / PEER}",
            "verifyPeer = yes",
            "sslVersionMin = TLSv1.3",
            "TIMEOUTconnect = 10",
            # A call that computes for long says nothing meanwhile: routers must not forget its connection.
            *(f"socket = {end}:{option}" for end in "lr" for option in ("SO_KEEPALIVE=1", "TCP_KEEPIDLE=60")),
        ]
        config = self._folder / "stunnel.conf"
        config.write_text("\n".join(lines) + "\n")
        self._launch([str(shutil.which("stunnel")), str(config)], os.environ)
        try:
            self.wait_until_it_listens()
        except BaseException:
            self.stop()
            raise
        log.info("stunnel started: pid %d, from %s to %s", self.pid, self.path or accept, connect)

    def _listens(self) -> bool:
        if self.path is None:
            return super()._listens()
        for line in Path("/proc/net/unix").read_text(errors="replace").splitlines():
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and fields[3] == "00010000" and fields[7] == str(self.path):  # listens
                return True
        return False

    def _release_folder(self) -> None:
        if self.path is None:  # else the socket is in it
            super()._release_folder()

    def refusal(self) -> str | None:
        """Why the other end of the driver's tunnel will not have us, or we not it; None while nothing says so."""
        said = self.output()
        if "Rejected by CERT" in said or "certificate verify failed" in said:
            return f"its certificate is not that in our {PEER}"
        if "alert" in said:
            return f"it refuses our {CERTIFICATE}"
        if "wrong version number" in said:
            return "what listens there is not a tunnel's end: start that worker with its certificates"
        return None


def to_worker(host: str, port: int, certificates: Path) -> Tunnel:
    """Starts the driver's end of the tunnel to a host's worker; its `path` is where the driver reaches it.

    Raises:
      OSError, ValueError: stunnel is not installed or did not start, or the certificates are not in order.
    """
    return Tunnel(None, f"{host.strip('[]')}:{port}", certificates, is_client=True)


def before_worker(port: int, worker_port: int, certificates: Path) -> Tunnel:
    """The worker's end: listens on `port` of all interfaces; lets the driver, and nobody else, to the worker.

    Raises:
      OSError, ValueError: as `to_worker`, or the port is taken.
    """
    require_free_port(port)
    everywhere = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    return Tunnel(f"{everywhere}:{port}", f"127.0.0.1:{worker_port}", certificates, is_client=False)
