"""Defines `fedspeak bench population`: time and memory for a population of a million clients.

It builds the token store, opens it, and draws and reads cohorts. Each part runs in its own process, so that its memory
can be measured alone. Memory is read from `/proc/self/status`, so this needs Linux.
"""

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.commands.renamed import renamed
from experiments.markdown import markdown_table
from experiments.memory import resident
from fl.sources.base import BadRows

POPULATIONS = (10**4, 10**5, 10**6, 10**7, 10**8)
"""Population sizes at which drawing a cohort is timed, which needs no store."""

_CHUNK = 10_000


@dataclass
class SyntheticClients:
    """Provides made-up text of clients, which is the same in every run, as a source.

    Each client comes twice, far apart, with a piece of text each time. A piece has two sentences on average (geometric
    distribution), drawn from 4,096 sentences of 5 to 10 words, with 500 different words in all.

    Attributes:
      clients: number of clients.
      bad_rows: counter that every source has; it stays at 0 here.
    """

    clients: int
    bad_rows: BadRows = field(default_factory=lambda: BadRows(strict=True))

    @property
    def description(self) -> str:
        return f"{self.clients} synthetic clients"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.description.encode()).hexdigest()

    def sentences(self) -> list[str]:
        """Returns the 4,096 sentences that the clients' text is drawn from."""
        generator = np.random.default_rng(0)
        words = ["".join(map(chr, generator.integers(97, 123, generator.integers(2, 9)))) for _ in range(500)]
        return [" ".join(generator.choice(words, generator.integers(5, 11))) for _ in range(4096)]

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        sentences = self.sentences()
        for half in range(2):
            generator = np.random.default_rng(1 + half)
            for begin in range(0, self.clients, _CHUNK):
                counts = generator.geometric(0.5, min(_CHUNK, self.clients - begin))
                indices = iter(generator.integers(len(sentences), size=counts.sum()).tolist())
                for number, count in enumerate(counts.tolist(), begin):
                    # The stride 2^31 - 1, a prime, visits every client once and not in sorted order.
                    client = number * (2**31 - 1) % self.clients
                    yield f"user-{client:09d}", [sentences[next(indices)] for _ in range(count)]


@click.command()
@options.output("runs/bench/population", "the store, the table and the results")
@click.option(
    "--clients",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(min=1000),
    help="Number of clients in the population.",
)
@renamed("--folder", "--output")
@renamed("--users", "--clients")
def population(output: Path, clients: int) -> None:
    """Measure time and memory to build and open a token store of made-up clients, and to draw and read cohorts."""
    extras.require("models")
    from experiments.bench.table import machine
    from experiments.provenance import versions
    from experiments.runs import write_json
    from privacy.files import make_private_folder

    make_private_folder(output)
    (output / "store.tokens").unlink(missing_ok=True)
    building = _run_alone(_measure_building, output, clients)
    use = _run_alone(_measure_use, output, clients)
    drawing = _run_alone(_measure_drawing)
    results = {"machine": machine(), "build": building, "use": use, "draw": drawing, "versions": versions()}
    write_json(output / "population.json", results)
    table = _format_table(building, use, drawing)
    (output / "population.md").write_text(table)
    click.echo(table, nl=False)


