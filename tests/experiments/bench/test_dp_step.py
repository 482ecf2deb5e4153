"""`fedspeak bench dp-step`: the harness with fake peers, the tasks, and fedspeak's own peer."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from experiments.bench import dp_step, measure
from experiments.bench.peers import dp_common, dp_fedspeak
from tests.experiments.bench.fakes import Fake

# A script that plays every peer. Its behaviour follows from the name of the module that it is asked to run.
FAKE = f"""#!{sys.executable}
import sys
import numpy as np
from experiments.bench.peers import dp_common
from experiments.bench.peers.dp_common import LEARNING_RATE, Loop, UnsupportedError, main
name = sys.argv.pop(2).rpartition(".")[2]
sys.argv.pop(1)

class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now

dp_common.time = clock = Clock()

def build(task, noise):
    if name == "fails":
        raise RuntimeError("broken on purpose")
    if name == "cannot":
        raise UnsupportedError("no recurrence here")
    weights = [np.zeros(4), np.zeros((3, 4))]

    def run(steps):
        clock.now += steps * (1e-3 if noise is None else 4e-3 if name == "slow" else 2e-3)
        weights[0] += steps * LEARNING_RATE * (1.01 if name == "differs" else 1.0)

    return Loop(run, lambda: [value.copy() for value in weights])

print("chatter")
main("Fake " + name, "1.0", build)
"""


@pytest.fixture
def run_fakes(tmp_path, monkeypatch):
    Fake.write(tmp_path, FAKE)
    monkeypatch.setitem(dp_step.STEPS, "lstm", 20)

    def run(*names, processes=2):
        peers, notes = [Fake(name, name, None) for name in names], list[str]()
        results = dp_step.measure("lstm", peers, processes, 2, folder=tmp_path, timeout=300, note=notes.append)
        return {timings.peer: timings for timings in results}, notes

    return run


def test_measure_times_peers_in_turns_and_compares_gradients(run_fakes):
    results, notes = run_fakes("fedspeak", "slow")
    assert [note.split()[1] for note in notes] == ["fedspeak,", "slow,"] * 2
    for timings, private in ((results["fedspeak"], 2e-3), (results["slow"], 4e-3)):
        assert not timings.failed and not timings.missing and len(timings.lines) == 2
        assert timings.lines[0]["clipped"] == pytest.approx(2.0)  # four weights, each moved by the learning rate
        assert timings.seconds("private") == pytest.approx([private] * len(timings.seconds("private")))
        assert timings.seconds("plain") == pytest.approx([1e-3] * len(timings.seconds("plain")))
    text = dp_step.task_table("lstm", list(results.values()))
    row = next(line for line in text.splitlines() if line.startswith("| slow (Fake slow 1.0)"))
    assert float(row.split("|")[5].split("×")[0]) == 2.0  # 4 ms and 2 ms


def test_measure_names_failed_peers_and_continues_with_others(run_fakes):
    results, _ = run_fakes("fedspeak", "fails", "differs", "cannot", processes=1)
    assert results["fails"].failed == "exit code 1: RuntimeError: broken on purpose"
    assert (
        results["differs"].failed
        == "clipped gradients differ from those of fedspeak: their norms by 1.0e-02 (relative)"
    )
    assert results["cannot"].missing == "no recurrence here" and not results["cannot"].failed
    assert len(results["fedspeak"].lines) == 1 and not results["fedspeak"].failed
    text = dp_step.task_table("lstm", list(results.values()))
    assert "| fedspeak" in text and "cannot: no recurrence here." in text and "broken on purpose" in text


def test_dp_step_command_names_peers_that_are_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROOT", tmp_path)
    arguments = ["--task", "linear", "--peer", "opacus", "--processes", "1", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(dp_step.dp_step, arguments)
    assert done.exit_code == 0, done.output
    assert "opacus: not installed: make bench-peers." in done.output
    assert (tmp_path / "out" / "dp-step.md").read_text() in done.output
    results = json.loads((tmp_path / "out" / "dp-step.json").read_text())
    assert results["tasks"]["linear"][0]["missing"] == "not installed: make bench-peers"


def test_every_task_has_description_steps_and_documented_number_of_weights():
    assert set(dp_step.TASKS) == set(dp_step.STEPS) == set(dp_common.TASKS)
    sizes = {name: make(np.random.default_rng(0)) for name, make in dp_common.TASKS.items()}
    count = {name: sum(value.size for value in task.weights.values()) for name, task in sizes.items()}
    assert count["linear"] == 785 * 10 and count["mlp"] == 785 * 256 + 257 * 10
    assert count["lstm"] == 2000 * 64 + (64 + 128 + 1) * 512 + 129 * 2000
    assert sizes["linear"].x.shape == (234, 256, 784) and sizes["lstm"].x.shape[1:] == (64, 20)


def small():
    generator = np.random.default_rng(0)
    x, y = generator.random((3, 8, 5), np.float32), generator.integers(0, 4, (3, 8), np.int32)
    return dp_common.Task("linear", {"kernel": np.zeros((5, 4), np.float32), "bias": np.zeros(4, np.float32)}, x, y)


@pytest.mark.parametrize("engine", ["linear", "mlp"])
def test_fedspeak_peer_clips_like_hand_computed_gradients(engine):
    """The task "linear" runs `LinearDPSGD`; "mlp" runs the step of `KerasDPSGD`, here on the same model."""
    task = small()._replace(name=engine)
    line = dp_common.measure(dp_fedspeak.build, task, steps=2, repetitions=1)
    x = np.concatenate([task.x[0], np.ones((8, 1))], axis=1)
    gradients = x[:, :, np.newaxis] * (0.25 - np.eye(4)[task.y[0]])[:, np.newaxis]
    norms = np.sqrt(np.square(gradients).sum(axis=(1, 2)))
    assert norms.min() > dp_common.CLIP
    mean = (gradients * (dp_common.CLIP / norms)[:, np.newaxis, np.newaxis]).mean(axis=0)
    assert line["clipped"] == pytest.approx(np.linalg.norm(mean), rel=1e-4)
