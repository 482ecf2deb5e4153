"""Keeps the ledger of a run: an append-only, hash-chained file that records each round before its release."""

from privacy.ledger.compliance import Round
from privacy.ledger.ledger import FORMAT, Ledger, Release

__all__ = ["FORMAT", "Ledger", "Release", "Round"]
