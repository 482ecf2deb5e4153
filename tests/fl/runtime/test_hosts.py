"""Tests that rounds on several hosts equal those on one machine, whatever happens to the hosts."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import tensorflow_federated as tff
import grpc
import numpy as np
import pytest
import tensorflow as tf

from fl.aggregation import DPMean
from fl.engines import cohort, per_client
from fl.engines.averaging import Engine
from fl.local_training import LanguageModelling, LocalSGD
from fl.rounds import Federation, RoundLog, final_state, run_rounds
from fl.runtime import hosts, tunnel
from fl.runtime.hosts import Workers
from fl.runtime.owned_process import WorkerLostError
from fl.runtime.worker import Worker
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import FixedSize
from tests.fl import bigram
from tests.fl.runtime.namespaces import namespaces, needs_stunnel
from tests.tolerance import rounding

CLIENTS = tuple(f"client-{i}" for i in range(12))
PLAN = PrivacyPlan(FixedSize(6), len(CLIENTS), 4, 1.0, FixedClip(0.7))
KEYS = RunKeys.fixed(3)
BEAT = 0.4
HANG_GUARD = 300.0  # seconds: on a loaded machine, a worker that lives may take long to answer
HUNG = 0.4  # seconds that a worker has to answer which a test stops for good

pytestmark = pytest.mark.usefixtures("worker")


def local_sgd(epochs: int) -> LocalSGD:
    return LocalSGD(learning_rate=0.1, batch_size=3, epochs=epochs, sequence_length=5, max_sequences=8)


def build(local: LocalSGD, engine=cohort.build, **options) -> Engine:
    task = LanguageModelling(bigram.token_losses, 5)
    optimizer = tff.learning.optimizers.build_sgdm(0.9, 0.5)
    return engine(task, bigram.initial_weights(), local, DPMean(PLAN), optimizer, **options)


@pytest.fixture(scope="module")
def quick():
    """Builds an engine whose rounds take milliseconds."""
    return build(local_sgd(2), shards=6), local_sgd(2)


@pytest.fixture(scope="module")
def slow():
    """Builds an engine whose rounds take seconds, so that something can go wrong meanwhile."""
    return build(local_sgd(700), shards=6), local_sgd(700)


def sequences(client: int) -> np.ndarray:
    return bigram.random_sequences(np.random.default_rng(client), 2 + client % 7, 5)


def values(engine, local, number: int):
    clients = [local.batches(sequences(client), KEYS.sampler_seed(number), client) for client in range(6)]
    return engine.client_values(clients)


def run(folder: Path, engine, local) -> list[np.ndarray]:
    """Runs all rounds of the plan and returns the arrays of the final state."""
    federation = Federation(engine.process, engine.client_values, PLAN, KEYS, CLIENTS, sequences, local, "data")
    for _ in run_rounds(federation, RoundLog(folder), lambda done, weights: ({}, {})):
        pass
    return [np.asarray(part) for part in tf.nest.flatten(final_state(federation, RoundLog(folder)))]


# In each of four rounds a sum of 6 clients and the noise is made in another order and added to a table of entries below
# 4; a table that is off changes an update by at most twice that, and the server's momentum adds up to 2 of its steps.
SUMMED = 4 * (1 + 2 * 2 * 0.9) * rounding(6 + 2, 4.0)


def difference(one, other) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def once_busy(pid: int, mishap) -> threading.Thread:
    """Calls `mishap` in the middle of a round: once process `pid` has used some processor time from now on."""

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])  # user and system time, in units of 10 ms

    begin = ticks()

    def watch() -> None:
        while ticks() < begin + 10:
            time.sleep(0.005)
        mishap()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def give_up_soon(host: hosts.Host) -> None:
    """Shortens the time that one host has to answer; the others keep theirs, and are not lost by load."""
    host.beat = lambda: host._beat.future(b"", timeout=HUNG)  # type: ignore[method-assign]


@pytest.fixture
def patient(monkeypatch):
    """Loses no worker that lives, however loaded the machine is."""
    monkeypatch.setattr(hosts, "_BEAT_SECONDS", BEAT)
    monkeypatch.setattr(hosts, "_ANSWER_SECONDS", HANG_GUARD)


@pytest.fixture
def two(patient):
    """Starts two workers on loopback; yields them and the connected hosts."""
    workers = [Worker(concurrent_calls=1, threads_per_call=1) for _ in range(2)]
    try:
        for worker in workers:
            worker.wait_until_it_listens()
        addresses = ",".join(f"localhost:{worker.port}" for worker in workers)
        with Workers.parse(addresses, None, False).connected() as connected:
            yield workers, connected
    finally:
        for worker in workers:
            if worker._process.poll() is None:
                worker._process.send_signal(signal.SIGCONT)
            worker.stop()


@pytest.mark.numerical
def test_spread_rounds_equal_rounds_on_one_machine(quick, two, tmp_path):
    engine, local = quick
    alone = run(tmp_path / "alone", engine, local)
    spread = run(tmp_path / "spread", two[1].spread(engine), local)
    assert difference(alone, spread) < SUMMED
    assert difference(alone, [np.zeros_like(part) for part in alone]) > 0.1
    assert (tmp_path / "alone/ledger.jsonl").read_bytes() == (tmp_path / "spread/ledger.jsonl").read_bytes()


def test_spread_comparison_detects_missing_share(quick, two, tmp_path):
    """A planted bug leaves out the second host's sum, which the comparison must notice."""
    engine, local = quick
    alone = run(tmp_path / "alone", engine, local)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hosts, "_add_sums", lambda sums: sums[0])
        assert difference(alone, run(tmp_path / "spread", two[1].spread(engine), local)) > 1e-3


