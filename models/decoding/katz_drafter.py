"""Drafts with a Katz back-off model, by the tables of `models.decoding.katz_tables`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from models.decoding.katz_tables import KatzTables
from models.decoding.ngram_drafter import AutomatonDrafter
from models.katz import KatzModel


class KatzDrafter(AutomatonDrafter):
    """Drafts with a Katz model of the target's vocabulary; a step looks up all V tokens for each order.

    Its logits are those of `KatzTables.all_log_probs`.

    Args:
      model: the model.
    """

    def __init__(self, model: KatzModel) -> None:
        self.tables = KatzTables(model)

    def deploy(self, context: int | None, hold: Callable[[Any], Any], is_int8: bool) -> KatzDrafter:
        """Returns a drafter whose tables are variables; see `Drafter.deploy`."""
        deployed = copy.copy(self)
        deployed.tables = self.tables.deploy(hold)
        return deployed

    def _advance(self, tokens: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        return self.tables.advance(state, tokens)

    def _log_probs(self, state: tf.Tensor) -> tf.Tensor:
        return self.tables.all_log_probs(state)
