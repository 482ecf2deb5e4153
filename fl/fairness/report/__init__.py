"""Writes the report of a fairness test, as HTML, Markdown and JSON."""

from fl.fairness.report.report import FairnessReport, build

__all__ = ["FairnessReport", "build"]
