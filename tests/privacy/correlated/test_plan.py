"""Tests of plans with correlated noise: what they refuse, what they cost, and what the ledger refuses under them."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest

from privacy import (
    AdaptiveClip,
    CheckIn,
    Cyclic,
    CyclicPoisson,
    FixedClip,
    FixedSize,
    Ledger,
    Poisson,
    PrivacyPlan,
    PrivateMetrics,
    accounting,
)
from privacy.accounting.composition import gaussian_epsilon
from privacy.correlated import BLT, Banded, Participation, Tree

# scipy 1.9 calls a function that is deprecated in NumPy 1.25.
pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")

BLT_1 = BLT((0.9,), (0.3,), "a test")
BANDED = Banded((1.0, 0.5, 0.25), "a test")
MECHANISMS = [Tree(), Tree(5), BANDED, BLT_1]


def plan(mechanism: Any = BLT_1, sampling: Any = None, **changes: Any) -> PrivacyPlan:
    given = {"population": 100, "rounds": 12, "noise_multiplier": 2.0, "clip": FixedClip(0.5), "delta": 1e-6}
    return PrivacyPlan(sampling or Cyclic(4), mechanism=mechanism, **{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": AdaptiveClip(0.5)}, "clip is adaptive and mechanism is 'blt': its matrix is fixed before the run"),
        (
            {"sampling": Poisson(0.1)},
            "mechanism 'blt' needs limits on a client's rounds, and poisson sampling has none",
        ),
        ({"sampling": FixedSize(10)}, "mechanism 'blt' needs limits on a client's rounds, and fixed-size sampling"),
        ({"noise": "exact"}, "noise is 'exact' and mechanism is 'blt'"),
        ({"noise_multiplier": 0.0}, "mechanism is 'blt' but noise_multiplier is 0"),
        ({"rounds": 20_001}, "rounds must be at most 20,000 with mechanism 'blt'"),
        ({"rounds": 4097, "mechanism": Tree()}, "rounds must be at most 4,096 with mechanism 'tree'"),
        ({"rounds": 5000, "mechanism": Banded((1.0, 0, 0, 0, 2.0))}, "no sensitivity is proved for 5000 rounds"),
        # The first column of C^-1 is (-c)^t: 2^11 = 2048, 1.5^11 = 86.5, and beyond float64 after 1,024 rounds.
        ({"mechanism": Banded((1.0, 2.0))}, r"entries of C or C\^-1 up to 2048 in 12 rounds, above 16"),
        ({"mechanism": Banded((1.0, -1.5))}, r"entries of C or C\^-1 up to 86.49.* in 12 rounds, above 16"),
        ({"mechanism": Banded((1.0, 2.0, 2.0)), "rounds": 4000}, "so that float32 would round fresh noise away"),
        # C^-1 is 1, -16 and 0, but the noise is then a difference of terms 256 times as large.
        ({"mechanism": Banded((1.0, 16.0, 256.0)), "rounds": 3}, r"entries of C or C\^-1 up to 256 in 3 rounds"),
        ({"mechanism": "blt"}, "mechanism is 'blt': give one of privacy.correlated"),
        ({"sampling": CheckIn(101, 4)}, "cohort size 101 is larger than the population 100"),
        ({"sampling": CyclicPoisson(101, 0.5)}, "cyclic cohorts 101 are more than the population 100"),
    ],
)
def test_plan_refuses_what_the_mechanism_does_not_cover_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        plan(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("coefficients", "rounds"), [((1.0, 2.0), 5), ((1.0, -1.5), 7), ((1.0, -1.0), 4000)])
def test_plan_takes_a_matrix_whose_inverse_is_at_most_16(coefficients, rounds):
    # 2^4 = 16, 1.5^6 = 11.4, and 1: within the bound over these rounds.
    assert plan(Banded(coefficients), rounds=rounds).value_noise_multiplier > 0


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_whole_run_costs_one_gaussian_release_of_the_plans_noise_multiplier(mechanism):
    spent = accounting.epsilon(plan(mechanism))
    # δ is reduced by a share of 1e-9 for noise that is not near a Gaussian.
    assert spent.pld == pytest.approx(gaussian_epsilon(2.0, 1e-6), rel=1e-8, abs=0)
    assert spent.pld is not None and spent.rdp > spent.pld and spent.relation == "zero-out"
    assert "the rounds have rho 0.125 of zero-concentrated differential privacy (zCDP)" in spent.notes  # 1 / (2 z²)
    # 12 rounds, separation 4: 3 rounds for each client.
    sensitivity = mechanism.sensitivity(12, Participation(4, 3)).value
    assert plan(mechanism).value_noise_multiplier == pytest.approx(2.0 * sensitivity, rel=1e-12, abs=0)


def test_independent_noise_as_a_banded_mechanism_costs_what_cyclic_gaussian_rounds_cost():
    for rounds in (1, 5, 12):
        identity = accounting.epsilon(plan(Banded((1.0,)), noise_multiplier=2.0), rounds).pld
        separate = accounting.epsilon(plan(None, noise_multiplier=2.0 * math.sqrt(3)), rounds).pld
        assert identity == pytest.approx(separate, rel=1e-9, abs=0)


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_part_of_a_run_costs_what_the_leading_rounds_of_the_matrix_cost(mechanism):
    curve = accounting.epsilon_curve(plan(mechanism), range(13))
    assert curve[0] == 0 and np.all(np.diff(curve) >= 0)
    part = mechanism.sensitivity(5, Participation(4, 3)).value / mechanism.sensitivity(12, Participation(4, 3)).value
    assert accounting.epsilon(plan(mechanism), 5).pld == pytest.approx(gaussian_epsilon(2.0 / part, 1e-6), rel=1e-8)
    with pytest.raises(ValueError, match="rounds is 13, but the noise of mechanism"):
        accounting.epsilon(plan(mechanism), 13)


def test_metrics_and_update_share_the_budget_of_the_run():
    metrics = PrivateMetrics(share=0.2, accuracy=False)
    with_metrics = plan(metrics=metrics)
    # One client moves the update's sums by the sensitivity and one pair by 1 in each of its 3 rounds.
    update = (plan().sensitivity(12).value / with_metrics.value_noise_multiplier) ** 2
    of_metrics = 3 / with_metrics.metric_noise_multiplier**2
    assert update + of_metrics == pytest.approx(1 / 2.0**2, rel=1e-12, abs=0)
    assert of_metrics == pytest.approx(0.2 / 2.0**2, rel=1e-12, abs=0)
    assert accounting.epsilon(with_metrics).pld == pytest.approx(accounting.epsilon(plan()).pld, rel=1e-12, abs=0)


def test_part_of_a_run_with_metrics_costs_the_metrics_of_its_rounds():
    with_metrics = plan(metrics=PrivateMetrics(share=0.2, accuracy=False))
    # Of the first 5 of 12 rounds, one client is in 2 of its 3: 0 and 4.
    update = (plan().sensitivity(5).value / with_metrics.value_noise_multiplier) ** 2
    cost = update + 2 / with_metrics.metric_noise_multiplier**2
    assert accounting.epsilon(with_metrics, 5).pld == pytest.approx(gaussian_epsilon(cost**-0.5, 1e-6), rel=1e-8)


def test_amplified_rounds_with_metrics_cost_both_in_every_turn():
    with_metrics = plan(
        BANDED,
        CyclicPoisson(4, 0.1),
        rounds=40,
        metrics=PrivateMetrics(share=0.2, accuracy=False),
        noise_multiplier=2.0,
    )
    norm = math.sqrt(1 + 0.5**2 + 0.25**2)
    cost = (norm / with_metrics.value_noise_multiplier) ** 2 + with_metrics.metric_noise_multiplier**-2
    turns = PrivacyPlan(Poisson(0.1), 100, 10, cost**-0.5, FixedClip(0.5), 1e-6)
    assert accounting.epsilon(with_metrics).value == pytest.approx(accounting.epsilon(turns).value, rel=1e-9, abs=0)


@pytest.mark.parametrize("probability", [0.9, 1.0])
def test_sampling_within_cohorts_never_costs_more_than_whole_cohorts(probability):
    # Square roots of prefix sums: the columns of later rounds are shorter than that of round 0, which every turn of an
    # amplified bound is charged for.
    root = Banded(tuple(np.cumprod([1.0, *(1 - 0.5 / np.arange(1, 100))])), "a test")
    both = [
        accounting.epsilon(plan(root, sampling, population=10_000, rounds=101, noise_multiplier=1.0))
        for sampling in (CyclicPoisson(100, probability), Cyclic(100))
    ]
    assert both[0].value <= both[1].value
    assert (both[0].notes[0] == both[1].notes[0]) == (probability == 1.0)  # "no amplification by sampling"


def test_band_within_the_cohorts_is_amplified_by_cyclic_poisson_and_no_other_mechanism_is():
    sampling = CyclicPoisson(4, 0.1)
    amplified = accounting.epsilon(plan(BANDED, sampling, rounds=40))
    # Choquette-Choo et al. 2023: 40 / 4 turns of a Gaussian sampled with probability 0.1, whose noise is relative to
    # the norm of a column. Columns of the last 2 rounds are shorter, but no turn of the first cohort is among them.
    norm = math.sqrt(1 + 0.5**2 + 0.25**2)
    noise = 2.0 * plan(BANDED, sampling, rounds=40).sensitivity(40).value / norm
    turns = PrivacyPlan(Poisson(0.1), 100, 10, noise, FixedClip(0.5), 1e-6)
    assert amplified.value == pytest.approx(accounting.epsilon(turns).value, rel=1e-9, abs=0)
    whole = accounting.epsilon(plan(BANDED, Cyclic(4), rounds=40)).value
    assert amplified.value < whole / 3
    for other in (Banded((1.0, 0.5, 0.4, 0.3, 0.2)), BLT_1, Tree()):
        sampled, cyclic = (accounting.epsilon(plan(other, s, rounds=40)) for s in (sampling, Cyclic(4)))
        assert sampled.value == cyclic.value and any("no amplification" in note for note in sampled.notes)


def test_cyclic_poisson_with_independent_noise_is_poisson_in_every_turn():
    sampled = accounting.epsilon(plan(None, CyclicPoisson(4, 0.1), rounds=40))
    turns = accounting.epsilon(PrivacyPlan(Poisson(0.1), 100, 10, 2.0, FixedClip(0.5), 1e-6))
    assert (sampled.pld, sampled.rdp) == (turns.pld, turns.rdp) and sampled.relation == "zero-out"


def test_check_in_limits_participations_by_separation_and_by_its_own_limit():
    assert plan(sampling=CheckIn(10, 5)).max_participations == 3
    limited = plan(sampling=CheckIn(10, 5, 2))
    assert limited.participation == (5, 2) and limited.expected_cohort == 10
    assert limited.sensitivity(12).value < plan(sampling=CheckIn(10, 5)).sensitivity(12).value


def test_calibration_finds_the_noise_of_the_exact_curve_and_refuses_to_find_rounds():
    found = accounting.calibrate_noise(plan(), 3.0)
    assert (
        accounting.epsilon(found).value
        <= 3.0
        < accounting.epsilon(dataclasses.replace(found, noise_multiplier=found.noise_multiplier * 0.985)).value
    )
    with pytest.raises(ValueError, match="mechanism 'blt' has no number of rounds to find"):
        accounting.calibrate_rounds(plan(), 3.0)


@pytest.mark.parametrize("mechanism", [None, *MECHANISMS])
@pytest.mark.parametrize("sampling", [Cyclic(4), CyclicPoisson(4, 0.5), CheckIn(10, 5, 2)])
def test_plan_survives_json(mechanism, sampling):
    written = json.loads(json.dumps(plan(mechanism, sampling).to_dict()))
    assert PrivacyPlan.from_dict(written) == plan(mechanism, sampling)
    assert ("mechanism" in written) == (mechanism is not None)


def test_damaged_mechanism_is_refused():
    written = plan().to_dict()
    with pytest.raises(ValueError, match="mechanism kind 'dense' is unknown: use one of tree, banded, blt"):
        PrivacyPlan.from_dict({**written, "mechanism": {"kind": "dense"}})
    with pytest.raises(ValueError, match="mechanism fields .* do not fit kind 'tree'"):
        PrivacyPlan.from_dict({**written, "mechanism": {"kind": "tree", "bands": 3}})
    for field in ("mechanism", "sampling", "clip"):
        with pytest.raises(ValueError, match=f"{field} is 5: give a dict"):
            PrivacyPlan.from_dict({**written, field: 5})
        with pytest.raises(ValueError, match=rf"{field} kind \['x'\] is unknown"):
            PrivacyPlan.from_dict({**written, field: {"kind": ["x"]}})


def record(ledger: Ledger, number: int, cohort: list[str]) -> None:
    stddev = ledger.plan.value_noise_multiplier * 0.5
    ledger.record(round=number, cohort=cohort, noise_id=f"noise{number}", noise_stddev=stddev, clip_norm=0.5)


def refusal(ledger: Ledger, number: int, cohort: list[str]) -> str:
    """Returns the message with which the ledger refuses a round; empty if it does not."""
    try:
        record(ledger, number, cohort)
    except ValueError as error:
        return str(error)
    return ""


def test_ledger_refuses_a_client_within_its_separation_and_above_its_limit(tmp_path):
    with Ledger.open(tmp_path / "ledger", plan(sampling=CheckIn(10, 3, 2))) as ledger:
        for number, cohort in enumerate((["a"], ["b"])):
            record(ledger, number, cohort)
        too_soon = refusal(ledger, 2, ["a"])
        assert too_soon.startswith("round 2: client 'a' took part in round 0, the plan allows it again from round 3")
        record(ledger, 2, [])
        record(ledger, 3, ["a"])
        for number in (4, 5):
            record(ledger, number, [])
        too_often = refusal(ledger, 6, ["a"])
        assert too_often.startswith("round 6: client 'a' took part in 2 rounds, the plan allows no more")
        too_many = refusal(ledger, 6, [f"client {number}" for number in range(11)])
        assert too_many == "round 6: cohort of 11 clients, the plan has at most 10: take fewer"
        record(ledger, 6, ["b"])
    assert len(Ledger.read(tmp_path / "ledger").rounds) == 7


@pytest.mark.parametrize("sampling", [Cyclic(3), CyclicPoisson(3, 0.5)])
def test_ledger_refuses_a_client_that_changes_its_cohort(tmp_path, sampling):
    with Ledger.open(tmp_path / "ledger", plan(BANDED, sampling)) as ledger:
        for number, cohort in enumerate((["a"], ["b"], [], [])):
            record(ledger, number, cohort)
        message = refusal(ledger, 4, ["a"])
        assert message.startswith("round 4: client 'a' took part in round 0, which is the turn of another of the 3")
        for number, cohort in enumerate((["b"], [], ["a"]), 4):
            record(ledger, number, cohort)
    assert len(Ledger.read(tmp_path / "ledger").rounds) == 7


@pytest.mark.parametrize(("begun", "given"), [(None, BLT_1), (BLT_1, None), (BLT_1, Tree())])
def test_ledger_of_another_mechanism_is_refused_by_name(begun, given, tmp_path):
    Ledger.open(tmp_path / "ledger", plan(begun)).close()
    with pytest.raises(ValueError, match="another plan [(]differs in mechanism[)]: resume with that plan"):
        Ledger.open(tmp_path / "ledger", plan(given))
