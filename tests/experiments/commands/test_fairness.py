"""`fedspeak fairness` tests tables, plans, and refuses what it cannot test with one line that names the option."""

import csv
import json
import re

import numpy as np
import pytest

from fl.fairness import FairnessFrame, plan_attribute_specific, plan_max_gap, plan_weighted
from tests.experiments.processes import call
from tests.test_docs import ROOT

RNG = np.random.default_rng(11)
COLUMNS = {
    "sex": RNG.choice(["f", "m"], 900),
    "race": RNG.choice(["a", "b", "c"], 900, p=[0.6, 0.3, 0.1]),
    "year": RNG.choice([2023, 2024], 900),
    "label": RNG.integers(0, 2, 900),
    "score": RNG.random(900).round(4),
    "empty": np.where(np.arange(900) == 7, "", "1"),
    "visit": np.arange(900) // 10,
    "visit2": np.arange(900) // 2,
}
COLUMNS["draw"] = np.char.add(np.char.add(COLUMNS["sex"], COLUMNS["race"]), COLUMNS["year"].astype(str))
COLUMNS["predicted"] = np.where(RNG.random(900) < 0.1 + 0.4 * (COLUMNS["race"] == "c"), 1, 0) ^ COLUMNS["label"]
TEST = ("fairness", "test", "people.csv", "--groups", "sex,race", "--outcome", "label", "--prediction", "predicted")
PLAN = ("fairness", "plan", "--alpha", "0.8", "--gap", "0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fairness")
    with open(path / "people.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(zip(*COLUMNS.values(), strict=True))
    return path


def frame(**arguments) -> FairnessFrame:
    people = {name: COLUMNS[name] for name in ("sex", "race")}
    labels = {"y_true": COLUMNS["label"], "y_pred": COLUMNS["predicted"]}
    return FairnessFrame(**{"metrics": "zero_one_loss", "sensitive_features": people, **labels, **arguments})


def test_test_prints_what_the_library_finds(folder):
    code, out, err = call(*TEST, "--alpha", "0.8", "--gap", "0.1", folder=folder)
    result = frame(alpha=0.8, gap=0.1).test
    assert (code, err) == (0, "")
    assert "zero_one_loss: the groups are NOT ALIKE" in out
    for value in (f"{result.p_value:.3g}", f"{result.gap_low:.4g}", f"{result.gap_high:.4g}", f"{result.power:.3g}"):
        assert value in out


def test_strata_scores_draws_and_json(folder):
    code, out, _ = call(
        *TEST, "--alpha", "0.8", "--strata", "year", "--metric", "accuracy_score", "--json", folder=folder
    )
    tests = json.loads(out)["tests"]
    expected = frame(alpha=0.8, metrics="accuracy_score", control_features={"year": COLUMNS["year"]}).tests
    assert code == 0 and [test["adjusted_p"] for test in tests] == [test.adjusted_p for test in expected]
    of_scores = ("fairness", "test", "people.csv", "--groups", "sex,race", "--outcome", "score", "--bounds", "-1,1")
    code, out, _ = call(*of_scores, "--alpha", "0.5", "--weights", "equal", folder=folder)
    assert code == 0 and f"overall of tested     {np.mean([np.mean(g) for g in by_group('score')]):.4g}" in out
    code, out, _ = call(*TEST, "--alpha", "0.8", "--draws", "draw", folder=folder)
    assert code == 0 and "900 rows of 12 draws, sampling: attribute-specific" in out


def by_group(name: str) -> list[np.ndarray]:
    return [COLUMNS[name][(COLUMNS["sex"] == s) & (COLUMNS["race"] == r)] for s in "fm" for r in "abc"]


def test_report_is_written_beside_the_result(folder):
    code, out, _ = call(*TEST, "--alpha", "0.8", "--output", "report", folder=folder)
    assert code == 0 and out.endswith("wrote report/fairness.html, .md and .json\n")
    assert json.loads((folder / "report/fairness.json").read_text())["title"] == "people"


def test_parquet_gives_the_same_as_csv(folder):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(COLUMNS), folder / "people.parquet")
    command = (*TEST[:2], "people.parquet", *TEST[3:], "--alpha", "0.8")
    assert call(*command, folder=folder) == call(*TEST, "--alpha", "0.8", folder=folder)


