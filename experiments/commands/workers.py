"""Commands on other hosts' workers: worker, certificates."""

import contextlib
import os
import time
from pathlib import Path

import click

from experiments import extras, interrupt

_LOOK_SECONDS = 0.5


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="Where drivers reach this worker.")
@click.option("--cores", type=click.IntRange(min=1), help="Client computations at once; by default all cores.")
@click.option(
    "--certificates",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Listen to the network, for the driver with the matching certificate only (needs stunnel).",
)
@click.option("--insecure-network", is_flag=True, help="Listen to the network WITHOUT authentication.")
def worker(port: int, cores: int | None, certificates: Path | None, insecure_network: bool) -> None:
    """Compute for another host's `fedspeak train --workers`, until Ctrl-C.

    By default the port is on loopback only, for an ssh tunnel's end.
    """
    extras.require("federated")
    from fl.runtime import tunnel
    from fl.runtime.owned_process import OwnedProcess
    from fl.runtime.worker import Worker, c_compiler, warn_of_open

    if certificates is not None and insecure_network:
        raise click.UsageError("--certificates and --insecure-network contradict each other: drop one")
    if certificates is not None:
        tunnel.check_certificates(certificates, "worker")
    cores = len(os.sched_getaffinity(0)) if cores is None else cores
    open_only = OSError(
        "TFF's worker can be bound to loopback only with a C compiler: install gcc, or take --insecure-network behind "
        "a firewall"
    )
    if not insecure_network and c_compiler() is None:
        raise open_only
    try:
        with contextlib.ExitStack() as stack:
            started = Worker(cores, 1, None if certificates else port, all_interfaces=insecure_network)
            stack.callback(started.stop)
            started.wait_until_it_listens()
            running: list[OwnedProcess] = [started]
            place = f"loopback, port {port}"
            if insecure_network:
                warn_of_open(started, "use --certificates or an ssh tunnel")
                place = f"ALL INTERFACES, port {port}, WITHOUT AUTHENTICATION"
            elif started.is_open:
                raise open_only
            if certificates is not None:
                front = tunnel.before_worker(port, started.port, certificates)
                stack.callback(front.stop)
                running.append(front)
                place = f"all interfaces, port {port}, for the driver whose certificate is {certificates / tunnel.PEER}"
            click.echo(f"worker: {cores} core{'s' * (cores > 1)}; listens on {place}; Ctrl-C ends it")
            while True:
                interrupt.check()
                for process in running:
                    process.check_alive("start the worker again")
                time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        click.echo("worker: ended")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def certificates(folder: Path) -> None:
    """Make the certificates with which a driver and its workers know each other.

    FOLDER/driver stays here, for `fedspeak train --certificates`; FOLDER/worker goes to the workers' hosts, for
    `fedspeak worker --certificates`.
    """
    from fl.runtime.tunnel import make_certificates

    driver, worker_folder = make_certificates(folder)
    click.echo(f"{driver}: stays here, for fedspeak train --certificates")
    click.echo(f"{worker_folder}: copy it to the workers' hosts (scp -pr), for fedspeak worker --certificates")
