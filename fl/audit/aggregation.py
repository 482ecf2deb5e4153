"""White-box audit of private aggregation: one client's update is a canary, and what a round releases is seen whole.

The canary's update is a thousand clip norms long and along one axis (gradient canaries: Nasr et al. 2021,
https://arxiv.org/abs/2101.04535, and 2023, https://arxiv.org/abs/2302.07956), so that what is left of it after clipping
moves the released mean as far as one client may. Many releases with and without it bound ε from below by
`privacy.audit.from_scores`. Audited is the aggregator itself: its `client` and `server`, with the noise of `RunKeys`.
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
"""Norm of a canary's update, in clip norms."""

View = Literal["alone", "opposed", "less the next round"]
"""Beside whom the canary stands: nobody; a client whose update is minus half of it (were their sum clipped, the canary
would move it by two clip norms); nobody, and the next round, where it has no turn, is subtracted (noise that is used
twice cancels)."""

_CLIP = 1.0
_WEIGHTS = 4
TAIL_RELEASES = 560
_TAILS = (4.0, 5.0, 5.68)
"""In standard deviations: where the noise may end."""
_DUST = (-17.0, -14.0, -12.5, -11.25)
"""Binary logarithms of a tiny weight beside one of 1."""
_TOGETHER = (1, 2, 8)
"""Clients trained together."""
_SLOW = 4  # an outcome takes four times a mean's


def two_rounds(epsilon: float, delta: float) -> PrivacyPlan:
    """Two rounds in which two cohorts take one turn each, with noise for `epsilon`: neighbours differ by one client's
    data in one round, and nothing is amplified, so that an attack that sees the round whole can reach the claim.

    Raises:
      ValueError: epsilon or delta is out of range.
    """
    plan = PrivacyPlan(Cyclic(2), population=4, rounds=2, noise_multiplier=1.0, clip=FixedClip(_CLIP), delta=delta)
    return accounting.calibrate_noise(plan, epsilon)


def cases(epsilon: float, delta: float, keys: RunKeys) -> list[Case]:
    """The fixed clip from each view, and the adaptive clip with its count, at a claim of about `epsilon` at `delta`.

    Raises:
      ValueError: epsilon or delta is out of range.
    """
    plan = two_rounds(epsilon, delta)
    adaptive = AdaptiveClip(_CLIP, count_stddev=plan.noise_multiplier)  # so much that the update needs 15 % more noise
    return [
        *(case(DPMean(plan), view, keys) for view in get_args(View)),
        case(DPMean(dataclasses.replace(plan, clip=adaptive)), "alone", keys),
    ]


