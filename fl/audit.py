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
from privacy.audited import Case
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
