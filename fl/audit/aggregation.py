"""Audits private aggregation with a canary, as an attacker who sees everything that a round releases.

The canary is one client's update, with an L2 norm of a thousand clip norms along one axis (gradient canaries: Nasr et
al. 2021, https://arxiv.org/abs/2101.04535, and 2023, https://arxiv.org/abs/2302.07956). After clipping it moves the
released mean as far as one client may. Many releases with and without it give a lower bound on ε
(`privacy.audit.from_scores`). The audit runs the aggregator itself: its `client` and `server`, with noise from
`RunKeys`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fl.aggregation import DPMean
from fl.local_training import ClientUpdate
from privacy import accounting
from privacy.audit.bounds import Bound, from_counts
from privacy.audit.cases import Case
from privacy.keys import RunKeys
from privacy.plan import AdaptiveClip, FixedClip, PrivacyPlan
from privacy.sampling import Cyclic

CANARY_LENGTH = 1000.0
"""L2 norm of a canary's update, in clip norms."""

View = Literal["alone", "opposed", "minus the next round"]
"""Situation in which the canary is released. "alone": no other client takes part. "opposed": one other client takes
part, whose update is minus half the canary's. This exposes an aggregator that clips only the sum, because the canary
then moves the clipped sum by two clip norms. "minus the next round": no other client takes part, and the release of the
next round, in which the canary has no turn, is subtracted. This exposes noise that is used twice, because it cancels.
"""

_CLIP = 1.0
_WEIGHTS = 4
TAIL_RELEASES = 560
"""Default number of releases of `tail` without canaries."""
_TAILS = (4.0, 5.0, 5.68)
"""Thresholds, in standard deviations of the noise, beyond which `tail` counts weights."""
_DUST = (-17.0, -14.0, -12.5, -11.25)
"""Binary logarithms of the ratio of a tiny weight to the large one, in `dusty`."""
_TOGETHER = (1, 2, 8)
"""Numbers of clients trained together, in `dusty`."""
_SLOW = 4  # an outcome takes four times as long as one of a private mean


def two_rounds(epsilon: float, delta: float) -> PrivacyPlan:
    """Returns a plan of two rounds, in which two cohorts take one turn each, with the noise for `epsilon` at `delta`.

    Neighbouring data sets (zero-out) differ in one client's data in one round, and there is no amplification by
    sampling. So an attack that sees the whole round can reach the claimed ε.

    Raises:
      ValueError: epsilon or delta is out of range.
    """
    plan = PrivacyPlan(Cyclic(2), population=4, rounds=2, noise_multiplier=1.0, clip=FixedClip(_CLIP), delta=delta)
    return accounting.calibrate_noise(plan, epsilon)


def cases(epsilon: float, delta: float, keys: RunKeys) -> list[Case]:
    """Builds the audit's cases: a fixed clip in each view, and an adaptive clip with its count.

    Each aggregator claims about `epsilon` at `delta`.

    Raises:
      ValueError: epsilon or delta is out of range.
    """
    plan = two_rounds(epsilon, delta)
    adaptive = AdaptiveClip(_CLIP, count_stddev=plan.noise_multiplier)  # the update then needs 15 % more noise
    return [
        *(case(DPMean(plan), view, keys) for view in get_args(View)),
        case(DPMean(dataclasses.replace(plan, clip=adaptive)), "alone", keys),
    ]