@pytest.mark.parametrize("kind", [cohort.build, per_client.build])
def test_spread_round_without_clients_adds_noise_only(two, kind):
    engine = build(local_sgd(2), kind)
    state, seed = engine.process.initialize(), KEYS.noise_seed(0)
    alone, measured = engine.process.next(state, engine.client_values([]), seed)
    spread, _ = two[1].spread(engine).process.next(state, engine.client_values([]), seed)
    assert difference(tf.nest.flatten(alone["weights"]), tf.nest.flatten(spread["weights"])) == 0
    assert measured["operator"]["clients"] == 0


@pytest.mark.numerical
def test_hung_worker_is_lost_and_its_share_repeated(slow, two, caplog):
    engine, local = slow
    workers, connected = two
    state, seed = engine.process.initialize(), KEYS.noise_seed(0)
    alone, _ = engine.process.next(state, values(engine, local, 0), seed)
    spread = connected.spread(engine).process
    give_up_soon(connected._hosts[0])
    once_busy(workers[0].pid, lambda: os.kill(workers[0].pid, signal.SIGSTOP))
    after, _ = spread.next(state, values(engine, local, 0), seed)
    assert difference(tf.nest.flatten(alone), tf.nest.flatten(after)) < SUMMED
    assert f"localhost:{workers[0].port} is lost (3 heartbeats" in caplog.text
    # The driver does not use it again, although it would answer now.
    os.kill(workers[0].pid, signal.SIGCONT)
    spread.next(state, values(engine, local, 0), seed)
    assert caplog.text.count("is lost") == 1


def test_worker_that_computes_long_is_not_lost(slow, two, caplog, monkeypatch):
    engine, local = slow
    asked: Counter[str] = Counter()
    beat = hosts.Host.beat

    def counted(host):
        asked[host.address] += 1
        return beat(host)

    monkeypatch.setattr(hosts.Host, "beat", counted)
    for clients in (5, 20, 80, 320):  # until it is long on this machine
        asked.clear()
        given = values(engine, local, 0) * clients
        two[1].spread(engine).process.next(engine.process.initialize(), given, KEYS.noise_seed(0))
        if max(asked.values(), default=0) > hosts._MISSES:
            break
    assert max(asked.values()) > hosts._MISSES
    assert "lost" not in caplog.text


