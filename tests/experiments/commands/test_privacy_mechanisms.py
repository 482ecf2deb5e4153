"""Tests of `fedspeak privacy epsilon` and `noise` with limits on participation and with correlated noise."""

import math

import pytest

from experiments.config_privacy import BANDS
from privacy import CyclicPoisson, FixedClip, PrivacyPlan, accounting
from privacy.correlated import Workload, optimize_banded
from privacy.correlated.factorisation import BUFFERS
from tests.experiments.commands.test_privacy import call, facts

pytestmark = pytest.mark.filterwarnings("ignore:np.find_common_type is deprecated:DeprecationWarning")
CHECK_IN = ("--sampler", "check-in", "--population", 10**6, "--cohort-size", 1000, "--delta", 1e-10)


def test_published_tree_has_its_epsilon():
    # Gboard: noise multiplier 7 on each node, squared sensitivity 79; 313 rounds in between are a difference of 314.
    limits = ("--rounds", 2000, "--min-separation", 314, "--max-participations", 6, "--mechanism", "tree")
    found = facts("epsilon", *CHECK_IN, *limits, "--noise-multiplier", 7 / math.sqrt(79))
    assert found["epsilon"] == pytest.approx(8.53, abs=5e-3)
    assert found["sensitivity"]["value"] ** 2 == pytest.approx(79, rel=1e-12)
    assert found["max_participations"] == 6


def test_independent_noise_of_clients_who_check_in_is_that_of_their_rounds():
    found = facts("epsilon", *CHECK_IN, "--rounds", 200, "--min-separation", 50, "--noise-multiplier", 4)
    gaussian = facts("epsilon", *CHECK_IN, "--rounds", 1, "--min-separation", 1, "--noise-multiplier", 2)
    assert found["epsilon"] == gaussian["epsilon"]  # 4 rounds
    assert found["sensitivity"] is None


def test_error_of_one_band_is_that_of_independent_noise():
    limits = ("--rounds", 200, "--min-separation", 50, "--noise-multiplier", 3)
    text = call("epsilon", *CHECK_IN, *limits, "--mechanism", "banded", "--bands", 1)
    # Sums of t rounds have variance t; a client in 4 rounds doubles the noise.
    assert f"{3 * 2 * math.sqrt(100.5):.6g} clip norms, root mean square" in text
    assert "split" not in text


def test_noise_keeps_the_budget_whatever_the_mechanism():
    limits = ("--rounds", 60, "--min-separation", 20)
    found = {
        kind: facts("noise", *CHECK_IN, *limits, "--mechanism", kind, "--epsilon", 4)
        for kind in ("tree", "banded", "blt")
    }
    assert all(0.99 * 4 < each["epsilon"] <= 4 for each in found.values())
    # All rounds together are one Gaussian release.
    assert len({each["plan"]["noise_multiplier"] for each in found.values()}) == 1
    assert found["blt"]["plan"]["mechanism"]["kind"] == "blt"


def test_banded_noise_is_amplified_by_cyclic_poisson_cohorts():
    setting = ("--sampler", "cyclic-poisson", "--population", 1000, "--cohorts", 20, "--sampling-probability", 0.5)
    noise = ("--rounds", 100, "--noise-multiplier", 1)
    found = facts("epsilon", *setting, *noise, "--mechanism", "banded", "--bands", 4)
    plan = PrivacyPlan(CyclicPoisson(20, 0.5), 1000, 100, 1.0, FixedClip(1.0))
    banded = optimize_banded(4, Workload(100), plan.participation)
    same = PrivacyPlan(CyclicPoisson(20, 0.5), 1000, 100, 1.0, FixedClip(1.0), mechanism=banded)
    assert found["epsilon"] == accounting.epsilon(same).value
    assert found["epsilon"] < facts("epsilon", *setting, *noise, "--mechanism", "tree")["epsilon"]


def test_help_names_the_defaults():
    text = call("epsilon", "--help")
    assert f"Number of bands (banded). [default: {BANDS}]" in text
    assert f"Maximum number of buffers (blt). [default: {BUFFERS}]" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sampler", "check-in", "--cohort-size", 10], "--min-separation is missing: check-in needs it"),
        (["--sampler", "cyclic-poisson", "--sampling-probability", 0.5], "--cohorts is missing"),
        (["--sampler", "cyclic-poisson", "--cohorts", 5], "no cohort size given: cyclic-poisson takes exactly one of"),
        (
            ["--sampler", "check-in", "--cohort-size", 2.5, "--min-separation", 2],
            "--cohort-size 2.5 is not an integer: check-in cohorts need one",
        ),
        (["--sampler", "check-in", "--cohort-size", 10, "--min-separation", 0], "--min-separation must be an integer"),
        (
            ["--sampler", "check-in", "--cohort-size", 10, "--min-separation", 2, "--max-participations", 0],
            "--max-participations must be an integer of at least 1",
        ),
        (
            ["--sampler", "cyclic", "--cohorts", 10, "--max-participations", 2],
            "--max-participations 2 has no effect with cyclic: leave it out",
        ),
        (["--cohort-size", 10, "--min-separation", 2], "--cohort-size and --min-separation given: poisson takes"),
        (["--cohort-size", 10, "--mechanism", "blt"], "--mechanism blt with --sampler poisson, which does not limit"),
        (
            ["--sampler", "cyclic", "--cohorts", 9, "--mechanism", "tree", "--bands", 3],
            "--bands 3 has no effect with --mechanism tree",
        ),
        (
            ["--sampler", "cyclic", "--cohorts", 9, "--buffers", 3],
            "--buffers 3 has no effect with --mechanism gaussian",
        ),
        (["--sampler", "cyclic", "--cohorts", 9, "--mechanism", "blt", "--buffers", 0], "--buffers must be an integer"),
        (
            ["--sampler", "cyclic", "--cohorts", 9, "--mechanism", "banded", "--bands", 5000],
            "--bands must be at most 4,096, got 5,000: lower it",
        ),
        (
            ["--sampler", "cyclic", "--cohorts", 9, "--mechanism", "tree", "--rounds", 30_000],
            "--rounds 30000 with --mechanism tree: give at most 4,096",
        ),
        (
            ["--sampler", "cyclic", "--cohorts", 9, "--mechanism", "tree", "--noise-multiplier", 0],
            "--noise-multiplier 0 with --mechanism tree, which adds noise: raise it",
        ),
        (
            ["--sampler", "cyclic", "--cohorts", 9, "--mechanism", "tree", "--clip-count-stddev", 2],
            "--clip-count-stddev with --mechanism tree, which needs a fixed clip norm",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        call("epsilon", "--population", 100, "--rounds", 5, "--noise-multiplier", 1, *arguments)
    assert "\n" not in str(error.value)
