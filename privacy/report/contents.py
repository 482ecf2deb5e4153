"""Computes the contents of a privacy report from plan and ledger, as one JSON-able dict.

`privacy.report.report` renders it as JSON, Markdown and HTML.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from privacy import accounting
from privacy.accounting import Epsilon, composition, loss_grid
from privacy.accounting.plan_epsilon import is_amplified, needs_secret_cohorts
from privacy.budget import Releases
from privacy.keys import FIXED_PREFIX
from privacy.ledger import Ledger
from privacy.plan import DELTA_EXPONENT, AdaptiveClip, FixedClip, PrivacyPlan
from privacy.report import correlated
from privacy.sampling import CheckIn, Cyclic, CyclicPoisson, FixedSize, Poisson, Sampling

SCHEMA = "fedspeak-privacy-report/2"
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
    "add-or-remove-one": "two data sets, one of which has one record more than the other",
    "replace-one": "two data sets that differ by replacing one record by another; the number of records is public",
}
COMPOSITIONS = {
    "PLD": "one privacy loss distribution over all of them, or the exact curve of the Gaussian mechanism",
    "RDP": "Rényi divergences add up",
    "sum": "epsilons add up",
}
STATISTICS_NOT_COVERED = (
    "Bounds, grids, classes and hyper-parameters must be public: to choose them on the data costs ε that is not "
    "included here.",
    "Releases about the same records that are not in this ledger add to ε.",
    "The time that a release takes, and floating-point attacks on noise that is called not hardened above.",
)
NOT_COVERED = (
    "Hyper-parameter search is not accounted for: each further run on the same clients costs ε of its own.",
    "Losses on validation and test clients, and the number of these clients, are exact: ε does not cover them.",
    "ε holds against anyone who sees every released model{secret}. The server is trusted to clip, to add the noise and "
    "to forget the updates.",
)
SECRET_COHORTS = " but neither the cohorts, the keys nor the ledger"
PUBLIC_COHORTS = " and who took part in which round, but neither the keys nor the ledger"
NOISE = {
    "floating-point": (
        "Noise is floating-point, not hardened: each value of fedspeak's aggregators is within 2^-20 (1 + R) standard "
        "deviations of exact Gaussian noise (R: L2 norm of its pair), except with a probability that δ includes. "
        "That distance, the rounding of sums to 32 bits, pseudo-random bits (Philox) and timing are not covered."
    ),
    "correlated": (
        "Noise is floating-point, not hardened: the fresh noise of a round is within 2^-20 (1 + R) standard deviations "
        "of exact Gaussian noise (R: L2 norm of its pair), except with a probability that δ includes, and rounding of "
        "what earlier rounds left moves it by less than 2^-12 standard deviations. Those distances, the rounding of "
        "sums to 32 bits, pseudo-random bits (Philox) and timing are not covered."
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
    "participations per client, and how many different clients were seen",
    "updates zeroed because they were not finite",
    "digest of the ledger, the ledger itself and the keys",
    "loss and accuracy on the training clients, computed without noise",
    "losses of n-gram models, which are fitted to the training clients' text without noise",
)


def compose(plan: PrivacyPlan, ledger: Ledger, facts: Mapping[str, Any], *, release: bool) -> dict[str, Any]:
    """Returns the contents of the report of a run. An infinite ε is None.

    Args:
      plan: plan of the run.
      ledger: ledger of the run.
      facts: as for `privacy.report.build`.
      release: True for the report for publication, without what only the operator may see.
    """
    rounds = len(ledger.rounds)
    of_rounds = accounting.epsilon(plan, rounds)
    spent = _add_releases(plan, ledger, of_rounds)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "release": release,
        "run": facts.get("run"),
        "status": _find_status(plan, ledger),
        "guarantee": _describe_guarantee(plan, spent),
        "planned": _describe_plan(plan),
        "happened": _describe_rounds(ledger),
        "releases": [
            {"purpose": release.purpose, "noise_multiplier": release.noise_multiplier} for release in ledger.releases
        ],
        "epsilon_of_rounds": _finite_or_none(of_rounds.value),
        "epsilon_by_round": _compute_curve(plan, rounds),
        "correlated_noise": correlated.describe(plan),
        "adaptive_clipping": _compute_clipping_cost(plan, ledger, of_rounds),
        "what_if": _compute_what_if(plan),
        "public": _list_public(plan),
        "warnings": _list_warnings(plan, ledger),
        "not_covered": _list_not_covered(plan),
        "evaluation": facts.get("evaluation"),
        "versions": dict(facts.get("versions", {})),
        "ledger_version": ledger.version,
        "omitted": list(OMITTED) if release else [],
    }
    if not release:
        data["operator"] = _describe_operator_facts(ledger, facts)
    return data


def of_releases(ledger: Releases) -> dict[str, Any]:
    """Returns the contents of the report on single releases."""
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


def _find_status(plan: PrivacyPlan, ledger: Ledger) -> str:
    if not plan.is_private:
        return "not private"
    return "fixed key" if _has_fixed_key(ledger) else "private"


def _has_fixed_key(ledger: Ledger) -> bool:
    noise_ids = [entry.noise_id for entry in ledger.rounds] + [release.noise_id for release in ledger.releases]
    noise_ids += [facts["noise_id"] for facts in ledger.streams.values()]
    return any(name.startswith(FIXED_PREFIX) for name in noise_ids)


def _list_public(plan: PrivacyPlan) -> list[str]:
    """Returns what was declared public."""
    declared = [f"number of clients: {plan.population:,}"] if plan.population_declared else []
    return [*plan.public, *declared]


def _list_not_covered(plan: PrivacyPlan) -> list[str]:
    is_counted = isinstance(plan.sampling, Poisson) and not plan.population_declared
    count_line = [COUNT.format(population=plan.population)] if is_counted else []
    noise_line = [NOISE[plan.noise if plan.mechanism is None else "correlated"]] if plan.is_private else []
    secret = SECRET_COHORTS if needs_secret_cohorts(plan) else PUBLIC_COHORTS
    return [*count_line, *noise_line, *(line.format(secret=secret) for line in NOT_COVERED)]


def _add_releases(plan: PrivacyPlan, ledger: Ledger, of_rounds: Epsilon) -> Epsilon:
    """Returns the ε of the rounds together with the releases that the ledger charged."""
    if not ledger.releases:
        return of_rounds
    return accounting.epsilon(plan, of_rounds.rounds, [release.noise_multiplier for release in ledger.releases])


def _describe_guarantee(plan: PrivacyPlan, spent: Epsilon) -> dict[str, Any]:
    return {
        "unit": plan.unit,
        "relation": spent.relation,
        "relation_in_words": RELATIONS[spent.relation],
        "epsilon": _finite_or_none(spent.value),
        "epsilon_pld": None if spent.pld is None else _finite_or_none(spent.pld),
        "epsilon_rdp": _finite_or_none(spent.rdp),
        "rdp_order": spent.rdp_order,
        "accountant": spent.accountant,
        "delta": spent.delta,
        "delta_rule": plan.delta_rule,
        "rounds": spent.rounds,
        "notes": list(spent.notes),
    }


def _describe_plan(plan: PrivacyPlan) -> dict[str, Any]:
    whole = accounting.epsilon(plan)
    return {
        **{
            name: value
            for name, value in plan.to_dict().items()
            if name not in ("unit", "relation", "delta", "public", "mechanism")
        },
        "sampling_in_words": plan.sampling.describe(),
        "expected_cohort": plan.expected_cohort,
        "max_participations": plan.max_participations,
        "value_noise_multiplier": plan.value_noise_multiplier,
        "count_stddev": plan.count_stddev,
        "metric_noise_multiplier": plan.metric_noise_multiplier,
        "epsilon": _finite_or_none(whole.value),
    }


def _describe_rounds(ledger: Ledger) -> dict[str, Any]:
    clips = [entry.clip_norm for entry in ledger.rounds if entry.clip_norm is not None]
    multipliers = [entry.noise_stddev / entry.clip_norm for entry in ledger.rounds if entry.clip_norm is not None]
    return {
        "rounds": len(ledger.rounds),
        "first_clip": clips[0] if clips else None,
        "last_clip": clips[-1] if clips else None,
        "least_noise_multiplier": min(multipliers, default=None),
    }


def _describe_operator_facts(ledger: Ledger, facts: Mapping[str, Any]) -> dict[str, Any]:
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


def _compute_curve(plan: PrivacyPlan, rounds: int) -> list[list[float]]:
    """Returns pairs [number of rounds, ε], at most CURVE_POINTS of them; none where ε is infinite."""
    if not plan.is_private or rounds == 0:
        return []
    counts = sorted({round(1 + i * (rounds - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
    values = accounting.epsilon_curve(plan, counts)
    return [[count, float(value)] for count, value in zip(counts, values, strict=True) if math.isfinite(value)]


def _compute_clipping_cost(plan: PrivacyPlan, ledger: Ledger, spent: Epsilon) -> dict[str, Any] | None:
    """Returns what learning the clip norm cost; None with a fixed clip norm.

    It compares the run with one that has a fixed clip norm and the same noise on everything else. That run would have
    spent less.
    """
    if not isinstance(plan.clip, AdaptiveClip):
        return None
    rest = (plan.noise_multiplier**-2 - (2 * plan.count_stddev) ** -2) ** -0.5 if plan.is_private else 0.0
    fixed = dataclasses.replace(plan, clip=FixedClip(plan.clip.initial_clip_norm), noise_multiplier=rest)
    without = accounting.epsilon(fixed, len(ledger.rounds))
    return {
        "noise_multiplier": plan.noise_multiplier,
        "value_noise_multiplier": plan.value_noise_multiplier,
        "count_stddev": plan.count_stddev,
        "epsilon_with": _finite_or_none(spent.value),
        "epsilon_without": _finite_or_none(without.value),
        "clip_by_round": [entry.clip_norm for entry in ledger.rounds],
    }


def _compute_what_if(plan: PrivacyPlan) -> list[dict[str, Any]]:
    """Returns hypothetical runs with more clients and the same noise z C / cohort on each coordinate of the mean.

    The noise multiplier z then grows with the cohort, as in McMahan et al. 2018 (arXiv:1710.06963) and Kairouz et al.
    2021 (arXiv:2103.00039), who train small cohorts and report what large ones would cost.
    """
    if not plan.is_private or plan.mechanism is not None or isinstance(plan.sampling, (CheckIn, CyclicPoisson)):
        return []  # how their limits on participation would change with the population is not known
    rows = []
    for population in WHAT_IF_POPULATIONS:
        for factor in WHAT_IF_COHORTS:
            cohort = plan.expected_cohort * factor
            if population <= plan.population or not 1 <= cohort <= population / 10:
                continue
            z, delta = plan.noise_multiplier * factor, population**DELTA_EXPONENT
            sampling = _rescale(plan.sampling, cohort, population)
            eps = composition.least_epsilon(sampling, population, z, plan.rounds, delta, loss_grid.COARSE)
            rows.append(
                {
                    "population": population,
                    "cohort": cohort,
                    "noise_multiplier": z,
                    "delta": delta,
                    "epsilon": _finite_or_none(eps),
                }
            )
    return rows


def _rescale(sampling: Sampling, cohort: float, population: int) -> Sampling:
    match sampling:
        case Poisson():
            return Poisson(cohort / population)
        case FixedSize():
            return FixedSize(round(cohort))
        case Cyclic():
            return Cyclic(max(1, int(population / cohort)))
    raise ValueError(f"{sampling.kind} sampling cannot be rescaled")


def _list_warnings(plan: PrivacyPlan, ledger: Ledger) -> list[str]:
    warnings = []
    if not plan.is_private:
        warnings.append("NOT PRIVATE: no noise was added, the released model may reveal any client's text.")
    if _has_fixed_key(ledger):
        warnings.append(
            "The key is fixed: whoever knows it can compute the noise and the cohorts, so ε does not hold. "
            "Fixed keys are for tests."
        )
    if plan.target_delta > 1 / plan.population:
        warnings.append(
            "δ is above 1 / population: a mechanism that publishes the text of one random client would satisfy it."
        )
    if len(ledger.rounds) < plan.rounds:
        warnings.append(f"The run has done {len(ledger.rounds)} of {plan.rounds} rounds: ε is what was spent so far.")
    if (isinstance(plan.sampling, Poisson) or is_amplified(plan)) and not _looks_poisson(plan, ledger):
        warnings.append(
            "The cohort sizes do not look like Poisson sampling: if cohorts were drawn otherwise, ε does not hold."
        )
    for name in ledger.streams:
        warnings.append(f"The ledger issued noise for another release, {name!r}: ε does not include that release.")
    if not plan.public:
        warnings.append(
            "Nothing was declared public: a vocabulary or warm start learned from clients' text costs privacy."
        )
    return warnings


def _looks_poisson(plan: PrivacyPlan, ledger: Ledger) -> bool:
    """Returns False if Poisson sampling would give such cohort sizes with probability below about 1e-6.

    There are two tests. The total must not be far from rounds * N * q, or rounds * N / cohorts * q in cyclic cohorts
    (unless the number of clients is unknown). And over 30 rounds or more, the sizes must not be far too equal, as they
    are in a loop with cohorts of fixed size.
    """
    from scipy.stats import binom

    assert isinstance(plan.sampling, (Poisson, CyclicPoisson))
    cohorts = plan.sampling.cohorts if isinstance(plan.sampling, CyclicPoisson) else 1
    sizes, rate = [len(entry.cohort) for entry in ledger.rounds], plan.sampling.sampling_probability
    cycles, rest = divmod(len(sizes), cohorts)
    # Cohorts of a last, unfinished cycle may be one client smaller or larger than the others.
    smallest = cycles * plan.population + rest * (plan.population // cohorts)
    largest = cycles * plan.population + rest * math.ceil(plan.population / cohorts)
    total = sum(sizes)
    mean = plan.expected_cohort
    if plan.any_population:
        mean = total / max(len(sizes), 1)  # the number of clients is not known here
    elif min(binom.cdf(total, smallest, rate), binom.sf(total - 1, largest, rate)) < 5e-7:
        return False
    variance = mean * (1 - rate)
    spread = sum((size - mean) ** 2 for size in sizes) / max(len(sizes), 1)
    return not (len(sizes) >= 30 and variance >= 1 and spread < 0.15 * variance)


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
