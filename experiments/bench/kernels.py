"""How near a training step of each cell is to its floor: its matrix products alone, each timed in its own shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments.runs import write_json

_REPEATS = 5
_SECONDS = 0.3  # each measurement's length, about


@dataclass(frozen=True)
class Shape:
    """A recurrent language model and its batches, as they are trained."""

    cell: str
    vocabulary: int
    embedding: int
    units: int
    batch: int
    length: int

    @property
    def name(self) -> str:
        """Cell and sizes."""
        return f"{self.cell} V{self.vocabulary} E{self.embedding} H{self.units} B{self.batch} T{self.length}"


SHAPES = (
    Shape("lstm", 4000, 96, 256, 16, 20),
    Shape("cifg", 1024, 96, 192, 8, 32),
    Shape("si-cifg", 1024, 96, 192, 8, 32),
    Shape("cifg", 4000, 256, 2048, 16, 20),
    Shape("si-cifg", 4000, 256, 2048, 16, 20),
)


@dataclass(frozen=True)
class Measured:
    """Of one step of SGD on one thread.

    Attributes:
      gigaflop: of its matrix products.
      products: milliseconds of those, each alone in its own shape, as often as a step has it.
      update: milliseconds of weights minus gradients, for all weights: bytes, not FLOPs.
      step: milliseconds of the whole step.
    """

    gigaflop: float
    products: float
    update: float
    step: float

    @property
    def share(self) -> float:
        """Of the step that its products alone would take."""
        return self.products / self.step


def products(shape: Shape) -> list[tuple[int, int, int, int]]:
    """(times, m, k, n): every product [m, k] x [k, n] of a step, forward and backward."""
    rows, gates = shape.batch * shape.length, (4 if shape.cell == "lstm" else 3) * shape.units
    state = shape.units if shape.cell == "lstm" else shape.embedding  # what the recurrent kernel meets
    batch, length, embedding, units = shape.batch, shape.length, shape.embedding, shape.units
    found = [
        (1, rows, embedding, gates),  # input projection, its two gradients
        (1, rows, gates, embedding),
        (1, embedding, rows, gates),
        (length - 1, batch, state, gates),  # recurrence there and back, its kernel's gradient
        (length - 1, batch, gates, state),
        (1, state, rows - batch, gates),
        (1, rows, embedding, shape.vocabulary),  # output layer, its two gradients
        (1, rows, shape.vocabulary, embedding),
        (1, shape.vocabulary, rows, embedding),
    ]
    if shape.cell == "lstm":  # the projection stands after the recurrence
        found += [(1, rows, units, embedding), (1, rows, embedding, units), (1, units, rows, embedding)]
    else:
        found += [(length, batch, units, embedding), (length, batch, embedding, units), (1, units, rows, embedding)]
    return found


def measure(shape: Shape) -> Measured:
    """Measures one shape; TensorFlow must have been set to one thread."""
    import tensorflow as tf

    generator = np.random.default_rng(0)

    def array(*size: int) -> Any:
        return tf.constant(generator.standard_normal(size, np.float32))

    alone = {
        (m, k, n): _milliseconds(tf.matmul, array(m, k), array(k, n)) for m, k, n in {p[1:] for p in products(shape)}
    }
    model, weights = _model(shape)
    update = sum(_milliseconds(tf.subtract, array(*value.shape), array(*value.shape)) for value in weights.values())
    tokens = generator.integers(4, shape.vocabulary, (shape.batch, shape.length + 1)).astype(np.int32)
    names = sorted(weights)

    def step(tokens: Any, *values: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = model(dict(zip(names, values, strict=True)), tokens) / tokens.shape.num_elements()
        return [
            tf.tensor_scatter_nd_sub(value, g.indices[:, tf.newaxis], g.values)
            if isinstance(g, tf.IndexedSlices)
            else value - g
            for value, g in zip(values, tape.gradient(loss, values), strict=True)
        ]

    taken = _milliseconds(step, tf.constant(tokens), *[tf.constant(weights[name]) for name in names])
    flop = sum(times * 2 * m * k * n for times, m, k, n in products(shape))
    return Measured(flop / 1e9, sum(times * alone[m, k, n] for times, m, k, n in products(shape)), update, taken)


def _model(shape: Shape) -> tuple[Callable[[Any, Any], Any], dict[str, np.ndarray]]:
    from experiments.bench.models import lstm_loss_sum, lstm_weights
    from models.recurrent_lm import RecurrentLanguageModel

    if shape.cell == "lstm":
        return lstm_loss_sum, lstm_weights(shape.vocabulary, shape.embedding, shape.units)
    model = RecurrentLanguageModel(shape.cell, shape.vocabulary, shape.embedding, shape.units)
    return model.loss_sum, model.init(0)


def _milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Processor time of one call inside a graph, the least of several rounds of calls."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def repeated(calls: Any, *arguments: Any) -> Any:
        def body(index: Any, total: Any) -> tuple[Any, Any]:
            with tf.control_dependencies([total]):  # one after another
                results = tf.nest.flatten(function(*arguments))
            return index + 1, total + tf.add_n([tf.reshape(result, [-1])[0] for result in results])

        return tf.while_loop(lambda index, _: index < calls, body, (tf.constant(0), tf.constant(0.0)))[1]

    def taken(calls: int) -> float:
        begin = time.process_time()
        repeated(tf.constant(calls), *arguments)
        return time.process_time() - begin

    taken(1)
    calls = max(2, int(_SECONDS / max(taken(2) / 2, 1e-6)))
    return min(taken(calls) for _ in range(_REPEATS)) / calls * 1e3


def table(found: dict[str, Measured]) -> str:
    """As Markdown."""
    lines = [
        "| cell | GFLOP a step | its products alone, ms | update of the weights, ms | step, ms | products / step |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in found.items():
        lines.append(
            f"| {name} | {m.gigaflop:.2f} | {m.products:.2f} | {m.update:.2f} | {m.step:.2f} | {m.share:.0%} |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/bench/kernels"))
@click.option("--cell", "cells", multiple=True, help="Only shapes whose name begins so; may be repeated.")
def kernels(output: Path, cells: tuple[str, ...]) -> None:
    """Time a training step of each recurrent cell beside its matrix products alone, on one thread."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    chosen = [shape for shape in SHAPES if not cells or shape.name.startswith(cells)]
    if not chosen:
        raise ValueError(f"--cell {' '.join(cells)} names none of {', '.join(shape.name for shape in SHAPES)}")
    found = {}
    for shape in chosen:
        found[shape.name] = measure(shape)
        click.echo(f"{shape.name}: {found[shape.name].share:.0%} of the step is its products")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "kernels.json", {name: asdict(m) for name, m in found.items()})
    (output / "kernels.md").write_text(table(found) + "\n")
    click.echo(table(found))