def case(aggregator: DPMean, view: View, keys: RunKeys) -> Case:
    """Builds the case that tests an aggregator against the ε that `privacy.accounting` claims for its plan.

    Args:
      aggregator: a `DPMean` or a variant of it, whose plan gives each client one turn, as that of `two_rounds` does.
      view: situation in which the canary is released.
      keys: keys of the noise; each outcome uses the noise of rounds of its own.
    """
    plan = aggregator.plan
    other = float(view == "opposed")

    def noise(number: int) -> Any:
        return aggregator.noise(keys, number, _WEIGHTS)

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        score, outcomes = _build_score(aggregator), []
        for canary in (0.0, 1.0):
            # No two outcomes share a round: all noise is independent, unless the keys or the server are faulty.
            first = 2 * trials * int(canary)
            outcome = score(other, canary, [noise(first + 2 * n) for n in range(trials)])
            if view == "minus the next round":
                outcome -= score(0.0, 0.0, [noise(first + 2 * n + 1) for n in range(trials)])
            outcomes.append(outcome)
        return outcomes[0], outcomes[1]

    kind = "adaptive clip" if isinstance(plan.clip, AdaptiveClip) else "fixed clip"
    assert plan.relation is not None
    claimed = accounting.epsilon(plan).value
    return Case(f"DPMean, {kind}, canary {view}", plan.relation, claimed, plan.target_delta, _SLOW, scores)


def tail_plan() -> PrivacyPlan:
    """Returns a plan of two rounds with so little noise that a canary moves a weight into the tail of its distribution.

    The claim, ε = 9.4 at δ = 3.5e-5, holds for exact Gaussian noise. Noise that ends at 5.7 standard deviations breaks
    it: a weight lies beyond that end only with the canary, and then with probability 1.2e-4.
    """
    return PrivacyPlan(Cyclic(2), population=4, rounds=2, noise_multiplier=0.5, clip=FixedClip(_CLIP), delta=3.5e-5)


