"""Implements `fedspeak worker` and `fedspeak certificates`, by which other hosts lend their cores to a training run."""

import contextlib
import os
import time
from pathlib import Path

import click

from experiments import extras, interrupt

_CHECK_SECONDS = 0.5


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="Port on which drivers reach this worker.")
@click.option(
    "--cores",
    type=click.IntRange(min=1),
    help="Number of client computations to run at the same time; by default the number of cores.",
)
@click.option(
    "--certificates",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Listen on the network, for the driver with the matching certificate only (needs stunnel). DIR is the folder "
    "worker that fedspeak certificates made.",
)
@click.option("--insecure-network", is_flag=True, help="Listen on the network WITHOUT authentication or encryption.")
def worker(port: int, cores: int | None, certificates: Path | None, insecure_network: bool) -> None:
    """Compute for another host's `fedspeak train --workers`, until Ctrl-C.

    By default the worker listens on loopback only, so that a driver on another host needs an ssh tunnel.
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
    no_loopback = OSError(
        "TFF's worker cannot be bound to loopback, because there is no working C compiler: install gcc and libc6-dev, "
        "or use --insecure-network behind a firewall"
    )
    if not insecure_network and c_compiler() is None:
        raise no_loopback
    try:
        with contextlib.ExitStack() as stack:
            tff_worker = Worker(cores, 1, None if certificates else port, all_interfaces=insecure_network)
            stack.callback(tff_worker.stop)
            tff_worker.wait_until_it_listens()
            running: list[OwnedProcess] = [tff_worker]
            place = f"loopback, port {port}"
            if insecure_network:
                warn_of_open(tff_worker, "use --certificates or an ssh tunnel")
                place = f"ALL INTERFACES, port {port}, WITHOUT AUTHENTICATION"
            elif tff_worker.is_open:
                raise no_loopback
            if certificates is not None:
                tunnel_end = tunnel.before_worker(port, tff_worker.port, certificates)
                stack.callback(tunnel_end.stop)
                running.append(tunnel_end)
                place = f"all interfaces, port {port}, for the driver whose certificate is {certificates / tunnel.PEER}"
            click.echo(f"worker: {cores} core{'s' * (cores > 1)}; listens on {place}; Ctrl-C ends it")
            while True:
                interrupt.check()
                for process in running:
                    process.check_alive("start the worker again")
                time.sleep(_CHECK_SECONDS)
    except KeyboardInterrupt:
        click.echo("worker: ended")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def certificates(folder: Path) -> None:
    """Make the certificates by which a driver and its workers recognise each other.

    Keep FOLDER/driver here, for `fedspeak train --certificates`. Copy FOLDER/worker to the workers' hosts, for
    `fedspeak worker --certificates`.
    """
    from fl.runtime.tunnel import make_certificates

    driver_folder, worker_folder = make_certificates(folder)
    click.echo(f"{driver_folder}: stays here, for fedspeak train --certificates")
    click.echo(f"{worker_folder}: copy it to the workers' hosts (scp -pr), for fedspeak worker --certificates")
