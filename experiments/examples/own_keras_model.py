"""Trains your own Keras language model under DP in fedspeak's trainer, and puts the trained weights into the model."""

import sys
from pathlib import Path

import tensorflow_federated as tff
import keras
import numpy as np

from fl.aggregation import DPMean
from fl.cohorts import draw_cohort
from fl.engines import cohort as cohort_engine
from fl.keras_models import assign, initial_weights, language_modelling
from fl.local_training import LocalSGD
from fl.runtime import local_runtime
from privacy import FixedClip, Ledger, Poisson, PrivacyPlan, RunKeys, report

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
texts = [np.random.default_rng(i).integers(3, 259, (8, 21)).astype(np.int32) for i in range(60)]
layers = [keras.layers.Embedding(259, 16), keras.layers.GRU(32, return_sequences=True), keras.layers.Dense(259)]
model = keras.Sequential([keras.Input([20], dtype="int32"), *layers])
local = LocalSGD(learning_rate=0.5, batch_size=4, sequence_length=20)
plan = PrivacyPlan(Poisson(0.2), population=len(texts), rounds=rounds, noise_multiplier=1.0, clip=FixedClip(0.5))
keys = RunKeys.create(folder / "keys.json")
optimizer = tff.learning.optimizers.build_sgdm(1.0, momentum=0.9)
engine = cohort_engine.build(language_modelling(model), initial_weights(model), local, DPMean(plan), optimizer)

with local_runtime(), Ledger.open(folder / "ledger.jsonl", plan) as ledger:
    state = engine.process.initialize()
    for number in range(rounds):
        cohort = draw_cohort(plan.sampling, plan.population, number, keys.sampler_seed)
        names = [f"client-{client}" for client in cohort]
        ledger.record(round=number, cohort=names, noise_id=keys.noise_id(number), noise_stddev=0.5, clip_norm=0.5)
        batches = [local.batches(texts[client], keys.sampler_seed(number), int(client)) for client in cohort]
        state, _ = engine.process.next(state, engine.client_values(batches), keys.noise_seed(number))
    assign(model, state["weights"])
    model.save(folder / "model.keras")
    print("\n".join(map(str, report.build(plan, ledger, {}).write(folder))))
