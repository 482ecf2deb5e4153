"""Choices that a run makes once and keeps, and its warnings; `test_train` holds whole runs."""

import contextlib
import dataclasses
import json
import re
from typing import Any

import pytest

from experiments import config_file, training
from experiments.runs import RunFolder
from fl.engines import calibration
from models.recurrent_lm import RecurrentLanguageModel
from privacy import FixedClip, Poisson, PrivacyPlan
from privacy.ledger import Ledger


class Notes(list):
    def note(self, text):
        self.append(text)


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Chooses clients_at_once for a run in one folder; returns (choice, notes, number of measurements)."""
    measurements = []

    def calibrate(*_):
        measurements.append(1)
        return {1: 0.5, 8: 0.25}

    monkeypatch.setattr(calibration, "calibrate", calibrate)

    def run(overrides=(), recorded=None):
        plan = PrivacyPlan(Poisson(0.1), 60, 5, 1.0, FixedClip(0.5))
        notes: Any = Notes()
        parsed = config_file.parse("", "test", overrides)
        choice = training._choose_clients_at_once(
            RunFolder(tmp_path), parsed, RecurrentLanguageModel("si-cifg", 300, 8, 8), plan, {}, recorded, notes
        )
        return choice, notes, len(measurements)

    return run


def test_clients_at_once_is_measured_once_shown_and_kept(choose, tmp_path):
    choice, notes, measurements = choose()
    assert (choice, measurements) == (8, 1)
    assert "trained at once: 8 (1 at once 0.50 s, 8 at once 0.25 s" in notes[0]
    assert json.loads((tmp_path / "engine.json").read_text())["clients_at_once"] == 8
    assert choose() == (8, [], 1)


def test_clients_at_once_of_config_is_used_without_measuring(choose, tmp_path):
    assert choose(["run.clients_at_once=3"]) == (3, [], 0)
    assert not (tmp_path / "engine.json").exists()


def test_clients_at_once_of_ledger_is_used_if_engine_file_is_missing(choose, tmp_path):
    choose()
    assert choose(recorded="abc clients_at_once=8") == (8, [], 1)
    (tmp_path / "engine.json").unlink()
    choice, notes, measurements = choose(recorded="abc clients_at_once=8")
    assert (choice, measurements) == (8, 1) and "engine.json is missing: 8 clients of a shard" in notes[0]
    assert json.loads((tmp_path / "engine.json").read_text()) == {"clients_at_once": 8}


@pytest.mark.parametrize("bit", range(7))
def test_engine_file_that_contradicts_ledger_is_refused_with_the_fix(choose, tmp_path, bit):
    choose()
    path = tmp_path / "engine.json"
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(b'"clients_at_once": 8') + len(b'"clients_at_once": ')] ^= 1 << bit
    path.write_bytes(flipped)
    with pytest.raises(ValueError, match="engine.json (says clients_at_once .*|is damaged.*)") as caught:
        choose(recorded="abc clients_at_once=8")
    if flipped.decode().isascii() and "says" in str(caught.value):
        assert "were trained with 8: delete it, and the number will be read from the ledger" in str(caught.value)


@pytest.mark.parametrize("value", ["0", "-8", "4097", "true", "8.0", '"8"', "null"])
def test_engine_file_with_invalid_number_is_refused(choose, tmp_path, value):
    (tmp_path / "engine.json").write_text(f'{{"clients_at_once": {value}}}')
    with pytest.raises(ValueError, match="engine.json says clients_at_once .*: restore it"):
        choose()


def test_declared_population_far_from_data_gives_warning():
    plan = PrivacyPlan(Poisson(0.1), 1000, 5, 1.0, FixedClip(1.0), population_declared=True)
    warning = training._check_population(plan, 499)
    assert warning is not None
    assert "cohort.population = 1,000, but the data holds 499 clients (operator only)" in warning
    assert training._check_population(plan, 2001)
    assert training._check_population(plan, 500) is training._check_population(plan, 2000) is None
    assert training._check_population(dataclasses.replace(plan, population_declared=False), 1000) is None


NOISY = PrivacyPlan(Poisson(0.1), 1000, 5, 1.0, FixedClip(1.0))


def row(number: int, lost: bool = False, validation_loss: float | None = 3.0) -> dict[str, Any]:
    operator = {"non_finite": 9.0 if lost else 0.0, "tokens": 0.0 if lost else 70.0}
    return {
        "round": number,
        "operator": operator,
        "released": {"clip": 1.0},
        "evaluation": {"validation_loss": validation_loss},
    }


@pytest.mark.parametrize(
    ("rows", "size", "warning"),
    [
        ([row(1)], 10**6, None),
        ([row(1, lost=True)], 10**6, "no client's update was finite, .*: clients.learning_rate is too large"),
        ([row(1, lost=True), row(2, lost=True)], 10**6, "round 2: .*clients.learning_rate is too large"),
        (
            [row(1), row(2, lost=True)],
            10**6,
            "no client's update was finite, .*: clip norm 1 and noise multiplier 1 are",
        ),
        (
            [row(1, validation_loss=None)],
            10**6,
            "the validation loss is not finite: clip norm 1 and noise multiplier 1",
        ),
        ([row(1), row(2, lost=True)], 100, "round 2: .*: the server learning rate is too large"),
    ],
)
def test_divergence_warning_names_likely_cause(tmp_path, rows, size, warning):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    actual = training._check_divergence(rows[-1], path, NOISY, size)
    assert (actual is None) if warning is None else re.search(f"^warning: .*{warning}", actual or "")


@pytest.mark.parametrize(
    ("rows", "size", "cause"),
    [
        ([row(1, lost=True), row(2, lost=True)], 10**6, "clients.learning_rate is too large"),
        ([row(1), row(2, lost=True)], 10**6, "clip norm 1 and noise multiplier 1 are"),
        ([row(1), row(2)], 100, "the server learning rate is too large"),
    ],
)
def test_last_cause_is_that_of_the_last_round(tmp_path, rows, size, cause):
    run = RunFolder(tmp_path)
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with Ledger.open(run.ledger, NOISY):
        pass
    assert training.last_cause(run, size).startswith(cause)


def test_exact_noise_allows_one_client_at_once_only(tmp_path):
    plan = PrivacyPlan(Poisson(0.1), 1000, 5, 1.0, FixedClip(1.0), noise="exact")
    show: Any = Notes()
    for overrides in ((), ("run.clients_at_once=1",)):
        parsed = config_file.parse("", "test", overrides)
        assert training._choose_clients_at_once(RunFolder(tmp_path), parsed, 9, plan, {}, None, show) == 1
    with pytest.raises(
        ValueError, match='run.clients_at_once = 8 with privacy.noise = "exact": use 1, or leave it out'
    ):
        exact = ("privacy.noise_multiplier=1", "privacy.clip_norm=0.5", "privacy.noise=exact")
        config_file.parse("", "test", (*exact, "run.clients_at_once=8"))


def facts_with(run: RunFolder, *kernels: str) -> dict[str, Any]:
    facts = {"store": "x", "kernels": list(kernels)}
    run.facts.write_text(json.dumps(facts))
    return facts


def test_resume_with_other_kernels_warns_and_its_first_round_records_them(tmp_path):
    run = RunFolder(tmp_path)
    before = facts_with(run, "oneDNN on, AVX2")
    assert run.check_kernels("oneDNN on, AVX2") is None
    warning = str(run.check_kernels("oneDNN off, AVX2"))
    assert "with oneDNN on, AVX2, the next ones will be with oneDNN off, AVX2" in warning
    assert "not be bit-equal" in warning and "set TF_ENABLE_ONEDNN_OPTS as before" in warning
    assert json.loads(run.facts.read_text()) == before
    rows = training._recording_kernels(run, "oneDNN off, AVX2", iter([row(3), row(4)]))
    assert json.loads(run.facts.read_text()) == before
    assert next(rows) == row(3)
    after = {"store": "x", "kernels": ["oneDNN on, AVX2", "oneDNN off, AVX2"]}
    assert json.loads(run.facts.read_text()) == after
    assert list(rows) == [row(4)]
    assert json.loads(run.facts.read_text()) == after
    assert run.check_kernels("oneDNN off, AVX2") is None
    assert list(training._recording_kernels(run, "oneDNN off, AVX2", iter([row(5)]))) == [row(5)]
    assert json.loads(run.facts.read_text()) == after


@pytest.mark.parametrize("error", [None, ValueError("the ledger is locked")])
@pytest.mark.parametrize("earlier", [(), ("oneDNN on, AVX2",)])
def test_process_without_round_records_no_kernels(tmp_path, error, earlier):
    """Such as a resume while the run is still being trained: the ledger refuses it before its first round."""

    def rounds():
        if error:
            raise error
        yield from ()

    run = RunFolder(tmp_path)
    before = facts_with(run, *earlier)
    with contextlib.suppress(ValueError):
        list(training._recording_kernels(run, "oneDNN off, AVX2", rounds()))
    assert json.loads(run.facts.read_text()) == before
    assert run.check_kernels("oneDNN on, AVX2") is None


def test_kernels_of_workers_are_recorded_as_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "describe_kernels", lambda: "oneDNN on, AVX2")
    assert training._describe_kernels(None) == "oneDNN on, AVX2"
    assert training._describe_kernels([1]) == "unknown kernels on 1 worker"
    assert training._describe_kernels([1, 2]) == "unknown kernels on 2 workers"
    run = RunFolder(tmp_path)
    facts_with(run, "oneDNN on, AVX2")
    warning = str(run.check_kernels(training._describe_kernels([1, 2])))
    assert "the next ones will be with unknown kernels on 2 workers" in warning
    assert "resume on the machines of the earlier rounds" in warning
