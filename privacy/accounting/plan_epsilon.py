"""What a plan costs: ε by privacy loss distributions and by Rényi DP, of which the smaller is shown, and any one of ε,
noise, rounds from the others.

* Poisson cohorts, add-or-remove-one: the PLD of the sampled Gaussian, composed numerically (Koskela et al.,
  arXiv:1906.03049; "connect the dots", Doroshenko et al., arXiv:2207.04380), as `dp_accounting` has it. Over very many
  rounds with little noise its grid is coarse, and Rényi DP gives the smaller bound.
* Cyclic cohorts (and Poisson at rate 1): no sampling to analyse, so the PLD is the exact curve of one Gaussian (Balle
  and Wang, arXiv:1805.06530).
* Fixed-size cohorts, replace-one: `dp_accounting` has no PLD, so ε is the Rényi bound (Wang, Balle, Kasiviswanathan,
  arXiv:1808.00087), and `Epsilon.pld` is None.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from privacy import checks, sampling
from privacy.accounting import composition, loss_grid
from privacy.noise.training import MOST_EPSILON
from privacy.plan import MOST_ROUNDS, PrivacyPlan

LEAST_NOISE, MOST_NOISE = 1e-2, 1e7


class Epsilon(NamedTuple):
    """ε at the plan's δ after some rounds; both are inf when the plan is not private, and 0 after no round.

    Attributes:
      pld: ε by privacy loss distribution (or the exact Gaussian curve); None where there is none, see
        `notes`.
      rdp: ε by Rényi DP, an upper bound.
      rdp_order: Rényi order that gave it; 0 where none was needed.
      relation: neighbouring relation that both hold for.
      delta: δ that both hold at.
      rounds: rounds accounted for.
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
        """The ε to state: the smaller of `pld` and `rdp`, which are both upper bounds."""
        return self.rdp if self.pld is None else min(self.pld, self.rdp)

    @property
    def accountant(self) -> Literal["PLD", "RDP"]:
        """Which of the two `value` is; PLD where they are equal."""
        return "RDP" if self.pld is None or self.rdp < self.pld else "PLD"


def epsilon(plan: PrivacyPlan, rounds: int | None = None) -> Epsilon:
    """ε of `plan` after `rounds` rounds (default: all planned), under the plan's relation and at its δ."""
    rounds = plan.rounds if rounds is None else checks.whole("rounds", rounds, 0, "count the rounds that ran")
    assert plan.relation is not None
    if rounds == 0 or not plan.is_private:
        value = 0.0 if rounds == 0 else math.inf
        notes = () if plan.is_private else ("NOT PRIVATE: the noise multiplier is 0",)
        return Epsilon(value, value, 0.0, plan.relation, plan.target_delta, rounds, notes)
    z, delta = float(plan.noise_multiplier), plan.target_delta
    rdp, order = composition.rdp_epsilon(plan.sampling, plan.population, z, rounds, delta)
    pld = composition.pld_epsilon(plan.sampling, z, rounds, delta)
    return Epsilon(pld, rdp, order, plan.relation, delta, rounds, _notes(plan, rounds))


def epsilon_curve(plan: PrivacyPlan, rounds: Sequence[int]) -> npt.NDArray[np.float64]:
    """`Epsilon.value` after each of `rounds`, float64 [len(rounds)], never falling as rounds
    grow.

    One round is analysed once and composed for each entry, about 0.05 s each; intermediate entries use a
    coarser grid than `epsilon` and stay upper bounds. The entry of the most rounds equals `epsilon(plan,
    max(rounds)).value`.
    """
    counts = [checks.whole("rounds", count, 0, "count the rounds that ran") for count in rounds]
    if not counts:
        return np.zeros(0)
    last = epsilon(plan, max(counts)).value
    if max(counts) == 0 or not plan.is_private:
        return np.array([last if count else 0.0 for count in counts])
    distinct = sorted(set(counts))
    values = np.array([_coarse(plan, count) if count else 0.0 for count in distinct[:-1]] + [last])
    # Coarser values may exceed the last one by their grid's error; a later bound holds for every earlier
    # round too.
    values = np.minimum(np.maximum.accumulate(values), last)
    by_count = dict(zip(distinct, values, strict=True))
    return np.array([by_count[count] for count in counts])


