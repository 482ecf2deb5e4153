"""The study of alignment for best-of-N has the values of the specification, and its checks can find a better policy."""

import json
import sys

import numpy as np
import pytest

from experiments.reproduce import inference_time as study
from models.alignment import Outcomes
from models.alignment.outcomes import kl_divergence
from tests.experiments.processes import call
from tests.oracles.selection import enumerate_best

COMMAND = "reproduce", "inference-time"  # "reproduce inference-time"
QUANTILES = Outcomes(np.full(400, 1 / 400), np.arange(400))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs the study on 400 quantiles where TensorFlow cannot be imported. Returns rows by (β, N), and the table."""
    folder = tmp_path_factory.mktemp("inference-time")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", None)
        patch.setattr(study, "_QUANTILES", 400)
        patch.setattr(study, "_PERTURBATIONS", 200)
        options = ("--beta", "0.1", "--beta", "0.3", "--beta", "1", "--output", "study")
        code, out, err = call(*COMMAND, *options, folder=folder)
    assert code == 0, err
    found = json.loads((folder / "study" / "metrics.json").read_text())
    assert found["command"].startswith("fedspeak") and "numpy" in found["versions"] and found["seed"] == 0
    assert (folder / "study" / "table.md").read_text().strip() == out.strip()
    assert (folder / "study" / "plot.png").stat().st_size > 1000 and (folder / "study" / "plot.svg").exists()
    return {(row["beta"], row["n"]): row for row in found["rows"]}, out


def test_four_samples_at_the_price_of_the_specification(results):
    row = results[0][0.3, 4]
    assert row["optimum"] == pytest.approx(0.729, abs=5e-4)
    assert row["tilt"] == pytest.approx(0.658, abs=5e-4)
    assert "| 0.3 | 4 | 0.657" in results[1] or "| 0.3 | 4 | 0.658" in results[1]


def test_optimum_is_above_the_best_tilt_and_that_above_the_usual_one(results):
    for row in results[0].values():
        assert row["usual"] <= row["tilt"] + 1e-9 and row["tilt"] <= row["optimum"] + 1e-9
        assert row["n"] == 1 or row["optimum"] > row["tilt"] + 0.005


def test_for_one_sample_all_are_the_usual_alignment(results):
    for (beta, n), row in results[0].items():
        if n == 1:
            assert row["usual"] == pytest.approx(row["optimum"], abs=1e-9)
            assert row["tilt"] == pytest.approx(row["optimum"], abs=1e-9)
            assert row["strength"] == pytest.approx(1 / beta, rel=1e-3)


def test_no_perturbation_improves_the_optimum(results):
    """The optimum is within 1e-10 of the maximum."""
    assert all(-0.1 < row["largest_gain"] <= 1e-10 for row in results[0].values())


def test_perturbations_improve_a_policy_that_is_not_optimal():
    strength, value = study.best_tilt(QUANTILES, 4, 0.3)
    tilt = np.exp(strength * np.arange(400) / 400)
    others = study.perturb(tilt / tilt.sum(), 200, np.random.default_rng(0))
    assert study.objective(others, QUANTILES, 4, 0.3).max() > value + 1e-5


def test_densities_have_mass_one_and_put_more_on_the_best(results):
    for row in results[0].values():
        assert np.mean(row["density"]) == pytest.approx(1)
        assert np.all(np.diff(row["density"]) >= -1e-12)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_objective_is_that_of_all_draws(n):
    p, q, rewards = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.3, 0.6]), [0, 1, 2]
    pairs = np.outer(enumerate_best(q, rewards, n), enumerate_best(p, rewards, n))
    won = np.tril(pairs, -1).sum() + np.trace(pairs) / 2
    found = study.objective(np.array([q, p]), Outcomes(p, rewards), n, 0.3)
    np.testing.assert_allclose(found, [won - 0.3 * kl_divergence(q, p), 0.5], atol=1e-14)


@pytest.mark.parametrize(("n", "beta"), [(1, 10.0), (4, 0.3), (16, 0.05), (16, 10.0)])
def test_best_tilt_is_the_best_of_a_fine_grid(n, beta):
    strengths = np.geomspace(1e-3, 1e3, 2000)
    weights = np.exp(strengths[:, np.newaxis] * (np.arange(400) / 400 - 1))
    values = study.objective(weights / weights.sum(1, keepdims=True), QUANTILES, n, beta)
    strength, value = study.best_tilt(QUANTILES, n, beta)
    assert value >= values.max() - 1e-12 and value == pytest.approx(values.max(), abs=1e-5)
    assert strength == pytest.approx(strengths[values.argmax()], rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--beta", "0"), "--beta = 0.0: must be from 0.05 to 10"),
        (("--beta", "nan"), "--beta = nan: must be from 0.05 to 10"),
        (("--seed", "-1"), "'--seed': -1 is not in the range"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, options, message):
    code, out, err = call(*COMMAND, *options, folder=tmp_path)
    assert code == 2 and not out and message in err and err.count("\n") == 1
