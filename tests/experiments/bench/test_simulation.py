"""`fedspeak bench simulation`: the harness with made-up peers, the workloads, the ratios, the table."""

import dataclasses
import json
import os
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from experiments.bench import measure, table
from experiments.bench.measure import Case, Peer, Run
from experiments.bench.peers import common
from experiments.bench.processes import watch
from experiments.bench.ratios import paired_ratio, paired_time_ratio
from experiments.bench.workloads import RECIPES
from experiments.commands.bench import CASES, simulation
from tests.experiments.bench.fakes import Fake

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

# Plays every peer: what it does follows from its name, the module that it is asked to be.
FAKE = f"""#!{sys.executable}
import sys, time
import numpy as np
from experiments.bench.peers.common import Unsupported, run
name = sys.argv.pop(2).rpartition(".")[2]
sys.argv.pop(1)

def peer(asked, workload, recorder):
    if name == "fails":
        raise RuntimeError("broken on purpose")
    if name == "hangs":
        time.sleep(600)
    if name == "cannot":
        raise Unsupported("no recurrence here")
    generator = np.random.default_rng(1)
    noise = 0.0 if name == "forgets" else (asked.noise_multiplier or 0.0)
    settings, weights = workload.settings, dict(workload.weights)
    recorder.start()
    for number in range(asked.rounds):
        time.sleep(0.02 if name == "slow" else 0.01)
        for key, value in weights.items():
            drawn = generator.standard_normal(value.shape)
            step = (1.01 if name == "differs" else 1.0) * np.ones_like(value)
            weights[key] = value + step + noise * settings.clip / len(workload.cohort(number)) * drawn
        recorder.round_done(lambda: weights)
    if name == "garbles":
        open(recorder.out + ".npz", "w").write("no archive")
    recorder.write("fake " + name, "1.0")

run(peer)
"""


@pytest.fixture
def run_fakes(tmp_path):
    Fake.write(tmp_path, FAKE)

    def run(*names, private=False, repetitions=1, timeout=60.0):
        notes: list[str] = []
        peers = [Fake(name, name, None) for name in names]
        case = measure.measure(
            "logistic",
            private,
            peers,
            rounds=4,
            repetitions=repetitions,
            folder=tmp_path,
            timeout=timeout,
            note=notes.append,
        )
        return case, peers, notes

    return run


def test_good_peers_are_timed_compared_and_interleaved(run_fakes):
    case, peers, notes = run_fakes("ours", "slow", repetitions=3)
    assert not case.failed()
    assert [run.peer for run in case.runs] == ["ours", "slow", "slow", "ours", "ours", "slow"]
    assert case.reference == "ours"
    assert len(case.timed("slow")) == 3 and all(len(run.seconds) == 4 for run in case.runs)
    assert all(run.difference == 0 and 0 < run.first_round < 30 for run in case.runs)
    # Looked at five times a second; these processes live for less.
    assert max(run.memory for run in case.runs) > 2**22
    assert case.examples[0] > 1000
    assert len(notes) == 6
    text = table.case_table(case, peers, "ours")
    row = next(line for line in text.splitlines() if line.startswith("| slow"))
    ratio = float(row.split("|")[6].split("×")[0])
    assert 1.2 < ratio < 3  # 0.02 s and 0.01 s of sleep, and what a busy machine adds
    json.dumps(case.to_dict())


def test_failures_are_named_and_the_others_go_on(run_fakes):
    case, peers, _ = run_fakes("fails", "ours", "differs", "garbles", "cannot", repetitions=2)
    problems = {run.peer: run.problem for run in case.failed()}
    assert set(problems) == {"fails", "differs", "garbles"}
    assert problems["fails"] == "exit code 1: RuntimeError: broken on purpose"
    assert problems["differs"] == "other weights than ours: 1.0e-02 of the distance moved"
    assert "cannot be read" in problems["garbles"]
    assert case.missing == {"cannot": "no recurrence here"}
    assert len(case.timed("ours")) == 2  # and no second try of the others
    assert sum(run.peer == "fails" for run in case.runs) == 1
    text = table.case_table(case, peers, "ours")
    assert "| ours" in text and "| differs" not in text
    assert "cannot: no recurrence here." in text and "broken on purpose" in text


def test_a_hanging_peer_is_ended(run_fakes):
    case, _, _ = run_fakes("hangs", "ours", timeout=3.0)
    assert [run.problem for run in case.failed()] == ["no end after 3 s"]
    assert case.reference == "ours"


def test_private_weights_are_compared_without_noise_and_noise_is_looked_for(run_fakes):
    case, _, _ = run_fakes("ours", "slow", "forgets", private=True)
    assert case.name == "logistic-dp"
    assert {run.peer: run.difference for run in case.runs if run.repetition < 0} == {"ours": 0, "slow": 0, "forgets": 0}
    assert [(run.peer, run.problem) for run in case.failed()] == [
        ("forgets", "less noise in the weights than asked for")
    ]
    assert len(case.timed("ours")) == 1


