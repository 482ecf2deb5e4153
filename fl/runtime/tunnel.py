"""Connects machines by TLS tunnels (Debian's stunnel) in which each end accepts exactly one certificate.

TFF's workers speak plain gRPC, so they listen on loopback only. One end of a tunnel runs in front of a worker, the
other on the driver's machine; each accepts only the certificate in its folder's `peer.pem`, without any certificate
authority. The driver reaches its own end over a Unix socket in a private folder (mode 0700), because with a port on
loopback every account of the machine could use the driver's certificate.
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
_PATH_BYTES = 107  # maximum length of a Unix socket's path

log = logging.getLogger(__name__)


def make_certificates(folder: Path) -> tuple[Path, Path]:
    """Makes the folders `folder`/driver and `folder`/worker, one for each end, each with its own key (mode 0600).

    Copy the worker's folder to the workers' hosts; it does not hold the driver's key.

    Returns:
      (driver's folder, worker's folder).

    Raises:
      FileExistsError: there are certificates already.
      FileNotFoundError: openssl is not installed.
      OSError: openssl failed, or a folder cannot be written.
    """
    if shutil.which("openssl") is None:
        raise FileNotFoundError(
            "openssl is not installed: install it to make certificates (Debian: apt install openssl)"
        )
    driver, worker = (folder / side for side in SIDES)
    for side_folder in (driver, worker):
        if side_folder.exists():
            raise FileExistsError(f"{side_folder} exists: choose another folder, or delete the old certificates")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as unfinished:
        side_folders = [Path(unfinished) / side for side in SIDES]
        for side_folder in side_folders:
            _make_certificate(side_folder)
        for side_folder, other in (side_folders, reversed(side_folders)):
            shutil.copy(other / CERTIFICATE, side_folder / PEER)
        for side_folder in side_folders:
            side_folder.rename(folder / side_folder.name)
    return driver, worker


def _make_certificate(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    name = ["-subj", f"/CN={_common_name(folder.name)}", "-days", str(_DAYS)]
    files = ["-keyout", str(folder / KEY), "-out", str(folder / CERTIFICATE)]
    done = subprocess.run(
        ["openssl", "req", "-x509", *curve, *name, *files], capture_output=True, text=True, check=False, umask=0o077
    )
    if done.returncode:
        raise OSError(f"openssl made no certificate in {folder}: {done.stderr.strip()[-300:]}")


def check_certificates(folder: Path, side: str) -> None:
    """Checks that `folder` holds the certificates of `side` and that stunnel is installed.

    Args:
      folder: one of the folders of `make_certificates`.
      side: "driver" or "worker".

    Raises:
      OSError, ValueError: a file or stunnel is missing, or the certificates are not in order; the message is one line.
    """
    for name in (KEY, CERTIFICATE, PEER):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}: give the folder driver or worker that fedspeak certificates made"
            )
    if (mode := (folder / KEY).stat().st_mode & 0o777) & 0o077:
        raise ValueError(
            f"{folder / KEY} can be read by others (mode {mode:o}): chmod 600 it, or make new certificates"
        )
    if (folder / CERTIFICATE).read_bytes() == (folder / PEER).read_bytes():
        raise ValueError(f"{folder}: both ends have the same certificate: make new ones with fedspeak certificates")
    other = next(name for name in SIDES if name != side)
    if _common_name(other).encode() in _read_der(folder / CERTIFICATE):
        raise ValueError(f"{folder} holds the {other}'s certificate: give the folder named {side!r} instead")
    if shutil.which("stunnel") is None:
        raise FileNotFoundError(
            "stunnel is not installed (Debian: apt install stunnel4): install it, or connect the hosts by ssh -L"
        )


def _common_name(side: str) -> str:
    return f"fedspeak {side}"


def _read_der(certificate: Path) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(certificate.read_text().strip())
    except ValueError:  # includes UnicodeDecodeError and base64's errors
        raise ValueError(f"{certificate} is not a certificate: make new ones with fedspeak certificates") from None


class Tunnel(OwnedProcess):
    """Runs one end of a tunnel, a stunnel process; use `to_worker` or `before_worker` to start it.

    Attributes:
      path: the Unix socket on which it listens, for this account only; None if it listens on an address.
    """

    def __init__(self, accept: str | None, connect: str, certificates: Path, is_client: bool) -> None:
        """Starts stunnel and waits until it listens.

        Args:
          accept: address on which it listens; None: a Unix socket.
          connect: address to which it connects.
          certificates: folder of this end's certificates.
          is_client: whether this is the driver's end.
        """
        check_certificates(certificates, SIDES[not is_client])
        super().__init__("stunnel")
        self.path = self._folder / "socket" if accept is None else None
        if self.path is not None and len(os.fsencode(self.path)) > _PATH_BYTES:
            self._output.close()
            self._remove_folder()
            raise OSError(f"{self.path} is too long for a socket's path: set TMPDIR to a folder with a shorter path")
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
            # Nothing is sent during a long computation; keep-alive packets stop routers from dropping the connection.
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
        if self.path is None:  # otherwise the folder holds the socket
            super()._release_folder()

    def refusal(self) -> str | None:
        """Returns why the driver's end and the other end refuse each other; None if stunnel reported no refusal."""
        output = self.output()
        if "Rejected by CERT" in output or "certificate verify failed" in output:
            return f"its certificate is not the one in our {PEER}"
        if "alert" in output:
            return f"it refuses our {CERTIFICATE}"
        if "wrong version number" in output:
            return "no tunnel listens there: start that worker with its certificates"
        return None


def to_worker(host: str, port: int, certificates: Path) -> Tunnel:
    """Starts the driver's end of the tunnel to a host's worker; the driver connects to its `path`.

    Raises:
      OSError, ValueError: stunnel is not installed or did not start, or the certificates are not in order.
    """
    return Tunnel(None, f"{host.strip('[]')}:{port}", certificates, is_client=True)


def before_worker(port: int, worker_port: int, certificates: Path) -> Tunnel:
    """Starts the worker's end: it listens on `port` of all interfaces and lets only the driver through to the worker.

    Raises:
      OSError, ValueError: as in `to_worker`, or the port is taken.
    """
    require_free_port(port)
    any_address = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
    return Tunnel(f"{any_address}:{port}", f"127.0.0.1:{worker_port}", certificates, is_client=False)
