"""Defines `fedspeak bench kernels`: a training step of each model beside its matrix products and convolutions alone.

The sum of the times of these operations, each measured alone in its own shape, is a lower bound on the step's time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments.bench.table import machine
from experiments.commands.renamed import renamed
from experiments.markdown import markdown_table
from experiments.runs import write_json

_REPEATS = 5
_SECONDS = 0.3  # approximate duration of one measurement


@dataclass(frozen=True)
class Shape:
    """Describes the sizes of a recurrent language model and of its training batches.

    Attributes:
      cell: "lstm", "cifg" or "si-cifg".
      vocabulary: number of tokens V.
      embedding: size E of the embedding.
      units: size H of the cell.
      batch: sequences B per batch.
      length: predicted tokens T per sequence.
    """

    cell: str
    vocabulary: int
    embedding: int
    units: int
    batch: int
    length: int

    @property
    def name(self) -> str:
        """Returns the name of the shape: the cell and its sizes."""
        return f"{self.cell} V{self.vocabulary} E{self.embedding} H{self.units} B{self.batch} T{self.length}"


@dataclass(frozen=True)
class TransformerShape:
    """Describes the sizes of a transformer and of its training batches.

    Attributes:
      attention: "softmax", or "relu" for the scale-invariant transformer.
      vocabulary: number of tokens V.
      embedding: size E of the embedding; heads have 32 entries.
      blocks: number of blocks.
      feed_forward: inner size F of the feed-forward layers.
      batch: sequences B per batch.
      length: predicted tokens T per sequence.
    """

    attention: str
    vocabulary: int
    embedding: int
    blocks: int
    feed_forward: int
    batch: int
    length: int

    @property
    def name(self) -> str:
        """Returns the name of the shape: the kind of transformer and its sizes."""
        kind = "transformer" if self.attention == "softmax" else "si-transformer"
        sizes = f"V{self.vocabulary} E{self.embedding} L{self.blocks} F{self.feed_forward}"
        return f"{kind} {sizes} B{self.batch} T{self.length}"

    def products(self) -> list[tuple[int, int, int, int]]:
        """Lists the matrix products of a step as `products` does; the small ones within attention are left out."""
        rows, size, inner, blocks = self.batch * self.length, self.embedding, self.feed_forward, self.blocks
        layers = [(blocks, size, 3 * size), (blocks, size, size), (blocks, size, inner), (blocks, inner, size)]
        layers.append((1, size, self.vocabulary))
        if self.attention == "relu":
            layers.append((1, size, size))
        return [
            product
            for times, k, n in layers  # forward, and the gradients of the inputs and of the matrix
            for product in ((times, rows, k, n), (times, rows, n, k), (times, k, rows, n))
        ]


@dataclass(frozen=True)
class Convolutions:
    """Describes the benchmarks' image model: two convolutions of 5 x 5 with pooling, and an output layer.

    Attributes:
      batch: images of 28 x 28 per batch.
    """

    batch: int

    @property
    def name(self) -> str:
        """Returns the name of the shape: the model and its sizes."""
        return f"cnn 28x28 B{self.batch}"


SHAPES: tuple[Shape | TransformerShape | Convolutions, ...] = (
    Shape("lstm", 4000, 96, 256, 16, 20),
    Shape("cifg", 1024, 96, 192, 8, 32),
    Shape("si-cifg", 1024, 96, 192, 8, 32),
    Shape("cifg", 4000, 256, 2048, 16, 20),
    Shape("si-cifg", 4000, 256, 2048, 16, 20),
    TransformerShape("softmax", 4000, 128, 6, 2048, 16, 20),
    TransformerShape("relu", 4000, 128, 6, 2048, 16, 20),
    Convolutions(20),
)


@dataclass(frozen=True)
class Measured:
    """Holds measurements of one SGD step on one thread.

    Attributes:
      gigaflop: billions of floating-point operations in the step's matrix products and convolutions.
      products: milliseconds of these, each timed alone in its own shape and multiplied by how often the step computes
        it.
      update: milliseconds of subtracting the gradients from all weights, which memory bandwidth bounds.
      step: milliseconds of the whole step.
    """

    gigaflop: float
    products: float
    update: float
    step: float

    @property
    def share(self) -> float:
        """Returns the share of the step's time that its matrix products and convolutions alone would take."""
        return self.products / self.step


