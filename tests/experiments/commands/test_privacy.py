"""`fedspeak privacy`: the figures, the refusals, the speed."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from experiments.commands.privacy import privacy
from experiments.commands.runs import report
from privacy import Budget, Releases, dp_mean

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")
STACK_OVERFLOW = ["--clients", "342477", "--cohort", "100", "--delta", "1e-6"]


def call(*arguments):
    done = CliRunner().invoke(privacy, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def facts(*arguments):
    return json.loads(call(*arguments, "--json"))


def test_epsilon_prints_both_figures_and_every_assumption():
    text = call("epsilon", "--clients", 1000, "--cohort", 50, "--rounds", 200, "--noise", 2.0, "--delta", 1e-5)
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
    assert "200 of 200 rounds a client" in text


def test_any_one_follows_from_the_others():
    forward = facts("epsilon", *STACK_OVERFLOW, "--rounds", 1600, "--noise", 0.5)
    assert forward["epsilon"] == pytest.approx(2.630036, abs=2e-4)
    noise = facts("noise", *STACK_OVERFLOW, "--rounds", 1600, "--epsilon", forward["epsilon"])
    assert noise["plan"]["noise_multiplier"] == pytest.approx(0.5, rel=1e-3)
    rounds = facts("rounds", *STACK_OVERFLOW, "--noise", 0.5, "--epsilon", forward["epsilon"])
    assert rounds["plan"]["rounds"] == pytest.approx(1600, abs=1)


def test_each_sampler_brings_its_relation():
    fixed = facts("epsilon", *STACK_OVERFLOW, "--rounds", 1600, "--noise", 4, "--sampler", "fixed-size")
    assert (fixed["plan"]["relation"], fixed["epsilon_pld"]) == ("replace-one", None)
    assert fixed["epsilon"] == pytest.approx(0.144934, abs=1e-6)
    cyclic = facts(
        "epsilon", "--clients", 342_477, "--delta", 1e-6, "--cohorts", 400, "--rounds", 1600, "--noise", 4,
        "--sampler", "cyclic",
    )  # fmt: skip
    assert (cyclic["plan"]["relation"], cyclic["max_participations"]) == ("zero-out", 4)
    assert cyclic["epsilon"] == pytest.approx(2.254085, abs=1e-6)


def test_no_noise_is_not_private():
    assert "NOT PRIVATE" in call("epsilon", "--clients", 100, "--rate", 0.1, "--rounds", 5, "--noise", 0)


def test_adaptive_clipping_shows_its_split():
    text = call("epsilon", *STACK_OVERFLOW, "--rounds", 10, "--noise", 4, "--clip-count-stddev", 5)
    assert "4.36436 on the update, 5 on the clip's count" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "nan"], "noise multiplier must be a finite number of at least 0, got nan"),
        (["--noise", "-1"], "noise multiplier"),
        (["--rounds", "0"], "rounds must be a whole number of at least 1, got 0"),
        (["--delta", "1"], "delta must lie in"),
        (["--cohort", "200"], "--cohort 200 is larger than the population, --clients 100"),
        (["--cohort", "nan"], "--cohort must be a finite number above 0"),
        (["--cohort", "1e-320"], "--cohort 1e-320 samples nobody: give a rate of at least 2e-308"),
        (["--cohort", "1e-320", "--sampler", "cyclic"], "--cohort 1e-320 is below 1: a cohort that takes its turn has"),
        (["--cohort", "1e-320", "--sampler", "fixed-size"], "is no whole number"),
        (["--rate", "0.1"], "--cohort and --rate given: poisson takes one of"),
        (["--cohorts", "5"], "--cohort and --cohorts given"),
        (["--clients", "1"], "--clients must be"),
        (["--cohort", "2.5", "--sampler", "fixed-size"], "--cohort 2.5 is no whole number"),
        (["--clip-count-stddev", "0.1"], "clip count stddev 0.1"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments, message):
    base = ["epsilon", "--clients", "100", "--cohort", "10", "--rounds", "5", "--noise", "1"]
    command = [sys.executable, "-m", "experiments", "privacy", *base, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# Cold processes; each takes about 1-3 s alone, the limit is the promise.
@pytest.mark.parametrize(
    "arguments",
    [
        ["epsilon", "--clients", "10000000", "--rate", "1e-6", "--rounds", "1000", "--noise", "0.5"],
        ["noise", "--clients", "60000", "--rate", "0.5", "--rounds", "2344", "--epsilon", "0.01"],
        ["rounds", "--clients", "60000", "--rate", "0.0043", "--noise", "0.4", "--epsilon", "300"],
    ],
)
def test_worst_cases_answer_in_time(arguments):
    start = time.monotonic()
    subprocess.run([sys.executable, "-m", "experiments", "privacy", *arguments], check=True, capture_output=True)
    assert time.monotonic() - start < 10


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from experiments.commands.privacy import privacy\n"
        "privacy(['epsilon', '--help'], standalone_mode=False)\n"
        "assert not {'dp_accounting', 'numpy', 'scipy', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_audit_lets_our_own_mechanisms_stand():
    text = call("audit", "--epsilon", 2, "--trials", 3000)
    lines = text.splitlines()
    assert lines[0].startswith("unit: one record; sampler: everybody, once")
    assert len(lines) == 11 and all(": stands" in line for line in lines[1:])
    assert all(("says nothing" in line) == (float(line.split("at least ")[1].split()[0]) <= 0.2) for line in lines[1:])
    assert "mean, hourglass (add-remove): epsilon at delta 0 claimed 2, at least" in text
    rows = facts("audit", "--epsilon", 2, "--trials", 3000)
    assert {row["relation"] for row in rows} == {"add-remove", "swap"}
    assert all(0 <= row["epsilon"] <= row["claimed"] == 2 for row in rows)
    assert {(row["unit"], row["sampler"]) for row in rows} == {("record", "everybody, once")}


def test_an_ordinary_plan_prints_nothing_beside_its_figure():
    """dp-accounting 0.6 warns, in a cross-check, of orders that it leaves out."""
    asked = ["--clients", "1000", "--rate", "0.1", "--noise", "1", "--rounds", "1000"]
    command = [sys.executable, "-m", "experiments", "privacy", "epsilon", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "by RDP" in done.stdout and done.stderr == ""


def test_an_audit_without_training_loads_no_tensorflow():
    code = (
        "import sys; from experiments.commands.privacy import privacy\n"
        "privacy(['audit', '--trials', '1000'], standalone_mode=False)\n"
        "assert not {'tensorflow', 'tensorflow_federated', 'fl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_audit_of_training_lets_it_stand():
    """Eight bounds of confidence 0.9999 with fresh noise: one of a thousand runs fails by chance, or fewer."""
    pytest.importorskip("tensorflow_federated")
    rows = facts("audit", "--training", "--epsilon", 2, "--delta", 0.05, "--trials", 4000)
    named = [row["mechanism"].split(",")[0] for row in rows]
    assert named == ["training"] + ["DPMean"] * 4 + ["KerasDPSGD"] + ["DPMean"] * 2
    assert [row["delta"] for row in rows] == [1e-7] + [0.05] * 6 + [3.5e-5]
    for row in rows:
        of_record = row["mechanism"].startswith("KerasDPSGD")
        assumed = (
            ("record", "add-remove", "everybody, once") if of_record else ("client", "zero-out", "two cohorts in turn")
        )
        assert (row["unit"], row["relation"], row["sampler"]) == assumed
        assert 0 <= row["epsilon"] <= row["claimed"] <= (9.5 if "tail" in row["mechanism"] else 2)


def test_an_audit_that_refutes_ends_with_1(monkeypatch):
    from privacy.audit import cases as audited

    def told(trials):
        return np.zeros(trials), np.ones(trials)

    monkeypatch.setattr(audited, "cases", lambda *_: [audited.Case("a sum without noise", "swap", 1.0, 0.0, 1, told)])
    done = CliRunner().invoke(privacy, ["audit"])
    assert done.exit_code == 1 and done.output.strip().endswith("REFUTED") and "claimed 1, at least" in done.output


@pytest.mark.parametrize("arguments", [["--epsilon", "0"], ["--epsilon", "nan"], ["--delta", "1"], ["--trials", "10"]])
def test_an_audit_of_nonsense_is_one_line(arguments):
    done = CliRunner().invoke(privacy, ["audit", *arguments])
    assert done.exit_code != 0 and (done.exit_code == 2 or isinstance(done.exception, ValueError))


def test_the_report_on_single_releases(tmp_path):
    from privacy import Budget, Releases, dp_mean

    with Releases.open(tmp_path / "ledger.jsonl", Budget(1.0)) as ledger:
        dp_mean([1.0, 2.0], 0, 10, 0.5, ledger=ledger)
    written = call("report", tmp_path / "ledger.jsonl", "--output", tmp_path / "out").split()
    assert [path.rpartition("/")[2] for path in written] == ["report.html", "report.md", "report.json"]
    assert "ε = 0.500" in (tmp_path / "out" / "report.md").read_text()
    done = CliRunner().invoke(privacy, ["report", str(tmp_path / "none.jsonl")])
    assert isinstance(done.exception, FileNotFoundError) and "is missing" in str(done.exception)


def test_the_report_command_of_runs_takes_a_budgets_ledger_too(tmp_path):
    with Releases.open(tmp_path / "ages.jsonl", Budget(epsilon=1.0)) as ledger:
        dp_mean([1.0, 2.0], 0, 4, 0.5, ledger=ledger)
        assert str(ledger).startswith("epsilon 0.500 of 1; unit record, add-or-remove-one; 1 releases")
    done = CliRunner().invoke(report, [str(tmp_path / "ages.jsonl")], catch_exceptions=False)
    assert done.exit_code == 0
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "fedspeak-statistics-report/1"
