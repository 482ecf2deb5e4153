"""Best-of-n on texts of a model: the numbers from a pool of texts are those of the exact distribution."""

import json

import numpy as np
import pytest

from experiments.reproduce import best_of_n_models
from experiments.runs import RunFolder
from models.alignment import Outcomes, tilt_to_kl
from models.alignment import best_of_n as theory
from models.alignment.policy import kl_bound
from models.alignment.rewards import Sample
from tests.experiments.processes import call
from tests.experiments.reproduce import small_drafters


def draw_pool(probabilities, rewards, count, seed=0):
    """Returns texts of one token with known probabilities, and their rewards."""
    drawn = np.random.default_rng(seed).choice(len(probabilities), count, p=probabilities)
    pool = [Sample("", str(i), [1], [int(i)], float(np.log(probabilities[i])), -1.0) for i in drawn]
    return pool, np.asarray(rewards, float)[drawn]


@pytest.mark.parametrize("n", [2, 16])
@pytest.mark.parametrize("ties", [False, True])
def test_kl_from_a_pool_is_the_exact_one(n, ties):
    """From 4,000 texts with a fixed seed, up to 0.05 nats; D̂ of groups is not below it, and not above the formula."""
    generator = np.random.default_rng(7)
    probabilities = generator.dirichlet(np.full(300, 0.3))
    rewards = generator.integers(0, 40, 300) if ties else generator.permutation(300)
    exact = theory.kl(Outcomes(probabilities, rewards.astype(float)), n)
    pool, drawn = draw_pool(probabilities, rewards, 4_000)
    found = best_of_n_models._compare(pool, drawn, n)
    assert found["kl"]["estimate"] == pytest.approx(exact, abs=0.05)
    assert found["kl"]["low"] - 0.01 < exact < found["kl"]["high"] + 0.01
    assert found["kl"]["high"] - found["kl"]["low"] < 0.2
    if not ties:  # with ties, a group of n texts does not show the whole level, and D̂ is too large
        assert found["estimate"]["low"] - 1e-3 <= theory.expected_estimate(Outcomes(probabilities, rewards), n)[0]
    assert exact - 0.05 < found["estimate"]["estimate"] <= found["formula"]


@pytest.mark.parametrize("size", [256, 1024, 4096])
@pytest.mark.parametrize("n", [4, 64])
def test_kl_of_distinct_rewards_is_the_formula_and_certain(size, n):
    found = best_of_n_models.pool_kl(np.random.default_rng(0).permutation(size) / 7, n)
    assert found["low"] == found["estimate"] == found["high"]
    assert found["estimate"] == pytest.approx(kl_bound(n) - ((n - 1) / size) ** 2 / 24, abs=2e-4)


def test_interval_from_a_pool_covers_the_kl_of_lengths():
    """Of 60 pools at least 50 cover; fewer have a probability below 1e-3 at 95 %. It is not wider than it must be."""
    generator = np.random.default_rng(1)
    p = np.append(np.linspace(0.015, 0.06, 10), np.full(14, 0.02))
    p, lengths = p / p.sum(), np.arange(1.0, 25.0)
    exact = theory.kl(Outcomes(p, -lengths), 64)
    found = [best_of_n_models.pool_kl(-generator.choice(lengths, 1024, p=p), 64) for _ in range(60)]
    assert sum(row["low"] <= exact <= row["high"] for row in found) >= 50
    widths, spread = [row["high"] - row["low"] for row in found], np.std([row["estimate"] for row in found])
    assert np.mean(widths) == pytest.approx(2 * 1.96 * spread, rel=0.3)


def test_jackknife_of_tied_rewards_is_that_over_all_pools_without_one_text():
    rewards, n = np.array([0.0, 1.0, 1.0, 2.0, 2.0, 2.0, 5.0]), 3
    without = np.array([theory.kl(Outcomes(np.full(6, 1 / 6), np.delete(rewards, i)), n) for i in range(7)])
    half = 1.959964 * np.sqrt(6 / 7 * np.sum((without - np.mean(without)) ** 2))
    found = best_of_n_models.pool_kl(rewards, n)
    assert found["estimate"] == pytest.approx(theory.kl(Outcomes(np.full(7, 1 / 7), rewards), n))
    assert found["low"] == pytest.approx(max(0.0, found["estimate"] - half))
    assert found["high"] == pytest.approx(min(kl_bound(n), found["estimate"] + half))


def test_estimate_reads_the_selected_text_of_each_group_and_no_text_twice():
    """70 texts, the likely ones with low rewards: 4 groups of 16 and a rest, each with a best text of its own."""
    logs = -np.arange(1.0, 71.0)
    pool = [Sample("", "", [1], [i], float(logs[i]), -1.0) for i in range(70)]
    rewards = np.arange(70.0) % 16
    found = best_of_n_models._compare(pool, rewards, 16)
    assert found["estimate"]["estimate"] == pytest.approx(theory.kl_estimator(logs[15:64:16], 16).mean())
    assert found["estimate"]["low"] is None
    assert (
        "| 1.835 |"
        in best_of_n_models.format_rows(
            [
                {
                    "samples": 70,
                    "model": "m",
                    "prompt": "p",
                    "reward": "r",
                    "distinct": 70,
                    "numbers": [found | {"reward": 1.0}],
                }
            ]
        )[-1]
    )


def test_curves_end_at_the_pools_own_rewards():
    pool, rewards = draw_pool(np.full(50, 0.02), np.arange(50), 512)
    found = best_of_n_models.measure_pool(pool, rewards)
    curves = found["curves"]
    assert curves["tilt"][0] == [0.0, pytest.approx(rewards.mean())]
    assert [row["n"] for row in found["numbers"]] == list(best_of_n_models.NUMBERS)
    by_reward = [row["reward"] for row in found["numbers"]]
    assert by_reward == sorted(by_reward) and by_reward[-1] <= rewards.max()
    # At one KL no policy has more reward than the tilt.
    empirical = Outcomes(np.full(512, 1 / 512), rewards)
    for kl, reward in curves["soft best-of-64"]:
        assert reward <= tilt_to_kl(empirical, kl).reward + 1e-6


@pytest.mark.slow
def test_study_with_a_model_writes_its_table_and_plot(tmp_path):
    small_drafters.write(tmp_path / "models")
    options = (
        "--model",
        "models/transformer",
        "--samples",
        "64",
        "--new-tokens",
        "4",
        "--draws",
        "32",
        "--output",
        "s",
    )
    code, out, err = call("reproduce", "best-of-n", *options, folder=tmp_path)
    assert code == 0, err
    rows = json.loads((tmp_path / "s" / "metrics.json").read_text())["models"]
    assert [row["reward"] for row in rows] == [*best_of_n_models.REWARDS] * 2
    assert (tmp_path / "s" / "models.png").is_file()
    assert "| transformer | My lord, | brevity | " in out


def test_model_that_is_not_there_is_refused_in_one_line(tmp_path):
    code, out, err = call("reproduce", "best-of-n", "--model", "nowhere", folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "nowhere" in err
    assert RunFolder(tmp_path / "nowhere").path.exists() is False
