"""Counts what the build of a token store stored and what it left out, and describes in words what it left out."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class BuildStatistics:
    """Holds counts of what a build stored and of what it left out.

    Attributes:
      clients: clients in the store.
      sentences: sentences of these clients.
      tokens: tokens of these clients, begin and ends of sentences included.
      dropped_clients: clients left out because they had fewer than `min_tokens` tokens.
      dropped_tokens: the tokens of those clients.
      bad_rows: rows of the source that could not be used.
      examples: the first bad rows, each as "file:line: reason".
      suspicious_rows: rows of the source that were read although they look wrong.
      notes: what else the source passed over, or read and found suspicious; one line each.
      near_ids: ids of the source that are near-equal to another (`fl.near_ids`).
      near_groups: groups that those ids form; each may be one person.
      near_examples: the first groups, in words.
      merged_ids: whether the store joined each group to one client.
    """

    clients: int = 0
    sentences: int = 0
    tokens: int = 0
    dropped_clients: int = 0
    dropped_tokens: int = 0
    bad_rows: int = 0
    examples: tuple[str, ...] = ()
    suspicious_rows: int = 0
    notes: tuple[str, ...] = ()
    near_ids: int = 0
    near_groups: int = 0
    near_examples: tuple[str, ...] = ()
    merged_ids: bool = False

    @staticmethod
    def from_dict(content: dict[str, Any]) -> BuildStatistics:
        """Builds the statistics from the dict that `dataclasses.asdict` makes of them, after it went through JSON."""
        return BuildStatistics(**{k: tuple(v) if isinstance(v, list) else v for k, v in content.items()})

    @property
    def left_out(self) -> str:
        """Describes what did not come into the store, for the message of a failure that this may have caused.

        The text is a space and a phrase in parentheses. It is empty if there are no bad rows, no dropped clients and no
        notes.
        """
        parts = []
        if self.bad_rows:
            first = f", the first: {self.examples[0]}" if self.examples else ""
            parts.append(f"{self.bad_rows} bad {'row' if self.bad_rows == 1 else 'rows'}{first}")
        if self.dropped_clients:
            parts.append(f"{self.dropped_clients} clients below min_tokens")
        parts += self.notes
        return f" ({'; '.join(parts)})" if parts else ""