def test_the_command_says_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    arguments = ["--case", "logistic", "--peer", "fedjax", "--rounds", "3", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(simulation, arguments)
    assert done.exit_code == 0, done.output
    assert "fedjax: not installed: make bench-peers." in done.output
    assert (tmp_path / "out" / "table.md").read_text() in done.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["cases"][0]["missing"] == {"fedjax": "not installed: make bench-peers"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "2"], "2 is not in the range 3<=x<=50"),
        (["--repetitions", "0"], "0 is not in the range"),
        (["--case", "transformer"], "'transformer' is not one of"),
        (["--peer", "jax"], "'jax' is not one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    done = CliRunner().invoke(simulation, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_every_workload_has_its_cases():
    assert set(CASES) == {name + suffix for name in RECIPES for suffix in ("", "-dp")}


def test_a_workload_file_is_the_same_each_time_and_read_as_written(tmp_path):
    for name in ("a", "b"):
        RECIPES["logistic"].write(tmp_path / f"{name}.npz", 4)
    first, second = (common.load(str(tmp_path / f"{name}.npz")) for name in ("a", "b"))
    assert first.settings == RECIPES["logistic"].settings and not first.is_text
    assert first.cohorts.shape == (4, 100) and len(first.clients) == 300
    assert all(len(set(cohort)) == 100 for cohort in first.cohorts)
    assert {len(client.y) for client in first.clients} <= set(range(20, 61))
    assert all(client.weight == len(client.x) == len(client.y) for client in first.clients)
    for one, other in zip(first.clients, second.clients, strict=True):
        assert np.array_equal(one.x, other.x) and np.array_equal(one.y, other.y)


def test_text_targets_are_the_tokens_after_the_inputs(tmp_path):
    RECIPES["tiny-recurrent"].write(tmp_path / "w.npz", 3)
    workload = common.load(str(tmp_path / "w.npz"))
    assert workload.is_text
    for client in workload.clients[:20]:
        assert client.x.shape == client.y.shape == (int(client.weight), 20)
        assert np.array_equal(client.x[:, 1:], client.y[:, :-1])
        assert (client.x[:, 0] == 1).all() and client.x.max() < 1024
        # Padding only stands at the end of a line, after its end mark.
        assert all((row[row.argmin() :] == 0).all() for row in client.y if (row == 0).any())


def test_a_ratio_and_its_interval():
    ratio = paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert ratio == pytest.approx((2, 2, 2))
    # By hand: logs 0 and ln 4, mean ln 2, standard error ln 2; t of one degree of freedom at 97.5 % is 12.706.
    ratio = paired_ratio([1.0, 4.0], [1.0, 1.0])
    assert ratio.estimate == pytest.approx(2)
    assert ratio.high == pytest.approx(2 ** (1 + 12.7062), rel=1e-4)
    assert ratio.low == pytest.approx(2 ** (1 - 12.7062), rel=1e-4)
    assert paired_ratio([3.0], [1.0]) == pytest.approx((3, 0, np.inf))


def test_the_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(5)
    trials, hits = 1000, 0
    for _ in range(trials):
        slow = np.exp(0.3 * generator.standard_normal(5))  # what befalls both sides of a pair
        theirs, ours = (slow * np.exp(0.1 * generator.standard_normal(5)) for _ in range(2))
        interval = paired_ratio((3 * theirs).tolist(), ours.tolist())
        hits += interval.low <= 3 <= interval.high
    # 95 % ± 4 standard deviations of a binomial: a right interval fails here once in 16,000 seeds.
    assert abs(hits / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


def test_a_time_ratio_is_paired_by_round_without_the_first():
    theirs, ours = [[90.0, 2.0, 20.0, 6.0]] * 2, [[1.0, 1.0, 10.0, 3.0]] * 2
    assert paired_time_ratio(theirs, ours) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    ("theirs", "ours"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [float("nan")]), ([-1.0], [1.0])]
)
def test_ratios_of_nothing_are_refused(theirs, ours):
    with pytest.raises(ValueError, match="figure"):
        paired_ratio(theirs, ours)


def test_ratios_of_different_rounds_are_refused():
    with pytest.raises(ValueError, match="rounds"):
        paired_time_ratio([[1.0, 1.0]], [[1.0, 1.0, 1.0]])


def test_a_process_tree_is_measured_and_none_of_it_is_left(tmp_path):
    mark = f"of {tmp_path}"  # other test runs of this machine measure processes too
    child = f"import time; data = bytearray(80 << 20); time.sleep(600)  # {mark}"
    parent = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(1.5)"
    command = [sys.executable, "-c", parent]
    watched = watch(command, folder=tmp_path, environment=dict(os.environ), log=tmp_path / "log", timeout=60)
    assert watched.return_code == 0
    assert watched.peak_memory > 80 << 20
    assert watched.others >= 0 and time.time() - watched.started < 30
    deadline = time.time() + 10
    while mark.encode() in b"".join(_command_lines()) and time.time() < deadline:
        time.sleep(0.1)
    assert mark.encode() not in b"".join(_command_lines())


def _command_lines():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                yield file.read()
        except OSError:
            continue


def test_noisy_figures_are_marked():
    quiet = Run("ours", 0, framework="fake", seconds=[1.0, 1.0, 1.0], memory=1, others=0.01)
    case = Case("logistic", False, examples=[5, 5, 5], runs=[quiet])
    assert "NOISY" not in table.case_table(case, [Peer("ours", "ours", None)], "ours")
    case.runs.append(dataclasses.replace(quiet, repetition=1, others=0.7))
    assert "NOISY: other processes used up to 0.7 cores" in table.case_table(case, [Peer("ours", "ours", None)], "ours")
    assert "cores" in table.machine()


def test_models_of_other_names_or_shapes_are_infinitely_far():
    model = {"a": np.zeros(3), "b": np.ones(2)}
    moved = {"a": np.ones(3), "b": np.ones(2)}
    assert measure.difference(moved, moved, model) == 0
    assert measure.difference({"a": np.ones(3)}, moved, model) == np.inf
    assert measure.difference({**moved, "b": np.ones(3)}, moved, model) == np.inf
    assert measure.difference(model, model, model) == np.inf  # nothing moved: nothing is shown
