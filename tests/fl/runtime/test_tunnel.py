import shutil
import socket
import ssl
import stat
import tempfile
import threading
from pathlib import Path
from unittest import mock

import portpicker
import pytest

from fl.runtime import tunnel
from fl.runtime.owned_process import listening_addresses
from tests.fl.runtime.namespaces import needs_stunnel, skip
from tests.fl.runtime.strangers import as_nobody


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        skip("openssl is not installed (Debian: apt install openssl)")
    return tunnel.make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def echo():
    """Runs a server behind the tunnel that answers "echo" and what it was sent; yields its port and a list of calls."""
    reached: list[int] = []

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            with connection:
                reached.append(1)
                connection.sendall(b"echo " + connection.recv(100))

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], reached
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture(scope="module")
def far_end(certificates, echo):
    port = portpicker.pick_unused_port()
    running = tunnel.before_worker(port, echo[0], certificates[1])
    yield port
    running.stop()


def ask(address: tuple[str, int] | Path) -> bytes:
    with socket.socket(socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET) as connection:
        connection.settimeout(300)
        connection.connect(str(address) if isinstance(address, Path) else address)
        connection.sendall(b"hello")
        return connection.recv(100)


def through_tunnel(port: int, folder: Path) -> bytes:
    near_end = tunnel.to_worker("localhost", port, folder)
    try:
        assert near_end.path is not None
        return ask(near_end.path)
    finally:
        near_end.stop()


def refused(call, *arguments) -> bool:
    try:
        return call(*arguments) == b""
    except (ConnectionError, ssl.SSLError):
        return True


def test_make_certificates_gives_each_side_its_own_private_key(certificates):
    driver, worker = certificates
    assert sorted(path.name for path in worker.iterdir()) == ["certificate.pem", "key.pem", "peer.pem"]
    assert (driver / "key.pem").read_bytes() != (worker / "key.pem").read_bytes()
    assert (driver / "peer.pem").read_bytes() == (worker / "certificate.pem").read_bytes()
    assert (worker / "peer.pem").read_bytes() == (driver / "certificate.pem").read_bytes()
    for folder in certificates:
        assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = (driver / "key.pem").read_bytes()
    assert not [path for path in worker.iterdir() if secret in path.read_bytes()]
    with pytest.raises(FileExistsError, match="driver exists: choose another"):
        tunnel.make_certificates(driver.parent)


@needs_stunnel
def test_tunnel_accepts_right_certificate(certificates, far_end):
    assert through_tunnel(far_end, certificates[0]) == b"echo hello"


@needs_stunnel
def test_driver_end_refuses_other_accounts(certificates, far_end, echo):
    near_end = tunnel.to_worker("localhost", far_end, certificates[0])
    try:
        assert near_end.path is not None and ask(near_end.path) == b"echo hello"
        assert not listening_addresses(near_end.pid)
        assert stat.S_IMODE(near_end.path.parent.stat().st_mode) == 0o700
        before = len(echo[1])
        script = """
import socket, sys
become_nobody()
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except PermissionError:
    print("refused")
"""
        assert as_nobody(script, str(near_end.path)) == "refused\n"
        assert len(echo[1]) == before
    finally:
        near_end.stop()
    assert not near_end.path.parent.exists()


@needs_stunnel
def test_to_worker_refuses_too_long_socket_path(certificates, tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(OSError, match="too long for a socket's path: set TMPDIR"):
        tunnel.to_worker("localhost", 1, certificates[0])
    assert not list(long.iterdir())


@needs_stunnel
def test_worker_end_refuses_all_but_driver_certificate(certificates, far_end, echo, tmp_path):
    driver, worker = certificates
    foreign, _ = tunnel.make_certificates(tmp_path / "foreign")
    shutil.copy(driver / "peer.pem", foreign / "peer.pem")  # it accepts the worker, but the worker does not accept it
    as_worker = tmp_path / "as-worker"
    shutil.copytree(worker, as_worker)
    shutil.copy(foreign / "peer.pem", as_worker / "peer.pem")
    (as_worker / "certificate.pem").write_bytes((worker / "certificate.pem").read_bytes() + b"\n")

    def without_certificate() -> bytes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with (
            socket.create_connection(("127.0.0.1", far_end), timeout=300) as plain,
            context.wrap_socket(plain) as connection,
        ):
            connection.sendall(b"hello")
            return connection.recv(100)

    before = len(echo[1])
    assert refused(ask, ("127.0.0.1", far_end))  # no TLS at all
    assert refused(without_certificate)
    assert refused(through_tunnel, far_end, foreign)
    with mock.patch("fl.runtime.tunnel.check_certificates"):
        assert refused(through_tunnel, far_end, as_worker)  # a worker's host cannot pose as the driver
    assert len(echo[1]) == before
    assert through_tunnel(far_end, driver) == b"echo hello" and len(echo[1]) == before + 1


@needs_stunnel
def test_driver_end_sends_nothing_to_foreign_worker(certificates, echo, tmp_path):
    driver, _ = certificates
    _, foreign = tunnel.make_certificates(tmp_path / "foreign")
    shutil.copy(driver / "certificate.pem", foreign / "peer.pem")
    port = portpicker.pick_unused_port()
    impostor = tunnel.before_worker(port, echo[0], foreign)
    try:
        before = len(echo[1])
        assert refused(through_tunnel, port, driver)
        assert len(echo[1]) == before
    finally:
        impostor.stop()


@needs_stunnel
def test_check_certificates_refuses_faulty_folders(certificates, tmp_path):
    driver, worker = certificates
    with pytest.raises(FileNotFoundError, match="holds no key.pem: give the folder driver or worker"):
        tunnel.check_certificates(driver.parent, "driver")
    loose = tmp_path / "loose"
    shutil.copytree(driver, loose)
    (loose / "key.pem").chmod(0o644)
    with pytest.raises(ValueError, match="can be read by others .mode 644"):
        tunnel.check_certificates(loose, "driver")
    shutil.copytree(driver, tmp_path / "same")
    shutil.copy(driver / "certificate.pem", tmp_path / "same" / "peer.pem")
    with pytest.raises(ValueError, match="both ends have the same certificate"):
        tunnel.check_certificates(tmp_path / "same", "driver")
    with pytest.raises(ValueError, match="holds the driver's certificate: give the folder named 'worker' instead"):
        tunnel.check_certificates(driver, "worker")
    with pytest.raises(ValueError, match="holds the worker's certificate: give the folder named 'driver' instead"):
        tunnel.to_worker("localhost", 1, worker)
    shutil.copytree(driver, tmp_path / "damaged")
    (tmp_path / "damaged" / "certificate.pem").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="certificate.pem is not a certificate: make new ones"):
        tunnel.check_certificates(tmp_path / "damaged", "driver")
    with mock.patch("fl.runtime.tunnel.shutil.which", return_value=None):
        with pytest.raises(FileNotFoundError, match="stunnel is not installed .*apt install stunnel4"):
            tunnel.check_certificates(worker, "worker")
        with pytest.raises(FileNotFoundError, match="openssl is not installed"):
            tunnel.make_certificates(tmp_path / "new")
