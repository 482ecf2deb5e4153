"""Provides clients' text for the tests of the token store."""

import hashlib
import json

from fl.sources.base import BadRows
from models.vocabulary import SMALLEST, learn

WORDS = learn([], SMALLEST)


class Rows:
    """A source of given pieces, which counts how often it is read."""

    def __init__(self, pieces, bad=(), name="rows"):
        self.pieces = list(pieces)
        self.bad = bad
        self.description = name
        self.bad_rows = BadRows(strict=False)
        self.read = 0

    def fingerprint(self):
        return hashlib.sha256(json.dumps([self.pieces, self.description]).encode()).hexdigest()

    def __iter__(self):
        self.read += 1
        self.bad_rows.restart()
        for row in self.bad:
            self.bad_rows.add(*row)
        yield from self.pieces


def two_clients():
    return Rows([("b", ["one", "two"]), ("a", ["three"]), ("b", ["four"])])
