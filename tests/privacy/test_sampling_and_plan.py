"""Tests of samplers and plans: their validation, their derived numbers and their events."""

import json
import math
import subprocess
import sys
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import AdaptiveClip, Cyclic, FixedClip, FixedSize, Ledger, Poisson, PrivacyPlan, PrivateMetrics

GOOD: dict[str, Any] = {
    "sampling": Poisson(0.1),
    "population": 1000,
    "rounds": 20,
    "noise_multiplier": 1.0,
    "clip": FixedClip(0.5),
}
CLIPS: list[FixedClip | AdaptiveClip] = [FixedClip(0.5), AdaptiveClip(0.5), AdaptiveClip(0.3, 0.4, 0.1, 2.5)]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("population", 1, "population must be an integer of at least 2, got 1"),
        ("population", 10.5, "population must be an integer"),
        ("rounds", 0, "rounds must be an integer of at least 1, got 0"),
        ("rounds", 1_000_001, "rounds must be at most 1,000,000, got 1,000,001"),
        ("noise_multiplier", 1e-9, r"noise_multiplier must lie in \[1e-6, 1e8\], got 1e-09"),
        ("noise_multiplier", 1e300, "noise_multiplier must lie in"),
        ("rounds", True, "rounds must be an integer"),
        ("noise_multiplier", math.nan, "noise_multiplier must be a finite number of at least 0, got nan"),
        ("noise_multiplier", math.inf, "noise_multiplier must be"),
        ("noise_multiplier", -1.0, "noise_multiplier must be"),
        ("noise_multiplier", "1", "noise_multiplier must be a number"),
        ("delta", 0.0, r"delta must lie in \(0, 1\), got 0.0"),
        ("delta", 1.0, "delta must lie in"),
        ("delta", math.nan, "delta must lie in"),
        ("relation", "replace-one", "relation 'replace-one' has no accounting under poisson"),
        ("unit", "example", "unit must be 'client'"),
        ("sampling", FixedSize(1001), "cohort size 1001 is larger than the population 1000"),
        ("sampling", Cyclic(1001), "cyclic cohorts 1001 are more than the population 1000"),
        ("clip", None, "clip is None but noise_multiplier is 1: give FixedClip or AdaptiveClip"),
        ("clip", AdaptiveClip(0.5, count_stddev=0.5), "count_stddev 0.5 of the clip leaves none of the privacy budget"),
    ],
)
def test_plan_names_invalid_field_with_its_value_and_a_fix(field, value, message):
    with pytest.raises(ValueError, match=message) as caught:
        PrivacyPlan(**{**GOOD, field: value})
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Poisson(0.0),
        lambda: Poisson(1.5),
        lambda: Poisson(math.nan),
        lambda: FixedSize(0),
        lambda: FixedSize(2.5),  # type: ignore[arg-type]
        lambda: Cyclic(0),
        lambda: Cyclic.by_rounds_between(-1),
        lambda: FixedClip(0.0),
        lambda: FixedClip(-1.0),
        lambda: FixedClip(math.nan),
        lambda: FixedClip(math.inf),
        lambda: AdaptiveClip(0.0),
        lambda: AdaptiveClip(1.0, quantile=1.0),
        lambda: AdaptiveClip(1.0, learning_rate=math.nan),
        lambda: AdaptiveClip(1.0, count_stddev=0.0),
    ],
)
def test_invalid_sampler_or_clip_is_refused_in_one_line(make):
    with pytest.raises(ValueError, match=": ") as caught:
        make()
    assert "\n" not in str(caught.value)


def test_error_names_the_default_learning_rate_of_the_clip(monkeypatch):
    monkeypatch.setattr(AdaptiveClip, "learning_rate", 0.125)
    with pytest.raises(ValueError, match="learning_rate must be a finite number above 0, got -1: 0.125 is usual"):
        AdaptiveClip(1.0, learning_rate=-1)


