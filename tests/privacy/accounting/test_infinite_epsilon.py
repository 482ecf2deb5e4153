"""Tests of the two ends of ε: infinite, with a note that says why, and 0 for records that are hardly ever drawn."""

import json
import math

import pytest
from click.testing import CliRunner

from experiments.commands.privacy import privacy
from experiments.training import _describe_privacy
from privacy import FixedClip, Poisson, PrivacyPlan, accounting
from privacy.accounting import composition, costs
from privacy.accounting.guarantee import EXACT, Guarantee
from privacy.noise import training as training_noise

NOTE = "above about 500, epsilon is not stated: use more noise"


def plan(probability, z, rounds, delta=1e-6):
    return PrivacyPlan(Poisson(probability), 10**6, rounds, z, FixedClip(1.0), delta)


def test_infinite_epsilon_has_a_note_and_a_finite_one_has_none():
    much, little = plan(1e-4, 1.0, 100), plan(1e-4, 0.2, 1_000_000)
    assert accounting.epsilon(little).value == math.inf and accounting.epsilon(little).notes[0] == NOTE
    assert NOTE in _describe_privacy(little, False)
    assert NOTE not in accounting.epsilon(much).notes and NOTE not in _describe_privacy(much, False)


@pytest.mark.parametrize("as_json", [False, True])
def test_privacy_epsilon_explains_an_infinite_epsilon(as_json):
    options = ["epsilon", "--population", "1000000", "--cohort-size", "100", "--noise-multiplier", "0.2"]
    done = CliRunner().invoke(privacy, [*options, "--rounds", "1000000", *["--json"] * as_json], catch_exceptions=False)
    assert done.exit_code == 0
    if as_json:
        result = json.loads(done.stdout)
        assert result["epsilon"] is None and NOTE in result["notes"]
    else:
        assert f"note: {NOTE}" in done.stdout


def test_guarantee_explains_an_infinite_epsilon():
    few = Guarantee("a sum", (costs.Gaussian(0.003),), "add-or-remove-one", 1e-5, EXACT)
    assert str(few).startswith("epsilon inf at delta 1e-05 (rho") and f"({NOTE}); unit record" in str(few)
    more = Guarantee("a sum", (costs.Gaussian(3.0),), "add-or-remove-one", 1e-5, EXACT)
    assert NOTE not in str(more)


@pytest.mark.parametrize(
    ("draws", "expected"),
    [([(0.5, 2)], 0.75), ([(0.5, 1), (0.25, 2)], 1 - 0.5 * 0.75**2), ([(1e-5, 10)], 9.999550012e-5), ([(1.0, 1)], 1.0)],
)
def test_any_participation_is_one_minus_the_probability_of_no_draw(draws, expected):
    assert composition.any_participation(draws) == pytest.approx(expected, rel=1e-9)


def test_epsilon_is_zero_exactly_where_no_draw_keeps_delta():
    """A client whom no round draws changes nothing. At a δ just below the probability of a draw little noise leaks."""
    probability, rounds, z = 1e-5, 10, 3e-4
    drawn = -math.expm1(rounds * math.log1p(-probability))
    for delta, is_zero in ((1e-3, True), (drawn * 1.0001, True), (drawn, False), (drawn * 0.9999, False)):
        spent = accounting.epsilon(plan(probability, z, rounds, delta))
        single = costs.epsilon([costs.Gaussian(z, 4, probability), costs.Gaussian(2 * z, 6, probability)], delta)
        assert (spent.value == 0) == (single == 0) == is_zero
    # A release of all records beside them leaks whether or not a record is drawn.
    assert costs.epsilon([costs.Gaussian(z, rounds, probability), costs.Gaussian(1.0)], 1e-3) > 1
    assert costs.epsilon([costs.Gaussian(z, rounds, probability), costs.Pure(1.0)], 1e-3) > 0.5


def test_epsilon_of_hardly_ever_drawn_records_counts_the_failures_of_noise(monkeypatch):
    monkeypatch.setattr(training_noise, "FAILURE", 1e-10)
    assert accounting.epsilon(plan(1e-5, 3e-4, 10, 1e-3)).value == math.inf
    assert costs.epsilon([costs.Gaussian(3e-4, 10, 1e-5)], 1e-3) == math.inf