def products(shape: Shape) -> list[tuple[int, int, int, int]]:
    """Lists the matrix products of a step, forward and backward.

    Returns:
      (times, m, k, n) for each product [m, k] x [k, n] that a step computes `times` times.
    """
    rows, gates = shape.batch * shape.length, (4 if shape.cell == "lstm" else 3) * shape.units
    state = shape.units if shape.cell == "lstm" else shape.embedding  # rows of the recurrent kernel
    batch, length, embedding, units = shape.batch, shape.length, shape.embedding, shape.units
    listed = [
        (1, rows, embedding, gates),  # input projection, and its two gradients
        (1, rows, gates, embedding),
        (1, embedding, rows, gates),
        (length - 1, batch, state, gates),  # recurrence forward and backward, and its kernel's gradient
        (length - 1, batch, gates, state),
        (1, state, rows - batch, gates),
        (1, rows, embedding, shape.vocabulary),  # output layer, and its two gradients
        (1, rows, shape.vocabulary, embedding),
        (1, shape.vocabulary, rows, embedding),
    ]
    if shape.cell == "lstm":  # the projection is outside the recurrence, so it is one product over all steps
        listed += [(1, rows, units, embedding), (1, rows, embedding, units), (1, units, rows, embedding)]
    else:
        listed += [(length, batch, units, embedding), (length, batch, embedding, units), (1, units, rows, embedding)]
    return listed


def measure(shape: Shape | TransformerShape) -> Measured:
    """Measures a step of one shape. TensorFlow must have been limited to one thread before."""
    import tensorflow as tf

    listed = shape.products() if isinstance(shape, TransformerShape) else products(shape)
    milliseconds = {
        (m, k, n): _milliseconds(tf.matmul, _array(m, k), _array(k, n)) for m, k, n in {p[1:] for p in listed}
    }
    model, weights = _build_model(shape)
    tokens = np.random.default_rng(0).integers(4, shape.vocabulary, (shape.batch, shape.length + 1)).astype(np.int32)

    def loss(weights: Any, tokens: Any) -> Any:
        return model(weights, tokens) / tokens.shape.num_elements()

    flop = sum(times * 2 * m * k * n for times, m, k, n in listed)
    alone = sum(times * milliseconds[m, k, n] for times, m, k, n in listed)
    return Measured(flop / 1e9, alone, *_measure_step(loss, weights, tf.constant(tokens)))


def measure_convolutions(shape: Convolutions) -> Measured:
    """Measures a step of the image model. TensorFlow must have been limited to one thread before."""
    import tensorflow as tf

    from experiments.bench.models import cnn_loss_sum, cnn_weights

    weights, flop, alone = cnn_weights(), 0.0, 0.0
    for layer, size, computes_input_gradient in (("first", 28, False), ("second", 14, True)):
        kernel = tf.constant(weights[f"{layer}_kernel"])
        inputs, outputs = (_array(shape.batch, size, size, channels) for channels in kernel.shape[2:])
        sizes, options = (tf.shape(inputs), tf.shape(kernel)), {"strides": [1, 1, 1, 1], "padding": "SAME"}
        alone += _milliseconds(lambda x, k, o=options: tf.nn.conv2d(x, k, **o), inputs, kernel)
        alone += _milliseconds(
            lambda x, y, s=sizes, o=options: tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=s[1], out_backprop=y, **o
            ),
            inputs,
            outputs,
        )
        if computes_input_gradient:
            alone += _milliseconds(
                lambda k, y, s=sizes, o=options: tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=s[0], filter=k, out_backprop=y, **o
                ),
                kernel,
                outputs,
            )
        flop += (3 if computes_input_gradient else 2) * 2 * shape.batch * size**2 * kernel.shape.num_elements()
    rows, classes = weights["output_kernel"].shape
    for m, k, n in ((shape.batch, rows, classes), (shape.batch, classes, rows), (rows, shape.batch, classes)):
        alone += _milliseconds(tf.matmul, _array(m, k), _array(k, n))
        flop += 2 * m * k * n
    x, y = _array(shape.batch, 28, 28, 1), tf.range(shape.batch)

    def loss(weights: Any, x: Any, y: Any) -> Any:
        return cnn_loss_sum(weights, x, y) / shape.batch

    return Measured(flop / 1e9, alone, *_measure_step(loss, weights, x, y))


def _array(*size: int) -> Any:
    """Returns an array of standard normal numbers."""
    import tensorflow as tf

    return tf.constant(np.random.default_rng(0).standard_normal(size, np.float32))


