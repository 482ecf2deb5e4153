"""Best-of-n on texts of a model: the numbers from a pool of texts are those of the exact distribution."""

import json

import numpy as np
import pytest

from experiments.reproduce import best_of_n_models
from experiments.runs import RunFolder
from models.alignment import Outcomes, tilt_to_kl
from models.alignment import best_of_n as theory
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
    """From 40,000 texts with a fixed seed, up to 0.02 nats; D̂ of groups is not below it, and not above the formula."""
    generator = np.random.default_rng(7)
    probabilities = generator.dirichlet(np.full(300, 0.3))
    rewards = generator.integers(0, 40, 300) if ties else generator.permutation(300)
    exact = theory.kl(Outcomes(probabilities, rewards.astype(float)), n)
    pool, drawn = draw_pool(probabilities, rewards, 40_000)
    found = best_of_n_models._compare(pool, drawn, n)
    assert found["kl"]["estimate"] == pytest.approx(exact, abs=0.02)
    assert found["kl"]["low"] - 0.01 < exact < found["kl"]["high"] + 0.01
    if not ties:  # with ties, a group of n texts does not show the whole level, and D̂ is too large
        assert found["estimate"]["low"] <= theory.expected_estimate(Outcomes(probabilities, rewards), n)[0]
    assert exact - 0.02 < found["estimate"]["estimate"] <= found["formula"]


def test_density_of_rare_texts_is_that_of_the_continuous_limit():
    pool = [Sample("", "", [1], [i, i // 2], -60.0, -60.0) for i in range(1001)]
    density = best_of_n_models.density(pool, np.arange(1001.0), 8)
    np.testing.assert_allclose(density, 8 * np.linspace(0, 1, 1001) ** 7)


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
        "10",
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
