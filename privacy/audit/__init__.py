"""Audits: attacks on fedspeak's own mechanisms (`cases`), and the bounds on ε that their scores prove (`bounds`)."""

from privacy.audit.bounds import Bound, from_counts, from_scores, in_one_run

__all__ = ["Bound", "from_counts", "from_scores", "in_one_run"]
