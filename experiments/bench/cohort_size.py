"""What a round costs as the cohort grows: drawing and reading it, packing it into shards, training it."""

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras

COHORTS = (10, 100, 1000, 10_000)


@click.command("cohort")
@click.option("--folder", default="runs/bench/population", show_default=True, type=click.Path(path_type=Path))
@click.option("--most", default=COHORTS[-1], show_default=True, type=click.IntRange(min=COHORTS[0]), help="Clients.")
def cohort_size(folder: Path, most: int) -> None:
    """Time a private round of the tiny preset for cohorts of 10 to 10,000 users of `bench population`'s store."""
    from experiments import plots
    from experiments.provenance import versions
    from experiments.runs import write_json

    extras.require("federated")
    if not (folder / "store.tokens").exists():
        raise FileNotFoundError(f"{folder} holds no store: run fedspeak bench population --folder {folder} first")
    rows = _measure(folder, most)
    write_json(folder / "cohort.json", {"rounds": rows, "versions": versions()})
    plots.round_cost(folder / "cohort", rows)
    (folder / "cohort.md").write_text(_table(rows))
    click.echo(_table(rows), nl=False)


def _measure(folder: Path, most: int) -> list[dict[str, float]]:
    import tensorflow_federated as tff

    from fl.aggregation import DPMean
    from fl.clients import TokenStore, sequences
    from fl.cohorts import draw_cohort
    from fl.engines import cohort
    from fl.local_training import LanguageModelling, LocalSGD
    from fl.runtime import local_runtime
    from models.presets import preset
    from models.vocabulary import Vocabulary
    from privacy import FixedClip, Poisson, PrivacyPlan, RunKeys

    store = TokenStore.open(folder / "store.tokens")
    users = len(store.clients)
    model, local = preset("tiny", Vocabulary.load(folder / "vocabulary.json").size), LocalSGD(0.5, 8)
    keys, rows = RunKeys.fixed(1), []
    with local_runtime():
        for size in (size for size in COHORTS if size <= min(most, users)):
            plan = PrivacyPlan(Poisson(size / users), users, 3, 1.0, FixedClip(0.3))
            engine = cohort.build(
                LanguageModelling(model.token_losses, local.sequence_length, stacks=True, loss_sum=model.loss_sum),
                model.init(0),
                local,
                DPMean(plan),
                tff.learning.optimizers.build_sgdm(1.0),
                clients_at_once=8,
            )
            state, timings = engine.process.initialize(), []
            for number in range(3):  # the first pays for the tracing of the graph in the worker
                begin = time.perf_counter()
                chosen = draw_cohort(plan.sampling, users, number, keys.sampler_seed)
                batches = [
                    local.batches(sequences(store.tokens(int(c)), 20), keys.sampler_seed(number), int(c))
                    for c in chosen
                ]
                read = time.perf_counter()
                values = engine.client_values(batches)
                packed = time.perf_counter()
                state, measured = engine.process.next(state, values, keys.noise_seed(number))
                timings.append((read - begin, packed - read, time.perf_counter() - packed))
            reading, packing, training = (float(np.median(part)) for part in zip(*timings[1:], strict=True))
            operator = measured["operator"]
            rows.append(
                {
                    "expected": size,
                    "clients": float(operator["clients"]),
                    "examples": float(operator["examples"]),
                    "padding": float(operator["padding"]),
                    "reading_seconds": reading,
                    "packing_seconds": packing,
                    "training_seconds": training,
                }
            )
            click.echo(f"{len(chosen)} clients: {reading + packing + training:.2f} s")
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| clients | sequences | draw and read, s | pack, s | train, s | padding |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['clients']:,.0f} | {row['examples']:,.0f} | {row['reading_seconds']:.3f} | "
            f"{row['packing_seconds']:.3f} | {row['training_seconds']:.2f} | {row['padding']:.1%} |"
        )
    return "\n".join(lines) + "\n"
