"""Defines `fedspeak fairness`: tests whether a model treats many groups alike, and plans how many rows that needs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from experiments.commands.fairness_federated import federated
from experiments.commands.fairness_options import (
    ALPHA,
    CATEGORICAL,
    format_frame,
    naming_options,
    split_categorical,
    split_names,
)

_GAP_FIX = "give the smallest gap that would matter"


@click.group()
def fairness() -> None:
    """Test whether a model treats many intersecting groups alike, or plan how many rows the test needs."""


fairness.add_command(federated)


@fairness.command("test")
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--groups", required=True, metavar="COLUMNS", help="Columns, separated by commas, that make the groups.")
@click.option(
    "--outcome",
    required=True,
    metavar="COLUMN",
    help="Column of true labels; without --prediction, of losses or scores from 0 to 1.",
)
@click.option("--prediction", metavar="COLUMN", help="Column of predictions.")
@click.option(
    "--metric",
    metavar="NAME",
    help="What is compared between groups, such as false_positive_rate; with --prediction.  [default: zero_one_loss]",
)
@click.option("--alpha", type=float, metavar="A", help=f"{ALPHA} Required without --plan.")
@click.option("--level", type=float, metavar="P", help="Probability of a false alarm.  [default: 0.05]")
@click.option("--gap", type=float, metavar="E", help="Gap for which to state the power of the test.")
@click.option(
    "--strata", metavar="COLUMNS", help="Columns, separated by commas, within whose values groups are compared."
)
@click.option("--categorical", metavar="COLUMNS", help=CATEGORICAL)
@click.option(
    "--weights",
    type=click.Choice(["rows", "equal"]),
    default="rows",
    show_default=True,
    help="Weight of a group: its share of the rows, or the same for every group.",
)
@click.option("--bounds", metavar="LOW,HIGH", help="Least and largest possible score, if they are not 0 and 1.")
@click.option("--draws", metavar="COLUMN", help="Column that numbers the draws of groups, if groups were drawn.")
@click.option(
    "--plan",
    "plan_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File of fedspeak fairness plan by which the groups of the rows were drawn; it gives alpha, gap and weights.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder for the report.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def test_table(
    table: Path,
    groups: str,
    outcome: str,
    prediction: str | None,
    metric: str | None,
    alpha: float | None,
    level: float | None,
    gap: float | None,
    strata: str | None,
    categorical: str | None,
    weights: str,
    bounds: str | None,
    draws: str | None,
    plan_path: Path | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Test whether the groups of a CSV or Parquet table are treated alike.

    Prints the p-value of the hypothesis that all groups have the same mean, and bounds on F_alpha: the mean gap to the
    overall mean of the worst groups that together have the weight 1 - alpha.
    """
    from experiments.tables import read_columns
    from fl.fairness import FairnessFrame
    from privacy.json_values import plain

    names, stratum_names = (
        split_names("--groups", groups),
        split_names("--strata", strata) if strata is not None else [],
    )
    if metric is not None and prediction is None:
        raise ValueError(f"--metric {metric} compares --outcome with predictions: give --prediction too")
    plan: dict[str, Any] = _read_plan(plan_path, names) if plan_path else {}
    if plan and (draws is not None or weights != "rows"):
        other = "--draws" if draws is not None else "--weights"
        raise ValueError(f"--plan says how rows were sampled: leave {other} out, or --plan")
    if plan and strata is not None:
        raise ValueError("--plan says how the groups of all rows were drawn: leave --strata out, or --plan")
    if draws is not None and weights != "rows":
        raise ValueError(f"--weights {weights} goes with rows, and --draws with draws by weight: leave one of them out")
    alpha, gap = plan.get("alpha") if alpha is None else alpha, plan.get("gap") if gap is None else gap
    level = plan.get("error", 0.05) if level is None else level
    if alpha is None:
        raise ValueError("--alpha is missing: give 0.9 to look at the worst tenth of the weight")
    optional = [column for column in (prediction, draws) if column is not None]
    texts = split_categorical(categorical, [*names, *stratum_names])
    with naming_options():
        columns = read_columns(table, [*names, *stratum_names, outcome, *optional], texts=texts)
        frame = FairnessFrame(
            metrics={outcome: "mean_prediction"} if prediction is None else metric or "zero_one_loss",
            y_true=columns[outcome],
            y_pred=columns[outcome if prediction is None else prediction],
            sensitive_features={name: columns[name] for name in names},
            control_features={name: columns[name] for name in stratum_names} or None,
            draws=None if draws is None else columns[draws],
            alpha=alpha,
            level=level,
            gap=gap,
            weights=plan.get("weights", weights),
            probabilities=plan.get("probabilities"),
            bounds=(0.0, 1.0) if bounds is None else _pair(bounds),
        )
    if as_json:
        click.echo(json.dumps(plain(frame.to_dict()), indent=1, ensure_ascii=False))
    else:
        click.echo(format_frame(frame))
    if output is not None:
        from fl.fairness import report

        paths = report.build(frame, title=table.stem, source=table.name).write(output)
        click.echo(f"wrote {paths[0]}, .md and .json", err=as_json)