def _run_alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """Calls `work` in a fresh process and returns its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise OSError("the measuring process was killed, perhaps for want of memory: lower --clients") from None


def _measure_building(folder: Path, clients: int) -> dict[str, float]:
    """Learns the vocabulary and builds the store; returns time, memory and sizes."""
    from fl.clients import TokenStore
    from models import vocabulary

    source = SyntheticClients(clients)
    before, begin = resident("VmRSS"), time.perf_counter()
    words = vocabulary.learn(source.sentences(), 512)
    words.save(folder / "vocabulary.json")
    store = TokenStore.build(folder / "store.tokens", source, words)
    return {
        "clients": len(store.clients),
        "tokens": store.statistics.tokens,
        "file_megabytes": (folder / "store.tokens").stat().st_size / 1e6,
        "seconds": time.perf_counter() - begin,
        "imports_megabytes": before,
        "peak_megabytes": resident("VmHWM") - before,
    }


def _measure_use(folder: Path, clients: int) -> dict[str, Any]:
    """Opens the store with a cold page cache and reads cohorts; returns time and memory."""
    from experiments.data import Data
    from fl.clients import TokenStore
    from fl.cohorts import draw_cohort
    from fl.splits import split_store
    from models.vocabulary import Vocabulary
    from privacy.keys import RunKeys
    from privacy.sampling import Poisson

    path = folder / "store.tokens"
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    words, source = Vocabulary.load(folder / "vocabulary.json"), SyntheticClients(clients)
    before, begin = resident("VmRSS"), time.perf_counter()
    store = TokenStore.build(path, source, words)
    sets = split_store(store, validation=0.1, test=0.1)
    opening = time.perf_counter() - begin
    opened = resident("VmRSS") - before
    data = Data(words, store, sets, np.zeros((0, 21), np.int32), (), 20, 0.1)

    cohorts = []
    keys, round_number = RunKeys.fixed(1), 0
    for expected in (size for size in (10, 100, 1000, 10_000) if size <= len(sets.train)):
        seconds, num_clients, num_sequences = [], 0, 0
        for _ in range(5):
            begin = time.perf_counter()
            sampling = Poisson(expected / len(sets.train))
            cohort = draw_cohort(sampling, len(sets.train), round_number, keys.sampler_seed)
            rows = [data.training(sets.train[client]) for client in cohort]
            seconds.append(time.perf_counter() - begin)
            num_clients, num_sequences = num_clients + len(rows), num_sequences + sum(map(len, rows))
            round_number += 1
        cohorts.append(
            {
                "expected": expected,
                "clients": num_clients / 5,
                "sequences": num_sequences / 5,
                "first_seconds": seconds[0],
                "median_seconds": float(np.median(seconds)),
            }
        )
    return {
        "opening_seconds": opening,
        "imports_megabytes": before,
        "opened_megabytes": opened,
        "peak_megabytes": resident("VmHWM") - before,
        "cohorts": cohorts,
    }


def _measure_drawing() -> list[dict[str, float]]:
    """Returns the seconds to draw a Poisson cohort of 1,000 expected clients from each of `POPULATIONS`."""
    from fl.cohorts import draw_cohort
    from privacy.keys import RunKeys
    from privacy.sampling import Poisson

    keys, results = RunKeys.fixed(1), []
    for size in POPULATIONS:
        begin = time.perf_counter()
        for round_number in range(100):
            draw_cohort(Poisson(1000 / size), size, round_number, keys.sampler_seed)
        results.append({"population": size, "seconds": (time.perf_counter() - begin) / 100})
    return results


def _format_table(building: dict[str, float], use: dict[str, Any], drawing: list[dict[str, float]]) -> str:
    lines = [
        f"{building['clients']:,} clients, {building['tokens']:,} tokens, a file of "
        f"{building['file_megabytes']:.0f} MB.",
        f"MB is resident memory in excess of what the imports take ({use['imports_megabytes']:.0f} MB). For opening,",
        "it is measured after the store is open; for the other rows, it is the peak.",
        "",
        "| | seconds | MB |",
        "|---|---|---|",
        f"| build | {building['seconds']:.1f} | {building['peak_megabytes']:.0f} |",
        f"| open and split, cold page cache | {use['opening_seconds']:.3f} | {use['opened_megabytes']:.0f} |",
    ]
    lines += [
        f"| draw and read {row['expected']:,} clients | {row['median_seconds']:.4f} | |" for row in use["cohorts"]
    ]
    lines.append(f"| peak of opening, drawing and reading | | {use['peak_megabytes']:.0f} |")
    cells = [(f"{row['population']:,}", f"{1000 * row['seconds']:.3f}") for row in drawing]
    lines += ["", *markdown_table(("population", "milliseconds to draw 1,000 of its clients"), cells)]
    return "\n".join(lines) + "\n"