def test_numpy_numbers_become_python_numbers(tmp_path):
    half: Any = np.float16
    given: dict[str, Any] = {
        "population": np.int64(1000),
        "rounds": np.int32(3),
        "noise_multiplier": np.float32(1),
        "delta": np.float64(0.001),
    }
    metrics = PrivateMetrics(half(0.5), accuracy=False)
    plan = PrivacyPlan(Poisson(half(0.5)), clip=AdaptiveClip(half(1)), metrics=metrics, **given)
    with Ledger.open(tmp_path / "ledger", plan):
        pass
    assert plan == PrivacyPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert FixedSize(given["rounds"]).expected_cohort(1000) == 3 and type(Cyclic(given["rounds"]).cohorts) is int


def test_delta_defaults_to_population_rule():
    plan = PrivacyPlan(**GOOD)
    # δ = N^-1.1 (arXiv:1710.06963, section 1): 10^-3.3 for a thousand.
    assert plan.delta == pytest.approx(5.01187e-4, rel=1e-5)
    assert plan.delta_rule == "population^-1.1"
    given_delta = PrivacyPlan(**GOOD, delta=1e-6)
    assert given_delta.target_delta == 1e-6
    assert given_delta.delta_rule == "given"


@pytest.mark.parametrize(
    ("z", "count_stddev", "value"), [(1.0, 5.0, 1.0050378), (0.7, 2.5, 0.7069625), (4.0, 5.0, 4.3643578)]
)
def test_adaptive_noise_split_equals_tensorflow_privacy(z, count_stddev, value):
    # Expected: computed with the formulas of tensorflow-privacy 0.9's QuantileAdaptiveClipSumQuery, outside this code.
    clip = AdaptiveClip(1.0, count_stddev=count_stddev)
    plan = PrivacyPlan(**{**GOOD, "clip": clip, "noise_multiplier": z})
    assert plan.value_noise_multiplier == pytest.approx(value, abs=1e-7)
    assert plan.count_stddev == count_stddev
    # Both Gaussians together equal one of multiplier z: their precisions, relative to sensitivities 1 and 1/2, add up.
    assert plan.value_noise_multiplier**-2 + (2 * count_stddev) ** -2 == pytest.approx(z**-2)


@pytest.mark.parametrize("clip", [FixedClip(0.5), AdaptiveClip(0.5, count_stddev=5.0)])
@pytest.mark.parametrize("accuracy", [False, True])
def test_metrics_and_update_together_cost_one_gaussian(clip, accuracy):
    plan = PrivacyPlan(**{**GOOD, "clip": clip, "metrics": PrivateMetrics(0.1, 5.0, accuracy=accuracy)})
    # Precisions relative to the sensitivities add up: 1 for the update and for each pair, 1/2 for the count.
    of_count = (2 * plan.count_stddev) ** -2 if plan.count_stddev else 0.0
    of_metrics = (2 if accuracy else 1) * plan.metric_noise_multiplier**-2
    assert plan.value_noise_multiplier**-2 + of_count + of_metrics == pytest.approx(1.0)
    assert of_metrics == pytest.approx(0.1)
    assert plan.dp_event() == PrivacyPlan(**{**GOOD, "clip": clip}).dp_event()
    assert PrivacyPlan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_multiplier": 0.0}, "metrics is given but noise_multiplier is 0"),
        # Without metrics, anything above 0.5 would be enough.
        (
            {"clip": AdaptiveClip(0.5, count_stddev=0.51)},
            "count_stddev 0.51 of the clip leaves none of the",
        ),
    ],
)
def test_metrics_are_refused_without_noise_or_with_too_little_count_noise(changes, message):
    with pytest.raises(ValueError, match=message):
        PrivacyPlan(**{**GOOD, "metrics": PrivateMetrics(0.1), **changes})


@pytest.mark.parametrize("share", [0.0, 1e-320, 1.0, -0.1, math.nan])
def test_metrics_share_outside_range_is_refused(share):
    with pytest.raises(ValueError, match="share must lie in"):
        PrivateMetrics(share)


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-38])
def test_loss_bound_outside_range_is_refused(bound):
    with pytest.raises(ValueError, match="loss_bound must lie in"):
        PrivateMetrics(0.1, bound)


