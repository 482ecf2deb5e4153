"""Audits fedspeak's own mechanisms: attacks on them (`cases`), and lower bounds on ε from the scores (`bounds`)."""

from privacy.audit.bounds import Bound, from_counts, from_scores, in_one_run

__all__ = ["Bound", "from_counts", "from_scores", "in_one_run"]