def test_plan_prints_the_rows_of_three_tests(folder):
    code, out, _ = call(*PLAN, "--groups", "10x20", "--error", "0.1", "--rate", "0.2", folder=folder)
    case = {"alpha": 0.8, "gap": 0.1, "error": 0.1, "rate": 0.2}
    rows = {
        "weighted": plan_weighted(np.ones(200), **case).rows,
        "attribute-specific": plan_attribute_specific(**case).rows,
        "largest gap": plan_max_gap(np.ones(200), **case).rows,
    }
    assert code == 0
    for name, number in rows.items():
        (line,) = [line for line in out.splitlines() if line.startswith(name)]
        assert line.split()[len(name.split())] == f"{number:,}"


def test_docs_show_what_plan_prints(folder):
    page = (ROOT / "docs" / "systems" / "fairness.md").read_text()
    (block,) = re.findall(r"```console\n\$ fedspeak (.*?)\n(.*?)```", page, re.DOTALL)
    assert call(*block[0].split(), folder=folder)[1] == block[1]
    rows = re.findall(r"^\| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) == 3
    for groups, *numbers in rows:
        _, out, _ = call(*block[0].replace("2x5x7x10", groups.replace(",", "")).split(), folder=folder)
        assert re.findall(r"^[a-z -]+ ([\d,]+)  ", out, re.MULTILINE) == numbers


def test_rows_that_were_drawn_by_a_plan_are_tested_by_it(folder):
    code, _, _ = call(*PLAN, "--groups", "sex,race", "--table", "people.csv", "--output", "plan.json", folder=folder)
    plan = json.loads((folder / "plan.json").read_text())
    assert code == 0 and plan["groups"] == [[s, r] for s in "fm" for r in "abc"]
    shares = [len(group) / 900 for group in by_group("label")]
    assert plan["weights"] == pytest.approx(shares)
    rng = np.random.default_rng(1)
    with open(folder / "drawn.csv", "w") as file:
        file.write("sex,race,loss\n")
        for place in rng.choice(6, size=plan["weighted"]["rows"], p=plan["probabilities"]):
            file.write(f"{','.join(plan['groups'][place])},{int(rng.random() < 0.3)}\n")
    drawn = ("fairness", "test", "drawn.csv", "--groups", "sex,race", "--outcome", "loss", "--plan", "plan.json")
    code, out, _ = call(*drawn, folder=folder)
    assert code == 0 and "alpha 0.8; level 0.05" in out and "sampling: weighted" in out and "power at the gap" in out
    code, _, err = call(*drawn, "--strata", "sex", folder=folder)
    assert code == 2 and "--plan says how the groups of all rows were drawn: leave --strata out, or --plan" in err
    rate = (*TEST, "--metric", "false_positive_rate", "--plan", "plan.json")
    code, _, err = call(*rate, folder=folder)
    assert code == 2 and "metric 'false_positive_rate' leaves rows out, whose groups were drawn" in err
    code, _, err = call(*TEST, "--plan", "plan.json", "--groups", "sex", folder=folder)
    assert code == 2 and "--plan plan.json is for --groups sex,race: plan with --table and --groups sex" in err


def test_plan_of_groups_of_which_one_combination_is_missing_and_some_get_no_row(folder):
    """The population has no (m, c); the plan's few rows miss whole groups, and the value z altogether."""
    people = [(s, r) for s in "fm" for r in "abc" for _ in range(40) if (s, r) != ("m", "c")] + [("f", "z")]
    (folder / "population.csv").write_text("sex,race\n" + "".join(f"{s},{r}\n" for s, r in people))
    plan = (*PLAN, "--groups", "sex,race", "--table", "population.csv", "--output", "missing.json")
    assert call(*plan, folder=folder)[0] == 0
    names = json.loads((folder / "missing.json").read_text())["groups"]
    assert len(names) == 6 and ["m", "c"] not in names and ["f", "z"] in names
    rows = [("f", "a", int(i % 3 == 0)) for i in range(20)] + [("m", "b", int(i % 3 == 0)) for i in range(20)]
    rows += [("f", "b", 0)] * 18 + [("f", "c", 1)] * 19 + [("m", "a", 0)] * 21
    lines = "".join(f"{s},{r},{loss}\n" for s, r, loss in rows)
    (folder / "few.csv").write_text("sex,race,loss\n" + lines)
    test = ("fairness", "test", "few.csv", "--groups", "sex,race", "--outcome", "loss", "--plan", "missing.json")
    code, out, err = call(*test, folder=folder)
    assert (code, err) == (0, "") and "98 rows of 6 groups, sampling: weighted" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ((*TEST, "--alpha", "1"), "--alpha must lie in [0, 1), got 1.0: 0.9 looks at the worst tenth of the weight"),
        ((*TEST, "--alpha", "nan"), "--alpha must lie in [0, 1), got nan: 0.9 looks at the worst tenth of the weight"),
        (TEST, "--alpha is missing: give 0.9 to look at the worst tenth of the weight"),
        ((*TEST, "--alpha", "0.5", "--level", "1"), "--level must lie in (0, 0.5), got 1.0: 0.05 is usual"),
        ((*TEST, "--alpha", "0.5", "--gap", "2"), "--gap must lie in (0, 1], got 2.0: give a gap that would matter"),
        ((*TEST, "--alpha", "0.5", "--groups", "score"), "column 'score' is continuous"),
        ((*TEST, "--alpha", "0.5", "--groups", "sex,,race"), "--groups 'sex,,race' must name different columns"),
        ((*TEST, "--alpha", "0.5", "--groups", "empty"), "column 'empty' has no value in 1 of 900 rows"),
        (
            (*TEST, "--alpha", "0.5", "--outcome", "empty"),
            "--outcome has no value in 1 of 900 rows: leave these rows out",
        ),
        ((*TEST, "--alpha", "0.5", "--groups", "none"), "people.csv has no column 'none'; it has 'sex'"),
        (
            (*TEST, "--alpha", "0.5", "--strata", "visit"),
            "in the stratum 12: groups that have a weight and two rows or more: 1 of 6",
        ),
        ((*TEST, "--alpha", "0.5", "--metric", "f1"), "metric 'f1' is unknown: give a function of rows, or one of"),
        ((*TEST, "--alpha", "0.5", "--bounds", "0"), "--bounds '0' must be two numbers, such as -1,1"),
        ((*TEST, "--alpha", "0.5", "--bounds", "1,0"), "--bounds (1, 0) are wrong: give the least and the largest"),
        (
            (*TEST, "--plan", "people.csv"),
            "--plan people.csv is not a plan: give a file that fedspeak fairness plan wrote",
        ),
        ((*TEST[:-2], "--alpha", "0.5", "--metric", "x"), "--metric x compares --outcome with predictions: give"),
        (
            (*TEST, "--alpha", "0.5", "--draws", "visit", "--weights", "equal"),
            "--weights equal goes with rows, and --draws",
        ),
        ((*TEST, "--alpha", "0.5", "--draws", "visit"), "--draws give rows 0 and "),
        (
            (*TEST, "--alpha", "0.5", "--prediction", "score"),
            "which is none of the labels in y_true, such as 0: give predicted labels",
        ),
        (
            (*TEST, "--alpha", "0.5", "--groups", "visit2"),
            "column 'visit2' is continuous (450 different numbers, such as 0): "
            "give bands, as 18-29, or name it in --categorical",
        ),
        (
            (*TEST, "--alpha", "0.5", "--categorical", "label"),
            "--categorical label is no column of groups: it must be one of sex, race",
        ),
        (
            (*TEST, "--alpha", "0.5", "--groups", "empty", "--categorical", "empty"),
            "column 'empty' has no value in 1 of 900 rows",
        ),
        (
            (*PLAN, "--groups", "9", "--categorical", "sex"),
            "--categorical sex names columns of a table: give --table too",
        ),
        ((*PLAN, "--groups", "1"), "--groups 1 are 1 groups: give 2 to 10,000,000"),
        (
            (*PLAN, "--groups", "sex"),
            "--groups sex: must be a number of groups, as 70 or 2x5x7; or give --table with these",
        ),
        ((*PLAN, "--groups", "9", "--error", "0.5"), "--error must lie in (0, 0.5), got 0.5: 0.05 is usual"),
        (
            (*PLAN, "--groups", "9", "--rate", "0"),
            "--rate must lie in (0, 1), got 0.0: leave it out if it is not known",
        ),
        ((*PLAN[:-1], "1e-5", "--groups", "9"), "--gap 1e-05 is below 0.0001, for which no one has the rows: give"),
        ((*PLAN[:-1], "0", "--groups", "9"), "--gap must lie in (0, 1], got 0.0: give the smallest gap"),
    ],
)
def test_bad_input_gets_one_line(folder, command, message):
    code, out, err = call(*command, folder=folder)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and err.startswith("fedspeak: error: ") and message in err


