"""`fedspeak bench simulation`: the harness with fake peers, the workloads, the ratios and the table."""

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
from experiments.bench.simulation import CASES, simulation
from experiments.bench.workloads import RECIPES
from tests.experiments.bench.fakes import Fake

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

# A script that plays every peer. Its behaviour follows from the name of the module that it is asked to run.
FAKE = f"""#!{sys.executable}
import sys, time
import numpy as np
from experiments.bench.peers import common
from experiments.bench.peers.common import Unsupported, run
name = sys.argv.pop(2).rpartition(".")[2]
sys.argv.pop(1)

class Clock:  # rounds take as long as the test says; when a process begins and ends is real
    now, time = 0.0, staticmethod(time.time)

    def perf_counter(self):
        return self.now

common.time = clock = Clock()

def peer(request, workload, recorder):
    if name == "fails":
        raise RuntimeError("broken on purpose")
    if name == "hangs":
        time.sleep(600)
    if name == "cannot":
        raise Unsupported("no recurrence here")
    generator = np.random.default_rng(1)
    noise = 0.0 if name == "forgets" else (request.noise_multiplier or 0.0)
    settings, weights = workload.settings, dict(workload.weights)
    recorder.start()
    for number in range(request.rounds):
        clock.now += 0.02 if name == "slow" else 0.01
        for key, value in weights.items():
            unit_noise = generator.standard_normal(value.shape)
            step = (1.01 if name == "differs" else 1.0) * np.ones_like(value)
            weights[key] = value + step + noise * settings.clip / len(workload.cohort(number)) * unit_noise
        recorder.round_done(lambda: weights)
    if name == "garbles":
        open(recorder.output + ".npz", "w").write("no archive")
    recorder.write("fake " + name, "1.0")

run(peer)
"""


@pytest.fixture
def run_fakes(tmp_path):
    Fake.write(tmp_path, FAKE)

    def run(*names, private=False, repetitions=1):
        notes: list[str] = []
        peers = [Fake(name, name, None) for name in names]
        case = measure.measure(
            "logistic",
            private,
            peers,
            rounds=4,
            repetitions=repetitions,
            folder=tmp_path,
            timeout=300.0,
            note=notes.append,
        )
        return case, peers, notes

    return run


def test_measure_times_peers_in_rotating_order_and_compares_weights(run_fakes):
    case, peers, notes = run_fakes("ours", "slow", repetitions=3)
    assert not case.failed()
    assert [run.peer for run in case.runs] == ["ours", "slow", "slow", "ours", "ours", "slow"]
    assert case.reference == "ours"
    assert len(case.timed("slow")) == 3 and all(len(run.seconds) == 4 for run in case.runs)
    assert all(run.difference == 0 and run.first_round > 0 for run in case.runs)
    # Memory is looked at five times a second; some of these processes end before the first look.
    assert max(run.memory for run in case.runs) > 2**22
    assert case.examples[0] > 1000
    assert len(notes) == 6
    text = table.case_table(case, peers, "ours")
    row = next(line for line in text.splitlines() if line.startswith("| slow"))
    assert float(row.split("|")[6].split("×")[0]) == 2.0  # 0.02 s and 0.01 s
    json.dumps(case.to_dict())
    for run in case.timed("slow"):
        run.memory = 0
    row = next(line for line in table.case_table(case, peers, "ours").splitlines() if line.startswith("| slow"))
    assert row.split("|")[7].strip() == "–"


def test_measure_names_failed_peers_and_continues_with_others(run_fakes):
    case, peers, _ = run_fakes("fails", "ours", "differs", "garbles", "cannot", repetitions=2)
    problems = {run.peer: run.problem for run in case.failed()}
    assert set(problems) == {"fails", "differs", "garbles"}
    assert problems["fails"] == "exit code 1: RuntimeError: broken on purpose"
    assert problems["differs"] == "weights differ from those of ours by 1.0e-02 of the distance moved"
    assert "cannot be read" in problems["garbles"]
    assert case.missing == {"cannot": "no recurrence here"}
    assert len(case.timed("ours")) == 2  # a peer that failed is not run again
    assert sum(run.peer == "fails" for run in case.runs) == 1
    text = table.case_table(case, peers, "ours")
    assert "| ours" in text and "| differs" not in text
    assert "cannot: no recurrence here." in text and "broken on purpose" in text


