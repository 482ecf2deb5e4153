"""The contents of a privacy report as one JSON-able dict, computed from plan and ledger; `privacy.report`
renders it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from privacy import accounting
from privacy.accounting import Epsilon, composition, loss_grid
from privacy.budget import Releases
from privacy.keys import FIXED_PREFIX
from privacy.ledger import Ledger
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan
from privacy.sampling import Cyclic, FixedSize, Poisson, Sampling

SCHEMA = "fedspeak-privacy-report/1"
CURVE_POINTS = 40
WHAT_IF_POPULATIONS = (10**5, 10**6, 10**7)
WHAT_IF_COHORTS = (1, 10, 100)
RELATIONS = {
    "add-or-remove-one": "two data sets that differ by adding or removing all of one client's text",
    "replace-one": "two data sets that differ by replacing all of one client's text by another's",
    "zero-out": "two data sets that differ by emptying one client's text, every other place unchanged",
}
STATISTICS_SCHEMA = "fedspeak-statistics-report/1"
RECORD_RELATIONS = {
    "add-or-remove-one": "two data sets that differ by one record more or less",
    "replace-one": "two data sets that differ by one record in place of another; their number is public",
}
COMPOSITIONS = {
    "PLD": "one privacy loss distribution over all of them",
    "RDP": "Rényi divergences add up",
    "sum": "epsilons add up",
}
STATISTICS_NOT_COVERED = (
    "Bounds, grids, classes and hyper-parameters must be public: chosen on the data, they cost ε that is not here.",
    "Releases about the same records that are not in this ledger add to ε.",
    "The time that a release takes, and noise that is named as not hardened above.",
)
NOT_COVERED = (
    "Hyper-parameter search is not accounted for: each further run on the same clients costs ε of its own.",
    "Losses on validation and test clients, and the number of these, are exact: what they tell is outside ε.",
    "The figures hold against whoever sees every released model but neither the cohorts, the keys nor the "
    "ledger, and who relies on the server to clip, to add the noise and to forget the updates.",
)
NOISE = {
    "floating-point": (
        "Noise is floating-point, not hardened: each value of fedspeak's aggregators is within 2^-20 (1 + R) standard "
        "deviations of exact Gaussian noise (R: length of its pair), except with a probability that δ includes. That "
        "distance, the rounding of sums to 32 bits, pseudo-random bits (Philox) and timing are not covered."
    ),
    "exact": (
        "Updates, sums and noise are integers, hardened against floating-point attacks: rounded exact Gaussian noise, "
        "clients trained one by one. Pseudo-random bits (SHAKE-128 of a secret key) and timing are not covered."
    ),
}
COUNT = (
    "The number of clients, {population:,}, is not covered: it was counted, and δ, the expected cohort and this report "
    "publish it. Declare a public number in advance to have it covered."
)
OMITTED = (
    "cohort sizes and how many rounds were empty",
    "participations a client, and how many different clients were seen",
    "updates zeroed because they were not finite",
    "digest of the ledger, the ledger itself and the keys",
    "training-side loss and accuracy, which are read without noise",
    "the losses of models fitted to the training clients' text without noise (n-grams)",
)


def compose(plan: PrivacyPlan, ledger: Ledger, facts: Mapping[str, Any], *, release: bool) -> dict[str, Any]:
    """Everything a report says. Figures are Python numbers; an infinite ε is None."""
    rounds = len(ledger.rounds)
    spent = accounting.epsilon(plan, rounds)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "release": release,
        "run": facts.get("run"),
        "status": _status(plan, ledger),
        "guarantee": _guarantee(plan, spent),
        "planned": _planned(plan),
        "happened": _happened(ledger),
        "epsilon_by_round": _curve(plan, rounds),
        "adaptive_clipping": _adaptive(plan, ledger, spent),
        "what_if": _what_if(plan),
        "public": _public(plan),
        "warnings": _warnings(plan, ledger),
        "not_covered": _not_covered(plan),
        "evaluation": facts.get("evaluation"),
        "versions": dict(facts.get("versions", {})),
        "ledger_version": ledger.version,
        "omitted": list(OMITTED) if release else [],
    }
    if not release:
        data["operator"] = _operator(ledger, facts)
    return data


def of_releases(ledger: Releases) -> dict[str, Any]:
    """Everything a report on single releases says."""
    budget = ledger.budget
    return {
        "schema": STATISTICS_SCHEMA,
        "status": "seeded noise" if ledger.has_seeded_noise else "private",
        "guarantee": {
            "unit": budget.unit,
            "relation": budget.relation,
            "relation_in_words": RECORD_RELATIONS[budget.relation],
            "epsilon": ledger.spent,
            "delta": budget.delta,
            "accountant": ledger.accountant,
            "composition": COMPOSITIONS[ledger.accountant],
        },
        "budget": {"epsilon": budget.epsilon, "delta": budget.delta},
        "releases": [
            {
                "mechanism": release.mechanism,
                "epsilon": release.epsilon,
                "delta": release.delta,
                "sampler": release.sampler,
                "noise": release.noise,
            }
            for release in ledger.releases
        ],
        "not_covered": list(STATISTICS_NOT_COVERED),
        "ledger_version": ledger.version,
        "ledger_digest": ledger.head,
    }


def _status(plan: PrivacyPlan, ledger: Ledger) -> str:
    if not plan.is_private:
        return "not private"
    return "fixed key" if _has_fixed_key(ledger) else "private"


def _has_fixed_key(ledger: Ledger) -> bool:
    named = [entry.noise_id for entry in ledger.rounds] + [facts["noise_id"] for facts in ledger.streams.values()]
    return any(name.startswith(FIXED_PREFIX) for name in named)


def _public(plan: PrivacyPlan) -> list[str]:
    """What was declared public."""
    declared = [f"number of clients: {plan.population:,}"] if plan.population_declared else []
    return [*plan.public, *declared]


def _not_covered(plan: PrivacyPlan) -> list[str]:
    counted = isinstance(plan.sampling, Poisson) and not plan.population_declared
    count = [COUNT.format(population=plan.population)] if counted else []
    noise = [NOISE[plan.noise]] if plan.is_private else []
    return [*count, *noise, *NOT_COVERED]


def _guarantee(plan: PrivacyPlan, spent: Epsilon) -> dict[str, Any]:
    return {
        "unit": plan.unit,
        "relation": spent.relation,
        "relation_in_words": RELATIONS[spent.relation],
        "epsilon": _finite(spent.value),
        "epsilon_pld": None if spent.pld is None else _finite(spent.pld),
        "epsilon_rdp": _finite(spent.rdp),
        "rdp_order": spent.rdp_order,
        "figure": spent.accountant,
        "delta": spent.delta,
        "delta_rule": plan.delta_rule,
        "rounds": spent.rounds,
        "notes": list(spent.notes),
    }


def _planned(plan: PrivacyPlan) -> dict[str, Any]:
    promised = accounting.epsilon(plan)
    return {
        **{
            name: value for name, value in plan.to_dict().items() if name not in ("unit", "relation", "delta", "public")
        },
        "sampling_in_words": plan.sampling.describe(),
        "expected_cohort": plan.expected_cohort,
        "max_participations": plan.max_participations,
        "value_noise_multiplier": plan.value_noise_multiplier,
        "count_stddev": plan.count_stddev,
        "metric_noise_multiplier": plan.metric_noise_multiplier,
        "epsilon": _finite(promised.value),
    }


def _happened(ledger: Ledger) -> dict[str, Any]:
    clips = [entry.clip_norm for entry in ledger.rounds if entry.clip_norm is not None]
    multipliers = [entry.noise_stddev / entry.clip_norm for entry in ledger.rounds if entry.clip_norm is not None]
    return {
        "rounds": len(ledger.rounds),
        "first_clip": clips[0] if clips else None,
        "last_clip": clips[-1] if clips else None,
        "least_noise_multiplier": min(multipliers, default=None),
    }


def _operator(ledger: Ledger, facts: Mapping[str, Any]) -> dict[str, Any]:
    counts = collections.Counter(ledger.participations().values())
    if not ledger.plan.any_population:
        counts[0] = ledger.plan.population - sum(counts.values())
    sizes = [len(entry.cohort) for entry in ledger.rounds]
    known = [entry.facts["non_finite"] for entry in ledger.rounds if "non_finite" in entry.facts]
    return {
        "cohort_sizes": sizes,
        "empty_rounds": sum(size == 0 for size in sizes),
        "clients_seen": len(ledger.participations()),
        "participations": {str(count): counts[count] for count in sorted(counts)},
        "non_finite_updates": facts.get("non_finite", sum(known) if known else None),
        "ledger_digest": ledger.head,
    }


def _curve(plan: PrivacyPlan, rounds: int) -> list[list[float]]:
    """[round count, ε] at no more than CURVE_POINTS places; empty where ε is infinite."""
    if not plan.is_private or rounds == 0:
        return []
    places = sorted({round(1 + i * (rounds - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
    values = accounting.epsilon_curve(plan, places)
    return [[place, float(value)] for place, value in zip(places, values, strict=True) if math.isfinite(value)]


def _adaptive(plan: PrivacyPlan, ledger: Ledger, spent: Epsilon) -> dict[str, Any] | None:
    """What learning the clip norm cost: the same noise on all else with a fixed clip would have spent less."""
    if not isinstance(plan.clip, AdaptiveClip):
        return None
    rest = (plan.noise_multiplier**-2 - (2 * plan.count_stddev) ** -2) ** -0.5 if plan.is_private else 0.0
    fixed = dataclasses.replace(plan, clip=FixedClip(plan.clip.initial_clip_norm), noise_multiplier=rest)
    without = accounting.epsilon(fixed, len(ledger.rounds))
    return {
        "noise_multiplier": plan.noise_multiplier,
        "value_noise_multiplier": plan.value_noise_multiplier,
        "count_stddev": plan.count_stddev,
        "epsilon_with": _finite(spent.value),
        "epsilon_without": _finite(without.value),
        "clip_by_round": [entry.clip_norm for entry in ledger.rounds],
    }


def _what_if(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Hypothetical runs with the same noise on each coordinate of the mean, z C / cohort, at other scales.

    The noise multiplier then grows with the cohort, as in McMahan et al. 2018 (arXiv:1710.06963) and
    Kairouz et al. 2021 (arXiv:2103.00039), who train small cohorts and report what large ones would cost.
    """
    if not plan.is_private:
        return []
    rows = []
    for population in WHAT_IF_POPULATIONS:
        for factor in WHAT_IF_COHORTS:
            cohort = plan.expected_cohort * factor
            if population <= plan.population or not 1 <= cohort <= population / 10:
                continue
            z, delta = plan.noise_multiplier * factor, population**-1.1
            sampling = _rescaled(plan.sampling, cohort, population)
            eps = composition.least_epsilon(sampling, population, z, plan.rounds, delta, loss_grid.COARSE)
            rows.append(
                {
                    "population": population,
                    "cohort": cohort,
                    "noise_multiplier": z,
                    "delta": delta,
                    "epsilon": _finite(eps),
                }
            )
    return rows


