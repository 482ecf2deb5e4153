"""Rounds over several hosts, each with a TFF worker: who gets which shards, and what happens when a host is lost.

The hosts compute `Engine.client_sum` on their shares of a round's client values; the partial sums are added here and
`Engine.server_step`, which draws the noise, runs once on the driver's own worker. So a share that is done again changes
neither cohort nor noise, and nothing of a round is released before all of it is there.
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

_BEAT_SECONDS = 2.5  # between two heartbeats, and the time a host has for its answer
_MISSES = 3  # heartbeats in a row that a living host does not miss
_START_SECONDS = 20.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workers:
    """Which hosts' workers a driver uses: of the place, not of the run.

    Attributes:
      addresses: (host, port) of each.
      certificates: the driver's folder of `tunnel.make_certificates`: each host is reached through a tunnel. None:
        the addresses are dialled as they are, without authentication or encryption.
    """

    addresses: tuple[tuple[str, int], ...]
    certificates: Path | None

    @staticmethod
    def parse(text: str, certificates: Path | None, insecure_network: bool) -> "Workers":
        """From `host:port,host:port`.

        Raises:
          ValueError: not such a list, or a host is on the network, there are no certificates, and `insecure_network`
            does not allow it.
          OSError: the certificates are not there.
        """
        addresses = []
        for item in text.split(","):
            found = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", item.strip())
            if found is None or not 0 < int(found[2]) < 2**16:
                raise ValueError(f"{text}: {item.strip()!r} is not host:port, as in 10.0.0.2:7000")
            addresses.append((found[1], int(found[2])))
        if len(set(addresses)) < len(addresses):
            raise ValueError(f"{text}: an address is named twice; name each host once")
        if certificates is not None:
            tunnel.check_certificates(certificates, "driver")
        elif not insecure_network:
            for host, port in addresses:
                if not _is_here(host):
                    raise ValueError(
                        f"{host}:{port} is on the network and would get the clients' text unencrypted: give "
                        "certificates, dial an ssh tunnel's end on localhost, or allow the insecure network"
                    )
        return Workers(tuple(addresses), certificates)

    @contextlib.contextmanager
    def connected(self) -> Iterator["Hosts"]:
        """Connects to all of them, for the `with` block.

        Raises:
          WorkerLostError: one does not answer, or refuses our certificate.
        """
        with contextlib.ExitStack() as stack:
            hosts = []
            for host, port in self.addresses:
                hosts.append(Host(host, port, self.certificates))
                stack.callback(hosts[-1].close)
            for one in hosts:
                one.wait_until_it_answers()
            yield Hosts(hosts)


def _is_here(host: str) -> bool:
    return host in ("localhost", "[::1]") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


class Host:
    """A host's worker, as the driver sees it.

    Attributes:
      address: host:port, for messages.
      lost: why it is not asked any more; None while it is.
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
        # Any method that the worker does not have: a living one says so at once, however busy it is.
        self._beat = self._beats.unary_unary("/fedspeak/Heartbeat")
        self._connection = Connection(_Stub(stub(self._channel)), lambda: None)

    def beat(self) -> "grpc.Future":
        """Asks for a sign of life, without waiting for it."""
        return self._beat.future(b"", timeout=_BEAT_SECONDS)

    def wait_until_it_answers(self) -> None:
        """Raises WorkerLostError if it does not, for 20 seconds, or if either end refuses the other's certificate."""
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
        """Runs a TFF computation there. Raises WorkerLostError if the worker is gone or `abandon`ed meanwhile."""
        import tensorflow_federated as tff

        with tff.framework.get_context_stack().install(self._connection.context):
            return computation(*arguments)

    def abandon(self, reason: str) -> None:
        """It is lost: ends the call under way, and all later ones."""
        self.lost = reason
        self._channel.close()
        self._beats.close()

    def close(self) -> None:
        """Frees what the worker holds for us, if it lives, and ends the connection."""
        if self.lost is None:
            if is_alive(self.beat()):
                self._connection.disconnect()
            self.abandon("closed")
        if self._tunnel is not None:
            self._tunnel.stop()


def is_alive(beat: "grpc.Future") -> bool:
    """Whether a heartbeat was answered; waits for that."""
    import grpc

    return bool(beat.code() == grpc.StatusCode.UNIMPLEMENTED)


