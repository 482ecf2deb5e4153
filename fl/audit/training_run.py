"""Audit of a whole training run by canaries in one run (Steinke, Nasr and Jagielski 2023,
https://arxiv.org/abs/2305.08846): the loop, the engine, local training and the aggregator as they train any model.

Every client is a canary. Its one example moves a weight of its own, by a thousand clip norms in a step of SGD; whether
it has that example or none is a coin of its own. Who sees the model after each round guesses the coins.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from fl.aggregation import DPMean
from fl.audit.aggregation import CANARY_LENGTH
from fl.cohorts import draw_cohort
from fl.local_training import LocalSGD, Loss
from fl.rounds import Federation, RoundLog, run_rounds
from privacy import accounting
from privacy.audit.bounds import Bound, in_one_run
from privacy.keys import RunKeys
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Cyclic

CANARIES = 2000
DELTA = 1e-7
"""Of the claim: the theorem for one run pays for every canary with 2 δ, and at 1e-5 nothing would be left."""

_CLIP = 1.0
_ROUNDS = 4
_USERS_AT_ONCE = 50


@dataclasses.dataclass(frozen=True)
class CanaryTask:
    """A model of one weight a canary; the loss of an example falls by the weight that it names, times `slope`.

    A task of `fl.local_training.Task`; an example is int32 [], the index of its weight.
    """

    slope: float
    stacks: ClassVar[bool] = True
    measures_accuracy: ClassVar[bool] = False

    @property
    def example(self) -> Any:
        """int32 []."""
        import tensorflow as tf

        return tf.TensorSpec([], tf.int32)

    def forms(self, batch: Any) -> tuple[Any, list[Any]]:
        """One."""
        return 0, [batch]

    def loss(self, weights: Any, batch: Any, rows: Any) -> Loss:
        """Minus `slope` times the sum of the weights that the real rows name."""
        import tensorflow as tf

        users = rows.shape.rank
        named = tf.gather(weights["canaries"], batch, axis=users, batch_dims=users)
        real = tf.sequence_mask(rows, tf.shape(batch)[-1]) if users else tf.ones_like(batch, tf.bool)
        count = tf.reduce_sum(tf.cast(real, tf.float32), -1)
        return Loss(-self.slope * tf.reduce_sum(tf.where(real, named, 0.0), -1), count)


class CanaryRun(NamedTuple):
    """What was thrown and what was released.

    Attributes:
      included: bool [canaries], the coins.
      turns: bool [rounds, canaries], in which rounds each had its turn, included or not; the audit may use it, since
        cyclic cohorts are not secret in the accounting.
      released: float64 [rounds, canaries], the model's change in each round, read off the released models.
    """

    included: npt.NDArray[np.bool_]
    turns: npt.NDArray[np.bool_]
    released: npt.NDArray[np.float64]

    def bound(self, delta: float, confidence: float) -> Bound:
        """The better of two attacks, each with half of what may fail.

        The change in a canary's own rounds; and how little it differs from that in some other round, which is nothing
        at all for one left out if the two rounds have the same noise.
        """
        own = np.where(self.turns, self.released, 0).sum(axis=0)
        differences = np.abs(self.released[:, np.newaxis] - self.released)
        apart = self.turns[:, np.newaxis] & ~self.turns
        nearest = np.where(apart, differences, np.inf).min(axis=(0, 1))
        halved = 1 - (1 - confidence) / 2
        best = max(in_one_run(self.included, scores, delta, halved).epsilon for scores in (own, nearest))
        return Bound(best, delta, confidence, len(self.included))


def four_rounds(epsilon: float) -> PrivacyPlan:
    """Four rounds of two cohorts in turn, `CANARIES` clients, and noise for `epsilon` at `DELTA`.

    Raises:
      ValueError: epsilon is out of range.
    """
    plan = PrivacyPlan(Cyclic(2), CANARIES, _ROUNDS, 1.0, FixedClip(_CLIP), DELTA)
    return accounting.calibrate_noise(plan, epsilon)


def train(aggregator: DPMean, keys: RunKeys, coins: np.random.Generator) -> CanaryRun:
    """Trains all rounds of the aggregator's plan; needs a TFF runtime (`fl.runtime.local_runtime`).

    Args:
      aggregator: `DPMean`, or a variant of it, of a cyclic plan.
      keys: of cohorts and noise.
      coins: of the canaries; independent of the keys.
    """
    import tensorflow_federated as tff

    from fl.engines import cohort

    plan = aggregator.plan
    included = coins.random(plan.population) < 0.5
    local = LocalSGD(learning_rate=1.0, batch_size=1, sequence_length=1, max_sequences=1)
    engine = cohort.build(
        CanaryTask(CANARY_LENGTH * _CLIP),
        {"canaries": np.zeros(plan.population, np.float32)},
        local,
        aggregator,
        tff.learning.optimizers.build_sgdm(1.0),
        clients_at_once=_USERS_AT_ONCE,
    )
    federation = Federation(
        engine.process,
        engine.client_values,
        plan,
        keys,
        [f"canary-{index}" for index in range(plan.population)],
        lambda index: np.full(int(included[index]), index, np.int32),
        local,
        inputs="canaries",
        noise=engine.noise,
    )
    models = [np.zeros(plan.population)]

    def look(done: int, weights: Any) -> tuple[dict[str, float], dict[str, float]]:
        models.append(np.array(weights["canaries"], np.float64))
        return {}, {}

    turns = np.zeros((plan.rounds, plan.population), bool)
    with tempfile.TemporaryDirectory() as folder:
        for number, _ in enumerate(run_rounds(federation, RoundLog(Path(folder)), look)):
            turns[number, draw_cohort(plan.sampling, plan.population, number, keys.sampler_seed)] = True
    return CanaryRun(included, turns, np.diff(models, axis=0))