def case(aggregator: DPMean, view: View, keys: RunKeys) -> Case:
    """An aggregator under audit against the claim of its plan, in the words of `two_rounds`.

    Args:
      aggregator: `DPMean`, or a variant of it, of a plan whose clients have one turn.
      view: what is compared.
      keys: of the noise; outcome n has that of round n.
    """
    plan = aggregator.plan
    other = float(view == "opposed")

    def noise(number: int) -> Any:
        return aggregator.noise(keys, number, _WEIGHTS)

    def scores(trials: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        evidence, outcomes = _evidence(aggregator), []
        for canary in (0.0, 1.0):
            # No two outcomes share a round: all noise is independent, unless the keys or the server are at fault.
            first = 2 * trials * int(canary)
            score = evidence(other, canary, [noise(first + 2 * n) for n in range(trials)])
            if view == "less the next round":
                score -= evidence(0.0, 0.0, [noise(first + 2 * n + 1) for n in range(trials)])
            outcomes.append(score)
        return outcomes[0], outcomes[1]

    kind = "adaptive clip" if isinstance(plan.clip, AdaptiveClip) else "fixed clip"
    assert plan.relation is not None
    claimed = accounting.epsilon(plan).value
    return Case(f"DPMean, {kind}, canary {view}", plan.relation, claimed, plan.target_delta, _SLOW, scores)


def tail_plan() -> PrivacyPlan:
    """Two rounds with so little noise that a canary on one weight lifts it from the middle into the tail of the noise.

    The claim, ε = 9.4 at δ = 3.5e-5, is that of exact Gaussian noise. Noise that ends at 5.7 standard deviations breaks
    it: beyond its end lies the canary alone, with probability 1.2e-4.
    """
    return PrivacyPlan(Cyclic(2), population=4, rounds=2, noise_multiplier=0.5, clip=FixedClip(_CLIP), delta=3.5e-5)


def tail(
    aggregator: DPMean, keys: RunKeys, confidence: float, releases: int = TAIL_RELEASES, weights: int = 2**22
) -> tuple[float, Bound]:
    """Looks for an end of the noise: how often a weight is far out with a canary on it, and without one.

    Each weight of a release is an outcome: its noise knows nothing of the others, and each has a canary of its own.
    Only after 2·10^9 of them is an end at 5.7 standard deviations told from a Gaussian tail.

    Args:
      aggregator: of `tail_plan`, or a variant of it.
      keys: of the noise; release n has that of round n.
      confidence: of the bound.
      releases: without a canary; a hundredth of it more with.
      weights: outcomes in a release.

    Returns:
      (ε as claimed, the bound).
    """
    import tensorflow as tf

    plan, clip = aggregator.plan, aggregator.initial_state()["clip"]
    scale = plan.expected_cohort / (plan.value_noise_multiplier * clip)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([]), tf.TensorSpec([None], tf.int64)])
    def counted(canary: Any, noise: Any) -> Any:
        state = {"clip": tf.constant(clip, tf.float32)}
        zero, one = tf.constant(0.0), tf.constant(1.0)
        nobody = ClientUpdate({"a": tf.zeros([weights])}, zero, zero, zero, zero, zero)
        total = aggregator.client(state, nobody)._replace(update={"a": tf.fill([weights], canary)}, clients=one)
        moved = aggregator.server(state, total, noise).update["a"] * scale
        return tf.stack([tf.reduce_sum(tf.cast(moved > least, tf.int64)) for least in _TAILS])

    def counts(canary: float, rounds: range) -> Any:
        noises = (aggregator.noise(keys, number, weights) for number in rounds)
        return sum(np.array(counted(tf.constant(canary, tf.float32), tf.constant(noise))) for noise in noises)

    more = -(-releases // 100)
    false_hits, hits = counts(0.0, range(releases)), counts(clip, range(releases, releases + more))
    found = from_counts(hits, more * weights, false_hits, releases * weights, plan.target_delta, confidence)
    return accounting.epsilon(plan).value, found


def dusty(aggregator: DPMean, confidence: float, weights: int = 2**20) -> tuple[float, Bound]:
    """Measures what is left of canaries with one large weight and very many tiny ones, alone and trained with others.

    Norms summed in float32 overlook tiny weights. A client that passes at ρ clip norms costs the ε of a noise
    multiplier smaller by ρ: the arithmetic is measured, nothing is drawn.

    Args:
      aggregator: `DPMean`, or a variant of it, of a plan like `two_rounds`.
      confidence: stated with the bound, which holds for certain.
      weights: of the model.

    Returns:
      (ε as claimed, the bound).
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
            left = np.array(aggregator.client(state, update).update["a"], np.float64)
            worst = max(worst, float(np.linalg.norm(left)) / clip)
    plan = aggregator.plan
    true = dataclasses.replace(plan, noise_multiplier=plan.noise_multiplier / worst)
    bound = Bound(accounting.epsilon(true).value, plan.target_delta, confidence, len(_DUST) * len(_TOGETHER))
    return accounting.epsilon(plan).value, bound


def _evidence(aggregator: DPMean) -> Callable[[float, float, list[npt.NDArray[np.int64]]], npt.NDArray[np.float64]]:
    """How much a release speaks for a canary's clip norm along its axis: the log-likelihood ratio but for a constant,
    if the noise is the plan's.

    Returns:
      (opponent, canary, noises, each as of `aggregator.noise`) -> float64 [noises]; the first two are 1 for one who
      takes part and 0 for one without data.
    """
    import tensorflow as tf

    plan, clip = aggregator.plan, aggregator.initial_state()["clip"]
    # Along the diagonal of two tensors: a clip of each entry or of each tensor alone would leave more than C.
    names, axis = ("a", "b"), _WEIGHTS**-0.5
    lengths = tf.constant([[-0.5], [1.0]]) * CANARY_LENGTH * clip
    updates = {name: tf.tile(axis * lengths, [1, _WEIGHTS // 2]) for name in names}
    size = aggregator.noise_size(_WEIGHTS)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([2]), tf.TensorSpec([None, size], tf.int64)])
    def releases(present: Any, noises: Any) -> Any:
        state = {name: tf.constant(value, tf.float32) for name, value in aggregator.initial_state().items()}
        # Once: what clients send is a function of their updates alone.
        total = aggregator.client(state, ClientUpdate(updates, present, present, present, present, present))

        def release(noise: Any) -> Any:
            mean = aggregator.server(state, total, noise)
            moved = axis * tf.add_n([tf.reduce_sum(value) for value in mean.update.values()])
            return tf.stack([moved, mean.released.get("fraction_within_clip", tf.constant(0.5))])

        return tf.map_fn(release, noises, fn_output_signature=tf.float32)

    def evidence(opponent: float, canary: float, noises: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.float64]:
        released = releases(tf.constant([opponent, canary]), tf.constant(np.array(noises)))
        moved, within = released.numpy().astype(np.float64).T
        found = moved * plan.expected_cohort / clip / plan.value_noise_multiplier**2
        if isinstance(plan.clip, AdaptiveClip):
            # The canary is one more whose norm is above the clip norm: it takes 1/2 off the count.
            found -= 0.5 * (within - 0.5) * plan.expected_cohort / plan.count_stddev**2
        return np.asarray(found)

    return evidence
