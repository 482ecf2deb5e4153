"""Times blockwise decoding beside plain and speculative decoding, in TFLite files and in TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.bench.decoding_measurement import PROMPT, TOKENS, Measurement
from experiments.decoding_modes import Mode
from experiments.display import no_notices
from experiments.intervals import mean_interval


class Timed(NamedTuple):
    """Holds a way to decode.

    Attributes:
      name: its name in the results.
      mode: decoding and sizes.
      drafter: what drafts.
    """

    name: str
    mode: Mode
    drafter: Any


def time_files(
    model: Any,
    weights: Any,
    ways: Sequence[Timed],
    starts: Mapping[str, Sequence[Sequence[int]]],
    temperatures: Sequence[float],
    seed: int,
    show: Any,
) -> list[dict[str, Any]]:
    """Returns for each way and temperature a row of `Measurement.rows`, with the "name" and the precision float32."""
    measurement, rows = Measurement(model, weights, starts, temperatures, seed), []
    for way in ways:
        show.note(f"timing {way.name} in a TFLite file …")
        rows += [{"name": way.name, **row} for row in measurement.rows(way.mode, way.drafter, "float32")]
    return rows


def time_generators(
    model: Any,
    weights: Any,
    ways: Sequence[Timed],
    starts: Mapping[str, Sequence[Sequence[int]]],
    temperature: float,
    seed: int,
    show: Any,
) -> list[dict[str, Any]]:
    """Returns the speed of each way in TensorFlow beside plain decoding, one text at a time, all in turn.

    The times hold reading the prompt.

    Returns:
      For each way its "name" and "speed", tokens per second divided by those of plain decoding, with a 95 % bootstrap
      interval over prompts.
    """
    from models.decoding.choices import Choices
    from models.decoding.generator import Generator

    generators = [Generator(model, weights, max_prompt=PROMPT, max_new_tokens=TOKENS)]
    for way in ways:
        options = way.mode.options
        generators.append(
            Generator(
                model,
                weights,
                way.mode.decoding,
                way.drafter,
                options.draft_length,
                paths=options.paths,
                max_prompt=PROMPT,
                max_new_tokens=TOKENS,
            )
        )
    choices = Choices(max_new_tokens=TOKENS, temperature=temperature, seed=seed)
    prompts = [prompt for rows in starts.values() for prompt in rows]
    seconds = np.zeros([len(generators), len(prompts)])
    show.note("timing TensorFlow …")
    with no_notices():
        for generator in generators:
            generator(prompts[:1], choices)  # builds the graph
        for place, prompt in enumerate(prompts):
            for number in np.roll(np.arange(len(generators)), place):
                begin = time.perf_counter()
                generators[number]([prompt], choices)
                seconds[number, place] = time.perf_counter() - begin
    return [
        {"name": way.name, "speed": compare_times(seconds[0], own)} for way, own in zip(ways, seconds[1:], strict=True)
    ]


def compare_times(plain: NDArray[np.float64], own: NDArray[np.float64]) -> dict[str, float]:
    """Returns how many times as fast as plain decoding another way writes the same texts.

    Args:
      plain: float64 `[texts]`, seconds of plain decoding for each text.
      own: float64 `[texts]`, seconds of the other way.

    Returns:
      "estimate", "low" and "high" of the ratio of the sums, above 1 if the other way is faster, with a 95 % bootstrap
      interval over texts.
    """
    return mean_interval(plain, own)._asdict()
