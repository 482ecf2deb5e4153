"""Runs rounds over several hosts, each with a TFF worker: distributes the clients and handles the loss of a host.

The hosts compute `Engine.client_sum` on their shares of a round's client values. The driver adds the partial sums and
runs `Engine.server_step`, which adds the noise, once on its own worker. So repeating a share changes neither cohort nor
noise, and nothing of a round is released before its whole sum is there.
"""

import contextlib
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.runtime import tunnel
from fl.runtime.local import Connection, open_channel, stub
from fl.runtime.owned_process import WorkerLostError

if TYPE_CHECKING:
    import grpc

    from fl.engines.averaging import Engine

_BEAT_SECONDS = 2.5  # time between two heartbeats
_ANSWER_SECONDS = 2.5  # time that a host has to answer one
_MISSES = 3  # number of unanswered heartbeats in a row after which a host is lost
_START_SECONDS = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """Holds the addresses of the workers that a driver uses.

    They are not part of the run's config: a resumed run may use other workers.

    Attributes:
      addresses: (host, port) of each worker.
      certificates: the driver's folder from `tunnel.make_certificates`; each host is then reached through a tunnel.
        None: the driver connects to the addresses directly, without authentication or encryption.
    """

    addresses: tuple[tuple[str, int], ...]
    certificates: Path | None

    @staticmethod
    def parse(text: str, certificates: Path | None, insecure_network: bool) -> "Workers":
        """Parses a list of addresses.

        Args:
          text: `host:port`, or several of them separated by commas.
          certificates: see `Workers`.
          insecure_network: allow hosts on the network without certificates.

        Raises:
          ValueError: `text` is not such a list; the certificates are not in order; or a host is on the network,
            without certificates and without `insecure_network`.
          OSError: the certificates or stunnel are missing.
        """
        addresses = []
        for item in text.split(","):
            match = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", item.strip())
            if match is None or not 0 < int(match[2]) < 2**16:
                raise ValueError(f"{text}: {item.strip()!r} is not host:port, as in 10.0.0.2:7000")
            addresses.append((match[1], int(match[2])))
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"{text}: an address occurs twice; give each address once")
        if certificates is not None:
            tunnel.check_certificates(certificates, "driver")
        elif not insecure_network:
            for host, port in addresses:
                if not _is_on_loopback(host):
                    raise ValueError(
                        f"{host}:{port} is on the network and would get the clients' text unencrypted: give "
                        "certificates=DIR, connect to an ssh tunnel on localhost, or give insecure_network=True"
                    )
        return Workers(tuple(addresses), certificates)

    @contextlib.contextmanager
    def connected(self) -> Iterator["Hosts"]:
        """Connects to all workers for the `with` block.

        Raises:
          WorkerLostError: a worker does not answer, or it and the driver do not accept each other's certificates.
        """
        with contextlib.ExitStack() as stack:
            hosts = []
            for name, port in self.addresses:
                hosts.append(Host(name, port, self.certificates))
                stack.callback(hosts[-1].close)
            for host in hosts:
                host.wait_until_it_answers()
            yield Hosts(hosts)


def _is_on_loopback(host: str) -> bool:
    return host in ("localhost", "[::1]") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


