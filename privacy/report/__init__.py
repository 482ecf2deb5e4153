"""Builds privacy reports: `build` from a plan and its ledger, `of_releases` from the ledger of single releases."""

from privacy.report.report import SCHEMA_FILE, Report, build, of_releases

__all__ = ["SCHEMA_FILE", "Report", "build", "of_releases"]
