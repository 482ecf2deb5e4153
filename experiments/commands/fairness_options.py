"""Holds what the commands of `fedspeak fairness` share: options, their names in errors, and the printed result."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl.fairness import FairnessFrame

ALPHA = "Share of the weight that F_alpha leaves out, from 0 to below 1: 0.9 looks at the worst tenth."
_OPTIONS = {
    "y_true": "--outcome",
    "y_pred": "--prediction",
    "sensitive_features": "--groups",
    "control_features": "--strata",
    "draws": "--draws",
    "bounds": "--bounds",
    "alpha": "--alpha",
    "level": "--level",
    "gap": "--gap",
    "rate": "--rate",
    "weights": "--weights",
    "probabilities": "the probabilities of --plan",
    "noise_multiplier": "--noise-multiplier",
}


def split_names(option: str, text: str) -> list[str]:
    """Returns the names in the value of an option; raises ValueError unless they differ."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{option} {text!r} must name different columns, separated by commas")
    return names


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Makes errors name the options as the user typed them."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for name, option in _OPTIONS.items():
            message = re.sub(rf"^(?:([^:]*: ))?{name} ", rf"\1{option} ", message)
        message = message.replace("or texts if the numbers are names", "or name it in --categorical")
        raise ValueError(message.replace("the rows form", "--groups: the rows form")) from None


CATEGORICAL = "Columns of groups, separated by commas, whose numbers are names, such as postal codes."


def split_categorical(text: str | None, columns: Sequence[str]) -> list[str]:
    """Returns the names in the value of --categorical; raises ValueError unless all are among `columns`."""
    names = [] if text is None else split_names("--categorical", text)
    if unknown := [name for name in names if name not in columns]:
        raise ValueError(f"--categorical {unknown[0]} is no column of groups: it must be one of {', '.join(columns)}")
    return names


def format_frame(frame: FairnessFrame, unit: str = "row") -> str:
    """Returns the results of a frame as text; `unit` is what one observation is."""
    first = frame.tests[0].result
    several = len(frame.tests) > 1
    lines = [
        f"{len(frame.groups) + frame.unlisted_groups:,} groups by {', '.join(frame.sensitive_levels)}; "
        f"alpha {first.alpha:g}; level {first.level:g}{' after Holm' if several else ''}"
    ]
    for test in frame.tests:
        result = test.result
        name = ", ".join(map(str, (test.metric, *test.stratum)))
        verdict = "the groups are NOT ALIKE" if test.rejects else "no difference between groups is shown"
        adjusted = f", by Holm {test.adjusted_p:.3g}" if several else ""
        lines += [
            "",
            f"{name}: {verdict}",
            f"  {'overall of tested':<22}{result.overall:.4g}",
            f"  {'p':<22}{result.p_value:.3g}{adjusted}, by {result.p_value_by}",
            f"  {'F_alpha at least':<22}{result.gap_low:.4g}",
            f"  {'F_alpha at most':<22}{result.gap_high:.4g}  (each bound with probability {1 - result.level:g})",
            f"  {'tested':<22}{result.rows:,} {unit}s of {result.groups:,} "
            f"{'draws' if result.sampling == 'attribute-specific' else 'groups'}, sampling: {result.sampling}",
        ]
        without = int((test.sums.counts == 0).sum()) + frame.unlisted_groups
        if result.sampling == "noisy counts":
            lines.append(
                f"  {'not tested':<22}{result.untested_groups:,} groups without clearly more {unit}s than the noise, "
                f"with about {result.untested_weight:.0%} of the {unit}s"
            )
        elif without or result.untested_groups:
            lines.append(
                f"  {'not tested':<22}{without:,} groups without {unit}s; {result.untested_groups:,} groups with too "
                f"few, weight {result.untested_weight:.2%}"
            )
        if result.power is not None:
            lines.append(f"  {'power at the gap':<22}{result.power:.3g}")
        worst = test.max_gap.worst
        lines.append(
            f"  {'largest gap alone':<22}{test.max_gap.gaps[worst]:+.4g} in {', '.join(map(str, frame.groups[worst]))}"
            f", to the overall {test.max_gap.overall:.4g} of all groups with {unit}s; p {test.max_gap.p_value:.3g}"
        )
    return "\n".join(lines)