def test_numbers_that_are_names_make_groups(folder):
    """450 codes of two rows each; with leading zeros, which a number would lose."""
    of_codes = ("--groups", "visit2", "--outcome", "label", "--alpha", "0.5", "--categorical", "visit2")
    code, out, _ = call("fairness", "test", "people.csv", *of_codes, folder=folder)
    expected = FairnessFrame(
        metrics="mean_prediction",
        y_true=COLUMNS["label"],
        y_pred=COLUMNS["label"],
        sensitive_features={"visit2": COLUMNS["visit2"].astype(str)},
        alpha=0.5,
    )
    assert code == 0 and "450 groups by visit2" in out and f"{expected.test.p_value:.3g}" in out
    (folder / "codes.csv").write_text("code,loss\n" + "007,0\n007,1\n7,0\n7,0\n" * 9)
    table = ("fairness", "test", "codes.csv", "--groups", "code", "--outcome", "loss", "--alpha", "0.5")
    code, out, _ = call(*table, "--categorical", "code", "--json", folder=folder)
    assert code == 0 and json.loads(out)["groups"] == [["007"], ["7"]]
    assert call(*table, folder=folder)[0] == 2
    plan = (*PLAN, "--groups", "code", "--table", "codes.csv", "--categorical", "code", "--output", "codes.json")
    assert call(*plan, folder=folder)[0] == 0
    assert json.loads((folder / "codes.json").read_text())["groups"] == [["007"], ["7"]]