@pytest.mark.numerical
def test_run_stops_without_workers_and_resumes(quick, two, tmp_path):
    engine, local = quick
    alone = run(tmp_path / "alone", engine, local)
    workers, connected = two
    federation = Federation(
        connected.spread(engine).process, engine.client_values, PLAN, KEYS, CLIENTS, sequences, local, "data"
    )
    rounds = run_rounds(federation, RoundLog(tmp_path / "spread"), lambda done, weights: ({}, {}))
    assert next(rounds)["round"] == 1
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(
        WorkerLostError, match=r"no worker is left \(localhost:.*; localhost:.*resume the run"
    ) as caught:
        next(rounds)
    assert "\n" not in str(caught.value)
    assert difference(alone, run(tmp_path / "spread", engine, local)) < SUMMED
    assert (tmp_path / "alone/ledger.jsonl").read_bytes() == (tmp_path / "spread/ledger.jsonl").read_bytes()


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "UNKNOWN"])
def test_host_that_refuses_calls_is_lost_with_reason(code):
    """A host refuses calls if a share exceeds gRPC's limit, or if its server is not a worker of TFF."""

    class Refusal(grpc.RpcError, grpc.Call):
        code = lambda self: grpc.StatusCode[code]  # noqa: E731
        details = lambda self: "refused\nby test"  # noqa: E731

    Refusal.__abstractmethods__ = frozenset()

    class Plain:
        def compute(self, request):
            raise Refusal()

    with pytest.raises(WorkerLostError, match=rf"it refused the call \({code}: refused by test\)"):
        hosts._Stub(Plain()).compute(None)


def test_computation_error_is_not_reported_as_lost_worker(two):
    @tff.tensorflow.computation(np.int32)
    def fails(x):
        with tf.control_dependencies([tf.debugging.assert_positive(x)]):
            return tf.identity(x)

    @tff.federated_computation(
        tff.FederatedType(np.int32, tff.SERVER),
        tff.FederatedType(np.int32, tff.SERVER),
        tff.FederatedType(np.int32, tff.CLIENTS),
    )
    def client_sum(weights, state, given):
        return tff.federated_sum(tff.federated_map(fails, given))

    assert two[1].sum(client_sum, 0, 0, [1, 2, 3, 4]) == 10
    with pytest.raises(grpc.RpcError, match="assertion failed|Condition x > 0"):
        two[1].sum(client_sum, 0, 0, [1, 2, 3, -4])
    assert two[1].sum(client_sum, 0, 0, [1, 2]) == 3


def test_ctrl_c_ends_round_at_once_with_hung_worker(quick, two):
    engine, local = quick
    os.kill(two[0][1].pid, signal.SIGSTOP)
    spread = two[1].spread(engine).process
    state, given = engine.process.initialize(), values(engine, local, 0)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(hosts, "_BEAT_SECONDS", 3600.0)  # nothing but Ctrl-C ends the round
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        spread.next(state, given, KEYS.noise_seed(0))


def test_connected_names_worker_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(hosts, "_START_SECONDS", 0.3)
    with pytest.raises(WorkerLostError, match="^worker 127.0.0.1:9 does not answer: is fedspeak worker running there"):
        with Workers.parse("127.0.0.1:9", None, False).connected():
            pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10.0.0.2", "'10.0.0.2' is not host:port"),
        ("10.0.0.2:7000,", "'' is not host:port"),
        ("a:0", "'a:0' is not host:port"),
        ("a:70000", "'a:70000' is not host:port"),
        ("a b:7", "is not host:port"),
        ("localhost:7000, localhost:7000", "an address occurs twice"),
        (
            "10.0.0.2:7000",
            "on the network and would get the clients' text unencrypted: give certificates=DIR.*insecure_network=True",
        ),
        ("localhost:7000,worker.example:7000", "worker.example:7000 is on the network"),
        ("127.0.0.1.evil.example:7000", "is on the network"),
    ],
)
def test_workers_parse_refuses_invalid_and_insecure_addresses(text, message):
    with pytest.raises(ValueError, match=message):
        Workers.parse(text, None, False)


