"""Defines `fedspeak bench cohort`: the time of a round against the size of its cohort, part by part.

The parts are drawing and reading the cohort, packing it into shards, and training it.
"""

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras
from experiments.commands.renamed import renamed
from experiments.markdown import markdown_table

COHORTS = (10, 100, 1000, 10_000)
"""Expected cohort sizes at which a round is timed."""


@click.command("cohort")
@click.option(
    "--output",
    default="runs/bench/population",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder with the store of `bench population`; the results are written there too.",
)
@click.option(
    "--max-clients",
    default=COHORTS[-1],
    show_default=True,
    type=click.IntRange(min=COHORTS[0]),
    help="Largest expected cohort to time.",
)
@renamed("--folder", "--output")
@renamed("--most", "--max-clients")
def cohort_size(output: Path, max_clients: int) -> None:
    """Time a private round of the tiny preset for cohorts of 10 to 10,000 clients of `bench population`'s store."""
    from experiments import plots
    from experiments.bench.table import machine
    from experiments.provenance import versions
    from experiments.runs import write_json

    extras.require("federated")
    if not (output / "store.tokens").exists():
        raise FileNotFoundError(
            f"--output {output} holds no store: run fedspeak bench population --output {output} first"
        )
    rows = _measure(output, max_clients)
    write_json(output / "cohort.json", {"machine": machine(), "rounds": rows, "versions": versions()})
    plots.round_cost(output / "cohort", rows)
    (output / "cohort.md").write_text(_format_table(rows))
    click.echo(_format_table(rows), nl=False)


def _measure(folder: Path, max_clients: int) -> list[dict[str, float]]:
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
    population = len(store.clients)
    model, local = preset("tiny", Vocabulary.load(folder / "vocabulary.json").size), LocalSGD(0.5, 8)
    keys, rows = RunKeys.fixed(1), []
    with local_runtime():
        for size in (size for size in COHORTS if size <= min(max_clients, population)):
            plan = PrivacyPlan(Poisson(size / population), population, 3, 1.0, FixedClip(0.3))
            engine = cohort.build(
                LanguageModelling(model.token_losses, local.sequence_length, stacks=True, loss_sum=model.loss_sum),
                model.init(0),
                local,
                DPMean(plan),
                tff.learning.optimizers.build_sgdm(1.0),
                clients_at_once=8,
            )
            state, timings = engine.process.initialize(), []
            for number in range(3):  # the first round, in which the worker traces the graph, is not counted
                begin = time.perf_counter()
                clients = draw_cohort(plan.sampling, population, number, keys.sampler_seed)
                batches = [
                    local.batches(sequences(store.tokens(int(c)), 20), keys.sampler_seed(number), int(c))
                    for c in clients
                ]
                reading_end = time.perf_counter()
                values = engine.client_values(batches)
                packing_end = time.perf_counter()
                state, metrics = engine.process.next(state, values, keys.noise_seed(number))
                end = time.perf_counter()
                timings.append((reading_end - begin, packing_end - reading_end, end - packing_end))
            reading, packing, training = (float(np.median(part)) for part in zip(*timings[1:], strict=True))
            operator = metrics["operator"]
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
            click.echo(f"{len(clients)} clients: {reading + packing + training:.2f} s")
    return rows


def _format_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        counts = (f"{row['clients']:,.0f}", f"{row['examples']:,.0f}")
        seconds = (f"{row['reading_seconds']:.3f}", f"{row['packing_seconds']:.3f}", f"{row['training_seconds']:.2f}")
        cells.append((*counts, *seconds, f"{row['padding']:.1%}"))
    header = ("clients", "sequences", "draw and read, s", "pack, s", "train, s", "padding")
    return "\n".join(markdown_table(header, cells)) + "\n"
