"""Tests of the study of correlated noise: its arms, its errors, its verdicts, and the command at smoke scale."""

import json
import math

import numpy as np
import pytest

from experiments import config_file
from experiments.reproduce import dp_ftrl, dp_ftrl_errors, dp_ftrl_memory, dp_ftrl_tables
from privacy.correlated import Participation
from tests.experiments.processes import call


def test_arms_differ_in_noise_and_sampler_alone_and_have_names_of_their_own():
    base = config_file.load("production", dp_ftrl.SETTINGS)
    arms = list(dp_ftrl.build_arms(base, (2.0, 8.0), (1, 2, 3), 1000))
    assert len(arms) == 2 * 3 * 6 and len({arm.folder for arm in arms}) == len(arms)
    for arm in arms:
        assert (arm.config.privacy.epsilon, arm.config.run.fixed_key) == (arm.epsilon, arm.seed)
        assert (arm.config.clients, arm.config.server, arm.config.model) == (base.clients, base.server, base.model)
        if arm.name == dp_ftrl_tables.DPSGD:
            assert arm.config.privacy.mechanism == "gaussian"
            # The expected size of a cohort is that of the others.
            assert arm.config.cohort.sampling_probability * 1000 == pytest.approx(base.cohort.size)
        else:
            assert arm.config.cohort == base.cohort
    assert {arm.config.privacy.bands for arm in arms} == {None, 4, 16, 64}


def test_errors_are_those_of_independent_noise_and_at_least_the_lower_bound():
    rows = dp_ftrl_errors.compute_errors(dp_ftrl_errors.Setting(40, Participation(10, 4)))
    by_name = {row["mechanism"]: row for row in rows}
    # Standard deviation sqrt(4) in each round; a prefix sum of t rounds has variance 4 t.
    assert by_name["independent noise"]["error"] == pytest.approx(math.sqrt(4 * 41 / 2))
    assert all(row["over_least"] >= 1 and row["is_exact"] for row in rows)
    assert by_name["BLT"]["error"] < by_name["tree"]["error"] < by_name["independent noise"]["error"]


@pytest.mark.parametrize(
    ("low", "high", "may_be_equal", "verdict"),
    [
        (-0.2, -0.1, False, "holds"),
        (-0.1, 0.1, False, "undecided"),
        (0.1, 0.2, False, "fails"),
        (-0.1, 0.1, True, "holds (no difference seen)"),
        (0.1, 0.2, True, "fails"),
    ],
)
def test_verdict_follows_from_the_interval_of_the_difference(low, high, may_be_equal, verdict):
    assert dp_ftrl_tables.judge({"estimate": (low + high) / 2, "low": low, "high": high}, may_be_equal) == verdict


def test_planted_losses_are_summarised_with_the_orders_that_hold_and_fail():
    tokens, public = np.full(50, 10), np.full(50, 40.0)
    level = {"BLT": 30.0, "tree": 35.0, dp_ftrl_tables.DPSGD: 32.0}
    losses = {
        (name, epsilon, seed): np.full(50, value + 0.1 * seed)
        for name, value in level.items()
        for epsilon in (2.0, 8.0)
        for seed in (1, 2)
    }
    found = dp_ftrl.summarize(losses, public, tokens, (2.0, 8.0), (1, 2))
    blt = next(arm for arm in found["arms"] if arm["name"] == "BLT")
    assert blt["nats"]["estimate"] == pytest.approx(3.015) and blt["by_seed"] == pytest.approx([3.01, 3.02])
    assert blt["over_public"]["estimate"] == pytest.approx(-0.985)
    assert [order["verdict"] for order in found["orders"]] == ["holds", "holds", "holds", "holds"]
    worse = {key: value + (10 if key[0] == "BLT" else 0) for key, value in losses.items()}
    verdicts = [o["verdict"] for o in dp_ftrl.summarize(worse, public, tokens, (2.0, 8.0), (1, 2))["orders"]]
    assert verdicts == ["fails", "fails", "holds", "fails"]


def test_wrong_epsilons_are_refused_in_one_line(tmp_path):
    for value in ("2;8", "0", "nan"):
        code, _, err = call("reproduce", "dp-ftrl", "--epsilons", value, folder=tmp_path)
        assert code == 2 and value in err


@pytest.mark.slow
def test_memory_of_rounds_is_measured_in_a_process_of_its_own(tmp_path):
    peak = dp_ftrl_memory.measure_memory("BLT", 1000, tmp_path / "log")
    assert peak is not None and peak > 1e8, (tmp_path / "log").read_text()  # TensorFlow alone takes more
    assert dp_ftrl_memory.measure_memory("no such mechanism", 1000, tmp_path / "log") is None


@pytest.mark.slow
def test_command_trains_all_arms_and_continues_where_it_stopped(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dp_ftrl_memory, "measure_memory", lambda *_: None)
    public = json.dumps([str(folder / "public.txt")])
    settings = ["data.source=jsonl", f"data.path={folder}/users.jsonl", f"data.public={public}", "data.test=0.2"]
    settings += ["vocabulary.size=300", "model.embedding=4", "model.units=6", "pretraining.epochs=1", "run.rounds=2"]
    settings += ["cohort.size=5", "run.clients_at_once=2", "clients.sequence_length=8"]
    options = [part for each in settings for part in ("--set", each)]
    arguments = [*"reproduce dp-ftrl".split(), "--epsilons", "8", "--seeds", "1", "--weights", "1000", *options]
    for _ in range(2):
        code, _, err = call(*arguments, "--output", "out", folder=tmp_path)
        assert code == 0, err
    assert "run 1 of 6" not in err  # the second time, all runs are there
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    banded = {f"banded, {bands} bands" for bands in (4, 16, 64)}
    assert {arm["name"] for arm in content["arms"]} == {dp_ftrl_tables.DPSGD, "tree", "BLT", *banded}
    assert (tmp_path / "out/table.md").read_text() == dp_ftrl.format_study(content)
    assert (tmp_path / "out/plot.png").exists()
