"""Defines `fedspeak reproduce dp-mean`: the private mean of arXiv:2312.06658 beside other mechanisms and libraries.

Each row of the table names its neighbouring relation, since values of ε can only be compared within one relation.
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from experiments import options
from experiments.display import ConsoleDisplay
from experiments.markdown import markdown_table
from experiments.provenance import command_line, versions
from experiments.runs import write_json
from privacy.files import write_public

_ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = _ROOT / ".venv-bench" / "dp-libraries" / "bin" / "python"
_SIZES, _EPSILONS, _MEANS = (100, 1000, 10_000), (0.1, 1.0, 4.0, 8.0), (0.0, 0.1, 0.5, 1.0)
_OURS = ("hourglass", "transformed-laplace", "midpoint", "sum-count")
_REPLACE_ONE = ("hourglass", "transformed-laplace")  # mechanisms measured under replace-one too
_RHO = 0.5
_MANY = 1_000_000  # so many records that only the leading term of the error matters
# Names of the neighbouring relations in `BoundedMean`.


@click.command("dp-mean")
@click.option(
    "--trials",
    default=100_000,
    show_default=True,
    type=click.IntRange(min=100),
    help="Number of private means to release for each measured error of fedspeak's mechanisms.",
)
@click.option(
    "--library-trials",
    default=2000,
    show_default=True,
    type=click.IntRange(min=100),
    help="Number of private means to release for each measured error of the other libraries.",
)
@options.output("runs/dp-mean", "the table, the plot and the results")
def dp_mean(trials: int, library_trials: int, output: Path) -> None:
    """Measure the errors of private means for many numbers of records n, ε and true means μ.

    The errors are compared with those of other libraries and with the min-max bound; Gaussian noise is measured under
    zCDP. The libraries (python-dp, OpenDP, diffprivlib) run in their own environment, which `make bench-peers`
    installs; without it they are left out.
    """
    from experiments import plots

    show = ConsoleDisplay()
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    cases = [(n, epsilon, mu) for n in _SIZES for epsilon in _EPSILONS for mu in _MEANS]
    with show.task("fedspeak's mechanisms", len(cases)) as advance:
        for done, case in enumerate(cases, 1):
            rows += _measure_mechanisms(*case, trials)
            advance(done, {})
    if LIBRARIES.exists():
        show.note("measuring the other libraries, which takes some minutes …")
        rows += list(_measure_libraries([case for case in cases if case[0] == 1000], library_trials))
    else:
        show.note("other libraries are not installed and left out: make bench-peers installs them")
    worst = _measure_worst_cases(trials)
    gaussian = _measure_under_zcdp(trials)
    write_json(
        output / "metrics.json",
        {"command": command_line(), "versions": versions(), "rows": rows, "worst": worst, "zcdp": gaussian},
    )
    plots.worst_case(output / "plot", worst)
    text = _format_table(rows, worst, gaussian, trials)
    write_public(output / "table.md", text.encode())
    click.echo(text)


def errors(
    n: int, epsilon: float, mu: float, mechanism: Any, neighbouring: Any, trials: int, delta: float = 0.0
) -> npt.NDArray[np.float64]:
    """Releases the mean of n zeros and ones `trials` times and returns each release's error times n, float64 [trials].

    The releases are computed as the coordinates of one release with `trials` times the ε, because this is faster. The
    noise is drawn from a seed.

    Args:
      n: number of records.
      epsilon: ε of each release, > 0.
      mu: true mean, the share of ones, in [0, 1].
      mechanism: mechanism of `BoundedMean`.
      neighbouring: neighbouring relation of `BoundedMean`.
      trials: number of releases.
      delta: δ of the mechanism "gaussian"; 0 for the others.
    """
    from privacy.noise.randomness import SeededRandomness
    from privacy.statistics.mean import STEPS, BoundedMean

    mean = BoundedMean(0.0, 1.0, epsilon * trials, mechanism, neighbouring, delta, trials)
    ones = round(mu * n)
    sums = np.repeat(np.array([[ones * STEPS], [(n - ones) * STEPS]]), trials, axis=1)
    return n * (mean.release(sums, SeededRandomness(n + round(1000 * mu))).value - mu)


def _summarise(
    name: str, relation: str, n: int, epsilon: float, mu: float, scaled_errors: npt.NDArray[np.float64]
) -> dict[str, Any]:
    """Returns a row with n² times the mean squared error ("error") and half its 95 % interval ("half")."""
    squares = np.square(scaled_errors)
    half = 1.96 * float(squares.std()) / math.sqrt(len(squares))
    return {
        "name": name,
        "relation": relation,
        "n": n,
        "epsilon": epsilon,
        "mu": mu,
        "error": float(squares.mean()),
        "half": half,
        "trials": len(scaled_errors),
    }


def _measure(mechanism: str, relation: str, n: int, epsilon: float, mu: float, trials: int) -> dict[str, Any]:
    scaled_errors = errors(n, epsilon, mu, mechanism, relation, trials)
    return _summarise(mechanism, relation, n, epsilon, mu, scaled_errors)


def _measure_mechanisms(n: int, epsilon: float, mu: float, trials: int) -> list[dict[str, Any]]:
    rows = [_measure(mechanism, "add-or-remove-one", n, epsilon, mu, trials) for mechanism in _OURS]
    for mechanism in _REPLACE_ONE:
        row = _measure(mechanism, "replace-one", n, epsilon, mu, trials)
        rows.append(row | {"name": f"{mechanism}, n known"})
    return rows


def _measure_libraries(cases: Sequence[tuple[int, float, float]], trials: int) -> Iterator[dict[str, Any]]:
    arguments = [f"{n},{epsilon},{mu},{trials}" for n, epsilon, mu in cases]
    script = Path(__file__).with_name("dp_mean_libraries.py")
    done = subprocess.run([LIBRARIES, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{script.name} failed in {LIBRARIES}: {done.stderr.strip().splitlines()[-1][:200]}")
    for text in done.stdout.splitlines():
        line = json.loads(text)
        if "problem" in line:
            raise OSError(f"{line['package']} failed: {line['problem']}")
        scaled_errors = np.array(line["errors"])
        row = _summarise(line["name"], line["relation"], line["n"], line["epsilon"], line["mu"], scaled_errors)
        yield row | {"seconds": line["seconds"], "version": line["version"]}


def _measure_worst_cases(trials: int) -> list[dict[str, Any]]:
    """Returns the largest error over μ for each ε, the bound, and the error of "hourglass" under replace-one."""
    from privacy.statistics.mean import worst_case

    worst = []
    for epsilon in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0):
        by_mechanism = {}
        for mechanism in ("hourglass", "transformed-laplace", "midpoint"):
            rows = [
                _measure(mechanism, "add-or-remove-one", _MANY, epsilon, mu, trials)
                for mu in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
            ]
            largest = max(rows, key=lambda row: row["error"])
            by_mechanism[mechanism] = {"error": largest["error"], "half": largest["half"], "mu": largest["mu"]}
        known = _measure("hourglass", "replace-one", _MANY, epsilon, 0.5, trials)
        worst.append(
            {
                "epsilon": epsilon,
                "bound": worst_case(epsilon),
                "replace-one": {"error": known["error"], "half": known["half"]},
                **by_mechanism,
            }
        )
    return worst


def _measure_under_zcdp(trials: int) -> list[dict[str, Any]]:
    """Returns n² times the mean squared error of each of two ρ-zCDP means with ρ = 1/2.

    There is one row for each true mean μ = 0.1, 0.3 and 0.5. "pair" is fedspeak's way: one Gaussian mechanism for the
    pair of sums. "split" releases the sum of x - 1/2 and the count, each with half of ρ.
    """
    from privacy.accounting.composition import gaussian_epsilon
    from privacy.noise.randomness import SeededRandomness
    from privacy.statistics.mean import STEPS, BoundedMean

    generator, source, delta = np.random.default_rng(0), SeededRandomness(0), 1e-6
    n, sigma = 1000, 1 / math.sqrt(2 * _RHO)
    relation = "add-or-remove-one"
    mean = BoundedMean(0.0, 1.0, gaussian_epsilon(sigma, delta), "gaussian", "add-or-remove-one", delta)
    rows = []
    for mu in (0.1, 0.3, 0.5):
        above, below = ([round(share * n) * STEPS] * trials for share in (mu, 1 - mu))
        shares = np.array(mean._release_pairs(above, below, source))[:, 0]
        pair = _summarise("", relation, n, _RHO, mu, n * (shares - mu))
        # The sum has sensitivity 1/2, the count 1; each gets noise for ρ/2.
        total = (mu - 0.5) * n + 0.5 * math.sqrt(2) * sigma * generator.normal(size=trials)
        count = n + math.sqrt(2) * sigma * generator.normal(size=trials)
        split = _summarise("", relation, n, _RHO, mu, n * (0.5 + total / count - mu))
        rows.append(
            {"mu": mu, "pair": pair["error"], "split": split["error"], "half": max(pair["half"], split["half"])}
        )
    return rows


def _time_mechanisms() -> dict[str, float]:
    """Returns the seconds of one call on 1000 numbers with secure noise, the minimum of 50, by mechanism."""
    from privacy import dp_mean as call

    values = np.linspace(0, 1, 1000)
    seconds = {}
    for mechanism in _OURS:
        timings = []
        for _ in range(50):
            begin = time.perf_counter()
            call(values, 0, 1, 1.0, mechanism)  # type: ignore[arg-type]
            timings.append(time.perf_counter() - begin)
        seconds[mechanism] = min(timings)
    return seconds


def _format_table(
    rows: list[dict[str, Any]], worst: list[dict[str, Any]], gaussian: list[dict[str, Any]], trials: int
) -> str:
    lines = [
        "n² times the mean squared error of private means of zeros and ones in [0, 1], pure ε; ± is half the width of",
        f"a 95 % interval. Fedspeak's mechanisms were measured in {trials} trials. Under replace-one, n is public and",
        "only a record's value is hidden, so that ε promises less.",
    ]
    for n in sorted({row["n"] for row in rows}):
        cells = []
        for epsilon in _EPSILONS:
            selected = [row for row in rows if row["n"] == n and row["epsilon"] == epsilon]
            for name in dict.fromkeys(row["name"] for row in selected):
                by_mean = {row["mu"]: row for row in selected if row["name"] == name}
                errors = [f"{by_mean[mu]['error']:.3g} ± {by_mean[mu]['half']:.1g}" for mu in _MEANS]
                cells.append((name, by_mean[_MEANS[0]]["relation"], f"{epsilon:g}", *errors))
        header = ("mechanism", "relation", "ε", *(f"μ = {mu:g}" for mu in _MEANS))
        lines += ["", f"### n = {n}", "", *markdown_table(header, cells)]
    compared = ("hourglass", "transformed-laplace", "midpoint", "replace-one")
    cells = []
    for entry in worst:
        errors = [f"{entry[name]['error']:.4g} ± {entry[name]['half']:.1g}" for name in compared]
        ratio = entry["midpoint"]["error"] / entry["hourglass"]["error"]
        cells.append((f"{entry['epsilon']:g}", f"{entry['bound']:.4g}", *errors, f"{ratio:.2f}"))
    header = ("ε", "bound V*", *compared[:3], "hourglass, replace-one", "midpoint / hourglass")
    lines += ["", "### The worst case over μ (n = 1,000,000)", "", *markdown_table(header, cells)]
    cells = []
    for entry in gaussian:
        errors = [f"{entry[way]:.3f} ± {entry['half']:.1g}" for way in ("pair", "split")]
        formula = (entry["mu"] ** 2 + (1 - entry["mu"]) ** 2) / (2 * _RHO)
        cells.append((f"{entry['mu']:g}", *errors, f"{formula:.3f}"))
    header = ("μ", "pair of sums", "sum around the middle, and count", "formula")
    lines += ["", f"### Gaussian noise at ρ = {_RHO:g} (zCDP): no gain over a sum and a count with half of ρ each", ""]
    lines += markdown_table(header, cells)
    times = _time_mechanisms()
    times |= {f"{row['name']} ({row['version']})": row["seconds"] for row in rows if "seconds" in row}
    cells = [(name, f"{1000 * seconds:.2f}") for name, seconds in times.items()]
    lines += ["", "### Time of one call on 1000 numbers", "", *markdown_table(("", "ms"), cells)]
    return "\n".join(lines) + "\n"