def _measure_step(loss: Callable[..., Any], weights: dict[str, np.ndarray], *batch: Any) -> tuple[float, float]:
    """Returns the milliseconds of subtracting the gradients, and of a whole step of SGD."""
    import tensorflow as tf

    update = sum(_milliseconds(tf.subtract, _array(*value.shape), _array(*value.shape)) for value in weights.values())
    names = sorted(weights)

    def step(*arguments: Any) -> Any:
        values = arguments[len(batch) :]
        with tf.GradientTape() as tape:
            tape.watch(values)
            total = loss(dict(zip(names, values, strict=True)), *arguments[: len(batch)])
        return [
            tf.tensor_scatter_nd_sub(value, g.indices[:, tf.newaxis], g.values)
            if isinstance(g, tf.IndexedSlices)
            else value - g
            for value, g in zip(values, tape.gradient(total, values), strict=True)
        ]

    return update, _milliseconds(step, *batch, *[tf.constant(weights[name]) for name in names])


def _build_model(shape: Shape | TransformerShape) -> tuple[Callable[[Any, Any], Any], dict[str, np.ndarray]]:
    from experiments.bench.models import lstm_loss_sum, lstm_weights
    from models.recurrent_lm import RecurrentLanguageModel
    from models.transformer.decoder import TransformerLanguageModel

    if isinstance(shape, TransformerShape):
        is_invariant = shape.attention == "relu"
        transformer = TransformerLanguageModel(
            shape.vocabulary,
            shape.embedding,
            shape.blocks,
            heads=shape.embedding // 32,
            feed_forward=shape.feed_forward,
            attention=shape.attention,
            norm_epsilon=0.0 if is_invariant else 1e-5,
            degree_two_embedding=is_invariant,
        )
        return transformer.loss_sum, transformer.init(0)
    if shape.cell == "lstm":
        return lstm_loss_sum, lstm_weights(shape.vocabulary, shape.embedding, shape.units)
    model = RecurrentLanguageModel(shape.cell, shape.vocabulary, shape.embedding, shape.units)
    return model.loss_sum, model.init(0)


def _milliseconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Returns the processor time of one call inside a graph, in milliseconds: the minimum of several measurements."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def repeated(calls: Any, *arguments: Any) -> Any:
        def body(index: Any, total: Any) -> tuple[Any, Any]:
            with tf.control_dependencies([total]):  # each call waits for the one before
                results = tf.nest.flatten(function(*arguments))
            return index + 1, total + tf.add_n([tf.reshape(result, [-1])[0] for result in results])

        return tf.while_loop(lambda index, _: index < calls, body, (tf.constant(0), tf.constant(0.0)))[1]

    def seconds_of(calls: int) -> float:
        begin = time.process_time()
        repeated(tf.constant(calls), *arguments)
        return time.process_time() - begin

    seconds_of(1)  # traces the graph
    calls = max(2, int(_SECONDS / max(seconds_of(2) / 2, 1e-6)))
    return min(seconds_of(calls) for _ in range(_REPEATS)) / calls * 1e3


def table(measurements: dict[str, Measured]) -> str:
    """Returns the measurements by shape as Markdown."""
    cells = [
        (name, *(f"{value:.2f}" for value in (m.gigaflop, m.products, m.update, m.step)), f"{m.share:.0%}")
        for name, m in measurements.items()
    ]
    columns = ("GFLOP per step", "its products alone, ms", "update of the weights, ms", "step, ms", "products / step")
    return "\n".join(markdown_table(("model", *columns), cells))


@click.command()
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("runs/bench/kernels"),
    show_default=True,
    help="Folder for the table and the results.",
)
@click.option(
    "--cell",
    "cells",
    multiple=True,
    help="Beginning of the names of the shapes to run, as in lstm; may be repeated. By default, all.",
)
@renamed("--out", "--output")
def kernels(output: Path, cells: tuple[str, ...]) -> None:
    """Time a training step of each model beside its matrix products and convolutions alone, on one thread."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    shapes = [shape for shape in SHAPES if not cells or shape.name.startswith(cells)]
    if not shapes:
        raise ValueError(
            f"--cell {' '.join(cells)} matches no shape: give the beginning of one of "
            f"{', '.join(shape.name for shape in SHAPES)}"
        )
    measurements = {}
    for shape in shapes:
        measurements[shape.name] = measure_convolutions(shape) if isinstance(shape, Convolutions) else measure(shape)
        click.echo(f"{shape.name}: the products alone take {measurements[shape.name].share:.0%} of a step's time")
    output.mkdir(parents=True, exist_ok=True)
    steps = {name: asdict(m) for name, m in measurements.items()}
    write_json(output / "kernels.json", {"machine": machine(), "steps": steps})
    text = f"Machine: {machine()}.\n\n{table(measurements)}"
    (output / "kernels.md").write_text(text + "\n")
    click.echo(text)