@fairness.command()
@click.option(
    "--groups",
    required=True,
    metavar="GROUPS",
    help="Number of equally weighted groups, as 70 or 2x5x7; with --table the columns that make the groups.",
)
@click.option("--alpha", type=float, required=True, metavar="A", help=ALPHA)
@click.option("--gap", type=float, required=True, metavar="E", help="Smallest F_alpha that must be found.")
@click.option(
    "--error",
    type=float,
    default=0.05,
    show_default=True,
    metavar="P",
    help="Probability of a false alarm, and of a miss.",
)
@click.option(
    "--rate", type=float, default=0.5, show_default=True, metavar="R", help="Overall rate, if known; 0.5 is safe."
)
@click.option(
    "--table",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="CSV or Parquet table of the population, whose rows give the weights of the groups.",
)
@click.option("--categorical", metavar="COLUMNS", help=f"{CATEGORICAL} With --table.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="JSON file for the plan, with each group's rows."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    groups: str,
    alpha: float,
    gap: float,
    error: float,
    rate: float,
    table: Path | None,
    categorical: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Plan how many rows to collect, and of which groups, to tell equal groups from an F_alpha of --gap."""
    import numpy as np

    from fl.fairness import planner
    from fl.fairness.gaps import check_alpha, least_equal_alpha
    from privacy import checks
    from privacy.files import write_private

    check_alpha(alpha, "--alpha")
    checks.between("--gap", gap, 0, 1, _GAP_FIX, closed_high=True)
    checks.between("--error", error, 0, 0.5, "0.05 is usual")
    checks.between("--rate", rate, 0, 1, "leave it out if it is not known")
    features, names, mass = _population(groups, table, categorical)
    setting: dict[str, float] = {"alpha": alpha, "gap": gap, "error": error, "rate": rate}
    with naming_options():
        weighted = planner.plan_weighted(mass, **setting)
        reached = least_equal_alpha(alpha, float(mass.min() / mass.sum()))
        specific = planner.plan_attribute_specific(**{**setting, "alpha": reached})
        largest = planner.plan_max_gap(mass, **setting)
    facts: dict[str, Any] = {
        **setting,
        "number_of_groups": len(mass),
        "entropy": planner.renyi_entropy(mass),
        "weighted": {"rows": weighted.rows, "threshold": weighted.threshold},
        "attribute_specific": {"rows": specific.rows, **specific._asdict()},
        "max_gap": {"rows": largest.rows, **largest._asdict()},
        "features": features,
        "groups": names,
        "weights": np.divide(mass, mass.sum()).tolist(),
        "probabilities": weighted.probabilities.tolist(),
        "expected": weighted.expected.tolist(),
    }
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
    else:
        rows = [
            ("weighted", weighted.rows, "draw the group of each row with a probability proportional to weight^(2/3)"),
            (
                "attribute-specific",
                specific.rows,
                f"draw {specific.draws:,} groups by weight, collect {specific.rows_per_draw:,} rows for each draw",
            ),
            (
                "largest gap",
                largest.rows,
                f"{largest.rows_per_group:,} rows of each group, Bonferroni: for comparison",
            ),
        ]
        click.echo(
            f"{len(mass):,} groups, effective number {np.exp(facts['entropy']):,.0f}; F_alpha = {gap:g} is found, and "
            f"a false alarm avoided, each with probability {1 - error:g}"
        )
        click.echo(f"\n{'test':<20}{'rows':>12}  sampling")
        for name, count, words in rows:
            click.echo(f"{name:<20}{count:>12,}  {words}")
    if output is not None:
        write_private(output, json.dumps(facts, ensure_ascii=False).encode())
        click.echo(f"wrote {output}", err=as_json)


def _pair(text: str) -> tuple[float, float]:
    low, _, high = text.partition(",")
    try:
        return float(low), float(high)
    except ValueError:
        raise ValueError(f"--bounds {text!r} must be two numbers, such as -1,1") from None


def _population(groups: str, table: Path | None, categorical: str | None) -> tuple[list[str], list[list[Any]], Any]:
    """Returns the names of the features, the names of the groups and their weights; without a table no names."""
    import numpy as np

    if table is None:
        if categorical is not None:
            raise ValueError(f"--categorical {categorical} names columns of a table: give --table too")
        if not re.fullmatch(r"[0-9]+(x[0-9]+)*", groups):
            raise ValueError(
                f"--groups {groups}: must be a number of groups, as 70 or 2x5x7; or give --table with these columns"
            )
        number = np.prod([int(factor) for factor in groups.split("x")], dtype=object)
        if not 2 <= number <= 10**7:
            raise ValueError(f"--groups {groups} are {number:,} groups: give 2 to 10,000,000")
        return [], [], np.ones(int(number))
    from experiments.tables import read_columns
    from fl.fairness.columns import divide_rows

    names = split_names("--groups", groups)
    texts = split_categorical(categorical, names)
    with naming_options():
        division = divide_rows(read_columns(table, names, texts=texts))
    counts = np.bincount(division.codes, minlength=len(division.names))
    has_rows = counts > 0
    if has_rows.sum() < 2:
        raise ValueError(f"--groups {groups} make one group of the rows of {table}: at least two are needed")
    return names, [list(division.names[i]) for i in np.flatnonzero(has_rows)], counts[has_rows].astype(float)


def _read_plan(path: Path, columns: list[str]) -> dict[str, Any]:
    """Returns alpha, gap, error and the groups' weights and probabilities in a plan for these columns."""
    try:
        plan = json.loads(path.read_bytes())
        names = [tuple(name) for name in plan["groups"]]
        mappings = (
            {key: dict(zip(names, plan[key], strict=True)) for key in ("weights", "probabilities")} if names else {}
        )
        plan = {key: plan[key] for key in ("alpha", "gap", "error", "features")} | mappings
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"--plan {path} is not a plan: give a file that fedspeak fairness plan wrote") from None
    if plan["features"] != columns:
        planned = ",".join(plan["features"]) or "a number of groups"
        raise ValueError(f"--plan {path} is for --groups {planned}: plan with --table and --groups {','.join(columns)}")
    return plan
