"""Defines `fedspeak bench verifiers`: what the parts of speculative decoding cost beside the target's call.

All runs are in the LiteRT runtime on one thread. Each part is a graph of its own, called ten times at a time, the parts
in turn. From the time of a verifier that of a graph is subtracted which only takes the same inputs: in a loop they are
there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.bench.decoding_loop import load
from experiments.markdown import markdown_table

DRAFT_LENGTH = 4
# Vocabulary size → options of the transformer that is the target.
TARGETS: dict[int, dict[str, Any]] = {
    4096: {"embedding": 256, "blocks": 8, "heads": 8, "feed_forward": 1280},
    49_152: {"embedding": 576, "blocks": 12, "heads": 9, "feed_forward": 1536},
    262_144: {"embedding": 640, "blocks": 6, "heads": 10, "feed_forward": 2048},
}
VERIFIERS = ("token rule", "block rule", "greedy block")
_INPUTS = "inputs of a verifier"
_CALLS = 10
_COLUMNS = ("target", *VERIFIERS, "one drafted token", "noise of the race")


@click.command("verifiers")
@click.option(
    "--repetitions", type=click.IntRange(3), default=30, show_default=True, help="Number of timings of a part."
)
@click.option(
    "--vocabulary",
    "vocabularies",
    type=click.IntRange(64, 1 << 18),
    multiple=True,
    help="Vocabulary size to measure; may be repeated. Default: 4096, 49152 and 262144.",
)
@options.output("runs/bench/verifiers")
def verifiers(repetitions: int, vocabularies: tuple[int, ...], output: Path) -> None:
    """Time verifiers, draws and noise of speculative decoding beside the target's call for a block, on one thread."""
    extras.require("models")
    from experiments.bench.results import write_results
    from experiments.bench.table import machine

    output.mkdir(parents=True, exist_ok=True)
    rows = [_measure(size, repetitions) for size in vocabularies or TARGETS]
    write_results(output, {"machine": machine(), "rows": rows}, format_table(rows))


def _measure(size: int, repetitions: int) -> dict[str, Any]:
    """Returns the times of all parts in milliseconds, and their shares of the target's time: median and quartiles."""
    parts = _build(size)
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(repetitions + 1):
        for name, run in parts.items():
            begin = time.perf_counter()
            for _ in range(_CALLS):
                run()
            times[name].append(1000 * (time.perf_counter() - begin) / _CALLS)
    # The first calls of each part pack its weights.
    found = {name: np.array(values[1:]) for name, values in times.items()}
    inputs = found.pop(_INPUTS)
    found |= {name: found[name] - inputs for name in VERIFIERS}
    shares = {name: values / found["target"] for name, values in found.items() if name != "target"}
    return {
        "vocabulary": size,
        "weights": _count_weights(size),
        "milliseconds": {name: _quartiles(values) for name, values in found.items()},
        "shares": {name: _quartiles(values) for name, values in shares.items()},
    }


def _target(size: int) -> Any:
    from models.presets import preset

    nearest = min(TARGETS, key=lambda known: abs(known - size))
    return preset("transformer-4m", size, **TARGETS[nearest]).fit(128)


def _count_weights(size: int) -> int:
    return sum(int(np.prod(shape)) for shape in _target(size).shapes().values())