def calibrate_noise(plan: PrivacyPlan, target: float) -> PrivacyPlan:
    """The plan with the least noise multiplier, to about 1%, whose ε is at most `target`.

    The noise multiplier of `plan` itself is ignored.

    Raises:
      ValueError: `target` is not a finite number above 0 or out of reach, or adaptive clipping's count
        noise does not allow the result.
    """
    from scipy.optimize import brentq

    checks.positive("epsilon", target, "give the budget to keep")
    if target > MOST_EPSILON:
        raise ValueError(f"epsilon {target:g} asks for hardly any noise: take at most {MOST_EPSILON:g}")

    def excess(log_z: float) -> float:
        return math.log(min(max(_coarse(plan, plan.rounds, math.exp(log_z)), 1e-12), 1e6) / target)

    low = high = 0.0
    while excess(high) > 0:
        high = 2 * high + 1
        if high > math.log(MOST_NOISE):
            raise ValueError(f"epsilon {target:g} is out of reach: take a larger one")
    while excess(low) <= 0:
        low = low - 1
        if low < math.log(LEAST_NOISE):
            raise ValueError(f"epsilon {target:g} asks for hardly any noise: take a smaller one")
    z = _round_up(math.exp(brentq(excess, low, high, xtol=1e-5)))

    def fits(z: float) -> bool:
        return epsilon(dataclasses.replace(plan, noise_multiplier=z)).value <= target

    # The end point is verified by the accounting that is shown, which is at times tighter than the coarse one.
    while not fits(z):
        z = _round_up(z * (1 + 1e-4))
    step = 0.01
    while step >= 0.01:
        less = _round_up(z * (1 - step))
        z, step = (less, min(2 * step, 0.5)) if less >= LEAST_NOISE and fits(less) else (z, step / 2)
    return dataclasses.replace(plan, noise_multiplier=z)


def calibrate_rounds(plan: PrivacyPlan, target: float) -> PrivacyPlan:
    """The plan with the most rounds (at most 1,000,000) whose ε is at most `target`; its own number is
    ignored.

    Raises:
      ValueError: `target` is not a finite number above 0, not even one round fits, or the plan adds no noise.
    """
    checks.positive("epsilon", target, "give the budget to keep")
    z, delta = float(plan.noise_multiplier), plan.target_delta
    if not plan.is_private:
        raise ValueError("noise multiplier 0 fits no finite epsilon: give one above 0")
    # Each search is cheaper than the next one and starts it near its end; the last is by the accounting that is shown.
    rounds = _most(lambda n: composition.rdp_epsilon(plan.sampling, plan.population, z, n, delta)[0] <= target, 1)
    rounds = _most(lambda n: _coarse(plan, n) <= target, rounds)
    rounds = _most(lambda n: epsilon(plan, n).value <= target, rounds)
    if rounds == 0:
        raise ValueError(f"epsilon {target:g} does not allow one round at noise multiplier {z:g}: add noise")
    return dataclasses.replace(plan, rounds=rounds)


def _coarse(plan: PrivacyPlan, rounds: int, z: float | None = None) -> float:
    """ε on the coarse grid: cheap, and hardly ever below the one on the fine grid."""
    z = float(plan.noise_multiplier) if z is None else z
    return composition.least_epsilon(plan.sampling, plan.population, z, rounds, plan.target_delta, loss_grid.COARSE)


def _most(fits: Callable[[int], bool], start: int) -> int:
    """Returns n from 0 to MOST_ROUNDS with fits(n) and not fits(n + 1), searched in growing steps from `start`.

    0 fits and MOST_ROUNDS + 1 does not; both others are verified, wherever `start` lies.
    """
    low, high, place, step = 0, MOST_ROUNDS + 1, max(start, 1), 1
    while high - low > 1:
        if fits(place):
            low = place
        else:
            high = place
        if low > 0 and high <= MOST_ROUNDS:
            place = (low + high) // 2
        else:
            place = min(low + step, MOST_ROUNDS) if low > 0 else max(high - step, 1)
            step *= 2
    return low


def _round_up(value: float) -> float:
    """`value` with 5 significant figures, not below it."""
    scale = 10.0 ** (4 - math.floor(math.log10(value)))
    return math.ceil(value * scale) / scale


def _notes(plan: PrivacyPlan, rounds: int) -> tuple[str, ...]:
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
            notes.append("PLD not available for fixed-size sampling under replace-one; ε is the RDP bound")
            notes.append("replacing a client moves the sum by 2 clips, so the noise multiplier counts half")
        case sampling.Cyclic():
            most = plan.sampling.max_participations(plan.rounds)
            notes.append(f"no amplification by sampling; a client is in at most {most} of {plan.rounds} rounds")
            notes.append("zero-out: a client's data replaced by none, the fixed partition of all others unchanged")
    if plan.target_delta > 1 / plan.population:
        notes.append(f"delta {plan.target_delta:g} is above 1/population: it would allow giving one client away")
    return tuple(notes)