def tail(
    aggregator: DPMean, keys: RunKeys, confidence: float, releases: int = TAIL_RELEASES, weights: int = 2**22
) -> tuple[float, Bound]:
    """Tests whether the noise's tail ends early: counts how often a weight is far out with a canary and without one.

    Each weight of a release is an outcome: its noise is independent of the others', and it has a canary of its own. It
    takes 2·10^9 outcomes to tell noise that ends at 5.7 standard deviations from a Gaussian tail.

    Args:
      aggregator: a `DPMean` of `tail_plan`, or a variant of it.
      keys: keys of the noise; release n uses the noise of round n.
      confidence: confidence of the bound, in (0, 1).
      releases: number of releases without canaries; a hundredth as many, rounded up, follow with canaries.
      weights: number of outcomes in one release.

    Returns:
      (claimed ε, lower bound on ε).
    """
    import tensorflow as tf

    plan, clip = aggregator.plan, aggregator.initial_state()["clip"]
    scale = plan.expected_cohort / (plan.value_noise_multiplier * clip)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([]), tf.TensorSpec([None], tf.int64)])
    def count_release(canary: Any, noise: Any) -> Any:
        state = {"clip": tf.constant(clip, tf.float32)}
        zero, one = tf.constant(0.0), tf.constant(1.0)
        empty = ClientUpdate({"a": tf.zeros([weights])}, zero, zero, zero, zero, zero)
        total = aggregator.client(state, empty)._replace(update={"a": tf.fill([weights], canary)}, clients=one)
        moved = aggregator.server(state, total, noise).update["a"] * scale
        return tf.stack([tf.reduce_sum(tf.cast(moved > threshold, tf.int64)) for threshold in _TAILS])

    def count(canary: float, rounds: range) -> Any:
        noises = (aggregator.noise(keys, number, weights) for number in rounds)
        return sum(np.array(count_release(tf.constant(canary, tf.float32), tf.constant(noise))) for noise in noises)

    with_canary = -(-releases // 100)
    false_hits, hits = count(0.0, range(releases)), count(clip, range(releases, releases + with_canary))
    bound = from_counts(hits, with_canary * weights, false_hits, releases * weights, plan.target_delta, confidence)
    return accounting.epsilon(plan).value, bound


def dusty(aggregator: DPMean, confidence: float, weights: int = 2**20) -> tuple[float, Bound]:
    """Measures the norm that clipping leaves to canaries with one large weight and very many tiny ones ("dust").

    Norms that are summed in float32 overlook tiny weights. A client whose clipped update has an L2 norm of ρ clip norms
    costs the ε of a noise multiplier that is smaller by the factor ρ. The audit measures ρ for a canary alone and for
    one that is trained together with other clients. It draws no noise.

    Args:
      aggregator: a `DPMean` or a variant of it, with a plan like that of `two_rounds`.
      confidence: confidence that the bound states, in (0, 1); the bound itself holds with certainty.
      weights: number of weights of the model.

    Returns:
      (claimed ε, lower bound on ε).
    """
    import tensorflow as tf

    state = {name: tf.constant(value, tf.float32) for name, value in aggregator.initial_state().items()}
    clip, worst = float(state["clip"]), 0.0
    for exponent in _DUST:
        values = np.full(weights, 2.0**exponent * clip * 2, np.float32)
        values[0] = 2 * clip
        for clients in _TOGETHER:
            present = tf.one_hot(0, clients)
            delta = tf.concat([values[np.newaxis], tf.zeros([clients - 1, weights])], 0)
            update = ClientUpdate({"a": delta}, present, present, present, present, present)
            clipped = np.array(aggregator.client(state, update).update["a"], np.float64)
            worst = max(worst, float(np.linalg.norm(clipped)) / clip)
    plan = aggregator.plan
    effective = dataclasses.replace(plan, noise_multiplier=plan.noise_multiplier / worst)
    bound = Bound(accounting.epsilon(effective).value, plan.target_delta, confidence, len(_DUST) * len(_TOGETHER))
    return accounting.epsilon(plan).value, bound


def _build_score(aggregator: DPMean) -> Callable[[float, float, list[npt.NDArray[np.int64]]], npt.NDArray[np.float64]]:
    """Returns the function that scores how strongly releases indicate the canary.

    The score is the log-likelihood ratio, up to a constant, between a canary of one clip norm along its axis and none,
    if the noise is the plan's.

    Returns:
      A function (opponent, canary, noises, each a return value of `aggregator.noise`) -> float64 [noises]. The first
      two are 1 for a client that takes part and 0 for one without data.
    """
    import tensorflow as tf

    plan, clip = aggregator.plan, aggregator.initial_state()["clip"]
    # Along the diagonal of two tensors: clipping each entry or each tensor alone would leave more than the clip norm.
    names, axis = ("a", "b"), _WEIGHTS**-0.5
    norms = tf.constant([[-0.5], [1.0]]) * CANARY_LENGTH * clip
    updates = {name: tf.tile(axis * norms, [1, _WEIGHTS // 2]) for name in names}
    size = aggregator.noise_size(_WEIGHTS)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([2]), tf.TensorSpec([None, size], tf.int64)])
    def releases(present: Any, noises: Any) -> Any:
        state = {name: tf.constant(value, tf.float32) for name, value in aggregator.initial_state().items()}
        # Computed once for all noises, because what clients send depends on their updates only.
        total = aggregator.client(state, ClientUpdate(updates, present, present, present, present, present))

        def release(noise: Any) -> Any:
            mean = aggregator.server(state, total, noise)
            moved = axis * tf.add_n([tf.reduce_sum(value) for value in mean.update.values()])
            return tf.stack([moved, mean.released.get("fraction_within_clip", tf.constant(0.5))])

        return tf.map_fn(release, noises, fn_output_signature=tf.float32)

    def score(opponent: float, canary: float, noises: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        released = releases(tf.constant([opponent, canary]), tf.constant(np.array(noises)))
        moved, within = released.numpy().astype(np.float64).T
        ratios = moved * plan.expected_cohort / clip / plan.value_noise_multiplier**2
        if isinstance(plan.clip, AdaptiveClip):
            # The canary's norm is above the clip norm, so it lowers the count by 1/2.
            ratios -= 0.5 * (within - 0.5) * plan.expected_cohort / plan.count_stddev**2
        return np.asarray(ratios)

    return score
