"""Tests of fairness reports: they say what the frame holds, in three formats, and show names literally."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fl.fairness import FairnessFrame, report

EVIL = "<script>alert('x')</script>|`*"


@pytest.fixture(scope="module")
def one() -> report.FairnessReport:
    names = [(EVIL, "x"), ("b", "x"), ("c", "x"), ("d", "x")]
    frame = FairnessFrame.from_counts([60, 60, 1, 0], [30, 6, 0, 0], names=names, alpha=0.5, gap=0.2)
    return report.build(frame, title="loans", source=EVIL)


@pytest.fixture(scope="module")
def two() -> report.FairnessReport:
    frame = FairnessFrame(
        metrics="mean_prediction",
        y_true=np.zeros(400),
        y_pred=np.tile([0, 1], 200),
        sensitive_features={"sex": np.repeat(["f", "m"], 200)},
        control_features={"year": np.tile(np.repeat([1, 2], 100), 2)},
        alpha=0,
    )
    return report.build(frame)


def test_report_states_result_and_what_was_not_tested(one):
    text = one.to_markdown()
    assert text.startswith("# Fairness report: loans\n\n**THE GROUPS ARE NOT ALIKE**, at the level 0.05.")
    assert "groups without rows (1) and groups with too few rows to be tested (1, with 0.8264 % of the weight)" in text
    assert "power at 0.2" in text
    for name in ("gap_low", "gap_high", "p_value", "power"):
        value = one.frame["tests"][0]["result"][name]
        assert f"| {value:.4g} " in text


def test_report_without_a_difference_does_not_claim_that_there_is_none(two):
    text = two.to_markdown()
    assert "**No difference between groups is shown** at the level 0.05. That does not prove that there is none" in text
    assert (
        "p by Holm" in text and "## Groups: mean\\_prediction, 1" in text and "## Groups: mean\\_prediction, 2" in text
    )


@pytest.mark.parametrize("name", ["one", "two"])
def test_html_has_a_plot_for_each_test_and_shows_names_literally(name, request):
    built = request.getfixturevalue(name)
    page = built.to_html()
    assert "<script" not in page and "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == len(built.data["tests"])
    for plot in plots:
        ElementTree.fromstring(plot)


def test_json_holds_every_group_and_no_nan(one):
    content = json.loads(one.to_json(), parse_constant=pytest.fail)
    assert content["groups"][0] == [EVIL, "x"]
    assert content["tests"][0]["groups"]["mean"] == [0.5, 0.1, 0.0, None]
    assert content["verdict"] == "not alike"


def test_files_are_closed_to_others(one, tmp_path):
    paths = one.write(tmp_path / "new")
    assert [path.name for path in paths] == ["fairness.html", "fairness.md", "fairness.json"]
    assert [path.stat().st_mode & 0o777 for path in paths] == [0o600] * 3
