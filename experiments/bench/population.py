"""What a population of a million users costs: building its token store, opening it, drawing and reading a cohort.

Each part runs in a process of its own, so that one's memory is not counted as another's. Memory is read from
`/proc/self/status`, so this needs Linux.
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

from experiments import extras
from fl.sources.base import BadRows

POPULATIONS = (10**4, 10**5, 10**6, 10**7, 10**8)
"""Sizes at which drawing a cohort is timed; no store is needed for that."""

_CHUNK = 10_000


@dataclass
class SyntheticUsers:
    """A source of `users` users with a few sentences each, in two pieces that lie far apart. Always the same.

    A sentence is one of 4,096, of 5 to 10 of 500 made-up words; a piece has two of them on average (geometric).
    """

    users: int
    bad_rows: BadRows = field(default_factory=lambda: BadRows(strict=True))

    @property
    def description(self) -> str:
        return f"{self.users} synthetic users"

    def fingerprint(self) -> str:
        return hashlib.sha256(self.description.encode()).hexdigest()

    def sentences(self) -> list[str]:
        """The sentences that users say, 4,096 of them."""
        generator = np.random.default_rng(0)
        words = ["".join(map(chr, generator.integers(97, 123, generator.integers(2, 9)))) for _ in range(500)]
        return [" ".join(generator.choice(words, generator.integers(5, 11))) for _ in range(4096)]

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        sentences = self.sentences()
        for half in range(2):
            generator = np.random.default_rng(1 + half)
            for begin in range(0, self.users, _CHUNK):
                counts = generator.geometric(0.5, min(_CHUNK, self.users - begin))
                said = iter(generator.integers(len(sentences), size=counts.sum()).tolist())
                for number, count in enumerate(counts.tolist(), begin):
                    # A stride, so that users do not come sorted; 2^31 - 1 is prime.
                    yield f"user-{number * (2**31 - 1) % self.users:09d}", [sentences[next(said)] for _ in range(count)]


@click.command()
@click.option("--folder", default="runs/bench/population", show_default=True, type=click.Path(path_type=Path))
@click.option("--users", default=1_000_000, show_default=True, type=click.IntRange(min=1000))
def population(folder: Path, users: int) -> None:
    """Build the token store of a population of synthetic users, open it, draw and read cohorts; time and memory."""
    extras.require("models")
    from experiments.provenance import versions
    from experiments.runs import write_json
    from privacy.files import make_private_folder

    make_private_folder(folder)
    (folder / "store.tokens").unlink(missing_ok=True)
    built = _alone(_build, folder, users)
    used = _alone(_use, folder, users)
    sizes = _alone(_draw)
    write_json(folder / "population.json", {"build": built, "use": used, "draw": sizes, "versions": versions()})
    table = _table(built, used, sizes)
    (folder / "population.md").write_text(table)
    click.echo(table, nl=False)


def _alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            raise OSError("the measuring process was killed (memory?): take fewer --users") from None


def _build(folder: Path, users: int) -> dict[str, float]:
    from fl.clients import TokenStore
    from models import vocabulary

    source = SyntheticUsers(users)
    before, begin = _memory("VmRSS"), time.perf_counter()
    words = vocabulary.learn(source.sentences(), 512)
    words.save(folder / "vocabulary.json")
    store = TokenStore.build(folder / "store.tokens", source, words)
    return {
        "users": len(store.clients),
        "tokens": store.statistics.tokens,
        "file_megabytes": (folder / "store.tokens").stat().st_size / 1e6,
        "seconds": time.perf_counter() - begin,
        "imports_megabytes": before,
        "peak_megabytes": _memory("VmHWM") - before,
    }


def _use(folder: Path, users: int) -> dict[str, Any]:
    """Opens the store from a cold page cache and reads cohorts."""
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
    words, source = Vocabulary.load(folder / "vocabulary.json"), SyntheticUsers(users)
    before, begin = _memory("VmRSS"), time.perf_counter()
    store = TokenStore.build(path, source, words)
    sets = split_store(store, validation=0.1, test=0.1)
    opening = time.perf_counter() - begin
    opened = _memory("VmRSS") - before
    data = Data(words, store, sets, np.zeros((0, 21), np.int32), (), 20, 0.1)

    cohorts = []
    keys, round_number = RunKeys.fixed(1), 0
    for expected in (size for size in (10, 100, 1000, 10_000) if size <= len(sets.train)):
        seconds, clients, sequences = [], 0, 0
        for _ in range(5):
            begin = time.perf_counter()
            sampling = Poisson(expected / len(sets.train))
            cohort = draw_cohort(sampling, len(sets.train), round_number, keys.sampler_seed)
            rows = [data.training(sets.train[client]) for client in cohort]
            seconds.append(time.perf_counter() - begin)
            clients, sequences, round_number = clients + len(rows), sequences + sum(map(len, rows)), round_number + 1
        cohorts.append(
            {
                "expected": expected,
                "clients": clients / 5,
                "sequences": sequences / 5,
                "first_seconds": seconds[0],
                "median_seconds": float(np.median(seconds)),
            }
        )
    return {
        "opening_seconds": opening,
        "imports_megabytes": before,
        "opened_megabytes": opened,
        "peak_megabytes": _memory("VmHWM") - before,
        "cohorts": cohorts,
    }


def _draw() -> list[dict[str, float]]:
    """Seconds to draw a Poisson cohort of 1,000 expected clients, or everybody if they are fewer, by population."""
    from fl.cohorts import draw_cohort
    from privacy.keys import RunKeys
    from privacy.sampling import Poisson

    keys, found = RunKeys.fixed(1), []
    for size in POPULATIONS:
        begin = time.perf_counter()
        for round_number in range(100):
            draw_cohort(Poisson(1000 / size), size, round_number, keys.sampler_seed)
        found.append({"population": size, "seconds": (time.perf_counter() - begin) / 100})
    return found


def _memory(name: str) -> float:
    """A field of /proc/self/status, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {name}: this bench needs Linux")


def _table(built: dict[str, float], used: dict[str, Any], sizes: list[dict[str, float]]) -> str:
    lines = [
        f"{built['users']:,} users, {built['tokens']:,} tokens, a file of {built['file_megabytes']:.0f} MB.",
        f"Memory is the most resident above the imports ({used['imports_megabytes']:.0f} MB).",
        "",
        "| | seconds | MB |",
        "|---|---|---|",
        f"| build | {built['seconds']:.1f} | {built['peak_megabytes']:.0f} |",
        f"| open and split, cold | {used['opening_seconds']:.3f} | {used['opened_megabytes']:.0f} |",
    ]
    lines += [
        f"| draw and read {row['expected']:,} clients, cold | {row['median_seconds']:.4f} | |"
        for row in used["cohorts"]
    ]
    lines.append(f"| all of that | | {used['peak_megabytes']:.0f} |")
    lines += ["", "| population | milliseconds to draw 1,000 of it |", "|---|---|"]
    lines += [f"| {row['population']:,} | {1000 * row['seconds']:.3f} |" for row in sizes]
    return "\n".join(lines) + "\n"
