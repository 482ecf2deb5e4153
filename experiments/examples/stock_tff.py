"""Trains a fedspeak model by stock federated averaging with DP, and reports on its privacy from a plan and a ledger."""

import random
import sys
from pathlib import Path

import tensorflow_federated as tff
import keras
import numpy as np
import tensorflow as tf

from fl.runtime import local_runtime
from models import preset, to_keras
from privacy import FixedClip, Ledger, Poisson, PrivacyPlan, report

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
texts = {f"client-{i}": np.random.default_rng(i).integers(3, 259, (8, 21)).astype(np.int32) for i in range(60)}
rate, clip, noise = 0.2, 0.5, 1.0
plan = PrivacyPlan(Poisson(rate), len(texts), rounds, noise, FixedClip(clip))
tokens = tf.TensorSpec([None, 20], tf.int32)


def model_fn() -> tff.learning.models.VariableModel:
    """Returns a new model; TFF calls this in a graph of its own."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return tff.learning.models.from_keras_model(to_keras(preset("tiny", 259)), loss, (tokens, tokens))


dp = tff.aggregators.DifferentiallyPrivateFactory.gaussian_fixed(noise, plan.expected_cohort, clip)
sgd = tff.learning.optimizers.build_sgdm(0.5)
process = tff.learning.algorithms.build_unweighted_fed_avg(model_fn, sgd, model_aggregator=dp)
with local_runtime(), Ledger.open(folder / "ledger.jsonl", plan) as ledger:
    state = process.initialize()
    for number in range(rounds):
        cohort = [client for client in texts if random.SystemRandom().random() < rate]
        ledger.record(round=number, cohort=cohort, noise_id=f"{number}", noise_stddev=noise * clip, clip_norm=clip)
        data = [tf.data.Dataset.from_tensor_slices((texts[c][:, :-1], texts[c][:, 1:])).batch(4) for c in cohort]
        state = process.next(state, data).state
    print("\n".join(map(str, report.build(plan, ledger, {}).write(folder))))
