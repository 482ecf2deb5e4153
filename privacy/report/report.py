"""The privacy report: what was promised, what happened and what it cost, computed from the ledger.

Two variants. The operator's names cohort sizes, participations and rejected updates. The one for release
leaves out all that is only safe with the operator, because amplification by sampling holds only while
cohorts are secret, and lists what it leaves out. Neither holds a client id or a key.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from privacy import files
from privacy.accounting.guarantee import format_epsilon
from privacy.budget import Releases
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.report import contents as statement

_TEMPLATES = pathlib.Path(__file__).parent / "templates"
SCHEMA_FILE = _TEMPLATES / "report.schema.json"


@dataclasses.dataclass(frozen=True)
class Report:
    """A report's contents and its three forms.

    Attributes:
      data: JSON-able contents; `privacy/templates/report.schema.json` describes those of a run.
      template: name of the templates, "report" or "statistics".
    """

    data: dict[str, Any]
    template: str = "report"

    @property
    def is_for_publication(self) -> bool:
        """Whether everybody may read it; the report of a run for its operator is the one that nobody else may."""
        return self.template == "statistics" or bool(self.data["release"])

    def to_json(self) -> str:
        """JSON, indented; an infinite ε is null."""
        return json.dumps(self.data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Markdown with tables and no plots."""
        text = _environment(html=False).get_template(f"{self.template}.md.jinja").render(self.data)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    def to_html(self) -> str:
        """One HTML page with its style and plots inside: no script, no request."""
        from markupsafe import Markup

        drawn = {}
        if self.template == "report":
            from privacy.report import plots

            drawn = {name: Markup(svg) for name, svg in plots.draw(self.data).items()}
        return _environment(html=True).get_template(f"{self.template}.html.jinja").render(self.data, plots=drawn)

    def write(self, folder: str | pathlib.Path, stem: str = "report") -> list[pathlib.Path]:
        """Writes `stem`.html, .md and .json into `folder` (made if missing), each whole or not at all; returns them.

        An operator's report has mode 0600; the mode of one that is for publication follows the umask.
        """
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write = files.write_public if self.is_for_publication else files.write_private
        paths = []
        for suffix, text in (
            (".html", self.to_html()),
            (".md", self.to_markdown()),
            (".json", self.to_json()),
        ):
            path = folder / (stem + suffix)
            write(path, text.encode())
            paths.append(path)
        return paths


def build(plan: PrivacyPlan, ledger: Ledger, facts: Mapping[str, Any], release: bool = False) -> Report:
    """The report of a run.

    Args:
      plan: the run's plan; must be the one in the ledger's header.
      ledger: what happened, open or read.
      facts: what the ledger cannot know; all optional:
        run: str, the run's name.
        non_finite: int, updates zeroed; the operator's. Without it the ledger's `non_finite` facts are
          summed.
        evaluation: {"clients": int, "rows": [{"name", "nats": {"estimate", "low", "high"}, "bits", "gain":
          same or None}]}, losses on clients who are in no training cohort.
        versions: dict of package versions.
      release: leave out what is only safe with the operator.

    Raises:
      ValueError: the plan differs from the ledger's.
    """
    if plan != ledger.plan:
        raise ValueError(f"the plan is not the one in ledger {ledger.path}: report on ledger.plan")
    return Report(statement.compose(plan, ledger, facts, release=release))


def of_releases(ledger: Releases) -> Report:
    """The report on single releases, from the ledger of their `privacy.budget.Budget`, open or read.

    Everything in it may be released: it names mechanisms and costs, and no result.
    """
    return Report(statement.of_releases(ledger), "statistics")


def _environment(*, html: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "eps": _eps,
        "num": _num,
        "md": _markdown,
        "delta": _delta,
        "count": lambda value: f"{value:,.10g}",
    }
    return environment


def _eps(value: float | None) -> str:
    return "∞" if value is None else format_epsilon(value)


def _delta(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} · 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _num(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _markdown(value: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