def _build(size: int) -> dict[str, Callable[[], Any]]:
    """Returns the parts as functions without arguments."""
    import tensorflow as tf

    from models.decoding.greedy_block import GREEDY_BLOCK
    from models.decoding.methods import build_method
    from models.decoding.prng import BlockWords
    from models.decoding.race import gumbels
    from models.decoding.verification import block_rule, token_rule, verify
    from models.decoding.verifier import Verifier

    generator = np.random.default_rng(0)
    model = _target(size)
    weights = {name: tf.Variable(value, trainable=False) for name, value in model.init(0).items()}
    length = DRAFT_LENGTH
    logits = (3 * generator.standard_normal([1, length + 1, size])).astype(np.float32)
    near = logits[:, :length] + generator.standard_normal([1, length, size]).astype(np.float32)
    target, drafter = (tf.nn.softmax(rows).numpy() for rows in (logits, near))
    draft = np.argmax(near, axis=-1).astype(np.int32)
    words = generator.integers(-(2**31), 2**31, [1, length], np.int32)

    def read(tokens: tf.Tensor) -> tf.Tensor:
        return model.extend(weights, tokens, model.initial_state(1))[0]

    def decide(verifier: Verifier) -> Callable[..., Any]:
        def run(target: tf.Tensor, drafter: tf.Tensor, draft: tf.Tensor, words: tf.Tensor) -> Any:
            pair = (words[:, 0], words[:, 1])
            lengths = tf.fill([1], length)
            modified = verifier.modify(target, drafter, draft, lengths, verifier.initial_carry(1, length))
            block = BlockWords((words, words), words[:, 2], pair, pair)
            found = verify(verifier.rule, modified.target, drafter, draft, lengths, block)
            carry = verifier.advance(modified, found.accepted, found.token)
            return tf.nest.flatten((found, carry))

        return run

    method = build_method("block")

    def draw(logits: tf.Tensor, words: tf.Tensor) -> Any:
        return tuple(method.draw(logits, BlockWords((words, words), None, (), ()), 0))  # type: ignore[arg-type]

    def noise(seed: tf.Tensor) -> tf.Tensor:
        return gumbels(seed, 0, tf.range(length + 1), size)

    inputs = (target, drafter, draft, words)
    verifiers = dict(zip(VERIFIERS, (Verifier(token_rule), Verifier(block_rule), GREEDY_BLOCK), strict=True))
    return {
        "target": _convert(read, (np.concatenate([draft, draft[:, :1]], axis=1),), weights),
        **{name: _convert(decide(verifier), inputs) for name, verifier in verifiers.items()},
        _INPUTS: _convert(lambda *given: [part[..., 0] for part in given], inputs),
        "one drafted token": _convert(draw, (near[:, 0], words)),
        "noise of the race": _convert(noise, (words[0, :2],)),
    }


def _convert(function: Callable[..., Any], inputs: tuple[Any, ...], variables: Any = ()) -> Callable[[], Any]:
    """Converts a function to TFLite, and returns a function that runs it on the inputs."""
    import tensorflow as tf

    module = tf.Module()
    module.held = list(variables.values()) if variables else []
    specs = [tf.TensorSpec(value.shape, value.dtype, f"input_{i}") for i, value in enumerate(inputs)]

    def named(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        return {f"output_{i}": part for i, part in enumerate(tf.nest.flatten(function(*arguments)))}

    concrete = tf.function(named, autograph=False).get_concrete_function(*specs)
    runner = load(module, {"run": concrete}, "float32").get_signature_runner("run")
    arguments = {f"input_{i}": value for i, value in enumerate(inputs)}
    return lambda: runner(**arguments)


def _quartiles(values: Any) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.5, 0.25, 0.75])]


def format_table(rows: list[dict[str, Any]]) -> str:
    """Returns the results as a Markdown table: the target's time, and the shares of the other parts."""
    body = []
    for row in rows:
        middle, low, high = row["milliseconds"]["target"]
        cells = [f"{row['vocabulary']:,}", f"{row['weights'] / 1e6:.0f} M", f"{middle:.2f} ({low:.2f}–{high:.2f})"]
        for name in _COLUMNS[1:]:
            middle, low, high = (100 * share for share in row["shares"][name])
            cells.append(f"{middle:.1f} % ({low:.1f}–{high:.1f})")
        body.append(cells)
    header = ("V", "weights", f"target, {DRAFT_LENGTH + 1} tokens, ms", *_COLUMNS[1:])
    return "\n".join(markdown_table(header, body)) + "\n"
