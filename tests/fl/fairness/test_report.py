"""Tests of fairness reports: they say what the frame holds, in three formats, and show names literally."""

import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from fl.fairness import FairnessFrame, NoisySums, report

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


def test_report_on_noisy_sums_names_unit_and_privacy_and_no_group_that_was_not_tested():
    counts = np.array([60.0, 80.0, 0.2])
    sums = NoisySums(counts * 0.09, counts * 0.21, counts * 0.49, 1.0)
    frame = FairnessFrame.from_noisy_sums(sums, names=[("a",), ("b",), (EVIL,)], metric="accuracy", alpha=0.5, gap=0.1)
    built = report.build(frame, unit="client", privacy={"unit": "one client", "δ": "1e-6"})
    text = built.to_markdown()
    for part in ("The unit is the client", "| unit | one client |\n| δ | 1e-6 |", "| 1 | a | 60 | 0.3 | 0 |"):
        assert part in text
    assert "nothing is said about 1 groups without clearly more clients than the noise, with about 0.1427 %" in text
    assert "exact" not in text and "script" not in text
    for heading in re.findall(r".*\n.*\n## ", text):
        assert "\n\n## " in heading
    page = built.to_html()
    assert "<th>δ</th><td>1e-6</td>" in page and '<th class="n">clients</th>' in page
    content = json.loads(built.to_json())
    assert content["unit"] == "client" and content["tests"][0]["groups"]["rows"] == [60, 80, 0]
    assert frame.test.power is not None and not frame.test.rejects
