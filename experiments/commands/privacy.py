"""Defines `fedspeak privacy`: computes ε, noise or rounds of a run from the other two, audits, and writes a report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from experiments import extras
from experiments.commands.plan_of_options import build_plan, naming_options
from experiments.commands.plan_options import EPSILON, NOISE, ROUNDS, add_plan_options
from privacy.json_values import plain

if TYPE_CHECKING:
    from privacy import PrivacyPlan
    from privacy.audit.bounds import Bound
    from privacy.audit.cases import Case


_AUDIT_CONFIDENCE = 0.9999  # of each bound: of a thousand audits, about one has a false alarm
_AUDIT_TRIALS = 400_000


@click.group()
def privacy() -> None:
    """Compute the epsilon, noise or rounds of a run from the other two, run an audit, or write a report."""


@privacy.command()
@click.option(
    "--epsilon", "claimed", type=float, default=1.0, show_default=True, help="Epsilon that every mechanism claims."
)
@click.option(
    "--delta", type=float, default=1e-3, show_default=True, help="Delta that mechanisms with Gaussian noise claim."
)
@click.option(
    "--trials",
    type=click.IntRange(min=1000),
    default=_AUDIT_TRIALS,
    show_default=True,
    help="Number of outcomes drawn on each data set; slow mechanisms draw fewer.",
)
@click.option(
    "--training",
    is_flag=True,
    help="Audit federated rounds and a step of KerasDPSGD instead, with canaries; needs TFF.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(claimed: float, delta: float, trials: int, training: bool, as_json: bool) -> None:
    """Try to refute the claims of fedspeak's own mechanisms.

    Prints a lower bound on the epsilon of each mechanism, from its outcomes on two neighbouring data sets. The exit
    code is 1 if a bound is above the claim. The smaller epsilon is, the more trials a bound needs to be near it.
    """
    from privacy import checks
    from privacy.accounting.guarantee import format_epsilon

    checks.positive("--epsilon", claimed, "give the claim to test")
    checks.between("--delta", delta, 0, 1, "the default 1e-3 is usual")
    if training:
        extras.require("federated")
        unit, sampler, noise = "client", "two cohorts in turn", "floating-point Gaussian, not hardened"
        results = _audit_training(claimed, delta, trials)
    else:
        unit, sampler = "record", "every record, once"
        noise = "exact integers; in DP-SGD floating-point, not hardened"
        results = _audit_mechanisms(claimed, delta, trials)
    if not as_json:
        exception = "; KerasDPSGD: unit: one record, sampler: every record, once" if training else ""
        click.echo(f"unit: one {unit}; sampler: {sampler}; noise: {noise}{exception}")
    rows = []
    for name, relation, claim, bound in results:
        of_record = training and name.startswith("KerasDPSGD")
        assumptions = {
            "unit": "record" if of_record else unit,
            "relation": relation,
            "sampler": "every record, once" if of_record else sampler,
            "noise": noise,
        }
        rows.append({"mechanism": name, **assumptions, "claimed": claim, **bound._asdict()})
        if not as_json:
            weak = "" if bound.epsilon > claim / 10 else ", but this says nothing: give more --trials"
            verdict = "REFUTED" if bound.refutes(claim) else f"stands{weak}"
            click.echo(
                f"{name} ({relation}): epsilon at delta {bound.delta:g} claimed {format_epsilon(claim)}, at least "
                f"{bound.epsilon:.3f} with confidence {_AUDIT_CONFIDENCE:g} from {bound.trials} outcomes: {verdict}"
            )
    if as_json:
        click.echo(json.dumps(plain(rows), indent=2, allow_nan=False))
    if any(row["epsilon"] > row["claimed"] for row in rows):
        raise SystemExit(1)


_AuditResult = tuple[str, str, float, "Bound"]
"""The name, relation and claim of a mechanism, and the bound on its epsilon."""


def _audit_mechanisms(claimed: float, delta: float, trials: int) -> Iterator[_AuditResult]:
    from privacy.audit.cases import cases
    from privacy.noise.randomness import SecureRandomness

    yield from _bound_cases(cases(claimed, delta, SecureRandomness()), trials)


def _audit_training(claimed: float, delta: float, trials: int) -> Iterator[_AuditResult]:
    """Yields the results for federated training and for a step of KerasDPSGD.

    The first two results are of runs with a canary in every client, without and with correlated noise. The others are
    of one or two rounds, or of one step, with many outcomes each. The noise is drawn with a fresh secret key.
    """
    import secrets

    import numpy as np

    from fl.aggregation import DPMean
    from fl.audit import training_run as canary_run
    from fl.audit.aggregation import TAIL_RELEASES, cases, dusty, tail, tail_plan, two_rounds
    from fl.correlated_mean import CorrelatedDPMean
    from fl.runtime import local_runtime
    from privacy import RunKeys, accounting
    from privacy.correlated import Workload, optimize_blt
    from privacy.dpsgd.audit_case import cancelling_record

    keys = RunKeys(secrets.token_bytes(32), is_fixed=False)
    plan = canary_run.four_rounds(claimed)
    correlated = canary_run.four_rounds(claimed, optimize_blt(1, Workload(plan.rounds), plan.participation))
    assert plan.relation is not None
    with local_runtime():
        for name, aggregator in (("training", DPMean(plan)), ("DP-FTRL (BLT)", CorrelatedDPMean(correlated))):
            run = canary_run.train(aggregator, keys, np.random.default_rng(secrets.randbits(128)))
            bound = run.bound(plan.target_delta, _AUDIT_CONFIDENCE)
            claim = accounting.epsilon(aggregator.plan).value
            yield f"{name}, {plan.rounds} rounds, all canaries", plan.relation, claim, bound
    yield from _bound_cases([*cases(claimed, delta, keys), cancelling_record(claimed, delta)], trials)
    yield (
        "DPMean, canary with many tiny weights",
        plan.relation,
        *dusty(DPMean(two_rounds(claimed, delta)), _AUDIT_CONFIDENCE),
    )
    releases = max(1, TAIL_RELEASES * trials // _AUDIT_TRIALS)
    yield "DPMean, canary in the tail", plan.relation, *tail(DPMean(tail_plan()), keys, _AUDIT_CONFIDENCE, releases)


def _bound_cases(cases: list[Case], trials: int) -> Iterator[_AuditResult]:
    from privacy.audit.bounds import from_scores

    for case in cases:
        bound = from_scores(*case.scores(max(100, trials // case.slow)), case.delta, _AUDIT_CONFIDENCE)
        yield case.name, case.relation, case.claimed, bound


@privacy.command()
@click.argument("ledger", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the report. [default: folder of LEDGER]")
def report(ledger: Path, output: Path | None) -> None:
    """Write the report on single releases from LEDGER, the ledger of a `privacy.budget.Budget`."""
    from privacy import report as reports
    from privacy.budget import Releases

    for path in reports.of_releases(Releases.read(ledger)).write(output or ledger.parent):
        click.echo(str(path))


@privacy.command()
@add_plan_options
@ROUNDS
@NOISE
def epsilon(rounds: int, noise_multiplier: float, as_json: bool, **setting: Any) -> None:
    """Print ε of a run with this noise multiplier and this number of rounds."""
    _print_result(build_plan(rounds=rounds, noise_multiplier=noise_multiplier, **setting), as_json)


@privacy.command()
@add_plan_options
@ROUNDS
@EPSILON
def noise(rounds: int, target: float, as_json: bool, **setting: Any) -> None:
    """Print the least noise multiplier that keeps ε within the budget over this number of rounds."""
    from privacy import accounting, checks

    checks.positive("--epsilon", target, "give the largest epsilon that the run may reach")
    # ε does not depend on the clip, and --clip-count-stddev can be checked only when the noise multiplier is known.
    plan = build_plan(rounds=rounds, noise_multiplier=1.0, **{**setting, "clip_count_stddev": None})
    with naming_options("epsilon"):
        multiplier = accounting.calibrate_noise(plan, target).noise_multiplier
    _print_result(build_plan(rounds=rounds, noise_multiplier=multiplier, **setting), as_json)


@privacy.command()
@add_plan_options
@EPSILON
@NOISE
def rounds(target: float, noise_multiplier: float, as_json: bool, **setting: Any) -> None:
    """Print the largest number of rounds, up to 1,000,000, that keeps ε within the budget at this noise multiplier."""
    from privacy import accounting, checks

    checks.positive("--epsilon", target, "give the largest epsilon that the run may reach")
    plan = build_plan(rounds=1, noise_multiplier=noise_multiplier, **setting)
    with naming_options("epsilon", "noise_multiplier"):
        plan = accounting.calibrate_rounds(plan, target)
    _print_result(plan, as_json)


def _print_result(plan: PrivacyPlan, as_json: bool) -> None:
    from privacy import Poisson, accounting
    from privacy.accounting.guarantee import format_epsilon
    from privacy.accounting.plan_epsilon import needs_secret_cohorts

    spent = accounting.epsilon(plan)
    if as_json:
        click.echo(json.dumps(_result_as_json(plan, spent), indent=2))
        return
    stated = {name: "stated" if name == spent.accountant else "another upper bound" for name in ("PLD", "RDP")}
    pld = "not available" if spent.pld is None else f"{format_epsilon(spent.pld)}  ({stated['PLD']})"
    rdp = f"{format_epsilon(spent.rdp)}  ({stated['RDP']})"
    is_exact = not needs_secret_cohorts(plan) or plan.sampling == Poisson(1.0)
    rows = [
        (
            "epsilon",
            format_epsilon(spent.value) if plan.is_private else "NOT PRIVATE: infinite, there is no noise",
        ),
        ("  by exact curve" if is_exact else "  by PLD", pld),
        ("  by RDP", f"{rdp}, order {spent.rdp_order:g}"),
        ("delta", f"{spent.delta:.3g}  ({plan.delta_rule})"),
        ("unit", f"one {plan.unit} of {plan.population:,}, with all its text"),
        ("relation", spent.relation),
        ("sampler", plan.sampling.describe()),
        ("participations", f"at most {plan.max_participations:,} of {plan.rounds:,} rounds per client"),
        ("rounds", f"{plan.rounds:,}"),
        ("noise multiplier", f"{plan.noise_multiplier:g}"),
        ("noise", "floating-point Gaussian, not hardened, the default of fedspeak's training"),
    ]
    if plan.mechanism is None and plan.value_noise_multiplier != plan.noise_multiplier:
        split = f"{plan.value_noise_multiplier:.6g} on the update, {plan.count_stddev:g} on the clip's count"
        rows.append(("  split", split))
    if plan.mechanism is not None:
        sensitivity = plan.sensitivity(plan.rounds)
        error = plan.noise_multiplier * sensitivity.value * plan.mechanism.error(plan.rounds)
        rows += [
            ("mechanism", plan.mechanism.describe()),
            ("sensitivity", f"{sensitivity.value:.6g} clip norms: {sensitivity.method}"),
            ("error of sums", f"{error:.6g} clip norms, root mean square over the sums of all rounds so far"),
        ]
    for name, value in rows:
        click.echo(f"{name:<18}{value}")
    for note in spent.notes:
        click.echo(f"note: {note}")


def _result_as_json(plan: PrivacyPlan, spent: Any) -> dict[str, Any]:
    def finite(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    return {
        "private": plan.is_private,
        "epsilon": finite(spent.value),
        "accountant": spent.accountant,
        "epsilon_pld": finite(spent.pld),
        "epsilon_rdp": finite(spent.rdp),
        "rdp_order": spent.rdp_order,
        "delta_rule": plan.delta_rule,
        "max_participations": plan.max_participations,
        "expected_cohort": plan.expected_cohort,
        "value_noise_multiplier": plan.value_noise_multiplier,
        "count_stddev": plan.count_stddev,
        "sensitivity": None if plan.mechanism is None else plan.sensitivity(plan.rounds)._asdict(),
        "prefix_sum_error": None if plan.mechanism is None else plan.mechanism.error(plan.rounds),
        "plan": plan.to_dict(),
        "notes": list(spent.notes),
    }
