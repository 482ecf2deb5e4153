"""The add-remove mean (arXiv:2312.06658) beside what others do, at equal meaning of ε."""

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

from experiments.display import ConsoleDisplay
from experiments.provenance import command_line, versions
from experiments.runs import write_json
from privacy.files import write_public

_ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = _ROOT / ".venv-bench" / "dp-libraries" / "bin" / "python"
_SIZES, _EPSILONS, _MEANS = (100, 1000, 10_000), (0.1, 1.0, 4.0, 8.0), (0.0, 0.1, 0.5, 1.0)
_OURS = ("hourglass", "transformed-laplace", "midpoint", "sum-count")
_SWAP = ("hourglass", "transformed-laplace")
_RHO = 0.5
_MANY = 1_000_000  # records, where only the leading term of the error is left


@click.command("dp-mean")
@click.option("--trials", default=100_000, show_default=True, type=click.IntRange(min=100), help="Of our mechanisms.")
@click.option(
    "--library-trials", default=2000, show_default=True, type=click.IntRange(min=100), help="Of other libraries."
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("runs/dp-mean"), show_default=True)
def dp_mean(trials: int, library_trials: int, output: Path) -> None:
    """Errors of private means for many n, ε and μ, beside other libraries, the min-max bound, and under zCDP.

    The libraries (python-dp, OpenDP, diffprivlib) run in their own environment, made by `make bench-peers`; without it
    they are left out.
    """
    from experiments import plots

    show = ConsoleDisplay()
    output.mkdir(parents=True, exist_ok=True)
    rows = []
    cases = [(n, epsilon, mu) for n in _SIZES for epsilon in _EPSILONS for mu in _MEANS]
    with show.task("our mechanisms", len(cases)) as advance:
        for done, case in enumerate(cases, 1):
            rows += _of_ours(*case, trials)
            advance(done, {})
    if LIBRARIES.exists():
        show.note("other libraries: some minutes")
        rows += list(_of_libraries([case for case in cases if case[0] == 1000], library_trials))
    else:
        show.note("other libraries are left out: make bench-peers makes their environment")
    worst = _worst_cases(trials)
    gaussian = _under_zcdp(trials)
    write_json(
        output / "metrics.json",
        {"command": command_line(), "versions": versions(), "rows": rows, "worst": worst, "zcdp": gaussian},
    )
    plots.worst_case(output / "plot", worst)
    text = _table(rows, worst, gaussian, trials)
    write_public(output / "table.md", text.encode())
    click.echo(text)


def errors(
    n: int, epsilon: float, mu: float, mechanism: Any, neighbouring: Any, trials: int, delta: float = 0.0
) -> npt.NDArray[np.float64]:
    """Estimate minus mu, times n, of `trials` releases for data of zeros and ones, float64 [trials].

    They are the coordinates of one release whose ε is as many times larger; noise from a seed.
    """
    from privacy.noise.randomness import SeededRandomness
    from privacy.statistics.mean import STEPS, BoundedMean

    mean = BoundedMean(0.0, 1.0, epsilon * trials, mechanism, neighbouring, delta, trials)
    ones = round(mu * n)
    sums = np.repeat(np.array([[ones * STEPS], [(n - ones) * STEPS]]), trials, axis=1)
    return n * (mean.release(sums, SeededRandomness(n + round(1000 * mu))).value - mu)


def _row(name: str, relation: str, n: int, epsilon: float, mu: float, found: npt.NDArray[np.float64]) -> dict[str, Any]:
    squares = np.square(found)
    half = 1.96 * float(squares.std()) / math.sqrt(len(squares))
    return {
        "name": name,
        "relation": relation,
        "n": n,
        "epsilon": epsilon,
        "mu": mu,
        "error": float(squares.mean()),
        "half": half,
        "trials": len(found),
    }


def _of_ours(n: int, epsilon: float, mu: float, trials: int) -> list[dict[str, Any]]:
    found = [
        _row(m, "add-or-remove-one", n, epsilon, mu, errors(n, epsilon, mu, m, "add-or-remove-one", trials))
        for m in _OURS
    ]
    return found + [
        _row(f"{m}, n known", "replace-one", n, epsilon, mu, errors(n, epsilon, mu, m, "replace-one", trials))
        for m in _SWAP
    ]