def test_metrics_and_accuracy_of_wrong_type_are_refused():
    with pytest.raises(ValueError, match="give True or False"):
        PrivateMetrics(0.1, 5.0, accuracy="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give PrivateMetrics"):
        PrivacyPlan(**GOOD, metrics="yes")  # type: ignore[arg-type]


def test_count_stddev_defaults_to_twentieth_of_cohort():
    assert PrivacyPlan(**{**GOOD, "clip": AdaptiveClip(1.0)}).count_stddev == pytest.approx(5.0)


def test_plan_without_noise_is_not_private_and_needs_no_clip():
    plan = PrivacyPlan(**{**GOOD, "noise_multiplier": 0.0, "clip": None})
    assert not plan.is_private
    assert plan.dp_event() == dp.NonPrivateDpEvent()
    adaptive = PrivacyPlan(**{**GOOD, "noise_multiplier": 0.0, "clip": AdaptiveClip(1.0)})
    assert adaptive.value_noise_multiplier == adaptive.count_stddev == 0


@pytest.mark.parametrize(
    ("sampling", "event"),
    [
        (Poisson(0.1), dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(0.1, dp.GaussianDpEvent(1.0)), 20)),
        (
            FixedSize(50),
            dp.SelfComposedDpEvent(dp.SampledWithoutReplacementDpEvent(1000, 50, dp.GaussianDpEvent(0.5)), 20),
        ),
        (Cyclic(7), dp.SelfComposedDpEvent(dp.GaussianDpEvent(1.0), 3)),
    ],
)
def test_dp_event_follows_from_sampler(sampling, event):
    plan = PrivacyPlan(**{**GOOD, "sampling": sampling})
    assert plan.dp_event() == event
    assert plan.dp_event(0) == dp.NoOpDpEvent()


def test_cyclic_constructors_differ_by_one():
    assert Cyclic.by_round_distance(313) == Cyclic(313)
    assert Cyclic.by_rounds_between(312) == Cyclic(313)
    assert Cyclic(313).min_separation == 313


@given(st.integers(1, 30), st.integers(1, 200))
def test_cyclic_separation_bounds_participations(cohorts, rounds):
    assert len(range(0, rounds, cohorts)) == Cyclic(cohorts).max_participations(rounds)


@pytest.mark.parametrize("sampling", [Poisson(0.1), FixedSize(50), Cyclic(7)])
@pytest.mark.parametrize("clip", CLIPS)
def test_plan_equals_itself_after_json(sampling, clip):
    plan = PrivacyPlan(**{**GOOD, "sampling": sampling, "clip": clip, "public": ("a vocabulary",)})
    assert PrivacyPlan.from_dict(plan.to_dict()) == plan


def test_from_dict_refuses_unknown_fields_and_kinds():
    data = PrivacyPlan(**GOOD).to_dict()
    changes: tuple[dict[str, Any], ...] = (
        {"new": 1},
        {"clip": {"kind": "odd"}},
        {"clip": {"kind": "fixed", "nrm": 1}},
        {"sampling": {"kind": "odd"}},
        {"public": 5},
    )
    for change in changes:
        with pytest.raises(ValueError, match=": "):
            PrivacyPlan.from_dict({**data, **change})
    with pytest.raises(ValueError, match="do not fit kind"):
        PrivacyPlan.from_dict({**data, "sampling": {"kind": "poisson", "size": 3}})


def test_expected_cohort_follows_from_sampler_and_population():
    for sampling, cohort in ((Poisson(0.1), 100.0), (FixedSize(50), 50.0), (Cyclic(7), 1000 / 7)):
        assert PrivacyPlan(**{**GOOD, "sampling": sampling}).expected_cohort == cohort


def test_importing_privacy_loads_no_large_package():
    code = (
        "import sys, privacy, privacy.accounting, privacy.report\n"
        "heavy = ('dp_accounting', 'scipy', 'matplotlib', 'jinja2', 'tensorflow')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
