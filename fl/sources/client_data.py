"""Reads clients' text from any `tff.simulation.datasets.ClientData` object."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from fl.near_ids import is_blank
from fl.sources.base import BadRows, is_unicode
from fl.sources.table import id_text


class ClientData(Protocol):
    """Describes the part of `tff.simulation.datasets.ClientData` that fedspeak uses."""

    @property
    def client_ids(self) -> list[Any]:
        """Returns the client ids: strings or integers."""

    def create_tf_dataset_for_client(self, client_id: Any) -> Any:
        """Returns a `tf.data.Dataset` of the client's examples."""


@dataclass(frozen=True)
class FromClientData:
    """Reads a ClientData object as a source; each string in an example's text is one sentence.

    Each pass over the source creates one `tf.data.Dataset` per client, and the fingerprint needs a pass of its own.
    For the SQLite files of TFF, `SqliteClients` is therefore many times faster. In a bad row, `file` is the client id
    and `line` the number of the example, from 1. An id that `client_ids` lists more than once is read once, and a
    note says so.

    Attributes:
      client_data: the object that is read.
      feature: key of the text in an example; None if the example itself is a string or an array of strings.
      name: name of the data in messages and reports.
      strict: whether the first bad row raises ValueError.
    """

    client_data: ClientData
    feature: str | None
    name: str
    strict: bool

    @property
    def description(self) -> str:
        """Returns the name and the feature in one line."""
        return f"{self.name}, text in {'the example' if self.feature is None else f'feature {self.feature!r}'}"

    @cached_property
    def bad_rows(self) -> BadRows:
        """Returns the examples and clients of the last iteration that could not be used."""
        return BadRows(self.strict)

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of all client ids and sentences; reads all of them."""
        digest = hashlib.sha256(b"client data 1")
        for client, sentences in self:
            for text in (client, *sentences):
                digest.update(len(text.encode()).to_bytes(8, "big") + text.encode())
            digest.update(len(sentences).to_bytes(8, "big"))
        return digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        seen: set[tuple[type, str]] = set()
        repeated = 0
        for client_id in self.client_data.client_ids:
            client = id_text(client_id)
            if client is None or not is_unicode(client) or is_blank(client):
                self.bad_rows.add(repr(client_id), 0, "the client id is blank, or neither Unicode text nor an integer")
                continue
            if (type(client_id), client) in seen:
                repeated += 1
                continue
            seen.add((type(client_id), client))
            sentences = []
            number = 0
            dataset = self.client_data.create_tf_dataset_for_client(client_id)
            for number, example in enumerate(dataset.as_numpy_iterator(), 1):
                try:
                    sentences += self._texts(example)
                except ValueError as error:
                    self.bad_rows.add(client, number, str(error))
            if sentences:
                yield client, sentences
            elif number == 0:
                self.bad_rows.add(client, 0, "the client has no examples")
        if repeated:
            self.bad_rows.notes.append(f"client_ids repeats {repeated} ids: each client is read once")

    def _texts(self, example: Any) -> list[str]:
        value = example
        if self.feature is not None:
            if not isinstance(example, dict) or self.feature not in example:
                names = ", ".join(map(repr, example)) if isinstance(example, dict) else "no features"
                raise ValueError(f"no feature {self.feature!r}; the example has {names}")
            value = example[self.feature]
        values = np.asarray(value, dtype=object).reshape(-1).tolist()
        if not all(isinstance(text, bytes) for text in values):
            raise ValueError("the text is not a string")
        try:
            texts = [text.decode() for text in values]
        except UnicodeDecodeError:
            raise ValueError("not UTF-8") from None
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError("the text is empty")
        return texts


def load(
    client_data: ClientData, feature: str | None, *, name: str = "client data", strict: bool = False
) -> FromClientData:
    """Returns the source that reads `client_data`; the arguments are the attributes of `FromClientData`.

    Raises:
      ValueError: `client_data` has no clients.
    """
    if not client_data.client_ids:
        raise ValueError(f"{name}: client_ids is empty, give client data with at least one client")
    return FromClientData(client_data, feature, name, strict)
