"""Defines `fedspeak fairness federated`, which tests a trained run on its test clients."""

from __future__ import annotations

import json
from pathlib import Path

import click

from experiments import extras
from experiments.commands.fairness_options import ALPHA, format_frame, naming_options, split_names


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--groups",
    required=True,
    metavar="ATTRIBUTES",
    help="Attributes of the clients, separated by commas, that make the groups; of Shakespeare's characters "
    "genre, play, role, verse.",
)
@click.option(
    "--attributes",
    "table",
    type=click.Path(path_type=Path),
    metavar="TABLE",
    help="CSV or Parquet table with a column client and a column for each attribute; not for Shakespeare's plays.",
)
@click.option("--alpha", type=float, required=True, metavar="A", help=ALPHA)
@click.option("--level", type=float, default=0.05, show_default=True, metavar="P", help="Probability of a false alarm.")
@click.option("--gap", type=float, metavar="E", help="Gap for which to state the power of the test.")
@click.option(
    "--noise-multiplier",
    type=float,
    metavar="Z",
    help="Release the sums with Gaussian noise of Z sensitivities, charged to the run's ledger.  [default: no noise]",
)
@click.option(
    "--epsilon",
    type=float,
    metavar="E",
    help="Largest epsilon of the run and its releases together; without --noise-multiplier, also the noise is computed "
    "from it.  [default: epsilon of the run's plan]",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FOLDER", help="Folder for the report.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def federated(
    run: Path,
    groups: str,
    table: Path | None,
    alpha: float,
    level: float,
    gap: float | None,
    noise_multiplier: float | None,
    epsilon: float | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Test whether a trained run is as accurate for its test clients of all groups.

    RUN is the folder of a run. Each test client adds its accuracy over all its text to the sums of its group, and only
    these sums leave the clients. The unit is the client: its tokens do not count one by one.
    """
    extras.require("federated")
    from fl.fairness.gaps import check_alpha
    from privacy import checks
    from privacy.json_values import plain

    names = split_names("--groups", groups)
    check_alpha(alpha, "--alpha")
    checks.between("--level", level, 0, 0.5, "0.05 is usual")
    if gap is not None:
        checks.between("--gap", gap, 0, 1, "give a gap that would matter", closed_high=True)
    from experiments import federated_fairness
    from experiments.display import ConsoleDisplay
    from experiments.runs import RunFolder

    with naming_options():
        result = federated_fairness.evaluate(
            RunFolder(run),
            names,
            table,
            noise_multiplier=noise_multiplier,
            epsilon=epsilon,
            note=ConsoleDisplay().note,
            alpha=alpha,
            level=level,
            gap=gap,
        )
    if as_json:
        facts = {**result.frame.to_dict(), "unit": "client", "privacy": result.privacy}
        click.echo(json.dumps(plain(facts), indent=1, ensure_ascii=False))
    else:
        click.echo(format_frame(result.frame, "client"))
        if result.clients is not None:
            total, without = result.clients
            click.echo(
                f"  {'unit':<22}client: {total:,} test clients, of whom {without:,} have no token and do not count"
            )
            click.echo(f"  {'privacy':<22}none: exact sums, for the operator only, outside any epsilon")
        for name, value in (result.privacy or {}).items():
            click.echo(f"  {name + ':':<41}{value}")
    if output is not None:
        from fl.fairness import report

        name = run.resolve().name
        built = report.build(
            result.frame, title=name, source=f"test clients of {name}", unit="client", privacy=result.privacy
        )
        paths = built.write(output)
        click.echo(f"wrote {paths[0]}, .md and .json", err=as_json)