def test_measure_ends_peer_after_time_limit(run_fakes, monkeypatch):
    def impatient(command, timeout, **options):
        return watch(command, timeout=1.0 if "hangs" in " ".join(map(str, command)) else timeout, **options)

    monkeypatch.setattr(measure, "watch", impatient)
    case, _, _ = run_fakes("hangs", "ours")
    assert [run.problem for run in case.failed()] == ["ended after its time limit of 300 s"]
    assert case.reference == "ours"


def test_private_case_compares_weights_without_noise_and_detects_missing_noise(run_fakes):
    case, _, _ = run_fakes("ours", "slow", "forgets", private=True)
    assert case.name == "logistic-dp"
    assert {run.peer: run.difference for run in case.runs if run.repetition < 0} == {"ours": 0, "slow": 0, "forgets": 0}
    assert [(run.peer, run.problem) for run in case.failed()] == [
        ("forgets", "the weights show less noise than was asked for")
    ]
    assert len(case.timed("ours")) == 1


def test_simulation_command_names_peers_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    arguments = ["--case", "logistic", "--peer", "fedjax", "--rounds", "3", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(simulation, arguments)
    assert done.exit_code == 0, done.output
    assert "fedjax: not installed: make bench-peers." in done.output
    assert (tmp_path / "out" / "table.md").read_text() in done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["cases"][0]["missing"] == {"fedjax": "not installed: make bench-peers"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rounds", "2"], "2 is not in the range 3<=x<=50"),
        (["--repetitions", "0"], "0 is not in the range"),
        (["--case", "transformer"], "'transformer' is not one of"),
        (["--peer", "jax"], "'jax' is not one of"),
    ],
)
def test_simulation_command_refuses_wrong_arguments(arguments, words):
    done = CliRunner().invoke(simulation, arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_every_workload_has_a_plain_and_a_private_case():
    assert set(CASES) == {name + suffix for name in RECIPES for suffix in ("", "-dp")}


def test_workload_file_is_reproducible_and_read_as_written(tmp_path):
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


def test_text_targets_are_the_inputs_shifted_by_one_token(tmp_path):
    RECIPES["tiny-recurrent"].write(tmp_path / "w.npz", 3)
    workload = common.load(str(tmp_path / "w.npz"))
    assert workload.is_text
    for client in workload.clients[:20]:
        assert client.x.shape == client.y.shape == (int(client.weight), 20)
        assert np.array_equal(client.x[:, 1:], client.y[:, :-1])
        assert (client.x[:, 0] == 1).all() and client.x.max() < 1024
        # Padding stands at the end of a line only, after the end mark.
        assert all((row[row.argmin() :] == 0).all() for row in client.y if (row == 0).any())


def test_paired_ratio_equals_geometric_mean_with_students_interval():
    ratio = paired_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])
    assert ratio == pytest.approx((2, 2, 2))
    # By hand: the logs are 0 and ln 4, with mean ln 2 and standard error ln 2. The 97.5 % quantile of Student's t with
    # one degree of freedom is 12.706.
    ratio = paired_ratio([1.0, 4.0], [1.0, 1.0])
    assert ratio.estimate == pytest.approx(2)
    assert ratio.high == pytest.approx(2 ** (1 + 12.7062), rel=1e-4)
    assert ratio.low == pytest.approx(2 ** (1 - 12.7062), rel=1e-4)
    assert paired_ratio([3.0], [1.0]) == pytest.approx((3, 0, np.inf))


