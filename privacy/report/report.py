"""Builds privacy reports from ledgers: what was planned, what happened and what it cost.

A run has two reports. The operator's report contains cohort sizes, participations and the number of updates that were
not finite. The report for publication leaves out everything that only the operator may see, and lists what it leaves
out: amplification by sampling holds only while cohorts are secret. Neither report contains a client id or a key.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from privacy import files
from privacy.budget import Releases
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.report import contents
from privacy.report.pages import make_environment, render_markdown, write_formats

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
SCHEMA_FILE = _TEMPLATES / "report.schema.json"


@dataclasses.dataclass(frozen=True)
class Report:
    """Holds the contents of a report and renders them in three formats.

    Attributes:
      data: JSON-able contents; `SCHEMA_FILE` describes those of a run.
      template: name of the templates, "report" for a run or "statistics" for single releases.
    """

    data: dict[str, Any]
    template: str = "report"

    @property
    def is_for_publication(self) -> bool:
        """Returns whether the report may be published. Only the operator's report of a run may not."""
        return self.template == "statistics" or bool(self.data["release"])

    def to_json(self) -> str:
        """Returns the report as indented JSON; an infinite ε is null."""
        return json.dumps(self.data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Returns the report as Markdown, with tables and without plots."""
        return render_markdown(make_environment(_TEMPLATES, html=False), f"{self.template}.md.jinja", self.data)

    def to_html(self) -> str:
        """Returns the report as one HTML page that includes its style and plots and needs no scripts or requests."""
        from markupsafe import Markup

        images = {}
        if self.template == "report":
            from privacy.report import plots

            images = {name: Markup(svg) for name, svg in plots.draw(self.data).items()}
        template = make_environment(_TEMPLATES, html=True).get_template(f"{self.template}.html.jinja")
        return str(template.render(self.data, plots=images))

    def write(self, folder: str | pathlib.Path, stem: str = "report") -> list[pathlib.Path]:
        """Writes `stem`.html, .md and .json into `folder`, each atomically, and returns their paths.

        The folder is made if it does not exist. The operator's report has mode 0600; the mode of a report for
        publication follows the umask.
        """
        write = files.write_public if self.is_for_publication else files.write_private
        return write_formats(folder, stem, write, html=self.to_html(), md=self.to_markdown(), json=self.to_json())


def build(plan: PrivacyPlan, ledger: Ledger, facts: Mapping[str, Any], release: bool = False) -> Report:
    """Returns the report of a run.

    Args:
      plan: plan of the run; must be the one in the ledger's header.
      ledger: ledger of the run, open or read.
      facts: what the ledger does not know, all optional:
        run: str, name of the run.
        non_finite: int, number of updates zeroed because they were not finite, for the operator. By default the
          `non_finite` facts in the ledger are summed.
        evaluation: {"clients": int, "rows": [{"name", "nats": {"estimate", "low", "high"}, "bits", "gain": same or
          None}]}, losses on clients who are in no training cohort. `nats` is per token, `bits` is per character, and
          `gain` is the loss minus that of the trained model, in nats per token.
        versions: dict of package versions.
      release: True for the report for publication, which leaves out what only the operator may see.

    Raises:
      ValueError: the plan differs from the ledger's.
    """
    if plan != ledger.plan:
        raise ValueError(f"the plan is not the one in ledger {ledger.path}: give ledger.plan")
    return Report(contents.compose(plan, ledger, facts, release=release))


def of_releases(ledger: Releases) -> Report:
    """Returns the report on single releases, from the ledger of their `privacy.budget.Budget`, open or read.

    The whole report may be published: it contains mechanisms and costs, and no results.
    """
    return Report(contents.of_releases(ledger), "statistics")
