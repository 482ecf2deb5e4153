"""Defines `fedspeak bench exact-noise`: the cost of exact noise.

Rounds with `privacy.noise` "exact" and "floating-point" alternate in one process.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.commands.renamed import renamed
from experiments.markdown import markdown_table

CASES = (("tiny", 1024, 50, 8), ("tiny", 1024, 400, 8), ("si-cifg-4.7m", 4000, 16, 1))
"""Preset, vocabulary size, clients per round, and clients trained at once with floating-point noise (exact noise
always trains them one by one)."""


@click.command("exact-noise")
@click.option("--rounds", type=click.IntRange(2, 100), default=10, show_default=True, help="Rounds per kind of noise.")
@click.option("--clients", type=click.IntRange(1), help="Clients per round.", show_default="16 to 400, by model")
@options.output("runs/bench/exact-noise")
@renamed("--out", "--output")
def exact_noise(rounds: int, clients: int | None, output: Path) -> None:
    """Time private rounds with exact noise beside rounds with floating-point noise."""
    extras.require("federated")
    from experiments.bench.table import machine
    from experiments.provenance import versions
    from experiments.runs import write_json
    from privacy import files

    output.mkdir(parents=True, exist_ok=True)
    rows = []
    for preset, vocabulary, default_clients, clients_at_once in CASES:
        rows.append(_measure(preset, vocabulary, clients or default_clients, clients_at_once, rounds))
    write_json(output / "results.json", {"machine": machine(), "rows": rows, "versions": versions()})
    files.write_public(output / "table.md", _format_table(rows).encode())
    click.echo(_format_table(rows), nl=False)


def _measure(preset_name: str, vocabulary: int, clients: int, clients_at_once: int, rounds: int) -> dict[str, Any]:
    import tensorflow_federated as tff

    from fl.aggregation import DPMean
    from fl.engines import cohort
    from fl.exact_mean import ExactDPMean
    from fl.local_training import LanguageModelling, LocalSGD
    from fl.runtime import local_runtime
    from models.presets import preset
    from privacy import FixedClip, Poisson, PrivacyPlan, RunKeys

    model, local = preset(preset_name, vocabulary), LocalSGD(0.1, 16, sequence_length=20)
    task = LanguageModelling(model.token_losses, local.sequence_length, stacks=True, loss_sum=model.loss_sum)
    plan = PrivacyPlan(Poisson(0.1), 10 * clients, rounds, 1.0, FixedClip(0.3))
    aggregators = {"floating-point": DPMean(plan), "exact": ExactDPMean(dataclasses.replace(plan, noise="exact"))}
    generator, keys = np.random.default_rng(0), RunKeys.fixed(1)
    texts = [generator.integers(3, vocabulary, (int(generator.integers(4, 64)), 21), np.int32) for _ in range(clients)]
    batches = [local.batches(text, 0, index) for index, text in enumerate(texts)]
    seconds: dict[str, list[float]] = {kind: [] for kind in aggregators}
    with local_runtime():
        engines = {
            kind: cohort.build(
                task,
                model.init(0),
                local,
                aggregator,
                tff.learning.optimizers.build_sgdm(1.0),
                clients_at_once=clients_at_once if kind == "floating-point" else 1,
            )
            for kind, aggregator in aggregators.items()
        }
        states = {kind: engine.process.initialize() for kind, engine in engines.items()}
        for number in range(rounds + 1):  # the first round, in which the worker traces the graph, is not counted
            for kind, engine in engines.items():
                values = engine.client_values(batches)
                begin = time.perf_counter()
                states[kind], _ = engine.process.next(states[kind], values, engine.noise(keys, number))
                seconds[kind].append(time.perf_counter() - begin)
    ratios = np.divide(seconds["exact"][1:], seconds["floating-point"][1:])
    return {
        "preset": preset_name,
        "weights": sum(int(np.prod(shape)) for shape in model.shapes().values()),
        "clients": clients,
        "floating_point_seconds": float(np.median(seconds["floating-point"][1:])),
        "ratio": float(np.median(ratios)),
        "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
    }


def _format_table(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        low, high = row["ratio_quartiles"]
        times = (f"{row['floating_point_seconds']:.2f}", f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})")
        cells.append((row["preset"], f"{row['weights']:,}", row["clients"], *times))
    columns = ("round with floating-point noise, s", "exact / floating-point (quartiles)")
    return "\n".join(markdown_table(("model", "weights", "clients", *columns), cells)) + "\n"
