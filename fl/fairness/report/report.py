"""Builds the report of a fairness test: what was tested, what follows, and which groups stand out."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fl.fairness.metric_frame import FairnessFrame, StratumTest
from fl.fairness.report import plots
from privacy import files
from privacy.json_values import plain
from privacy.report.pages import make_environment, render_markdown, write_formats

SCHEMA = "fedspeak-fairness-report/1"
SHOWN_GROUPS = 30
"""Number of groups of each test in tables and plots; the JSON file has all."""

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
_SAMPLING = {
    "given counts": "the numbers of rows of the groups are taken as given; rows are independent given their groups",
    "weighted": "the group of each row was drawn with the planned probability, independently of all other rows",
    "noisy counts": (
        "each client belongs to one group; a group counts with its noisy share of the clients, and is not tested if "
        "its noisy number of clients is below 5 standard deviations of the noise"
    ),
    "attribute-specific": "groups were drawn with their weights as probabilities, and rows collected for each draw",
}


@dataclasses.dataclass(frozen=True)
class FairnessReport:
    """Holds the contents of a report and renders them in three formats.

    Attributes:
      data: JSON-able contents, for the templates.
      frame: the frame as mappings and lists, with all groups, for the JSON file.
    """

    data: dict[str, Any]
    frame: dict[str, Any]

    def to_json(self) -> str:
        """Returns settings, tests and all groups as indented JSON; groups without rows have null."""
        head = {key: self.data[key] for key in ("schema", "title", "verdict", "source", "unit", "privacy")}
        return json.dumps(plain({**head, **self.frame}), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Returns the report as Markdown, with tables and without plots."""
        return render_markdown(make_environment(_TEMPLATES, html=False), "fairness.md.jinja", self.data)

    def to_html(self) -> str:
        """Returns the report as one HTML page that includes its style and plots and needs no scripts or requests."""
        from markupsafe import Markup

        images = [Markup(plots.draw_gaps(test["groups"])) for test in self.data["tests"]]
        template = make_environment(_TEMPLATES, html=True).get_template("fairness.html.jinja")
        return str(template.render(self.data, plots=images))

    def write(self, folder: str | pathlib.Path, stem: str = "fairness") -> list[pathlib.Path]:
        """Writes `stem`.html, .md and .json into `folder`, each atomically with mode 0600, and returns their paths.

        The numbers of small groups can identify people, so that only the operator can read the files.
        """
        texts = {"html": self.to_html(), "md": self.to_markdown(), "json": self.to_json()}
        return write_formats(folder, stem, files.write_private, **texts)


def build(
    frame: FairnessFrame,
    *,
    title: str = "",
    source: str = "",
    unit: Literal["row", "client"] = "row",
    privacy: Mapping[str, Any] | None = None,
) -> FairnessReport:
    """Returns the report of a frame.

    Args:
      frame: the tests and the groups.
      title: what was tested, for the heading.
      source: where the rows come from, such as the name of a file.
      unit: what one observation is: a row, or a client with all its text.
      privacy: facts about the noise in the sums, by name, for a table of the report; None if they are exact.
    """
    first = frame.tests[0].result
    rejected = sum(test.rejects for test in frame.tests)
    data = {
        "schema": SCHEMA,
        "title": title,
        "source": source,
        "unit": unit,
        "privacy": None if privacy is None else dict(privacy),
        "verdict": "not alike" if rejected else "no difference shown",
        "rejected": rejected,
        "alpha": first.alpha,
        "level": first.level,
        "gap": first.gap,
        "sampling": _SAMPLING[first.sampling],
        "features": frame.sensitive_levels,
        "strata": frame.control_levels,
        "groups": len(frame.groups) + frame.unlisted_groups,
        "tests": [_describe(frame, test) for test in frame.tests],
    }
    return FairnessReport(plain(data), frame.to_dict())


def _describe(frame: FairnessFrame, test: StratumTest) -> dict[str, Any]:
    """Returns one test for the templates, with the groups whose own p-values are smallest."""
    gaps = test.max_gap
    order = [int(i) for i in np.argsort(gaps.p_values, kind="stable")[:SHOWN_GROUPS] if np.isfinite(gaps.gaps[i])]
    shown = [
        {
            "name": ", ".join(map(str, frame.groups[i])),
            "rows": int(test.sums.counts[i]),
            "mean": float(test.sums.means[i]),
            "gap": float(gaps.gaps[i]),
            "low": float(gaps.low[i]),
            "high": float(gaps.high[i]),
        }
        for i in order
    ]
    return {
        **dataclasses.asdict(test.result),
        "name": test.metric + (f", {', '.join(map(str, test.stratum))}" if test.stratum else ""),
        "rejects": test.rejects,
        "adjusted_p": test.adjusted_p,
        "max_gap_p": gaps.p_value,
        "overall_of_all": gaps.overall,
        "without_rows": int((test.sums.counts == 0).sum()) + frame.unlisted_groups,
        "with_rows": int((test.sums.counts > 0).sum()),
        "groups_tested": test.result.groups,
        "groups": shown,
    }
