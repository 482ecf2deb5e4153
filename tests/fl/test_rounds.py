"""Tests the round loop under kills at every write, with a process of a few lines of NumPy in place of TFF's."""

import errno
import hashlib
import json
import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from fl import checkpoints
from fl.cohorts import draw_cohort
from fl.local_training import Batches, LocalSGD
from fl.round_metrics import read_metrics
from fl.rounds import Federation, RoundLog, final_state, run_rounds
from privacy import files
from privacy.keys import RunKeys
from privacy.ledger import Ledger
from privacy.plan import AdaptiveClip, PrivacyPlan
from privacy.sampling import Poisson

CLIENTS = tuple(f"client-{i}" for i in range(40))
LOCAL = LocalSGD(0.1, 2, 1, 3, 4)
PLAN = PrivacyPlan(Poisson(0.3), len(CLIENTS), 4, 1.0, AdaptiveClip(1.0, count_stddev=5.0))


class FakeProcess:
    """A process whose state and metrics depend on every bit that a round is given, and which records those inputs."""

    def __init__(self, plan=PLAN, finite: bool = True, noise: float | None = None) -> None:
        self.given: dict[str, set[str]] = {}
        self.rounds: list[tuple[list[Batches], np.ndarray]] = []
        self.finite = finite
        self.noise = plan.value_noise_multiplier if noise is None else noise

    def initialize(self):
        zero = OrderedDict(w=np.zeros(3, np.float32))
        return OrderedDict(weights=zero, average=zero, aggregator=OrderedDict(clip=np.float32(1)))

    def next(self, state, values, noise_seed):
        self.rounds.append((values, noise_seed))
        digest = hashlib.sha256(state["weights"]["w"].tobytes())
        for part in (*(value.examples for value in values), noise_seed):
            digest.update(np.ascontiguousarray(part).tobytes())
        draw = np.frombuffer(digest.digest()[:12], np.uint32).astype(np.float32) / np.float32(2**32)
        key = hashlib.sha256(state["weights"]["w"].tobytes()).hexdigest()
        self.given.setdefault(key, set()).add(digest.hexdigest())
        clients = sum(bool(len(value.rows)) for value in values)
        clip = OrderedDict(clip=np.float32(1 + draw[0]))
        new = OrderedDict(weights=OrderedDict(w=draw), average=OrderedDict(w=draw / 2), aggregator=clip)
        return new, {
            "released": {
                "clip": state["aggregator"]["clip"],
                "noise_stddev": np.float32(self.noise * state["aggregator"]["clip"]),
                "finite": np.bool_(self.finite),
            },
            "operator": {"loss": np.float32(draw[1]), "clients": np.float32(clients)},
        }


def sequences(client: int) -> np.ndarray:
    return np.random.default_rng(client).integers(1, 9, (1 + client % 7, 4)).astype(np.int32)


def federation(process=None, plan=PLAN, key=5, inputs="data") -> Federation:
    return Federation(process or FakeProcess(plan), list, plan, RunKeys.fixed(key), CLIENTS, sequences, LOCAL, inputs)


def evaluate(done, weights):
    if done % 2:
        return {}, {}
    return {"loss": float(weights["w"].sum())}, {"held_out_loss": float(weights["w"][0])}


def run(folder: Path, process=None, **settings) -> list:
    return list(run_rounds(federation(process, **settings), RoundLog(folder, keep_checkpoints=2), evaluate))


def outcome(folder: Path) -> tuple:
    state = final_state(federation(), RoundLog(folder))
    return (
        (folder / "ledger.jsonl").read_bytes(),
        (folder / "metrics.jsonl").read_bytes(),
        state["weights"]["w"].tobytes(),
    )


class Kill(BaseException):
    """Stands for kill -9: no code under test may handle it."""


