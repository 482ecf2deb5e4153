"""Computes the ε of a plan, and the noise multiplier or number of rounds at which ε stays within a given limit.

ε is computed by privacy loss distribution (PLD) and by Rényi DP (RDP), and the smaller one is stated:

* Poisson cohorts, add-or-remove-one: the PLD is that of the sampled Gaussian, composed numerically by `dp_accounting`
  (Koskela et al., arXiv:1906.03049; "connect the dots", Doroshenko et al., arXiv:2207.04380). Over very many rounds
  with little noise the grid of the PLD is coarse, and Rényi DP gives the smaller bound.
* Cyclic cohorts, and Poisson cohorts with probability 1: nothing is sampled, so the PLD is replaced by the exact curve
  of one Gaussian (Balle and Wang, arXiv:1805.06530).
* Correlated noise (DP-FTRL), zero-out: the rounds so far are together one Gaussian whose noise multiplier is that of
  the plan times the sensitivity of all rounds / that of the rounds so far. With cyclic Poisson cohorts and banded noise
  of at most as many bands as cohorts, each turn of a client's cohort is instead a sampled Gaussian, as in the first
  case.
* Fixed-size cohorts, replace-one: `dp_accounting` has no PLD, so ε is the Rényi bound (Wang, Balle, Kasiviswanathan,
  arXiv:1808.00087) and `Epsilon.pld` is None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks, sampling
from privacy.accounting import composition, loss_grid
from privacy.correlated.mechanisms import Banded
from privacy.noise.training import MAX_EPSILON, NOT_STATED, with_failures
from privacy.plan import MAX_ROUNDS, PrivacyPlan

MIN_NOISE, MAX_NOISE = 1e-2, 1e7
_DRAWS = 16  # maximum number of noise vectors that a round with correlated noise draws: one for each level of a tree


class Epsilon(NamedTuple):
    """Holds the ε of a plan after some rounds. Both bounds are inf if the plan is not private, and 0 after 0 rounds.

    Attributes:
      pld: ε by privacy loss distribution, or by the exact Gaussian curve; None if not available (see `notes`).
      rdp: ε by Rényi DP.
      rdp_order: Rényi order that gave `rdp`; 0 if none was needed.
      relation: neighbouring relation that both bounds hold for.
      delta: δ that both bounds hold at.
      rounds: number of rounds accounted for.
      notes: what a reader must know about these values.
    """

    pld: float | None
    rdp: float
    rdp_order: float
    relation: str
    delta: float
    rounds: int
    notes: tuple[str, ...] = ()

    @property
    def value(self) -> float:
        """Returns the ε to state: the smaller of `pld` and `rdp`, which are both upper bounds."""
        return self.rdp if self.pld is None else min(self.pld, self.rdp)

    @property
    def accountant(self) -> Literal["PLD", "RDP"]:
        """Returns the name of the bound that `value` is; "PLD" if both are equal."""
        return "RDP" if self.pld is None or self.rdp < self.pld else "PLD"


def epsilon(plan: PrivacyPlan, rounds: int | None = None, releases: Iterable[float] = ()) -> Epsilon:
    """Returns the ε of `plan` after some rounds and further releases, under the plan's relation and at its δ.

    Args:
      plan: the plan.
      rounds: number of rounds. None: all planned.
      releases: noise multipliers of Gaussian releases about the clients beside the rounds, each the standard deviation
        of the noise / sensitivity under the plan's relation (`Ledger.charge`). No amplification by sampling is counted.
    """
    rounds = plan.rounds if rounds is None else checks.whole("rounds", rounds, 0, "count the rounds that ran")
    assert plan.relation is not None
    further = math.fsum(
        checks.noise_multiplier(multiplier, "give that of the release") ** -2 for multiplier in releases
    )
    if (rounds == 0 and not further) or not plan.is_private:
        value = math.inf if rounds else 0.0
        notes = () if plan.is_private else ("NOT PRIVATE: the noise multiplier is 0",)
        return Epsilon(value, value, 0.0, plan.relation, plan.target_delta, rounds, notes)
    delta = plan.target_delta
    pld, rdp, order = _least(plan, rounds, float(plan.noise_multiplier), loss_grid.FINE, further)
    if plan.mechanism is not None:
        draws = _DRAWS * rounds
        rdp, pld = with_failures(rdp, delta, draws), None if pld is None else with_failures(pld, delta, draws)
    spent = Epsilon(pld, rdp, order, plan.relation, delta, rounds, _list_notes(plan, rounds))
    return spent._replace(notes=(NOT_STATED, *spent.notes)) if math.isinf(spent.value) else spent


def epsilon_curve(plan: PrivacyPlan, rounds: Sequence[int]) -> npt.NDArray[np.float64]:
    """Returns `Epsilon.value` after each of the round counts `rounds`, float64 [len(rounds)].

    ε never falls as the number of rounds grows. One round is analysed once for each discretisation interval, which many
    entries share, and then composed for each entry. That takes about 0.05 s per entry. The entry of the largest count
    equals `epsilon(plan, max(rounds)).value`. The other entries use a coarser grid, and are upper bounds too.
    """
    counts = [checks.whole("rounds", count, 0, "count the rounds that ran") for count in rounds]
    if not counts:
        return np.zeros(0)
    last = epsilon(plan, max(counts)).value
    if max(counts) == 0 or not plan.is_private:
        return np.array([last if count else 0.0 for count in counts])
    distinct = sorted(set(counts))
    values = np.array([_coarse_epsilon(plan, count) if count else 0.0 for count in distinct[:-1]] + [last])
    # The error of the coarser grid may lift values above the last one, which is a bound for every earlier round too.
    values = np.minimum(np.maximum.accumulate(values), last)
    by_count = dict(zip(distinct, values, strict=True))
    return np.array([by_count[count] for count in counts])


def calibrate_noise(plan: PrivacyPlan, target: float) -> PrivacyPlan:
    """Returns the plan with the least noise multiplier, to about 1 %, whose ε is at most `target`.

    The noise multiplier of `plan` itself is ignored.

    Args:
      plan: the plan whose noise multiplier is to be found.
      target: largest ε allowed, above 0 and at most 500.

    Raises:
      ValueError: `target` is out of range or out of reach, or the noise on the count of adaptive clipping is too small
        for the noise multiplier that was found.
    """
    from scipy.optimize import brentq

    checks.positive("epsilon", target, "give the budget to keep")
    if target > MAX_EPSILON:
        raise ValueError(f"epsilon {target:g} asks for hardly any noise: give at most {MAX_EPSILON:g}")

    def excess(log_z: float) -> float:
        return math.log(min(max(_coarse_epsilon(plan, plan.rounds, math.exp(log_z)), 1e-12), 1e6) / target)

    low = high = 0.0
    while excess(high) > 0:
        high = 2 * high + 1
        if high > math.log(MAX_NOISE):
            raise ValueError(
                f"epsilon {target:g} is out of reach with noise_multiplier up to {MAX_NOISE:g}: give a larger epsilon"
            )
    while excess(low) <= 0:
        low = low - 1
        if low < math.log(MIN_NOISE):
            raise ValueError(
                f"epsilon {target:g} asks for hardly any noise (noise_multiplier < {MIN_NOISE:g}): give a smaller one"
            )
    z = _round_up(math.exp(brentq(excess, low, high, xtol=1e-5)))

    def fits(z: float) -> bool:
        return epsilon(dataclasses.replace(plan, noise_multiplier=z)).value <= target

    # The ε that users see is that of the fine grid, which is sometimes smaller than that of the coarse one. So raise z
    # until it fits on the fine grid, then lower it as far as it still fits.
    while not fits(z):
        z = _round_up(z * (1 + 1e-4))
    step = 0.01
    while step >= 0.01:
        smaller = _round_up(z * (1 - step))
        z, step = (smaller, min(2 * step, 0.5)) if smaller >= MIN_NOISE and fits(smaller) else (z, step / 2)
    return dataclasses.replace(plan, noise_multiplier=z)


def calibrate_rounds(plan: PrivacyPlan, target: float) -> PrivacyPlan:
    """Returns the plan with the largest number of rounds, up to 1,000,000, whose ε is at most `target`.

    The number of rounds of `plan` itself is ignored.

    Args:
      plan: the plan whose number of rounds is to be found.
      target: largest ε allowed, above 0.

    Raises:
      ValueError: `target` is not a finite number above 0, not even one round fits, or the plan adds no noise.
    """
    checks.positive("epsilon", target, "give the budget to keep")
    z, delta = float(plan.noise_multiplier), plan.target_delta
    if not plan.is_private:
        raise ValueError("noise_multiplier 0 fits no finite epsilon: give one above 0")
    if plan.mechanism is not None:
        raise ValueError(
            f"mechanism {plan.mechanism.kind!r} has no number of rounds to find: its noise multiplier covers the whole "
            "run, however long it is; give rounds, and calibrate the noise"
        )
    # Each search starts from the result of the one before, which was cheaper. The last one uses the ε that users see.
    rounds = _largest_fitting(lambda n: _renyi_epsilon(plan, n, z, delta) <= target, 1)
    rounds = _largest_fitting(lambda n: _coarse_epsilon(plan, n) <= target, rounds)
    rounds = _largest_fitting(lambda n: epsilon(plan, n).value <= target, rounds)
    if rounds == 0:
        raise ValueError(f"epsilon {target:g} does not allow one round at noise_multiplier {z:g}: raise one of them")
    return dataclasses.replace(plan, rounds=rounds)


class _Equivalent(NamedTuple):
    """Holds what costs as much as the first rounds of a plan: rounds of a sampler and one more Gaussian release.

    Attributes:
      sampling, z, rounds: sampler, noise multiplier and number of the rounds.
      further: 1 / noise multiplier² of the further release.
    """

    sampling: sampling.Sampling
    z: float
    rounds: int
    further: float = 0.0


def _list_equivalents(plan: PrivacyPlan, rounds: int, z: float) -> list[_Equivalent]:
    """Returns what costs at least as much as the first `rounds` rounds of `plan`, at most all, at noise multiplier `z`.

    Each is a bound on the plan's cost.
    """
    mechanism, cyclic = plan.mechanism, plan.sampling
    if mechanism is None:
        if isinstance(cyclic, sampling.CyclicPoisson):
            return [_Equivalent(sampling.Poisson(cyclic.sampling_probability), z, cyclic.repetitions(rounds))]
        return [_Equivalent(cyclic, z, rounds)]
    if rounds > plan.rounds:
        raise ValueError(
            f"rounds is {rounds}, but the noise of mechanism {mechanism.kind!r} is planned for {plan.rounds}"
        )
    if rounds == 0:
        return [_Equivalent(cyclic, z, 0)]
    whole, share = plan.sensitivity(plan.rounds).value, plan.metrics_share
    part = (plan.sensitivity(rounds).value / whole) ** 2
    turns_share = cyclic.max_participations(rounds) / plan.max_participations
    found = [_Equivalent(cyclic, z, 0, ((1 - share) * part + share * turns_share) / z**2)]
    if is_amplified(plan):
        assert isinstance(mechanism, Banded) and isinstance(cyclic, sampling.CyclicPoisson)
        # The columns of C in which a client may be are disjoint, so each turn is a sampled Gaussian of its own.
        largest = float(np.linalg.norm(mechanism.column(plan.rounds)))
        cost = (1 - share) * (largest / whole) ** 2 + share / plan.max_participations
        sampled = sampling.Poisson(cyclic.sampling_probability)
        found.append(_Equivalent(sampled, z / math.sqrt(cost), cyclic.repetitions(rounds)))
    return found


def _least(
    plan: PrivacyPlan, rounds: int, z: float, points: int, further: float = 0.0
) -> tuple[float | None, float, float]:
    """Returns the least ε by PLD and by RDP, and the order of the latter, of all bounds of `_list_equivalents`."""
    plds, rdps = [], []
    for same in _list_equivalents(plan, rounds, z):
        cost, delta = further + same.further, plan.target_delta
        plds.append(composition.pld_epsilon(same.sampling, same.z, same.rounds, delta, points, cost))
        rdps.append(composition.rdp_epsilon(same.sampling, plan.population, same.z, same.rounds, delta, cost))
    return min((pld for pld in plds if pld is not None), default=None), *min(rdps)


def needs_secret_cohorts(plan: PrivacyPlan) -> bool:
    """Returns whether ε of a plan assumes that nobody knows who took part in which round."""
    return isinstance(plan.sampling, (sampling.Poisson, sampling.FixedSize)) or is_amplified(plan)


def is_amplified(plan: PrivacyPlan) -> bool:
    """Returns whether the accounting of a plan with cyclic Poisson cohorts counts amplification by sampling.

    It does for independent noise, and for banded noise with at most as many bands as cohorts, of which ε is the smaller
    one of both bounds. For every other mechanism no bound is proved here, and ε is that of the whole cohorts.
    """
    if not isinstance(plan.sampling, sampling.CyclicPoisson) or plan.sampling.sampling_probability == 1:
        return False
    return plan.mechanism is None or (
        isinstance(plan.mechanism, Banded) and plan.mechanism.bands <= plan.sampling.cohorts
    )


def _renyi_epsilon(plan: PrivacyPlan, rounds: int, z: float, delta: float) -> float:
    return min(
        composition.rdp_epsilon(same.sampling, plan.population, same.z, same.rounds, delta, same.further)[0]
        for same in _list_equivalents(plan, rounds, z)
    )


def _coarse_epsilon(plan: PrivacyPlan, rounds: int, z: float | None = None) -> float:
    """Returns ε on the coarse grid, which is cheap and hardly ever below the ε on the fine grid."""
    z = float(plan.noise_multiplier) if z is None else z
    pld, rdp, _ = _least(plan, rounds, z, loss_grid.COARSE)
    return rdp if pld is None else min(pld, rdp)


def _largest_fitting(fits: Callable[[int], bool], start: int) -> int:
    """Returns n from 0 to MAX_ROUNDS with fits(n) and not fits(n + 1), searched in growing steps from `start`.

    fits(0) is taken to be true and fits(MAX_ROUNDS + 1) to be false. Every other value that the result relies on is
    evaluated, wherever `start` lies.
    """
    low, high, probe, step = 0, MAX_ROUNDS + 1, max(start, 1), 1
    while high - low > 1:
        if fits(probe):
            low = probe
        else:
            high = probe
        if low > 0 and high <= MAX_ROUNDS:
            probe = (low + high) // 2
        else:
            probe = min(low + step, MAX_ROUNDS) if low > 0 else max(high - step, 1)
            step *= 2
    return low


def _round_up(value: float) -> float:
    """Returns `value` rounded up to 5 significant digits."""
    scale = 10.0 ** (4 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


def _list_notes(plan: PrivacyPlan, rounds: int) -> tuple[str, ...]:
    notes = []
    match plan.sampling:
        case sampling.Poisson():
            notes.append("holds if cohorts were drawn by Poisson sampling and stay secret")
            if not plan.population_declared:
                notes.append(
                    f"does not cover the number of clients, {plan.population:,}, which was not declared public"
                )
            least = loss_grid.least_delta(rounds)
            if plan.target_delta < least and plan.sampling.sampling_probability < 1:
                notes.append(f"PLD not available below delta {least:g} over {rounds:,} rounds (rounding)")
        case sampling.FixedSize():
            notes.append("holds if cohorts were drawn uniformly without replacement and stay secret")
            notes.append("PLD not available for fixed-size sampling under replace-one; ε is the RDP bound")
            notes.append(
                "replacing a client moves the sum by up to twice the clip norm: ε is computed at half the noise "
                "multiplier"
            )
        case sampling.Cyclic() | sampling.CyclicPoisson() | sampling.CheckIn():
            amplified = is_amplified(plan)
            separation, participations = plan.participation
            notes.append(
                f"{'holds if who is drawn stays secret' if amplified else 'no amplification by sampling'}; a client is "
                f"in at most {participations} of {plan.rounds} rounds, at least {separation} rounds apart"
            )
            notes.append(
                "zero-out: one client's data become empty, every other client keeps its place in the partition"
                if plan.sampling.kind != "check-in"
                else "zero-out: one client's data become empty, and who takes part in which round stays the same"
            )
    if plan.mechanism is not None:
        sensitivity = plan.sensitivity(plan.rounds)
        exact = "exact" if sensitivity.is_exact else "an upper bound"
        notes.append(f"correlated noise; sensitivity {sensitivity.value:.6g} clip norms, {exact}: {sensitivity.method}")
        if not is_amplified(plan):
            rho = _list_equivalents(plan, rounds, float(plan.noise_multiplier))[0].further / 2
            notes.append(f"the rounds have rho {rho:.6g} of zero-concentrated differential privacy (zCDP)")
    if plan.target_delta > 1 / plan.population:
        notes.append(
            f"delta {plan.target_delta:g} is above 1/population: it would allow publishing the data of one client"
        )
    return tuple(notes)