def test_codes_in_parquet_become_texts_too(folder):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"code": [1, 2] * 150, "loss": [0, 1, 1] * 100}), folder / "codes.parquet")
    table = ("fairness", "test", "codes.parquet", "--groups", "code", "--outcome", "loss", "--alpha", "0.5", "--json")
    code, out, _ = call(*table, "--categorical", "code", folder=folder)
    assert code == 0 and json.loads(out)["groups"] == [["1"], ["2"]]


def test_each_of_two_overall_values_is_named(folder):
    """The group of one row is not tested, and is one of the groups with rows."""
    rows = [("a", i % 2) for i in range(60)] + [("b", i % 2) for i in range(60)] + [("c", 1)]
    (folder / "single.csv").write_text("group,loss\n" + "".join(f"{g},{loss}\n" for g, loss in rows))
    table = (
        "fairness",
        "test",
        "single.csv",
        "--groups",
        "group",
        "--outcome",
        "loss",
        "--alpha",
        "0",
        "--output",
        "one",
    )
    code, out, _ = call(*table, folder=folder)
    assert code == 0 and "overall of tested     0.5\n" in out
    assert "to the overall 0.5041 of all groups with rows" in out
    text = (folder / "one" / "fairness.md").read_text()
    assert "overall of tested groups" in text and "the overall value of all groups with rows, 0.5041" in text


def test_one_group_is_refused(folder):
    (folder / "one.csv").write_text("sex,loss\nf,0\nf,1\n")
    command = ("fairness", "test", "one.csv", "--groups", "sex", "--outcome", "loss", "--alpha", "0.5")
    assert call(*command, folder=folder)[2] == (
        "fedspeak: error: --groups: the rows form 1 group: at least two are needed\n"
    )
