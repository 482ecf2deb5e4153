"""Tests of the report's part on correlated noise: what is assumed, and what is not, in plain words."""

import html
import json
import math

import pytest

from privacy import CheckIn, Cyclic, CyclicPoisson, report
from privacy.correlated import BLT, Banded
from tests.privacy.report.test_report import FACTS, build_report, check_schema

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")


@pytest.mark.parametrize("sampling", [CheckIn(20, 5, 3), Cyclic(4), CyclicPoisson(4, 0.5)])
def test_report_says_in_words_what_correlated_noise_assumes_and_what_not(tmp_path, sampling):
    blt = BLT((0.9,), (0.3,), "a test")
    made = build_report(FACTS, tmp_path, sampling=sampling, mechanism=blt, rounds=12)
    part = made.data["correlated_noise"]
    separation, participations = {"check-in": (5, 3)}.get(sampling.kind, (4, 3))
    assert any(f"more than {participations} of the 12 rounds" in line for line in part["assumed"])
    assert any(f"at least {separation} apart" in line for line in part["assumed"])
    assert any("Secrecy of sampling" in line for line in part["not_assumed"])
    assert any("every released model and who took part in which round" in line for line in made.data["not_covered"])
    assert part["least_error"] < part["error"] and part["history_vectors"] == 1 and part["sensitivity_is_exact"]
    # Independent noise of the same ε has standard deviation sqrt(participations) in each of (12 + 1) / 2 summed rounds.
    assert part["error"] < math.sqrt(participations * 6.5)
    check_schema(made.data, json.loads(report.SCHEMA_FILE.read_text()))
    for text in (made.to_markdown(), html.unescape(made.to_html())):
        for line in (*part["assumed"], *part["not_assumed"]):
            assert line[:30] in text.replace("\\", "")


def test_report_on_amplified_banded_noise_assumes_secrecy_of_sampling(tmp_path):
    banded = Banded((1.0, 0.5), "a test")
    part = build_report(FACTS, tmp_path, sampling=CyclicPoisson(4, 0.5), mechanism=banded).data["correlated_noise"]
    assert any("Secrecy of sampling" in line for line in part["assumed"])
    assert not any("Secrecy of sampling" in line for line in part["not_assumed"])


def test_report_on_independent_noise_has_no_part_on_correlated_noise(tmp_path):
    data = build_report(FACTS, tmp_path).data
    assert data["correlated_noise"] is None
    assert any("model but neither the cohorts" in line for line in data["not_covered"])
