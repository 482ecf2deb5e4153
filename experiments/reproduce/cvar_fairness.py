"""Defines `fedspeak reproduce cvar-fairness`: how many rows tests of fairness over many groups need.

The study follows Paes et al., "Multi-group fairness evaluation via conditional value-at-risk testing"
(https://arxiv.org/abs/2312.03867).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from experiments import options
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line, versions
from experiments.runs import write_json
from privacy.files import write_public

_SIZES = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
_EXPONENTS, _ZIPF_GROUPS = (0.0, 0.5, 2 / 3, 1.0), 1000
_ERROR_RUNS = 10
_PERMUTATIONS = 19


@click.command("cvar-fairness")
@click.option(
    "--draws",
    type=click.IntRange(min=100),
    default=200,
    show_default=True,
    help="Number of simulated tests at each number of rows; ten times as many for each error probability.",
)
@click.option(
    "--max-groups",
    type=click.IntRange(min=100),
    default=100_000,
    show_default=True,
    help="Largest number of groups.",
)
@click.option(
    "--tables",
    type=click.Path(path_type=Path),
    help="Folder that `make fairness-tables` prints, for the part on tables of people, which is otherwise left out.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of the study.")
@options.output("runs/cvar-fairness", "the tables, the plot and the results")
def cvar_fairness(draws: int, max_groups: int, tables: Path | None, seed: int, output: Path) -> None:
    """Simulate tests of many groups: their error probabilities, and the rows they need by the number of groups.

    With --tables, it also tests groups of race, sex and age in tables of people. fairlearn and AIF360 examine the same
    tables in an environment of their own, which `make bench-peers` installs; without it they are left out.
    """
    from experiments import fairness_plots
    from experiments.reproduce.fairness_tables import read_tables

    show = ConsoleDisplay()
    people = None if tables is None else read_tables(tables, seed)
    output.mkdir(parents=True, exist_ok=True)
    results = {"seed": seed, "draws": draws, **measure_simulations(draws, max_groups, seed, show), "tables": []}
    fairness_plots.rows_needed(output / "plot", results["rows"])
    _write(output, results)
    if people is None:
        show.note("tables of people are left out: give --tables FOLDER, which make fairness-tables prints")
    else:  # if another library fails, the simulations are not lost
        results["tables"] = measure_tables(people, draws, seed, show)
        _write(output, results)
    click.echo((output / "table.md").read_text(encoding="utf-8"))


def _write(output: Path, results: Mapping[str, Any]) -> None:
    from experiments.reproduce import cvar_format

    write_json(output / "metrics.json", {"command": command_line(), "versions": versions(), **results})
    write_public(output / "table.md", cvar_format.format_table(results).encode())


def measure_simulations(draws: int, max_groups: int, seed: int, show: Any) -> dict[str, Any]:
    """Runs the part on simulated groups.

    Args:
      draws: number of simulated tests at each number of rows, >= 100.
      max_groups: largest number of groups, >= 100.
      seed: seed of the draws.
      show: display for progress.

    Returns:
      "identities" and "faults" of `cvar_checks`, "errors" of `cvar_errors`, "few_rows" of `cvar_few_rows`, and "rows",
      "exponents" and "samplings" of `cvar_samples`.
    """
    from experiments.reproduce import cvar_checks, cvar_errors, cvar_few_rows, cvar_samples

    runs = _ERROR_RUNS * draws
    show.note("checking identities and planted faults …")
    identities, faults = cvar_checks.check_identities(runs, seed), cvar_checks.find_faults(runs, seed)
    samplings = [sampling for sampling in cvar_errors.samplings() if len(sampling.population.weights) <= max_groups]
    errors = []
    with show.task("error probabilities", len(samplings)) as advance:
        for done, sampling in enumerate(samplings, 1):
            errors.append(cvar_errors.measure_errors(sampling, runs, seed + done))
            advance(done, {})
    tables = list(cvar_few_rows.tables())
    few_rows = []
    with show.task("few rows", len(tables)) as advance:
        for done, table in enumerate(tables, 1):
            few_rows.append(cvar_few_rows.measure_few_rows(table, runs // 2, seed + done))
            advance(done, {})
    cases = list(cvar_samples.cases([size for size in _SIZES if size <= max_groups]))
    rows = []
    with show.task("rows needed", len(cases)) as advance:
        for done, case in enumerate(cases, 1):
            rows.append(cvar_samples.measure(case, draws, seed + done))
            advance(done, {})
    return {
        "identities": identities,
        "faults": faults,
        "errors": errors,
        "few_rows": few_rows,
        "rows": rows,
        "exponents": cvar_samples.fit_exponents(rows),
        "samplings": cvar_samples.rows_by_exponent(min(_ZIPF_GROUPS, max_groups), _EXPONENTS, draws, seed),
    }


def measure_tables(people: Sequence[Any], draws: int, seed: int, show: Any) -> list[dict[str, Any]]:
    """Runs the part on tables of people, with the other libraries if they are installed.

    Args:
      people: tables of `experiments.reproduce.fairness_tables`.
      draws: a tenth of the number of random orders and parts of each table.
      seed: seed of these.
      show: display for progress.
    """
    from experiments.reproduce import cvar_tables

    has_libraries = cvar_tables.LIBRARIES.exists()
    if not has_libraries:
        show.note("fairlearn and AIF360 are not installed and left out: make bench-peers installs them")
    results = []
    for table in people:
        show.note(f"{table.name} …")
        found = cvar_tables.measure_table(table, _ERROR_RUNS * draws, seed)
        libraries = cvar_tables.run_libraries(table, _PERMUTATIONS, seed) if has_libraries else []
        results.append(found | {"libraries": libraries})
    return results
