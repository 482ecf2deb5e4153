"""Runs a workload in fedspeak's engine."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar

import tensorflow_federated as tff
import numpy as np
import tensorflow as tf

from experiments.bench.models import cnn_logits, lstm_loss_sum, lstm_token_losses, transformer
from experiments.bench.peers.common import Client, Recorder, Request, Workload, run
from fl.aggregation import Aggregator, DPMean, ExampleWeightedMean
from fl.engines import cohort as cohort_engine
from fl.engines.averaging import Engine
from fl.engines.calibration import calibrate
from fl.local_training import Batches, LanguageModelling, LocalSGD, Loss, Task
from fl.runtime import local_runtime
from models.recurrent_lm import RecurrentLanguageModel
from privacy import FixedClip, FixedSize, PrivacyPlan

_LENGTHS = (13, 16)  # lengths to which batches are cut; a batch's longest line has 14 of 20 tokens on average


@dataclass(frozen=True)
class Classification:
    """Defines the softmax classification of vectors or images, a `fl.local_training.Task`.

    Attributes:
      shape: shape of one x.
      logits: maps weights and x to logits [..., classes].
      stacks: whether `logits` accepts a leading client axis.
      measures_accuracy: whether `loss` counts correct predictions, which it does not.
    """

    shape: tuple[int, ...]
    logits: Callable[[Any, Any], Any]
    stacks: bool

    measures_accuracy: ClassVar[bool] = False

    @property
    def example(self) -> Any:
        """Returns the specs of one example: x float32 and y int32 []."""
        return tf.TensorSpec(self.shape, tf.float32), tf.TensorSpec([], tf.int32)

    def forms(self, batch: Any) -> tuple[int, list[Any]]:
        """Returns (0, [batch]), because this task computes a batch in one shape only; see `Task.forms`."""
        return 0, [batch]

    def loss(self, weights: Any, batch: Any, rows: Any) -> Loss:
        """Returns the sum of the losses over the first `rows` rows, and the number of these rows."""
        x, y = batch
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, self.logits(weights, x))
        is_used = tf.sequence_mask(rows, tf.shape(y)[-1], tf.float32)
        return Loss(tf.reduce_sum(losses * is_used, -1), tf.reduce_sum(is_used, -1))


def _build_task(workload: Workload) -> Task:
    model, weights = workload.settings.model, workload.weights
    shape = workload.clients[0].x.shape[1:]
    if model == "lstm":
        return LanguageModelling(lstm_token_losses, shape[0], lengths=_LENGTHS, loss_sum=lstm_loss_sum)
    if model == "si-cifg":
        vocabulary, embedding = weights["embedding"].shape
        lm = RecurrentLanguageModel("si-cifg", vocabulary, embedding, weights["projection"].shape[0])
        return LanguageModelling(lm.token_losses, shape[0], stacks=True, lengths=_LENGTHS, loss_sum=lm.loss_sum)
    if model == "transformer":
        decoder = transformer(weights)
        return LanguageModelling(decoder.token_losses, shape[0], stacks=True, loss_sum=decoder.loss_sum)
    if model == "cnn":
        return Classification(shape, cnn_logits, stacks=False)
    return Classification(shape, _logistic_logits, stacks=True)


def _logistic_logits(weights: Any, x: Any) -> Any:
    return x @ weights["kernel"] + weights["bias"][..., tf.newaxis, :]


def _transpose_output(weights: dict[str, Any]) -> dict[str, Any]:
    """Converts a language model's "output_kernel" [E, V] to the "output_table" [V, E] of `models`, or back."""
    other = {"output_kernel": "output_table", "output_table": "output_kernel"}
    is_text = "embedding" in weights
    converted = {
        other[name] if is_text and name in other else name: np.asarray(value).T if is_text and name in other else value
        for name, value in weights.items()
    }
    return {name: np.ascontiguousarray(converted[name]) for name in sorted(converted)}


def _build_aggregator(request: Request, workload: Workload) -> Aggregator:
    if request.noise_multiplier is None:
        return ExampleWeightedMean()
    plan = PrivacyPlan(
        FixedSize(workload.cohorts.shape[1]),
        population=len(workload.clients),
        rounds=request.rounds,
        noise_multiplier=request.noise_multiplier,
        clip=FixedClip(workload.settings.clip),
    )
    return DPMean(plan)


def _batches(client: Client, workload: Workload) -> Batches:
    """Returns the client's batches in order; the last one is padded with zeros."""
    size = workload.settings.batch_size
    steps = -(-len(client.x) // size)

    def pad(rows: np.ndarray) -> np.ndarray:
        padded = np.zeros((steps * size, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return padded.reshape(steps, size, *rows.shape[1:])

    rows = np.full(steps, size, np.int32)
    rows[-1] -= steps * size - len(client.x)
    if workload.is_text:
        return Batches(pad(np.concatenate([client.x, client.y[:, -1:]], axis=1)), rows)
    return Batches((pad(client.x), pad(client.y)), rows)


def peer(request: Request, workload: Workload, recorder: Recorder) -> None:
    """Trains as the rounds of `fedspeak train` do, but without ledger, checkpoints and metrics."""
    settings = workload.settings
    task, weights = _build_task(workload), _transpose_output(workload.weights)
    local, aggregator = LocalSGD(settings.learning_rate, settings.batch_size), _build_aggregator(request, workload)

    def build(clients_at_once: int) -> Engine:
        server = tff.learning.optimizers.build_sgdm(1.0)
        return cohort_engine.build(task, weights, local, aggregator, server, clients_at_once=clients_at_once)

    with local_runtime():
        # `fedspeak train` chooses the number of clients at once in the same way.
        seconds = calibrate(build, task, weights, local, 2, workload.cohorts.shape[1])
        engine = build(min(seconds, key=seconds.__getitem__))
        state = engine.process.initialize()

        def get_weights() -> dict[str, Any]:
            return _transpose_output(dict(state["weights"]))

        recorder.start()
        for number in range(request.rounds):
            batches = [_batches(workload.clients[client], workload) for client in workload.cohorts[number]]
            values = engine.client_values(batches)
            state, _ = engine.process.next(state, values, np.array([0, number], np.int64))
            recorder.round_done(get_weights)
    recorder.write("fedspeak", version("fedspeak"))


if __name__ == "__main__":
    run(peer)
