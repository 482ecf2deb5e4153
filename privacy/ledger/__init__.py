"""The ledger of a run: an append-only, hash-chained file that records each round before anything of it is released."""

from privacy.ledger.compliance import Round
from privacy.ledger.ledger import FORMAT, Ledger

__all__ = ["FORMAT", "Ledger", "Round"]