class Hosts:
    """Connected hosts; a lost one is not asked again."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = list(hosts)

    def __len__(self) -> int:
        return len(self._hosts)

    def spread(self, engine: "Engine") -> "Engine":
        """The engine with rounds that run on the hosts. Needs `fl.runtime.local_runtime` for the server's part."""
        return engine._replace(process=_SpreadProcess(engine, self))

    def sum(self, client_sum: Any, weights: Any, aggregator: Any, values: Sequence[Any]) -> Any:
        """The sum of `client_sum` over all client values, in shares.

        Raises:
          WorkerLostError: no host is left.
        """
        sums: dict[int, Any] = {}
        waiting = list(range(len(values)))
        while waiting:
            alive = [host for host in self._hosts if host.lost is None]
            if not alive:
                why = "; ".join(f"{host.address}: {host.lost}" for host in self._hosts)
                raise WorkerLostError(f"no worker is left ({why}): start workers and resume the run")
            shares = [share for share in np.array_split(waiting, len(alive)) if len(share)]
            given = {host: [int(index) for index in share] for host, share in zip(alive, shares, strict=False)}
            done = self._run(
                {
                    host: functools.partial(
                        host.call, client_sum, weights, aggregator, [values[index] for index in share]
                    )
                    for host, share in given.items()
                }
            )
            sums |= {given[host][0]: result for host, result in done.items()}
            waiting = sorted(index for host in given.keys() - done.keys() for index in given[host])
        return _added([sums[first] for first in sorted(sums)])

    def _run(self, calls: dict[Host, Callable[[], Any]]) -> dict[Host, Any]:
        """Runs one call a host, all at once; a host that is lost meanwhile has no result."""
        pool = futures.ThreadPoolExecutor(len(calls))
        running = {pool.submit(call): host for host, call in calls.items()}
        misses = dict.fromkeys(calls, 0)
        try:
            while True:
                waiting = futures.wait(running, timeout=_BEAT_SECONDS).not_done
                if not waiting:
                    break
                asked = [running[future] for future in waiting if running[future].lost is None]
                for host, beat in [(host, host.beat()) for host in asked]:
                    misses[host] = 0 if is_alive(beat) else misses[host] + 1
                    if misses[host] == _MISSES:
                        host.abandon(f"{_MISSES} heartbeats in a row not answered ({beat.code().name})")
        except BaseException:
            for host in calls:
                host.abandon("the round was broken off")  # ends the calls, which nothing else can
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
    """`Engine.process` on hosts."""

    def __init__(self, engine: "Engine", hosts: Hosts) -> None:
        self._engine = engine
        self._hosts = hosts

    def initialize(self) -> Any:
        return self._engine.process.initialize()

    def next(self, state: Any, values: Sequence[Any], noise: np.ndarray) -> Any:
        sum_on = self._hosts.sum if values else _at_home
        total = sum_on(self._engine.client_sum, state["weights"], state["aggregator"], values)
        return self._engine.server_step(state, total, noise)


def _at_home(client_sum: Any, weights: Any, aggregator: Any, values: Sequence[Any]) -> Any:
    """No client, no host to ask."""
    return client_sum(weights, aggregator, values)


class _Stub:
    """A stub whose calls fail with WorkerLostError; TFF's context would try again for ever."""

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
                    return None  # gone is gone
                # FAILED_PRECONDITION: another worker took its place; ValueError: we closed the channel.
                code = error.code().name if isinstance(error, grpc.Call) else str(error)
                if code in ("UNAVAILABLE", "FAILED_PRECONDITION", "CANCELLED") or "closed" in code.lower():
                    raise WorkerLostError(f"it ended, or the way to it is cut ({code})") from error
                if isinstance(error, grpc.Call) and code in ("RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNKNOWN"):
                    # Too large a message, or no worker of this TFF's. An error of the computation is INTERNAL.
                    said = " ".join((error.details() or "").split())[:200]
                    raise WorkerLostError(f"it refused the call ({code}: {said})") from error
                raise

        return call


def _added(sums: Sequence[Any]) -> Any:
    import tensorflow as tf

    return tf.nest.map_structure(lambda *parts: functools.reduce(np.add, parts), *sums)
