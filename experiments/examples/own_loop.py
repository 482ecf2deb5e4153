"""Runs fedspeak's trainer, which is a TFF iterative process, round by round in a loop of your own."""

import sys
from pathlib import Path

import tensorflow_federated as tff
import numpy as np

from fl.aggregation import DPMean
from fl.cohorts import draw_cohort
from fl.engines import cohort as cohort_engine
from fl.local_training import LanguageModelling, LocalSGD
from fl.runtime import local_runtime
from models import preset
from privacy import FixedClip, Ledger, Poisson, PrivacyPlan, RunKeys, report

folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
texts = [np.random.default_rng(i).integers(3, 259, (8, 21)).astype(np.int32) for i in range(60)]
model = preset("tiny", 259)
local = LocalSGD(learning_rate=0.5, batch_size=4, sequence_length=20)
plan = PrivacyPlan(Poisson(0.2), population=len(texts), rounds=rounds, noise_multiplier=1.0, clip=FixedClip(0.5))
keys = RunKeys.create(folder / "keys.json")
optimizer = tff.learning.optimizers.build_sgdm(1.0, momentum=0.9)
task = LanguageModelling(model.token_losses, local.sequence_length, loss_sum=model.loss_sum)
engine = cohort_engine.build(task, model.init(seed=0), local, DPMean(plan), optimizer)

print(engine.process.next.type_signature.compact_representation())
with local_runtime(), Ledger.open(folder / "ledger.jsonl", plan) as ledger:
    state = engine.process.initialize()
    for number in range(rounds):
        seed = keys.sampler_seed(number)
        cohort = draw_cohort(plan.sampling, plan.population, number, keys.sampler_seed)
        names = [f"client-{client}" for client in cohort]
        ledger.record(round=number, cohort=names, noise_id=keys.noise_id(number), noise_stddev=0.5, clip_norm=0.5)
        batches = [local.batches(texts[client], seed, int(client)) for client in cohort]
        state, metrics = engine.process.next(state, engine.client_values(batches), keys.noise_seed(number))
        print(number, metrics["released"])
    print("\n".join(map(str, report.build(plan, ledger, {}).write(folder))))