class Disk:
    """Counts operations on the disk and kills the run at the n-th one, before it or half-way through it."""

    def __init__(self, monkeypatch, kill_at: int, half: bool, error: BaseException | None = None) -> None:
        self.count, self.kill_at, self.half, self.error = 0, kill_at, half, error or Kill()
        monkeypatch.setattr(os, "pwrite", self.wrap(os.pwrite, lambda fd, data, at: (fd, data[: len(data) // 2], at)))
        monkeypatch.setattr(os, "fsync", self.wrap(os.fsync, lambda fd: (fd,)))
        monkeypatch.setattr(Path, "replace", self.wrap(Path.replace, lambda path, target: (path, target)))
        monkeypatch.setattr(Path, "unlink", self.wrap(Path.unlink, lambda path, **options: (path,)))
        half_a_row = self.wrap(files.append_private, lambda path, row: (path, row[: len(row) // 2]))
        monkeypatch.setattr(files, "append_private", half_a_row)

    def wrap(self, operation, halved):
        def wrapped(*arguments, **options):
            self.count += 1
            if self.count == self.kill_at:
                if self.half:
                    operation(*halved(*arguments, **options))
                raise self.error
            return operation(*arguments, **options)

        return wrapped


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    rows = run(folder)
    return rows, outcome(folder)


def test_run_rounds_yields_rows_of_metrics_file(tmp_path, undisturbed):
    rows, (_, metrics, _) = undisturbed
    assert [json.loads(line) for line in metrics.splitlines()] == rows
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    assert [bool(row["evaluation"]) for row in rows] == [False, True, False, True]
    assert ["held_out_loss" in row["operator"] for row in rows] == [False, True, False, True]


def test_run_rounds_evaluates_averaged_weights(tmp_path):
    seen = []

    def look(done, weights):
        seen.append(weights["w"].copy())
        return {}, {}

    list(run_rounds(federation(), RoundLog(tmp_path), look))
    state = final_state(federation(), RoundLog(tmp_path))
    np.testing.assert_array_equal(seen[-1], state["average"]["w"])
    assert len(seen) == 4 and not np.array_equal(seen[-1], state["weights"]["w"])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kill_at", range(1, 38))
def test_run_rounds_killed_anywhere_resumes_to_same_bits(tmp_path, undisturbed, kill_at, half):
    process = FakeProcess()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, kill_at, half)
        try:
            run(tmp_path, process)
        except Kill:
            pass
        else:
            assert disk.count < kill_at  # the run ended before this operation, so nothing was killed
    # A second kill while resuming, then the end.
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, 3 + kill_at % 5, half)
        try:
            run(tmp_path, process)
        except Kill:
            pass
    run(tmp_path, process)
    assert outcome(tmp_path) == undisturbed[1]
    # No state was ever given two different cohorts or noises.
    assert all(len(given) == 1 for given in process.given.values())


def test_kill_points_cover_all_disk_operations(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 10**9, False)
        run(tmp_path)
    assert 33 <= disk.count <= 37


def test_kill_check_rejects_new_noise_on_resume(tmp_path, undisturbed, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, 20, False)
        with pytest.raises(Kill):
            run(tmp_path)
    with pytest.raises(ValueError, match="the keys are not those of the rounds"):
        run(tmp_path, key=6)
    monkeypatch.setattr(RunKeys, "noise_seed", lambda _, number: np.array([7, number]))
    run(tmp_path)
    assert outcome(tmp_path) != undisturbed[1]


def test_run_rounds_raises_on_full_disk_and_resumes(tmp_path, undisturbed):
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, 18, True, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path)
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed[1]


def test_run_rounds_leaves_finished_run_unchanged(tmp_path, undisturbed):
    run(tmp_path)
    assert run(tmp_path) == []
    assert outcome(tmp_path) == undisturbed[1]


def test_run_rounds_writes_ledger_before_training(tmp_path):
    class Checking(FakeProcess):
        def next(self, state, values, noise_seed):
            recorded = Ledger.read(tmp_path / "ledger.jsonl").rounds
            assert len(recorded) == len(self.given) + 1
            assert len(recorded[-1].cohort) == sum(bool(len(value)) for value in values)
            return super().next(state, values, noise_seed)

    run(tmp_path, Checking())


def test_run_rounds_records_cohort_clip_and_noise(tmp_path, undisturbed):
    rows, _ = undisturbed
    run(tmp_path)
    recorded = Ledger.read(tmp_path / "ledger.jsonl").rounds
    clips = [row["released"]["clip"] for row in rows]
    assert clips[0] == 1.0 and len(set(clips)) == 4
    assert [r.clip_norm for r in recorded] == pytest.approx(clips)
    assert [r.noise_stddev for r in recorded] == pytest.approx([PLAN.value_noise_multiplier * c for c in clips])
    assert [len(r.cohort) for r in recorded] == [row["operator"]["clients"] for row in rows]


def test_run_rounds_draws_new_cohort_noise_and_batches_each_round(tmp_path):
    """Rejects loops that seed every round alike, which would also resume to the same bits."""
    process, keys = FakeProcess(), RunKeys.fixed(5)
    run(tmp_path, process)
    recorded = Ledger.read(tmp_path / "ledger.jsonl").rounds
    for number, (values, noise_seed) in enumerate(process.rounds):
        cohort = draw_cohort(PLAN.sampling, PLAN.population, number, keys.sampler_seed)
        assert recorded[number].cohort == tuple(sorted(CLIENTS[client] for client in cohort))
        np.testing.assert_array_equal(noise_seed, keys.noise_seed(number))
        for value, client in zip(values, cohort, strict=True):
            expected = LOCAL.batches(sequences(client), keys.sampler_seed(number), int(client))
            np.testing.assert_array_equal(value.examples, expected.examples)
            np.testing.assert_array_equal(value.rows, expected.rows)
    assert len({seed.tobytes() for _, seed in process.rounds}) == 4
    assert len({entry.cohort for entry in recorded}) == 4


def test_run_rounds_stops_process_with_other_noise_than_ledger(tmp_path):
    with pytest.raises(ValueError, match="used noise_stddev 0.1, but the plan requires"):
        run(tmp_path, FakeProcess(noise=0.1))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "factor"), [("clip", 2.0), ("noise_stddev", 2.0), ("noise_stddev", 0.5), ("metric_noise_multiplier", 1.0)]
)
def test_run_rounds_refuses_larger_and_smaller_clip_or_noise(tmp_path, name, factor):
    class Other(FakeProcess):
        def next(self, state, values, noise_seed):
            state, measured = super().next(state, values, noise_seed)
            measured["released"][name] = np.float32(factor * measured["released"].get(name, 1.0))
            return state, measured

    with pytest.raises(ValueError, match=f"the process used {name}"):
        run(tmp_path, Other())


def test_run_rounds_refuses_fresh_start_over_old_metrics(tmp_path):
    run(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    for path in checkpoints.list_files(tmp_path / "checkpoints"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing: restore it"):
        run(tmp_path)


def test_run_rounds_refuses_other_inputs_on_resume(tmp_path):
    run(tmp_path)
    checkpoints.list_files(tmp_path / "checkpoints")[-1].unlink()
    with pytest.raises(ValueError, match="data, starting weights or settings are not those of the rounds"):
        run(tmp_path, inputs="other data")


def test_run_rounds_refuses_other_keys_on_resume(tmp_path):
    """With the keys of a run on other data, the same noise would be used twice."""
    run(tmp_path)
    checkpoints.list_files(tmp_path / "checkpoints")[-1].unlink()
    with pytest.raises(ValueError, match="the keys are not those of the rounds in .*: restore this run's keys"):
        run(tmp_path, key=6)


def test_metrics_never_hold_round_without_saved_state(tmp_path):
    def rows() -> int:
        return len(read_metrics(tmp_path / "metrics.jsonl"))

    for row in run_rounds(federation(), RoundLog(tmp_path), evaluate):
        newest = checkpoints.latest_document(tmp_path / "checkpoints")
        assert newest is not None and rows() == row["round"] == newest[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", lambda *_, **__: (_ for _ in ()).throw(Kill()))
        with pytest.raises(Kill):
            list(run_rounds(federation(), RoundLog(tmp_path / "second"), evaluate))
    assert read_metrics(tmp_path / "second" / "metrics.jsonl") == []


def test_run_rounds_refuses_missing_ledger(tmp_path):
    run(tmp_path)
    (tmp_path / "ledger.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="ledger.jsonl is missing: restore it"):
        run(tmp_path)
    assert not (tmp_path / "ledger.jsonl").exists()


def test_run_rounds_refuses_truncated_ledger(tmp_path):
    run(tmp_path)
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(lines[:2]))
    with pytest.raises(ValueError, match="holds 1 rounds, but the checkpoint is of round 4"):
        run(tmp_path)


def test_run_rounds_refuses_ledger_of_other_run(tmp_path):
    run(tmp_path / "one")
    run(tmp_path / "two", key=6)
    (tmp_path / "one" / "ledger.jsonl").write_bytes((tmp_path / "two" / "ledger.jsonl").read_bytes())
    with pytest.raises(ValueError, match="is not the one of this run's checkpoints"):
        run(tmp_path / "one")


def test_run_rounds_refuses_damaged_checkpoint_and_resumes_from_previous(tmp_path, undisturbed):
    run(tmp_path)
    newest = checkpoints.list_files(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-5])
    with pytest.raises(ValueError, match="delete it to resume from the one before"):
        run(tmp_path)
    newest.unlink()
    run(tmp_path)
    assert outcome(tmp_path) == undisturbed[1]


def test_run_rounds_stops_on_non_finite_weights(tmp_path):
    with pytest.raises(ValueError, match="not finite after round 1: the server learning rate"):
        run(tmp_path, FakeProcess(finite=False))


@pytest.mark.parametrize("declared", [30, 60])
def test_run_rounds_draws_from_all_clients_with_declared_population(tmp_path, declared):
    """Each of the 40 clients joins independently; noise and denominator are those of the declared population."""
    clip = AdaptiveClip(1.0, count_stddev=5.0)
    plan = PrivacyPlan(Poisson(0.9), declared, 4, 1.0, clip, population_declared=True)
    run(tmp_path, FakeProcess(plan), plan=plan)
    read = Ledger.read(tmp_path / "ledger.jsonl")
    assert set(read.participations()) == set(
        CLIENTS
    )  # with other keys, one of 40 is in no round with probability 0.4 %
    assert plan.expected_cohort == 0.9 * declared


def test_federation_refuses_other_population_than_plan():
    with pytest.raises(ValueError, match="population of 41 clients, but there are 40"):
        federation(plan=PrivacyPlan(Poisson(0.3), 41, 4, 1.0, AdaptiveClip(1.0, count_stddev=5.0)))


def test_read_metrics_ignores_unfinished_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"round": 1, "operator": {}}\n{"roun')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"round": 1, "operator": {}}]


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"nonsense", b"\xff", b"[" * 100_000])
def test_read_metrics_names_damaged_line(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"round": 1, "operator": {}}\n' + line + b"\n")
    with pytest.raises(ValueError, match="line 2 is damaged: restore the file"):
        read_metrics(tmp_path / "metrics.jsonl")