def test_workers_parse_accepts_valid_addresses():
    assert Workers.parse("localhost:1,127.0.0.2:2, [::1]:3", None, False).addresses[2] == ("[::1]", 3)
    assert Workers.parse("10.0.0.2:7000", None, insecure_network=True).addresses == (("10.0.0.2", 7000),)


def worker_of(process: subprocess.Popen) -> int:
    """Returns the process id of the TFF worker that a `fedspeak worker` started."""
    result = subprocess.run(["pgrep", "-P", str(process.pid), "worker_binary"], capture_output=True, check=True)
    return int(result.stdout)


@needs_stunnel
def test_run_over_tunnels_survives_killed_and_disconnected_host(slow, tmp_path, patient, caplog):
    """There are three network namespaces; one is killed in the second round, one is disconnected in the third."""
    engine, local = slow
    alone = run(tmp_path / "alone", engine, local)
    driver, worker_folder = tunnel.make_certificates(tmp_path / "certificates")
    foreign, _ = tunnel.make_certificates(tmp_path / "foreign")
    (foreign / "peer.pem").write_bytes((driver / "peer.pem").read_bytes())
    running = []
    with namespaces(3) as machines:
        try:
            arguments = ["worker", "--port", "7000", "--cores", "1", "--certificates", str(worker_folder)]
            running = [machine.start(arguments) for machine in machines]
            addresses = ",".join(f"{machine.address}:7000" for machine in machines)
            refusal = "cannot be used .it refuses our certificate.pem.: give the two folders"
            for name, certificates, message, seconds in (
                ("without a certificate", None, "does not answer", 0.5),
                ("with a foreign one", foreign, refusal, HANG_GUARD),  # stunnel reports this as soon as it knows
            ):
                with pytest.MonkeyPatch.context() as patch, pytest.raises(WorkerLostError, match=message):
                    patch.setattr(hosts, "_START_SECONDS", seconds)
                    patch.setattr(hosts, "_ANSWER_SECONDS", HUNG)  # there is never an answer
                    with Workers.parse(addresses, certificates, certificates is None).connected():
                        pytest.fail(f"connected {name}")
            with Workers.parse(addresses, driver, False).connected() as connected:
                spread = connected.spread(engine)
                federation = Federation(
                    spread.process, engine.client_values, PLAN, KEYS, CLIENTS, sequences, local, "data"
                )
                rounds = run_rounds(federation, RoundLog(tmp_path / "spread"), lambda done, weights: ({}, {}))
                next(rounds)
                assert "is lost" not in caplog.text
                for number, mishap in enumerate([running[0].kill, machines[1].cut]):
                    give_up_soon(connected._hosts[number])
                    thread = once_busy(worker_of(running[number]), mishap)
                    next(rounds)
                    assert not thread.is_alive() and caplog.text.count("is lost") == number + 1
                next(rounds)
                assert next(rounds, None) is None
        finally:
            for process in running:
                process.terminate()
                process.wait(timeout=HANG_GUARD)
                assert process.stdout is not None
                process.stdout.close()
    state = final_state(federation, RoundLog(tmp_path / "spread"))
    assert difference(alone, [np.asarray(part) for part in tf.nest.flatten(state)]) < SUMMED
    assert (tmp_path / "alone/ledger.jsonl").read_bytes() == (tmp_path / "spread/ledger.jsonl").read_bytes()
    assert len(Ledger.read(tmp_path / "spread/ledger.jsonl").rounds) == PLAN.rounds
    assert f"{machines[0].address}:7000 is lost" in caplog.text
    assert f"{machines[1].address}:7000 is lost (3 heartbeats" in caplog.text