def _of_libraries(cases: Sequence[tuple[int, float, float]], trials: int) -> Iterator[dict[str, Any]]:
    arguments = [f"{n},{epsilon},{mu},{trials}" for n, epsilon, mu in cases]
    script = Path(__file__).with_name("dp_mean_libraries.py")
    done = subprocess.run([LIBRARIES, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{script.name} failed in {LIBRARIES}: {done.stderr.strip().splitlines()[-1][:200]}")
    for text in done.stdout.splitlines():
        line = json.loads(text)
        if "problem" in line:
            raise OSError(f"{line['package']} failed: {line['problem']}")
        row = _row(line["name"], line["relation"], line["n"], line["epsilon"], line["mu"], np.array(line["errors"]))
        yield row | {"seconds": line["seconds"], "version": line["version"]}


def _worst_cases(trials: int) -> list[dict[str, Any]]:
    """For each ε the largest error over μ, beside the bound and the swap model's best with n known."""
    from privacy.statistics.mean import worst_case

    found = []
    for epsilon in (0.1, 0.5, 1.0, 2.0, 4.0, 8.0):
        by_mechanism = {}
        for mechanism in ("hourglass", "transformed-laplace", "midpoint"):
            over_means = [
                _row(
                    mechanism,
                    "add-or-remove-one",
                    _MANY,
                    epsilon,
                    mu,
                    errors(_MANY, epsilon, mu, mechanism, "add-or-remove-one", trials),
                )
                for mu in (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999)
            ]
            most = max(over_means, key=lambda row: row["error"])
            by_mechanism[mechanism] = {"error": most["error"], "half": most["half"], "mu": most["mu"]}
        swap = _row(
            "", "replace-one", _MANY, epsilon, 0.5, errors(_MANY, epsilon, 0.5, "hourglass", "replace-one", trials)
        )
        found.append(
            {
                "epsilon": epsilon,
                "bound": worst_case(epsilon),
                "replace-one": {"error": swap["error"], "half": swap["half"]},
                **by_mechanism,
            }
        )
    return found


def _under_zcdp(trials: int) -> list[dict[str, Any]]:
    """n² MSE at ρ = 1/2: the kit's pair with one Gaussian, and the middle point's sum and count with half of ρ each."""
    from privacy.accounting.composition import gaussian_epsilon
    from privacy.noise.randomness import SeededRandomness
    from privacy.statistics.mean import STEPS, BoundedMean

    generator, source, delta = np.random.default_rng(0), SeededRandomness(0), 1e-6
    n, sigma = 1000, 1 / math.sqrt(2 * _RHO)
    kit = BoundedMean(0.0, 1.0, gaussian_epsilon(sigma, delta), "gaussian", "add-or-remove-one", delta)
    found = []
    for mu in (0.1, 0.3, 0.5):
        above, below = ([round(share * n) * STEPS] * trials for share in (mu, 1 - mu))
        shares = np.array(kit._released(above, below, source))[:, 0]
        pair = _row("", "add-or-remove-one", n, _RHO, mu, n * (shares - mu))
        # Sensitivities 1/2 and 1 at ρ/2 each.
        total = (mu - 0.5) * n + 0.5 * math.sqrt(2) * sigma * generator.normal(size=trials)
        count = n + math.sqrt(2) * sigma * generator.normal(size=trials)
        split = _row("", "add-or-remove-one", n, _RHO, mu, n * (0.5 + total / count - mu))
        found.append(
            {"mu": mu, "pair": pair["error"], "split": split["error"], "half": max(pair["half"], split["half"])}
        )
    return found


def _seconds_of_ours() -> dict[str, float]:
    """Seconds of one call on 1000 numbers with secure noise, the least of 50."""
    from privacy import dp_mean as call

    values = np.linspace(0, 1, 1000)
    found = {}
    for mechanism in _OURS:
        timings = []
        for _ in range(50):
            begin = time.perf_counter()
            call(values, 0, 1, 1.0, mechanism)  # type: ignore[arg-type]
            timings.append(time.perf_counter() - begin)
        found[mechanism] = min(timings)
    return found


def _table(rows: list[dict[str, Any]], worst: list[dict[str, Any]], gaussian: list[dict[str, Any]], trials: int) -> str:
    lines = [
        "n² MSE of private means in [0, 1] of zeros and ones, pure ε; ± is half a 95 % interval. Of our mechanisms",
        f"{trials} trials. Rows marked swap know n and hide only a record's value: their ε promises less.",
    ]
    for n in sorted({row["n"] for row in rows}):
        lines += [
            "",
            f"### n = {n}",
            "",
            "| mechanism | relation | ε | " + " | ".join(f"μ = {mu:g}" for mu in _MEANS) + " |",
        ]
        lines.append("|---" * (3 + len(_MEANS)) + "|")
        for epsilon in _EPSILONS:
            of = [row for row in rows if row["n"] == n and row["epsilon"] == epsilon]
            for name in dict.fromkeys(row["name"] for row in of):
                mine = {row["mu"]: row for row in of if row["name"] == name}
                figures = " | ".join(f"{mine[mu]['error']:.3g} ± {mine[mu]['half']:.1g}" for mu in _MEANS)
                lines.append(f"| {name} | {mine[_MEANS[0]]['relation']} | {epsilon:g} | {figures} |")
    lines += ["", "### The worst case over μ (n = 1,000,000)", ""]
    lines += [
        "| ε | bound V* | hourglass | transformed-laplace | midpoint | swap, n known | midpoint / hourglass |",
        "|---" * 7 + "|",
    ]
    for entry in worst:
        cells = [
            f"{entry[m]['error']:.4g} ± {entry[m]['half']:.1g}"
            for m in ("hourglass", "transformed-laplace", "midpoint", "replace-one")
        ]
        ratio = entry["midpoint"]["error"] / entry["hourglass"]["error"]
        lines.append(f"| {entry['epsilon']:g} | {entry['bound']:.4g} | {' | '.join(cells)} | {ratio:.2f} |")
    lines += ["", f"### Gaussian noise at ρ = {_RHO:g} (zCDP): the gain over an even split is gone", ""]
    lines += ["| μ | the pair | sum about the middle, and count | formula |", "|---" * 4 + "|"]
    for entry in gaussian:
        formula = (entry["mu"] ** 2 + (1 - entry["mu"]) ** 2) / (2 * _RHO)
        lines.append(
            f"| {entry['mu']:g} | {entry['pair']:.3f} ± {entry['half']:.1g} "
            f"| {entry['split']:.3f} ± {entry['half']:.1g} | {formula:.3f} |"
        )
    lines += ["", "### Time of one call on 1000 numbers", "", "| | ms |", "|---|---|"]
    lines += [f"| {name} | {1000 * seconds:.2f} |" for name, seconds in _seconds_of_ours().items()]
    timed = {row["name"]: row for row in rows if "seconds" in row}
    lines += [f"| {name} ({row['version']}) | {1000 * row['seconds']:.2f} |" for name, row in timed.items()]
    return "\n".join(lines) + "\n"
