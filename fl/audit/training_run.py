"""Audits a whole training run with canaries in one run: the loop, the engine, local training and the aggregator.

All of them run as for any model. Every client is a canary. A client's one example moves a weight that belongs to this
client alone, by a thousand clip norms in a step of SGD. An independent coin for each client decides whether it has that
example or no data. The attacker sees the model after each round and guesses the coins.

Reference: Steinke, Nasr and Jagielski 2023, https://arxiv.org/abs/2305.08846.
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
from privacy.correlated.mechanisms import BLT, Banded
from privacy.keys import RunKeys
from privacy.plan import FixedClip, PrivacyPlan
from privacy.sampling import Cyclic

CANARIES = 2000
"""Number of clients, each of which is a canary."""
DELTA = 1e-7
"""δ of the claim. The theorem for one run spends 2 δ for every canary, so that at δ = 1e-5 no bound would be left."""

_CLIP = 1.0
_ROUNDS = 4
_CLIENTS_AT_ONCE = 50


@dataclasses.dataclass(frozen=True)
class CanaryTask:
    """Defines a `fl.local_training.Task` whose model has one weight for each canary.

    An example is int32 [], the index of a weight, and its loss is minus `slope` times that weight.
    """

    slope: float
    stacks: ClassVar[bool] = True
    measures_accuracy: ClassVar[bool] = False

    @property
    def example(self) -> Any:
        """Returns the spec of an example, int32 []."""
        import tensorflow as tf

        return tf.TensorSpec([], tf.int32)

    def forms(self, batch: Any) -> tuple[Any, list[Any]]:
        """Returns (0, [batch]), because this task computes a batch in one shape only; see `Task.forms`."""
        return 0, [batch]

    def loss(self, weights: Any, batch: Any, rows: Any) -> Loss:
        """Returns minus `slope` times the sum of the weights whose indices are the real rows."""
        import tensorflow as tf

        client_axes = rows.shape.rank  # 1 with a leading client axis
        indexed = tf.gather(weights["canaries"], batch, axis=client_axes, batch_dims=client_axes)
        real = tf.sequence_mask(rows, tf.shape(batch)[-1]) if client_axes else tf.ones_like(batch, tf.bool)
        count = tf.reduce_sum(tf.cast(real, tf.float32), -1)
        return Loss(-self.slope * tf.reduce_sum(tf.where(real, indexed, 0.0), -1), count)


class CanaryRun(NamedTuple):
    """Holds the coins of a run and the changes that it released.

    Attributes:
      included: bool [canaries], whether each canary's coin gave it its example.
      turns: bool [rounds, canaries], whether each canary had its turn in a round, whatever its coin; the audit may use
        this, since the accounting does not assume that cyclic cohorts are secret.
      released: float64 [rounds, canaries], the change of each canary's weight in each round, read off the released
        models.
      encoder: float64 [rounds, rounds], the matrix C of the plan's mechanism; the identity if the rounds' noise is
        independent. C times the changes has independent noise.
    """

    included: npt.NDArray[np.bool_]
    turns: npt.NDArray[np.bool_]
    released: npt.NDArray[np.float64]
    encoder: npt.NDArray[np.float64]

    def bound(self, delta: float, confidence: float) -> Bound:
        """Returns the better lower bound of two attacks, each computed with half of the allowed failure probability.

        Both look at the encoded changes, C times the changes. The first attack scores a canary by their inner product
        with what an included canary adds to them; with independent noise that is the sum of its changes in its own
        rounds. The second scores it by the smallest difference between its encoded change in one of its own rounds and
        in another round: if those two rounds have the same noise, the difference is zero for a canary that was left
        out.
        """
        encoded = self.encoder @ self.released
        own = np.sum((self.encoder @ self.turns) * encoded, axis=0)
        differences = np.abs(encoded[:, np.newaxis] - encoded)
        apart = self.turns[:, np.newaxis] & ~self.turns
        nearest = np.where(apart, differences, np.inf).min(axis=(0, 1))
        halved = 1 - (1 - confidence) / 2
        best = max(in_one_run(self.included, scores, delta, halved).epsilon for scores in (own, nearest))
        return Bound(best, delta, confidence, len(self.included))


def four_rounds(epsilon: float, mechanism: Banded | BLT | None = None) -> PrivacyPlan:
    """Returns a plan of four rounds: two cohorts in turn, `CANARIES` clients, and the noise for `epsilon` at `DELTA`.

    Args:
      epsilon: ε of the plan.
      mechanism: correlated noise; None for independent noise.

    Raises:
      ValueError: epsilon is out of range.
    """
    plan = PrivacyPlan(Cyclic(2), CANARIES, _ROUNDS, 1.0, FixedClip(_CLIP), DELTA, mechanism=mechanism)
    return accounting.calibrate_noise(plan, epsilon)


def train(aggregator: DPMean, keys: RunKeys, coins: np.random.Generator) -> CanaryRun:
    """Trains all rounds of the aggregator's plan and returns what they released.

    It needs a TFF runtime (`fl.runtime.local_runtime`).

    Args:
      aggregator: a `DPMean` or a variant of it, with a plan of cyclic cohorts; its mechanism, if any, is a Toeplitz
        matrix.
      keys: keys of cohorts and noise.
      coins: generator of the canaries' coins, independent of the keys.
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
        clients_at_once=_CLIENTS_AT_ONCE,
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

    def record_model(done: int, weights: Any) -> tuple[dict[str, float], dict[str, float]]:
        models.append(np.array(weights["canaries"], np.float64))
        return {}, {}

    turns = np.zeros((plan.rounds, plan.population), bool)
    with tempfile.TemporaryDirectory() as folder:
        for number, _ in enumerate(run_rounds(federation, RoundLog(Path(folder)), record_model)):
            turns[number, draw_cohort(plan.sampling, plan.population, number, keys.sampler_seed)] = True
    return CanaryRun(included, turns, np.diff(models, axis=0), _build_encoder(plan))


def _build_encoder(plan: PrivacyPlan) -> npt.NDArray[np.float64]:
    if not isinstance(plan.mechanism, (Banded, BLT)):
        return np.eye(plan.rounds)
    lag = np.subtract.outer(np.arange(plan.rounds), np.arange(plan.rounds))
    return np.where(lag >= 0, plan.mechanism.column(plan.rounds)[np.maximum(lag, 0)], 0.0)
