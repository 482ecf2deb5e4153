"""The study of long texts prints the values of the specification; probabilities of high rewards are those of SciPy."""

import contextlib
import json
import math
import sys

import numpy as np
import pytest
from scipy.stats import binom

from experiments.reproduce import alignment
from models.alignment import Outcomes, tilt_to_kl
from tests.experiments.processes import call

COMMAND = "reproduce", "alignment"  # "reproduce alignment"
# m, N, reward, KL, log N - (N - 1)/N, KL from the optimal policy, the same per token.
ROWS = [
    "| 1 | 1.49 | 1.07492 | 0.04446 | 0.07032 | 0.1761 | 0.17608 |",
    "| 5 | 7.39 | 1.49367 | 0.22346 | 0.22707 | 0.4191 | 0.08382 |",
    "| 10 | 54.6 | 1.64495 | 0.29959 | 0.30183 | 0.6195 | 0.06195 |",
    "| 20 | 2981 | 1.74731 | 0.34867 | 0.35002 | 0.8947 | 0.04473 |",
    "| 50 | 4.9e8 | 1.82344 | 0.37939 | 0.38000 | 1.3064 | 0.02613 |",
    "| 100 | 2.4e17 | 1.85444 | 0.38968 | 0.39000 | 1.6341 | 0.01634 |",
    "| 200 | 5.5e34 | 1.87242 | 0.39483 | 0.39500 | 1.9693 | 0.00985 |",
    "| 400 | 3.1e69 | 1.88270 | 0.39742 | 0.39750 | 2.3090 | 0.00577 |",
    "| ∞ | | 1.89560 | 0.40000 | 0.40000 | ½ log m + O(1) | 0 |",
]
TAILS = {"50": 0.14668, "100": 0.12980, "200": 0.11985, "400": 0.11407, "800": 0.11076, "∞": 0.1065995}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Runs the study where TensorFlow cannot be imported, and returns its folder and what it printed."""
    folder = tmp_path_factory.mktemp("alignment")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", None)
        code, out, err = call(*COMMAND, "--output", "study", folder=folder)
    assert code == 0, err
    return folder / "study", out


def test_study_prints_the_table_of_the_specification(study):
    lines = study[1].splitlines()
    assert [line for line in lines if line in ROWS] == ROWS
    first = lines.index(ROWS[0])
    assert lines[first : first + len(ROWS)] == ROWS


def test_study_prints_the_optimal_policy_of_the_specification(study):
    assert "λ = 0.6477776544" in study[1] and "mean reward is 1.8955993377" in study[1] and "1.54373957" in study[1]
    for tilted in ("0.21847710", "0.25054367", "0.23943063", "0.29154860"):
        assert f" {tilted} |" in study[1]


def test_rates_of_a_high_mean_reward_are_those_of_the_specification(study):
    tail = study[1].partition("mean reward of 2.6 or more")[2]
    found = dict(line.strip("| ").split(" | ") for line in tail.splitlines() if line.startswith("| "))
    assert {name: float(value) for name, value in found.items() if name != "m"} == TAILS


def test_study_writes_table_results_and_plot(study):
    folder, out = study
    assert (folder / "table.md").read_text().strip() == out.strip()
    results = json.loads((folder / "metrics.json").read_text())
    assert results["command"].startswith("fedspeak") and "numpy" in results["versions"]
    limits = results["curve"]["limits"]
    for row in results["curve"]["rows"]:
        assert all(rate >= limit - 1e-9 for rate, limit in zip(row["rates"], limits, strict=True))  # Chernoff's bound
    assert (folder / "plot.png").stat().st_size > 1000 and (folder / "plot.svg").exists()


def test_rates_are_binomial_tails():
    coin, means = Outcomes([0.7, 0.3], [0, 1]), [0.0, 0.3, 0.55, 1.0]
    found = alignment.rates(coin, 20, means)
    expected = [-math.log(binom.sf(math.ceil(20 * mean) - 1, 20, 0.3)) / 20 for mean in means]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def test_rates_count_texts_with_exactly_the_mean_reward():
    coin = Outcomes([0.5, 0.5], [0, 1])
    for tokens in (10, 100, 800):  # 0.7 is no float; 0.7 m is an integer
        assert alignment.rates(coin, tokens, [0.7])[0] == pytest.approx(
            -binom.logsf(7 * tokens // 10 - 1, tokens, 0.5) / tokens, rel=1e-9
        )


def test_outcomes_of_the_user_have_their_own_limit():
    results = alignment.measure(Outcomes([0.25, 0.75], [10, -5]), 0.9)
    q = results["optimal"]["distribution"][0]
    assert q * math.log(q / 0.25) + (1 - q) * math.log((1 - q) / 0.75) == pytest.approx(0.9)
    assert results["optimal"]["reward"] == pytest.approx(15 * q - 5)
    tail = results["tail"]
    assert tail["mean_reward"] == pytest.approx((15 * q - 5 + 10) / 2)
    assert "| ∞ | | " in alignment.format_table(results)


def test_default_tail_reward_is_within_the_range_of_rewards():
    """All rewards are below 2.6 here, or the optimal policy's mean is above it."""
    for rewards in ([0, 1], [3, 9]):
        outcomes, found = Outcomes([0.9, 0.1], rewards), None
        with contextlib.suppress(ValueError):
            found = alignment.measure(outcomes, 0.5)["tail"]["mean_reward"]
        assert found == pytest.approx((tilt_to_kl(outcomes, 0.5).reward + rewards[1]) / 2)


@pytest.mark.parametrize(
    ("log_n", "text"), [(0.4, "1.49"), (math.log(2981.4), "2981"), (1196.0, "2.6e519"), (math.log(99_999.9), "100000")]
)
def test_number_of_samples_is_short_beyond_the_range_of_floats(log_n, text):
    assert alignment._count(log_n) == text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--probabilities", "0.5,0.6"), "--probabilities sums to 1.1: must sum to 1"),
        (("--probabilities", "1.5,-0.5"), "--probabilities[1] = -0.5: must be a probability"),
        (("--probabilities", "0.5;0.5"), "--probabilities '0.5;0.5': must be numbers with commas"),
        (("--rewards", "0,1"), "--rewards has shape [2]: must have shape [4]"),
        (("--rewards", "0,1,nan,2"), "--rewards[2] = nan: must be a finite number"),
        (("--rewards", "0,1,2,2.5"), "--rewards '0,1,2,2.5': must be integers"),
        (("--rewards", "1,1,1,1"), "--rewards '1,1,1,1': highest and lowest differ by 0"),
        (("--rewards", "0,1,2,5000"), "differ by 5000 among outcomes with a probability: must be from 1 to 1000"),
        (("--kl", "0"), "--kl = 0.0: must be above 0 and below 2.99573"),
        (("--kl", "nan"), "--kl = nan: must be above 0"),
        (("--kl", "3"), "--kl = 3.0: must be above 0 and below 2.99573"),
        (("--tail-reward", "1.8"), "--tail-reward = 1.8: must be above 1.8956"),
        (("--tail-reward", "4.5"), "and at most 4"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, options, message):
    code, out, err = call(*COMMAND, *options, folder=tmp_path)
    assert code == 2 and not out and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
