"""Tests of `fedspeak privacy`: its results, the input that it refuses, and the work that it does."""

import functools
import json
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from experiments.commands.privacy import privacy
from experiments.commands.runs import report
from privacy import Budget, Releases, dp_mean
from privacy.accounting import composition, loss_grid

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")
STACK_OVERFLOW = ["--population", "342477", "--cohort-size", "100", "--delta", "1e-6"]


def call(*arguments):
    done = CliRunner().invoke(privacy, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def facts(*arguments):
    return json.loads(call(*arguments, "--json"))


def test_epsilon_prints_both_bounds_and_every_assumption():
    text = call(
        "epsilon",
        "--population",
        1000,
        "--cohort-size",
        50,
        "--rounds",
        200,
        "--noise-multiplier",
        2.0,
        "--delta",
        1e-5,
    )
    for words in (
        "1.561",
        "1.722",
        "by PLD",
        "by RDP",
        "given",
        "one client of 1,000",
        "add-or-remove-one",
        "Poisson",
        "not hardened",
    ):
        assert words in text
    assert "200 of 200 rounds per client" in text


def test_epsilon_noise_and_rounds_follow_from_one_another():
    forward = facts("epsilon", *STACK_OVERFLOW, "--rounds", 1600, "--noise-multiplier", 0.5)
    assert forward["epsilon"] == pytest.approx(2.630036, abs=2e-4)
    noise = facts("noise", *STACK_OVERFLOW, "--rounds", 1600, "--epsilon", forward["epsilon"])
    assert noise["plan"]["noise_multiplier"] == pytest.approx(0.5, rel=1e-3)
    rounds = facts("rounds", *STACK_OVERFLOW, "--noise-multiplier", 0.5, "--epsilon", forward["epsilon"])
    assert rounds["plan"]["rounds"] == pytest.approx(1600, abs=1)


def test_rounds_returns_the_last_number_whose_epsilon_as_shown_fits():
    setting = ["--population", 100_000_000, "--sampling-probability", 1e-5, "--noise-multiplier", 0.2]
    longest = facts("rounds", *setting, "--epsilon", 75)
    assert longest["epsilon"] <= 75
    rounds = longest["plan"]["rounds"]
    beyond = facts("epsilon", *setting, "--rounds", rounds + 1)
    assert beyond["epsilon"] > 75 and beyond["accountant"] == "RDP" and beyond["epsilon"] == beyond["epsilon_rdp"]
    text = call("epsilon", *setting, "--rounds", rounds + 1)
    assert "(another upper bound)" in text.split("by PLD")[1].splitlines()[0]
    assert "(stated), order 1.4" in text.split("by RDP")[1].splitlines()[0]


@pytest.mark.parametrize(
    ("noise", "rate", "rounds", "line"),
    [
        (1e-6, 1e-12, 1, None),
        (3e-3, 1e-3, 1000, None),
        (0.06, 1e-9, 1, None),
        (0.2, 0.9, 1_000_000, None),
        (1e8, 1e-6, 1000, None),
        (1e12, 1e-3, 1, "--noise-multiplier must lie in"),
        (1.0, 1e-3, 10**9, "--rounds must be at most 1,000,000"),
    ],
)
def test_any_noise_rate_and_rounds_give_a_value_or_one_line(noise, rate, rounds, line):
    arguments = [
        "epsilon",
        "--population",
        "1000000",
        "--noise-multiplier",
        noise,
        "--sampling-probability",
        rate,
        "--rounds",
        rounds,
    ]
    if line is None:
        assert facts(*arguments)["accountant"] in ("PLD", "RDP")
    else:
        with pytest.raises(ValueError, match=line) as error:
            call(*arguments)
        assert "\n" not in str(error.value)


def test_each_sampler_has_its_neighbouring_relation():
    fixed = facts("epsilon", *STACK_OVERFLOW, "--rounds", 1600, "--noise-multiplier", 4, "--sampler", "fixed-size")
    assert (fixed["plan"]["relation"], fixed["epsilon_pld"]) == ("replace-one", None)
    assert fixed["epsilon"] == pytest.approx(0.144934, abs=1e-6)
    cyclic = facts(
        "epsilon", "--population", 342_477, "--delta", 1e-6, "--cohorts", 400, "--rounds", 1600,
        "--noise-multiplier", 4,
        "--sampler", "cyclic",
    )  # fmt: skip
    assert (cyclic["plan"]["relation"], cyclic["max_participations"]) == ("zero-out", 4)
    assert cyclic["epsilon"] == pytest.approx(2.254085, abs=1e-6)


def test_exact_gaussian_curve_is_not_called_pld():
    setting = ["--population", 1000, "--rounds", 8, "--noise-multiplier", 4]
    for sampler, label in (
        (["--cohorts", 4, "--sampler", "cyclic"], "by exact curve"),
        (["--sampling-probability", 1], "by exact curve"),
        (["--sampling-probability", 0.5], "by PLD"),
        (["--cohort-size", 500, "--sampler", "fixed-size"], "by PLD          not available"),
    ):
        text = call("epsilon", *setting, *sampler)
        assert label in text and ("by PLD" in text) != ("by exact curve" in text)


def test_epsilon_without_noise_says_not_private():
    assert "NOT PRIVATE" in call(
        "epsilon", "--population", 100, "--sampling-probability", 0.1, "--rounds", 5, "--noise-multiplier", 0
    )


def test_epsilon_with_adaptive_clipping_shows_how_noise_is_split():
    text = call("epsilon", *STACK_OVERFLOW, "--rounds", 10, "--noise-multiplier", 4, "--clip-count-stddev", 5)
    assert "4.36436 on the update, 5 on the clip's count" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise-multiplier", "nan"], "--noise-multiplier must be a finite number of at least 0, got nan"),
        (["--noise-multiplier", "-1"], "--noise-multiplier must be"),
        (["--rounds", "0"], "--rounds must be an integer of at least 1, got 0"),
        (["--delta", "1"], "--delta must lie in"),
        (["--cohort-size", "200"], "--cohort-size 200 is larger than --population 100"),
        (["--cohort-size", "nan"], "--cohort-size must be a finite number above 0"),
        (
            ["--cohort-size", "1e-320"],
            "--cohort-size 1e-320 is too small: the sampling probability must be at least 2e-308",
        ),
        (["--cohort-size", "1e-320", "--sampler", "cyclic"], "--cohort-size 1e-320 is below 1: a cyclic cohort has"),
        (["--cohort-size", "1e-320", "--sampler", "fixed-size"], "is not an integer"),
        (
            ["--sampling-probability", "0.1"],
            "--cohort-size and --sampling-probability given: poisson takes exactly one of",
        ),
        (["--cohorts", "5"], "--cohort-size and --cohorts given"),
        (["--population", "1"], "--population must be"),
        (["--cohort-size", "2.5", "--sampler", "fixed-size"], "--cohort-size 2.5 is not an integer"),
        (
            ["--clip-count-stddev", "0.1"],
            "--clip-count-stddev 0.1 leaves none of the privacy budget (noise multiplier 1) for the update: give more "
            "than 0.5",
        ),
        (["--noise-multiplier", "1e-9"], "--noise-multiplier must lie in [1e-6, 1e8], got 1e-09"),
        (["--rounds", "2000000"], "--rounds must be at most 1,000,000, got 2,000,000"),
        (["--sampling-probability", "2"], "--sampling-probability must lie in (0, 1], got 2.0: give cohort size"),
        (["--cohorts", "0"], "--cohorts must be an integer of at least 1, got 0"),
        (["--cohorts", "101"], "--cohorts 101 is larger than --population 100"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message):
    base = ["epsilon", "--population", "100", "--cohort-size", "10", "--rounds", "5", "--noise-multiplier", "1"]
    command = [sys.executable, "-m", "experiments", "privacy", *base, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["noise", "--rounds", "5", "--epsilon", "1000"], "--epsilon 1000 asks for hardly any noise: give at most 500"),
        (
            ["noise", "--rounds", "5", "--epsilon", "1", "--clip-count-stddev", "0.001"],
            r"--clip-count-stddev 0.001 leaves none of the privacy budget \(noise multiplier ",
        ),
        (
            ["rounds", "--noise-multiplier", "0.1", "--epsilon", "0.01"],
            "--epsilon 0.01 does not allow one round at --noise-multiplier 0.1: raise one of them",
        ),
        (["rounds", "--noise-multiplier", "0", "--epsilon", "1"], "--noise-multiplier 0 fits no finite epsilon"),
    ],
)
def test_errors_of_a_search_name_the_options_as_typed(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(*arguments, "--population", 100, "--cohort-size", 10)


@pytest.fixture
def accounting_work(monkeypatch):
    """Records the work of the accounting: sizes of loss distributions and compositions, and Rényi divergences."""
    from dp_accounting.pld import common

    work: dict[str, list[int]] = {"rounds": [], "compositions": [], "divergences": []}
    composed, divergence = common.self_convolve, composition.one_round_rdp.__wrapped__

    def counted_composition(input_list, *arguments, **options):
        first, coefficients = composed(input_list, *arguments, **options)
        work["rounds"].append(len(input_list))
        work["compositions"].append(len(coefficients))
        return first, coefficients

    def counted_divergence(*arguments):
        work["divergences"].append(1)
        return divergence(*arguments)

    monkeypatch.setattr(common, "self_convolve", counted_composition)
    monkeypatch.setattr(composition, "one_round_rdp", functools.lru_cache(maxsize=4096)(counted_divergence))
    monkeypatch.setattr(loss_grid, "gaussian", functools.lru_cache(maxsize=64)(loss_grid.gaussian.__wrapped__))
    return work


# Each takes about a second on an idle machine. The test counts the work instead of measuring the time.
@pytest.mark.parametrize(
    "arguments",
    [
        [
            "epsilon",
            "--population",
            "10000000",
            "--sampling-probability",
            "1e-6",
            "--rounds",
            "1000",
            "--noise-multiplier",
            "0.5",
        ],
        ["noise", "--population", "60000", "--sampling-probability", "0.5", "--rounds", "2344", "--epsilon", "0.01"],
        [
            "rounds",
            "--population",
            "60000",
            "--sampling-probability",
            "0.0043",
            "--noise-multiplier",
            "0.4",
            "--epsilon",
            "300",
        ],
    ],
)
def test_worst_cases_take_bounded_work(arguments, accounting_work):
    done = CliRunner().invoke(privacy, arguments)
    assert done.exit_code == 0, done.output
    assert 0 < len(accounting_work["compositions"]) <= 80
    assert max(accounting_work["rounds"]) <= 2 * loss_grid.FINE
    assert max(accounting_work["compositions"]) <= 2 * loss_grid.COMPOSED_POINTS
    assert len(accounting_work["divergences"]) <= 700


def test_help_imports_no_large_package():
    code = (
        "import sys; from experiments.commands.privacy import privacy\n"
        "privacy(['epsilon', '--help'], standalone_mode=False)\n"
        "assert not {'dp_accounting', 'numpy', 'scipy', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_audit_does_not_refute_own_mechanisms():
    text = call("audit", "--epsilon", 2, "--trials", 3000)
    lines = text.splitlines()
    assert lines[0].startswith("unit: one record; sampler: every record, once")
    assert len(lines) == 11 and all(": stands" in line for line in lines[1:])
    assert all(("says nothing" in line) == (float(line.split("at least ")[1].split()[0]) <= 0.2) for line in lines[1:])
    assert "mean, hourglass (add-or-remove-one): epsilon at delta 0 claimed 2.000, at least" in text
    rows = facts("audit", "--epsilon", 2, "--trials", 3000)
    assert {row["relation"] for row in rows} == {"add-or-remove-one", "replace-one"}
    assert all(0 <= row["epsilon"] <= row["claimed"] == 2 for row in rows)
    assert {(row["unit"], row["sampler"]) for row in rows} == {("record", "every record, once")}


def test_epsilon_prints_no_warning_for_ordinary_plan():
    """dp-accounting 0.6 prints a warning about the Rényi orders that it skips in a cross-check."""
    options = ["--population", "1000", "--sampling-probability", "0.1", "--noise-multiplier", "1", "--rounds", "1000"]
    command = [sys.executable, "-m", "experiments", "privacy", "epsilon", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "by RDP" in done.stdout and done.stderr == ""


def test_audit_without_training_imports_no_tensorflow():
    code = (
        "import sys; from experiments.commands.privacy import privacy\n"
        "privacy(['audit', '--trials', '1000'], standalone_mode=False)\n"
        "assert not {'tensorflow', 'tensorflow_federated', 'fl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_audit_does_not_refute_training():
    """Nine bounds have confidence 0.9999 each and fresh noise, so at most one run in a thousand fails by chance."""
    pytest.importorskip("tensorflow_federated")
    rows = facts("audit", "--training", "--epsilon", 2, "--delta", 0.05, "--trials", 4000)
    named = [row["mechanism"].split(",")[0] for row in rows]
    assert named == ["training", "DP-FTRL (BLT)"] + ["DPMean"] * 4 + ["KerasDPSGD"] + ["DPMean"] * 2
    assert [row["delta"] for row in rows] == [1e-7] * 2 + [0.05] * 6 + [3.5e-5]
    for row in rows:
        of_record = row["mechanism"].startswith("KerasDPSGD")
        assumed = (
            ("record", "add-or-remove-one", "every record, once")
            if of_record
            else ("client", "zero-out", "two cohorts in turn")
        )
        assert (row["unit"], row["relation"], row["sampler"]) == assumed
        assert 0 <= row["epsilon"] <= row["claimed"] <= (9.5 if "tail" in row["mechanism"] else 2)


def test_audit_exits_with_1_if_it_refutes(monkeypatch):
    from privacy.audit import cases as audited

    def sample(trials):
        return np.zeros(trials), np.ones(trials)

    monkeypatch.setattr(
        audited, "cases", lambda *_: [audited.Case("a sum without noise", "replace-one", 1.0, 0.0, 1, sample)]
    )
    done = CliRunner().invoke(privacy, ["audit"])
    assert done.exit_code == 1 and done.output.strip().endswith("REFUTED") and "claimed 1.000, at least" in done.output


@pytest.mark.parametrize("arguments", [["--epsilon", "0"], ["--epsilon", "nan"], ["--delta", "1"], ["--trials", "10"]])
def test_audit_refuses_invalid_arguments(arguments):
    done = CliRunner().invoke(privacy, ["audit", *arguments])
    assert done.exit_code != 0 and (done.exit_code == 2 or isinstance(done.exception, ValueError))


def test_privacy_report_covers_single_releases(tmp_path):
    from privacy import Budget, Releases, dp_mean

    with Releases.open(tmp_path / "ledger.jsonl", Budget(1.0)) as ledger:
        dp_mean([1.0, 2.0], 0, 10, 0.5, ledger=ledger)
    written = call("report", tmp_path / "ledger.jsonl", "--output", tmp_path / "out").split()
    assert [path.rpartition("/")[2] for path in written] == ["report.html", "report.md", "report.json"]
    assert "ε = 0.500" in (tmp_path / "out" / "report.md").read_text()
    done = CliRunner().invoke(privacy, ["report", str(tmp_path / "none.jsonl")])
    assert isinstance(done.exception, FileNotFoundError) and "is missing" in str(done.exception)


def test_report_command_accepts_ledger_of_a_budget(tmp_path):
    with Releases.open(tmp_path / "ages.jsonl", Budget(epsilon=1.0)) as ledger:
        dp_mean([1.0, 2.0], 0, 4, 0.5, ledger=ledger)
        assert str(ledger).startswith("epsilon 0.500, budget 1; unit record, add-or-remove-one; 1 releases, each with")
    done = CliRunner().invoke(report, [str(tmp_path / "ages.jsonl")], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "fedspeak-statistics-report/1"
