"""Defines `fedspeak bench k-seq`: how the time of K-SEQ and of the optimum grows with the vocabulary.

K-SEQ runs as the float32 graph that decoding uses, on one thread of the LiteRT runtime; it solves for the factor and
computes the residual. The optimum for independent drafts is computed in float64 NumPy by sorting and cumulative sums.
The linear programme, with a variable for each set of drafts and each token of it, is solved by SciPy's HiGHS.

Times are CPU times of the process, so that other programs hardly change them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.markdown import markdown_table

SIZES = (8, 16, 32, 64, 128, 256, 1024, *(1 << power for power in range(12, 17)), 98_304, 1 << 17, 196_608, 1 << 18)
_LARGEST_PROGRAMME = 256
# Below the first, what does not depend on the size takes most of the time, and much of it below the second.
_FITS = {
    "k_seq": (1 << 12, 1 << 16),
    "k_seq_8": (1 << 12, 1 << 16),
    "optimum": (1 << 12, 1 << 16),
    "programme": (8, 32),
}
_PAIRS = 3
_METHODS = {
    "k_seq": "K-SEQ, K = 2",
    "k_seq_8": "K-SEQ, K = 8",
    "optimum": "optimum by sorting, K = 2",
    "programme": "linear programme, K = 2",
}
_SECONDS = 0.02  # time of the calls of one timing, about


@click.command("k-seq")
@click.option(
    "--repetitions", type=click.IntRange(3), default=15, show_default=True, help="Number of timings for each pair."
)
@click.option(
    "--vocabulary",
    "sizes",
    type=click.IntRange(2, 1 << 18),
    multiple=True,
    help=f"Vocabulary size to measure; may be repeated. Default: {len(SIZES)} sizes from 8 to 262144.",
)
@options.output("runs/bench/k-seq")
def k_seq(repetitions: int, sizes: tuple[int, ...], output: Path) -> None:
    """Time K-SEQ beside the linear programme and beside the optimum by sorting, for growing vocabularies.

    The table goes to OUTPUT/table.md and to standard output, all numbers to OUTPUT/results.json.
    """
    extras.require("models")
    from experiments.bench.processes import watch_others
    from experiments.bench.results import write_results
    from experiments.bench.table import machine
    from experiments.display import no_notices

    output.mkdir(parents=True, exist_ok=True)
    others = watch_others()
    with no_notices():
        rows = [_measure(size, repetitions) for size in sorted(set(sizes or SIZES))]
    found = {
        "machine": machine(),
        "repetitions": repetitions,
        "pairs": _PAIRS,
        "others": others(),
        "rows": rows,
        "exponents": {name: [fit_exponent(rows, name, least) for least in fits] for name, fits in _FITS.items()},
    }
    write_results(output, found, format_table(found))


def draw_pair(size: int, number: int) -> tuple[Any, Any]:
    """Returns a drafter's and a target's distribution `[V]` in float64: softmaxes of logits near each other."""
    generator = np.random.default_rng([size, number])
    logits = 3 * generator.standard_normal(size)
    pair = (logits + generator.standard_normal(size), logits)
    weights = [np.exp(one - one.max()) for one in pair]
    return weights[0] / weights[0].sum(), weights[1] / weights[1].sum()


def _measure(size: int, repetitions: int) -> dict[str, Any]:
    """Returns the median milliseconds of each method for each pair, and how far the programme is from the optimum."""
    from models.decoding.transport import optimal_acceptance

    row: dict[str, Any] = {"vocabulary": size, "milliseconds": {name: [] for name in _METHODS}}
    graphs = {"k_seq": _graph(size, 2), "k_seq_8": _graph(size, 8)}
    for number in range(_PAIRS):
        p, q = draw_pair(size, number)
        runs: dict[str, Callable[[], Any]] = {name: graph(p, q) for name, graph in graphs.items()}
        runs["optimum"] = partial(optimal_acceptance, p, q, 2)
        for name, run in runs.items():
            row["milliseconds"][name].append(_time(run, repetitions))
        if size <= _LARGEST_PROGRAMME:
            begin = time.process_time()
            difference = abs(solve_programme(p, q) - optimal_acceptance(p, q, 2))
            row["milliseconds"]["programme"].append(1000 * (time.process_time() - begin))
            row["difference"] = max(difference, row.get("difference", 0.0))
    return row


def _time(run: Callable[[], Any], repetitions: int) -> float:
    """Returns the median milliseconds of a call."""
    run()
    begin = time.process_time()
    run()
    calls = max(1, math.ceil(_SECONDS / max(time.process_time() - begin, 1e-6)))
    found = []
    for _ in range(repetitions):
        begin = time.process_time()
        for _ in range(calls):
            run()
        found.append(1000 * (time.process_time() - begin) / calls)
    return float(np.median(found))


def _graph(size: int, num_drafts: int) -> Callable[[Any, Any], Callable[[], Any]]:
    """Returns a function from a pair to a function that runs K-SEQ for it in the runtime."""
    import tensorflow as tf

    from experiments.bench.decoding_loop import load
    from models.decoding.k_seq import choose

    drafts, alive = tf.zeros([1, num_drafts], tf.int32), tf.ones([1, num_drafts], tf.bool)

    def run(drafter: tf.Tensor, target: tf.Tensor) -> dict[str, tf.Tensor]:
        return choose(drafter, target, drafts, alive)._asdict()

    specs = [tf.TensorSpec([1, size], tf.float32, name) for name in ("drafter", "target")]
    concrete = tf.function(run, autograph=False).get_concrete_function(*specs)
    runner = load(tf.Module(), {"run": concrete}, "float32").get_signature_runner("run")

    def of_pair(drafter: Any, target: Any) -> Callable[[], Any]:
        inputs = {
            name: part[np.newaxis].astype(np.float32) for name, part in (("drafter", drafter), ("target", target))
        }
        return lambda: runner(**inputs)

    return of_pair


def solve_programme(drafter: Any, target: Any) -> float:
    """Returns the largest acceptance of two independent drafts, by a linear programme over all verifiers.

    Its variables are the probabilities of drafting a set and emitting one of its tokens, V² of them. What else a
    verifier emits follows from them.

    Args:
      drafter: distribution of the drafts, `[V]`.
      target: distribution of the emitted token, `[V]`.

    Raises:
      ValueError: the solver finds no solution.
    """
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    size = len(drafter)
    first, second = np.triu_indices(size)
    probability = drafter[first] * drafter[second] * np.where(first == second, 1, 2)
    both = first != second
    sets = np.concatenate([np.arange(len(first)), np.flatnonzero(both)])
    tokens = np.concatenate([first, second[both]])
    rows = np.concatenate([sets, len(first) + tokens])
    used = csr_array((np.ones(len(rows)), (rows, np.tile(np.arange(len(sets)), 2))))
    found = linprog(-np.ones(len(sets)), A_ub=used, b_ub=[*probability, *target], method="highs")
    if not found.success:
        raise ValueError(f"the linear programme for {size} tokens was not solved: {found.message}")
    return float(-found.fun)


def fit_exponent(rows: Sequence[dict[str, Any]], name: str, least: int) -> list[float] | None:
    """Returns the exponent b of times proportional to V^b by least squares, and its 95 % t interval.

    Args:
      rows: results of each vocabulary.
      name: the method.
      least: smallest vocabulary that counts; of each count the medians of all pairs.

    Returns:
      Estimate, lower and upper end; None with fewer than three vocabularies.
    """
    from scipy import stats

    points = [
        (math.log(row["vocabulary"]), math.log(value))
        for row in rows
        if row["vocabulary"] >= least
        for value in row["milliseconds"][name]
    ]
    if len({x for x, _ in points}) < 3:
        return None
    fit = stats.linregress(*zip(*points, strict=True))
    half = stats.t.ppf(0.975, len(points) - 2) * fit.stderr
    return [float(fit.slope), float(fit.slope - half), float(fit.slope + half)]


def format_table(found: dict[str, Any]) -> str:
    """Returns the results as Markdown: the times by vocabulary, and the exponents."""
    from experiments.bench.table import QUIET

    cells = [
        (f"{row['vocabulary']:,}", *(_format_times(row["milliseconds"][name]) for name in _METHODS))
        for row in found["rows"]
    ]
    for place, title in enumerate(("exponent of V", "exponent, largest V")):
        cells.append((title, *(_format_exponent(found["exponents"][name][place]) for name in _METHODS)))
    lines = [*markdown_table(("V", *(f"{title}, ms" for title in _METHODS.values())), cells), ""]
    largest = max((row["difference"] for row in found["rows"] if "difference" in row), default=None)
    equal = "" if largest is None else f" The programme and the sorting differ by at most {largest:.0e}."
    lines.append(
        f"Milliseconds of processor time on one thread: the median over {found['pairs']} pairs, each the median of "
        f"{found['repetitions']} timings (the programme: one). Exponents: least squares for V >= 4,096 and V >= 65,536 "
        f"(the programme: 8 and 32), 95 % t intervals.{equal} {found['machine']}."
    )
    if found["others"] > QUIET:
        lines += ["", f"NOISY: other processes used up to {found['others']:.1f} cores during the measurement."]
    return "\n".join(lines) + "\n"


def _format_times(times: Sequence[float]) -> str:
    return f"{float(np.median(times)):.3g}" if times else "–"


def _format_exponent(exponent: Sequence[float] | None) -> str:
    return "–" if exponent is None else "{:.2f} [{:.2f}, {:.2f}]".format(*exponent)
