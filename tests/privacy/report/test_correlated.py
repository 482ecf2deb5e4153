"""Tests of the report's part on correlated noise: what is assumed, and what is not, in plain words."""

import html
import json
import math

import numpy as np
import pytest

from privacy import CheckIn, Cyclic, CyclicPoisson, FixedClip, Ledger, PrivacyPlan, report
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
    assert any(
        "a fixed partition of the clients into cohorts, and each client of the round's cohort takes part independently "
        "with probability q" in line
        for line in part["assumed"]
    )
    assert any("Secrecy of sampling" in line for line in part["assumed"])
    assert not any("Secrecy of sampling" in line for line in part["not_assumed"])


@pytest.mark.parametrize("mechanism", [None, Banded((1.0, 0.5)), BLT((0.9,), (0.3,))])
def test_report_warns_of_cohorts_that_do_not_look_sampled_if_epsilon_counts_on_it(tmp_path, mechanism):
    generator = np.random.default_rng(1)
    # Of 50 clients in each of 4 cohorts, the whole cohort, always the same 25, or each with probability 0.5 take part.
    for kind, cohort_of in (
        ("whole", lambda clients: clients),
        ("equal", lambda clients: clients[:25]),
        ("sampled", lambda clients: clients[generator.random(50) < 0.5]),
    ):
        plan = PrivacyPlan(CyclicPoisson(4, 0.5), 200, 42, 1.0, FixedClip(0.5), mechanism=mechanism)
        stddev = plan.value_noise_multiplier * 0.5
        with Ledger.open(tmp_path / kind, plan) as ledger:
            for number in range(42):
                names = [str(client) for client in cohort_of(np.arange(number % 4, 200, 4))]
                ledger.record(round=number, cohort=names, noise_id=str(number), noise_stddev=stddev, clip_norm=0.5)
        warned = any("do not look like Poisson" in line for line in report.build(plan, ledger, {}).data["warnings"])
        assert warned == (kind != "sampled" and not isinstance(mechanism, BLT))


def test_report_accepts_whole_cyclic_cohorts_of_unequal_size_at_probability_1(tmp_path):
    plan = PrivacyPlan(CyclicPoisson(4, 1.0), 10, 6, 1.0, FixedClip(0.5))
    with Ledger.open(tmp_path / "ledger", plan) as ledger:
        for number in range(6):  # cohorts of 3, 3, 2 and 2 clients: 16 in 6 rounds, not 10 / 4 * 6 = 15
            names = [str(client) for client in range(number % 4, 10, 4)]
            ledger.record(round=number, cohort=names, noise_id=str(number), noise_stddev=0.5, clip_norm=0.5)
    assert not any("look like Poisson" in line for line in report.build(plan, ledger, {}).data["warnings"])


@pytest.mark.parametrize("sampling", [CheckIn(20, 5, 3), Cyclic(4)])
def test_independent_noise_without_amplification_needs_no_secret_cohorts(tmp_path, sampling):
    made = build_report(FACTS, tmp_path, sampling=sampling, rounds=12)
    assert any("every released model and who took part in which round" in line for line in made.data["not_covered"])


def test_report_on_independent_noise_has_no_part_on_correlated_noise(tmp_path):
    data = build_report(FACTS, tmp_path).data
    assert data["correlated_noise"] is None
    assert any("model but neither the cohorts" in line for line in data["not_covered"])
