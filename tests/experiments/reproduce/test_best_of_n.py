"""The study of best-of-n prints the values of the specification; its draws are those of best-of-n."""

import json
import sys

import numpy as np
import pytest

from experiments.reproduce import best_of_n_theory
from models.alignment.policy import kl_bound
from models.alignment.quantile_tilt import rejection_win_rate
from tests.experiments.processes import call

COMMAND = "reproduce", "best-of-n"  # "reproduce best-of-n"
# n: KL, log n - (n - 1)/n, mean of the estimate, by number of equally likely outcomes.
UNIFORM = {
    10: {
        10: "1.361097 1.402585 1.378887",
        100: "2.302279 3.615170 2.302316",
        1000: "2.302585 5.908755 2.302585",
    },
    100: {
        10: "1.402163 1.402585 1.402553",
        100: "3.574476 3.615170 3.589667",
        1000: "4.604693 5.908755 4.604750",
        10_000: "4.605170 8.210440",
    },
    1000: {
        10: "1.402581 1.402585 1.402585",
        100: "3.614754 3.615170 3.615131",
        1000: "5.868100 5.908755 5.883078",
        10_000: "6.907258 8.210440 6.907317",
        100_000: "6.907755 10.512935",
    },
    10_000: {
        10: "1.402585 1.402585 1.402585",
        100: "3.615166 3.615170 3.615170",
        1000: "5.908339 5.908755 5.908716",
        10_000: "8.169788 8.210440 8.184745",
        100_000: "9.209841 10.512935 9.209900",
    },
}
RARE = {
    2: "0.003882 0.193147 0.013288",
    10: "0.135360 1.402585 0.144561",
    100: "2.279945 3.615170 2.292871",
    1000: "4.728488 5.908755 4.728665",
    10_000: "6.858470 8.210440 6.867959",
    100_000: "9.209632 10.512935 9.209691",
}
PAIR = {
    2: "0.130812 0.193147",
    4: "0.459356 0.636294",
    8: "0.667588 1.204442",
    16: "0.692963 1.835089",
}
WIN_RATES = {  # win rate, KL of best-of-n, of the optimum, of rejection
    2: (0.66667, 0.19315, 0.17265, 0.40547),
    4: (0.8, 0.63629, 0.61688, 0.91629),
    16: (0.94118, 1.83509, 1.83321, 2.14007),
    64: (0.98462, 3.17451, 3.17439, 3.48124),
    1000: (0.999, 5.90876, 5.90875, 6.21561),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Runs the study where TensorFlow cannot be imported, and returns its folder and the sections of its table."""
    folder = tmp_path_factory.mktemp("best-of-n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow", None)
        code, out, err = call(*COMMAND, "--output", "study", folder=folder)
    assert code == 0, err
    return folder / "study", out


def rows(text, title):
    """Returns the cells of the table under a title, without its header."""
    section = text.partition(f"### {title}")[2].partition("###")[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]


def assert_kls(cells, expected):
    """Compares n, KL and, where the specification has them, formula and mean of the estimate, as they are printed."""
    by_count = {int(n): (kl, formula, estimate) for n, kl, _, _, estimate, formula in cells}
    for n, values in expected.items():
        assert by_count[n][: len(values.split())] == tuple(values.split())


@pytest.mark.parametrize("size", UNIFORM)
def test_equally_likely_outcomes_have_the_values_of_the_specification(study, size):
    assert_kls([row[1:] for row in rows(study[1], "Equally likely") if row[0] == str(size)], UNIFORM[size])


def test_rare_outcomes_and_a_pair_have_the_values_of_the_specification(study):
    assert_kls(rows(study[1], "Rare good outcomes"), RARE)
    assert_kls(rows(study[1], "Two outcomes"), PAIR)


def test_bounds_hold_in_every_row(study):
    for title in ("Equally likely", "Rare good outcomes", "Two outcomes"):
        for row in rows(study[1], title):
            kl, least, most, estimate, formula = map(float, row[-5:])
            assert least <= kl <= most <= formula and kl <= estimate <= formula


def test_win_rates_have_the_kls_of_the_specification(study):
    found = {int(row[0]): tuple(map(float, row[1:])) for row in rows(study[1], "KL for a win rate")}
    assert {n: found[n] for n in WIN_RATES} == WIN_RATES
    for n in (2, 1000):
        row = best_of_n_theory.compare_win_rate(n)
        assert rejection_win_rate(row["rejection"]) == pytest.approx(row["win_rate"], rel=1e-12)


def test_study_writes_table_results_and_plot(study):
    folder, out = study
    assert (folder / "table.md").read_text().strip() == out.strip()
    results = json.loads((folder / "metrics.json").read_text())
    assert results["seed"] == 0 and results["command"].startswith("fedspeak") and "numpy" in results["versions"]
    assert results["spread"][0]["draws"] == 4000
    assert (folder / "plot.png").stat().st_size > 1000 and (folder / "plot.svg").exists()


@pytest.mark.parametrize(
    ("n", "mean", "deviation", "kl"),
    [(4, 0.63418, 0.0019, 0.62805), (32, 2.0216, 0.207, 2.0137), (256, 3.8388, 1.107, 3.8237)],
)
def test_draws_of_best_of_n_spread_as_the_specification_says(study, n, mean, deviation, kl):
    """A mean of 4000 draws is further than 5 standard errors from its expectation with a probability below 1e-6."""
    results = json.loads((study[0] / "metrics.json").read_text())
    row = next(row for row in results["spread"] if row["n"] == n)
    # In the digits of the specification.
    digits = (5, 4, 5) if n == 4 else (4, 3, 4)
    found = row["estimate"], row["deviation"], row["kl"]
    assert np.all(np.abs(np.subtract(found, (mean, deviation, kl))) <= 0.51 * 10.0 ** -np.array(digits))
    drawn = row["drawn"]
    error = deviation / np.sqrt(4000)
    assert abs(drawn["estimate"] - mean) < 5 * error + 1e-5
    # The interval has a half width of 1.96 errors; that of the sample is off by its sampling error.
    assert (drawn["high"] - drawn["low"]) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_draws_take_the_best_of_n():
    """Of outcomes of which one draw in two finds the best, 16 draws nearly always do: D̂ is that of ε = 1/2."""
    row = best_of_n_theory.measure_spread(best_of_n_theory.uniform(2), 16, 50, 3)
    assert row["drawn"]["estimate"] == pytest.approx(0.692991, abs=1e-6) and row["formula"] == kl_bound(16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--draws", "31"), "'--draws': 31 is not in the range 32<=x<=1000000"),
        (("--seed", "-1"), "'--seed': -1 is not in the range"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, options, message):
    code, out, err = call(*COMMAND, *options, folder=tmp_path)
    assert code == 2 and not out and message in err and err.count("\n") == 1