def test_paired_ratio_interval_has_its_nominal_coverage():
    generator = np.random.default_rng(5)
    trials, hits = 1000, 0
    for _ in range(trials):
        slow = np.exp(0.3 * generator.standard_normal(5))  # a disturbance that both sides of a pair share
        theirs, ours = (slow * np.exp(0.1 * generator.standard_normal(5)) for _ in range(2))
        interval = paired_ratio((3 * theirs).tolist(), ours.tolist())
        hits += interval.low <= 3 <= interval.high
    # The tolerance is 4 standard deviations of a binomial: a correct interval fails here for one seed in 16,000.
    assert abs(hits / trials - 0.95) < 4 * np.sqrt(0.95 * 0.05 / trials)


def test_paired_time_ratio_pairs_rounds_and_skips_the_first():
    theirs, ours = [[90.0, 2.0, 20.0, 6.0]] * 2, [[1.0, 1.0, 10.0, 3.0]] * 2
    assert paired_time_ratio(theirs, ours) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    ("theirs", "ours"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0], [float("nan")]), ([-1.0], [1.0])]
)
def test_paired_ratio_refuses_missing_unequal_or_not_positive_values(theirs, ours):
    with pytest.raises(ValueError, match="value"):
        paired_ratio(theirs, ours)


def test_paired_time_ratio_refuses_unequal_numbers_of_rounds():
    with pytest.raises(ValueError, match="rounds"):
        paired_time_ratio([[1.0, 1.0]], [[1.0, 1.0, 1.0]])


def test_watch_measures_process_tree_and_leaves_no_process_behind(tmp_path):
    mark = f"of {tmp_path}"  # other test runs of this machine measure processes too
    child = f"import time; data = bytearray(80 << 20); print('made', flush=True); time.sleep(600)  # {mark}"
    parent = (
        f"import subprocess, sys, time; child = [sys.executable, '-c', {child!r}]; "
        "subprocess.Popen(child, stdout=subprocess.PIPE).stdout.readline(); time.sleep(1.5)"
    )
    command = [sys.executable, "-c", parent]
    watched = watch(command, folder=tmp_path, environment=dict(os.environ), log=tmp_path / "log", timeout=300)
    assert watched.return_code == 0
    assert watched.peak_memory > 80 << 20
    assert watched.others >= 0
    deadline = time.time() + 300
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


def test_case_table_marks_results_of_noisy_machine():
    quiet = Run("ours", 0, framework="fake", seconds=[1.0, 1.0, 1.0], memory=1, others=0.01)
    case = Case("logistic", False, examples=[5, 5, 5], runs=[quiet])
    assert "NOISY" not in table.case_table(case, [Peer("ours", "ours", None)], "ours")
    case.runs.append(dataclasses.replace(quiet, repetition=1, others=0.7))
    assert "NOISY: other processes used up to 0.70 cores" in table.case_table(
        case, [Peer("ours", "ours", None)], "ours"
    )
    assert "cores" in table.machine()


def test_overview_has_a_row_for_each_case_and_a_column_for_each_other_peer_that_ran():
    def run(peer, seconds, repetition=0):
        return Run(peer, repetition, framework="fake", seconds=[9.0, seconds, seconds], memory=1, others=0.0)

    both = Case("logistic", False, examples=[5, 5, 5], runs=[run("ours", 2.0), run("slow", 6.0)])
    alone = Case("cnn", True, examples=[5, 5, 5], runs=[run("ours", 0.5)])
    peers = [Peer(name, name, None) for name in ("slow", "ours", "absent")]
    assert table.overview([both, alone], peers, "ours").splitlines() == [
        "| case | ours, s per round | faster than slow by |",
        "|---|---|---|",
        "| logistic | 2 | 3.00 × |",
        "| cnn-dp | 0.5 | – |",
    ]


def test_difference_of_models_with_other_names_or_shapes_is_infinite():
    model = {"a": np.zeros(3), "b": np.ones(2)}
    moved = {"a": np.ones(3), "b": np.ones(2)}
    assert measure.difference(moved, moved, model) == 0
    assert measure.difference({"a": np.ones(3)}, moved, model) == np.inf
    assert measure.difference({**moved, "b": np.ones(3)}, moved, model) == np.inf
    assert measure.difference(model, model, model) == np.inf  # the reference did not move