class Host:
    """Connects the driver to one host's worker.

    Attributes:
      address: host:port, for messages.
      lost: why the driver has given up the worker; None while it uses it.
    """

    def __init__(self, host: str, port: int, certificates: Path | None) -> None:
        self.address = f"{host}:{port}"
        self.lost: str | None = None
        self._tunnel = None
        target = self.address
        if certificates is not None:
            self._tunnel = tunnel.to_worker(host, port, certificates)
            target = f"unix:{self._tunnel.path}"
        self._channel, self._beats = open_channel(target), open_channel(target)
        # A heartbeat calls a method that no worker has: a living worker answers UNIMPLEMENTED at once, even if busy.
        self._beat = self._beats.unary_unary("/fedspeak/Heartbeat")
        self._connection = Connection(_Stub(stub(self._channel)), lambda: None)

    def beat(self) -> "grpc.Future":
        """Sends a heartbeat without waiting for the answer."""
        return self._beat.future(b"", timeout=_ANSWER_SECONDS)

    def wait_until_it_answers(self) -> None:
        """Waits until the worker answers.

        Raises:
          WorkerLostError: it does not within 20 seconds, or one end refuses the other's certificate.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not is_alive(self.beat()):
            if self._tunnel is not None and (reason := self._tunnel.refusal()):
                raise WorkerLostError(
                    f"worker {self.address} cannot be used ({reason}): give the two folders that one call of fedspeak "
                    "certificates made"
                )
            if time.monotonic() > deadline:
                raise WorkerLostError(
                    f"worker {self.address} does not answer: is fedspeak worker running there, with the same kind of "
                    "tunnel?"
                )
            time.sleep(0.1)

    def call(self, computation: Any, *arguments: Any) -> Any:
        """Runs a TFF computation on the worker; raises WorkerLostError if it is gone or is abandoned meanwhile."""
        import tensorflow_federated as tff

        with tff.framework.get_context_stack().install(self._connection.context):
            return computation(*arguments)

    def abandon(self, reason: str) -> None:
        """Marks the worker as lost and stores the reason; the running call and all later ones raise WorkerLostError."""
        self.lost = reason
        self._channel.close()
        self._beats.close()

    def close(self) -> None:
        """Frees what the worker holds for this driver, if it is alive, and ends the connection."""
        if self.lost is None:
            if is_alive(self.beat()):
                self._connection.disconnect()
            self.abandon("closed")
        if self._tunnel is not None:
            self._tunnel.stop()


def is_alive(beat: "grpc.Future") -> bool:
    """Waits for the answer to a heartbeat and returns whether there was one."""
    import grpc

    return bool(beat.code() == grpc.StatusCode.UNIMPLEMENTED)


class Hosts:
    """Holds the connected hosts of a run; a lost host is not used again."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = list(hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def spread(self, engine: "Engine") -> "Engine":
        """Returns the engine with rounds that run on the hosts; `fl.runtime.local_runtime` runs the server's part."""
        return engine._replace(process=_SpreadProcess(engine, self))

    def sum(self, client_sum: Any, weights: Any, aggregator: Any, values: Sequence[Any]) -> Any:
        """Computes `client_sum` over all client values, one share per host.

        If a host is lost, the remaining hosts compute its share again.

        Args:
          client_sum: the engine's `client_sum`.
          weights: the model's weights.
          aggregator: the aggregator's state.
          values: client values, at least one.

        Returns:
          The sum over all client values.

        Raises:
          WorkerLostError: no host is left.
        """
        sums: dict[int, Any] = {}
        waiting = list(range(len(values)))
        while waiting:
            alive = [host for host in self._hosts if host.lost is None]
            if not alive:
                reasons = "; ".join(f"{host.address}: {host.lost}" for host in self._hosts)
                raise WorkerLostError(f"no worker is left ({reasons}): start workers and resume the run")
            parts = [part for part in np.array_split(waiting, len(alive)) if len(part)]
            shares = {host: [int(index) for index in part] for host, part in zip(alive, parts, strict=False)}
            done = self._run(
                {
                    host: functools.partial(
                        host.call, client_sum, weights, aggregator, [values[index] for index in share]
                    )
                    for host, share in shares.items()
                }
            )
            sums |= {shares[host][0]: result for host, result in done.items()}
            waiting = sorted(index for host in shares.keys() - done.keys() for index in shares[host])
        return _add_sums([sums[first] for first in sorted(sums)])

    def _run(self, calls: dict[Host, Callable[[], Any]]) -> dict[Host, Any]:
        """Runs one call on each host, all at the same time; a host that is lost meanwhile has no result."""
        pool = futures.ThreadPoolExecutor(len(calls))
        running = {pool.submit(call): host for host, call in calls.items()}
        misses = dict.fromkeys(calls, 0)
        try:
            while True:
                waiting = futures.wait(running, timeout=_BEAT_SECONDS).not_done
                if not waiting:
                    break
                busy = [running[future] for future in waiting if running[future].lost is None]
                for host, beat in [(host, host.beat()) for host in busy]:
                    misses[host] = 0 if is_alive(beat) else misses[host] + 1
                    if misses[host] == _MISSES:
                        host.abandon(f"{_MISSES} heartbeats in a row were not answered ({beat.code().name})")
        except BaseException:
            for host in calls:
                host.abandon("the round was interrupted")  # nothing else can end the calls
            raise
        finally:
            pool.shutdown()
        results = {}
        for future, host in running.items():
            try:
                results[host] = future.result()
            except WorkerLostError as error:
                host.abandon(host.lost or str(error))
                log.warning("worker %s is lost (%s): its share goes to the others", host.address, host.lost)
        return results


class _SpreadProcess:
    """Runs an engine's iterative process, but computes the client sums on hosts."""

    def __init__(self, engine: "Engine", hosts: Hosts) -> None:
        self._engine = engine
        self._hosts = hosts

    def initialize(self) -> Any:
        return self._engine.process.initialize()

    def next(self, state: Any, values: Sequence[Any], noise: np.ndarray) -> Any:
        compute_sum = self._hosts.sum if values else _sum_locally
        total = compute_sum(self._engine.client_sum, state["weights"], state["aggregator"], values)
        return self._engine.server_step(state, total, noise)


def _sum_locally(client_sum: Any, weights: Any, aggregator: Any, values: Sequence[Any]) -> Any:
    """Computes the sum of a round without clients on the driver's own worker."""
    return client_sum(weights, aggregator, values)


class _Stub:
    """Wraps a stub so that calls to a lost worker raise WorkerLostError; otherwise TFF's context retries for ever."""

    def __init__(self, plain: Any) -> None:
        self._plain = plain

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        import tensorflow_federated as tff
        import grpc

        def call(request: Any) -> Any:
            try:
                return getattr(self._plain, name)(request)
            except (tff.framework.RetryableError, grpc.RpcError, ValueError) as error:
                if name.startswith("dispose"):
                    return None  # the worker's values are gone already
                # FAILED_PRECONDITION: another worker took its place; ValueError: this driver closed the channel.
                code = error.code().name if isinstance(error, grpc.Call) else str(error)
                if code in ("UNAVAILABLE", "FAILED_PRECONDITION", "CANCELLED") or "closed" in code.lower():
                    raise WorkerLostError(f"it ended, or the connection to it is broken ({code})") from error
                if isinstance(error, grpc.Call) and code in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNKNOWN"):
                    # The message is too large, or this is not a worker of this TFF version. An error of the computation
                    # has the code INTERNAL.
                    details = " ".join((error.details() or "").split())[:200]
                    raise WorkerLostError(f"it refused the call ({code}: {details})") from error
                raise

        return call


def _add_sums(sums: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(lambda *parts: functools.reduce(np.add, parts), *sums)
