"""Formats the results of `fedspeak reproduce cvar-fairness` as Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.intervals import format_interval
from experiments.markdown import markdown_table
from experiments.reproduce.cvar_errors import EXPECTED_RUNS, smallest_p

_TESTS = {
    "weighted": "weighted",
    "attribute-specific": "attribute-specific",
    "largest gap": "largest gap",
    "largest gap, one group": "largest gap, one group has it",
    "weighted, one group": "weighted, one group has it",
    "weighted, Zipf": "weighted, Zipf weights",
}


def format_table(results: Mapping[str, Any]) -> str:
    """Returns all tables of the study."""
    parts = [
        *_identities(results["identities"]),
        *_errors(results["errors"]),
        *_few_rows(results["few_rows"]),
        *_rows(results["rows"]),
        *_exponents(results["exponents"]),
        *_samplings(results["samplings"]),
        *_faults(results["faults"]),
        *_people(results["tables"]),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _identities(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [(row["name"], row["found"], row["wanted"], "yes" if row["holds"] else "NO") for row in rows]
    return ["### Identities", "", *markdown_table(("what", "found", "wanted", "holds"), cells), ""]


def _errors(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        expected = {key: f"{value['share']:.4f}" for key, value in row["expected"].items()}
        threshold, level = row["threshold"], row["level"]
        cells.append(
            (
                row["name"],
                f"{row['groups']:,}",
                f"{row['rows']:,}",
                format_interval(threshold["false_alarm"], 4) if threshold else "",
                expected.get("false_alarm", ""),
                format_interval(threshold["miss"], 4) if threshold else "",
                expected.get("miss", ""),
                format_interval(level["false_alarm"], 4) if level else "",
                f"{level['power']['estimate']:.4f}" if level else "",
            )
        )
    lines = [
        "### Error probabilities",
        "",
        "At the threshold halfway between equal groups and the gap, beside those that an independent program found in "
        f"{EXPECTED_RUNS:,}",
        "simulations; and of the test at the level 0.05. In brackets: 95 % intervals.",
        "",
        *markdown_table(
            (
                "rows",
                "groups",
                "number of rows",
                "false alarms",
                "expected",
                "misses",
                "expected",
                "false alarms at 0.05",
                "power at 0.05",
            ),
            cells,
        ),
        "",
    ]
    if any(row["expected"] and row["threshold"] for row in rows):
        p_value, number = smallest_p(rows)
        lines += [
            f"Of {number} comparisons with the independent program the smallest p-value is {p_value:.3g} (Fisher's "
            f"exact test); by Bonferroni {min(p_value * number, 1):.2g}.",
            "",
        ]
    return lines


def _few_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def share(row: Mapping[str, Any], name: str, key: str) -> str:
        if name not in row:
            return ""
        found = row[name][key]
        return format_interval(found, 3) if row["runs"] else f"{found['estimate']:.3f}"

    cells = [
        (
            row["table"],
            f"losses, {row['rate']:g}" if row["values"] == "losses" else f"{row['values']} scores",
            f"{row['few']:.2f}",
            *(share(row, name, key) for name in ("level", "power") for key in ("gamma", "test")),
        )
        for row in rows
    ]
    columns = ("gamma: level", "test: level", "gamma: power", "test: power")
    return [
        "### Few rows",
        "",
        "Shares of tests that reject at the level 0.05: by the gamma distribution alone, and by the test, which",
        'replaces it where few rows decide; "few" is the share of tests in which they do. For the power, the rate of',
        "the first group is larger by 0.3. Without an interval: by enumeration, with the large group's rate as known.",
        "",
        *markdown_table(("equally weighted groups of", "values", "few", *columns), cells),
        "",
    ]


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = []
    for row in rows:
        size = f"{math.sqrt(row['size']):,.1f}" if "Zipf" in row["test"] else ""
        cells.append(
            (
                _TESTS[row["test"]],
                f"{row['groups']:,}",
                size,
                f"{row['rows']:,.0f}",
                f"{row['low']:,.0f} to {row['high']:,.0f}",
                f"{row['planned']:,}",
                format_interval(row["false_alarm"], 3),
                format_interval(row["power"], 3),
            )
        )
    cells.sort(key=lambda cell: list(_TESTS.values()).index(cell[0]))
    header = ("test", "groups", "e^(H/2)", "rows needed", "95 % interval", "planned", "false alarms", "power")
    return ["### Rows needed to find the gap 0.2, each error at most 0.05", "", *markdown_table(header, cells), ""]


def _exponents(fits: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        (
            _TESTS[fit["test"]],
            "e^H" if "Zipf" in fit["test"] else "groups",
            format_interval(fit["all"], 3),
            format_interval(fit["large"], 3) if fit["large"] else "",
            f"{fit['planned']:.3f}",
        )
        for fit in fits
    ]
    header = ("test", "rows grow with", "exponent", "from 1,000 groups on", "exponent of the plan")
    return ["### Exponents of the rows needed", "", *markdown_table(header, cells), ""]


def _samplings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    best = min(row["rows"] for row in rows)
    cells = [
        (
            f"weight^{row['exponent']:.3g}",
            f"{row['noise']:.3f}",
            f"{row['rows']:,.0f}",
            f"{row['low']:,.0f} to {row['high']:,.0f}",
            f"{row['rows'] / best:.2f}",
            format_interval(row["false_alarm"], 3),
        )
        for row in rows
    ]
    header = ("groups drawn by", "Σ w²/π² over e^H", "rows needed", "95 % interval", "over the least", "false alarms")
    return [f"### Sampling of {rows[0]['groups']:,} groups with Zipf weights", "", *markdown_table(header, cells), ""]


def _faults(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [
        (
            row["fault"],
            row["check"],
            f"{row['right']}: {'passes' if row['passes'] else 'FAILS'}",
            f"{row['wrong']}: {'caught' if row['caught'] else 'NOT CAUGHT'}",
        )
        for row in rows
    ]
    return ["### Planted faults", "", *markdown_table(("fault", "check", "without it", "with it"), cells), ""]


def _people(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    if not tables:
        return []
    metrics, parts, libraries = [], [], []
    for table in tables:
        metrics += [(table["table"], *_metric(row)) for row in table["metrics"]]
        shares = [("all, losses permuted", table["permuted"]), *((f"{row['rows']:,}", row) for row in table["parts"])]
        for name, row in shares:
            parts.append((table["table"], name, format_interval(row["cvar"], 3), format_interval(row["largest"], 3)))
        libraries += [(table["table"], *_library(row)) for row in table["libraries"]]
    columns = ("metric", "rows", "groups tested", "overall", "p", "F_0.8", "p, largest gap", "largest gap", "shown")
    lines = [
        "### Tables of people",
        "",
        "The last column counts groups whose interval, corrected for their number, excludes the overall rate.",
        "",
        *markdown_table(("table", *columns), metrics),
        "",
        "Shares of tests of the errors that reject at the level 0.05: of all people with the errors in random order,",
        "and of random parts of the table.",
        "",
        *markdown_table(("table", "rows", "test of F_0.8", "test of the largest gap"), parts),
        "",
    ]
    if libraries:
        lines += ["### The same errors in other libraries", ""]
        lines += markdown_table(("table", "library", "finds", "finds if groups are permuted", "seconds"), libraries)
    return lines


def _metric(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["metric"],
        f"{row['rows']:,}",
        f"{row['groups']} of {row['combinations']}",
        f"{row['overall']:.3f}",
        _p_value(row["p_value"]),
        f"{row['gap_low']:.3f} to {row['gap_high']:.3f}",
        _p_value(row["largest_p"]),
        f"{row['largest_gap']:+.3f}, {row['worst_rows']:.0f} rows: {row['worst']}",
        str(row["shown_groups"]),
    )


def _p_value(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-300 else "< 1e-300"


def _library(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if row["package"] == "fairlearn":
        found = f"largest gap {row['gap']:.3f}, bootstrap interval {row['low']:.3f} to {row['high']:.3f}"
        permuted = row["permuted_low"]
        chance = f"{sum(low > 0 for low in permuted)} of {len(permuted)} intervals above 0, from {min(permuted):.3f} on"
    else:
        group = "; ".join(f"{name}: {' or '.join(values)}" for name, values in sorted(row["subgroup"].items()))
        found = f"{group or 'everyone'}: {row['rows']:,} rows, rate {row['rate']:.3f}, score {row['score']:.1f}"
        scores = row["permuted_scores"]
        chance = f"scores up to {max(scores):.1f} in {len(scores)}"
    return f"{row['package']} {row['version']}", found, chance, f"{row['seconds']:.0f}"