def _rescaled(sampling: Sampling, cohort: float, population: int) -> Sampling:
    match sampling:
        case Poisson():
            return Poisson(cohort / population)
        case FixedSize():
            return FixedSize(round(cohort))
        case Cyclic():
            return Cyclic(max(1, int(population / cohort)))


def _warnings(plan: PrivacyPlan, ledger: Ledger) -> list[str]:
    found = []
    if not plan.is_private:
        found.append("NOT PRIVATE: no noise was added, the released model may give away any client's text.")
    if _has_fixed_key(ledger):
        found.append(
            "The key is fixed: whoever knows it can redraw the noise and the cohorts, so ε does not hold. "
            "Fixed keys are for tests."
        )
    if plan.target_delta > 1 / plan.population:
        found.append("δ is above 1 / population: a mechanism that gives one client away would satisfy it.")
    if len(ledger.rounds) < plan.rounds:
        found.append(f"The run stands at round {len(ledger.rounds)} of {plan.rounds}: ε is what was spent so far.")
    if isinstance(plan.sampling, Poisson) and not _looks_poisson(plan, ledger):
        found.append("The cohort sizes do not look like Poisson sampling: if they are not, ε does not hold.")
    for name in ledger.streams:
        found.append(f"The ledger gave out noise for another release, {name!r}: ε does not include it.")
    if not plan.public:
        found.append("Nothing was declared public: a vocabulary or warm start from clients' text would cost privacy.")
    return found


def _looks_poisson(plan: PrivacyPlan, ledger: Ledger) -> bool:
    """False where sizes would arise under Poisson sampling with probability below about 1e-6.

    Two signs: a total far from rounds * N * q, and sizes far too equal over 30 rounds or more (a fixed-size
    loop).
    """
    from scipy.stats import binom

    assert isinstance(plan.sampling, Poisson)
    sizes, rate = [len(entry.cohort) for entry in ledger.rounds], plan.sampling.sampling_probability
    total, trials = sum(sizes), len(sizes) * plan.population
    mean = plan.expected_cohort
    if plan.any_population:
        mean = total / max(len(sizes), 1)  # how many clients there are is not known here
    elif min(binom.cdf(total, trials, rate), binom.sf(total - 1, trials, rate)) < 5e-7:
        return False
    variance = mean * (1 - rate)
    spread = sum((size - mean) ** 2 for size in sizes) / max(len(sizes), 1)
    return not (len(sizes) >= 30 and variance >= 1 and spread < 0.15 * variance)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
