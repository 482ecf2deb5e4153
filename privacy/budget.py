"""Provides budgets for several releases about one set of records, and the ledger that enforces a budget.

with Releases.open("ledger.jsonl", Budget(epsilon=2.0, delta=1e-6)) as ledger:
    mean = dp_mean(ages, 0, 100, epsilon=0.5, ledger=ledger)

The cost of each release is recorded on the disk before its noise is drawn. A release that would exceed the budget is
refused.
"""

from __future__ import annotations

import dataclasses
import pathlib
from types import TracebackType
from typing import Any, Literal, get_args

from privacy import checks
from privacy.accounting import costs
from privacy.accounting.guarantee import SEEDED, Guarantee, format_epsilon
from privacy.ledger.append_only_file import ChainedFile
from privacy.ledger.ledger import version
from privacy.sampling import Relation

FORMAT = 1
_COSTS: dict[str, Any] = {"pure": costs.Pure, "gaussian": costs.Gaussian}


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits what all releases about a set of records may cost together.

    Attributes:
      epsilon: largest ε that all releases together may reach, above 0.
      delta: δ at which that ε is stated, in [0, 1); the default 0 allows only releases with pure ε.
      relation: neighbouring relation, "add-or-remove-one" or "replace-one". Releases under the other relation are
        refused, never converted.
      unit: what is protected; only "record" is supported.
    """

    epsilon: float
    delta: float = 0.0
    relation: Relation = "add-or-remove-one"
    unit: Literal["record"] = "record"

    def __post_init__(self) -> None:
        checks.plain_numbers(self)
        checks.positive("epsilon", self.epsilon, "give the budget to keep")
        if self.delta != 0:
            checks.between("delta", self.delta, 0, 1, "1e-6 is usual, below 1 / records")
        if self.relation not in get_args(Relation)[:2]:
            raise ValueError(f"relation is {self.relation!r}: for records give 'add-or-remove-one' or 'replace-one'")
        if self.unit != "record":
            raise ValueError(f"unit must be 'record', got {self.unit!r}: for clients use a PrivacyPlan")


class Releases:
    """Keeps the ledger of a `Budget`: `open` begins or continues a ledger, `read` reads one without writing.

    Attributes:
      path: path of the file.
      budget: the budget in the file's header.
      version: version of fedspeak that began the ledger.
      releases: guarantees of the recorded releases, in order.
    """

    def __init__(self, file: ChainedFile, budget: Budget | None) -> None:
        self.path = file.path
        self.version = ""
        self.releases: list[Guarantee] = []
        self._file = file
        self._budget = budget
        self._account = costs.Account(0.0 if budget is None else budget.delta)

    @staticmethod
    def open(path: str | pathlib.Path, budget: Budget) -> Releases:
        """Opens the ledger at `path` for writing, or begins it, and holds a lock on it until `close`.

        Several threads may use the returned object. A forked process, or a copy of the object, cannot record.

        Args:
          path: path of the ledger's file.
          budget: the budget to keep; must equal the one in the header of an existing ledger.

        Raises:
          ValueError: a line is damaged, or the ledger was begun under another budget.
          BlockingIOError: another process is writing the ledger.
          OSError: the file cannot be opened or written.
        """
        releases = Releases(ChainedFile.open(path), budget)
        try:
            releases._replay()
        except BaseException:
            releases.close()
            raise
        return releases

    def close(self) -> None:
        """Releases the lock; nothing can be recorded afterwards."""
        self._file.close()

    def __enter__(self) -> Releases:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def read(path: str | pathlib.Path) -> Releases:
        """Returns the ledger at `path` without changing it. Raises ValueError naming a damaged line."""
        releases = Releases(ChainedFile.read(path), None)
        releases._replay()
        return releases

    @property
    def budget(self) -> Budget:
        """Returns the budget in the ledger's header."""
        assert self._budget is not None
        return self._budget

    @property
    def spent(self) -> float:
        """Returns the ε of all releases together, at the budget's δ."""
        return self._account.least.epsilon

    @property
    def accountant(self) -> str:
        """Returns the bound that gave `spent`: "PLD", "RDP" or "sum" (see `privacy.accounting.costs.Least`)."""
        return self._account.least.accountant

    def __str__(self) -> str:
        """Describes on one line what was spent: ε of all releases together, with δ, budget, unit and relation."""
        budget = self.budget
        at = f" at delta {budget.delta:.3g}" if budget.delta else ""
        return (
            f"epsilon {format_epsilon(self.spent)}{at}, budget {_as_given(budget.epsilon)}; "
            f"unit {budget.unit}, {budget.relation}; "
            f"{len(self.releases)} releases, each with its own sampler and noise"
        )

    @property
    def head(self) -> str:
        """Returns the chained SHA-256 digest of the ledger's last line."""
        return self._file.digests[-1]

    def record(self, release: Guarantee) -> None:
        """Records a release and returns once it is on the disk. Call it before the release's noise is drawn.

        Raises:
          ValueError: the release has another unit or relation, or would exceed the budget; nothing was written.
          OSError: the ledger could not be written; nothing may be released.
        """
        for name in ("unit", "relation"):
            if getattr(release, name) != getattr(self.budget, name):
                raise ValueError(
                    f"release has {name} {getattr(release, name)!r}, the budget {getattr(self.budget, name)!r}: "
                    f"use a budget with the same {name}"
                )
        if self.budget.delta == 0 and release.delta:
            raise ValueError(f"release has delta {release.delta:g}, the budget has 0: use a mechanism of pure epsilon")
        with self._file.writing():
            account = self._account.plus(release.costs)
            total = account.least.epsilon
            if not total <= self.budget.epsilon:
                would, spent = _tell_apart(total, self.spent, self.budget.epsilon)
                raise ValueError(
                    f"with this release epsilon would be {would}, above the budget of "
                    f"{_as_given(self.budget.epsilon)} ({spent} is spent): release less, or with more noise"
                )
            self._file.append({"kind": "release", "number": len(self.releases), **_to_dict(release)})
            self._append(release, account)

    @property
    def has_seeded_noise(self) -> bool:
        """Returns whether the noise of some release came from a seed. If so, ε does not hold."""
        return any(SEEDED in release.noise for release in self.releases)

    def _append(self, release: Guarantee, account: costs.Account) -> None:
        self.releases.append(release)
        self._account = account

    def _replay(self) -> None:
        for number, line in self._file.lines():
            try:
                if number == 1:
                    self._begin(line)
                elif line["kind"] != "release" or line["number"] != len(self.releases):
                    raise ValueError(f"ledger {self.path} line {number} is out of order: restore the file")
                else:
                    release = _from_dict(line)
                    self._append(release, self._account.plus(release.costs))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"ledger {self.path} line {number} is not a valid line of a budget's ledger ({error!r}): "
                    "restore the file or choose another one"
                ) from None
        if len(self._file.digests) == 1:
            self.version = version()
            budget = {"kind": "budget", **dataclasses.asdict(self.budget)}
            with self._file.writing():
                self._file.append({"kind": "header", "format": FORMAT, "version": self.version, "plan": budget})

    def _begin(self, line: dict[str, Any]) -> None:
        plan = dict(line["plan"])
        if line["format"] != FORMAT or plan.pop("kind", None) != "budget":
            raise ValueError(f"ledger {self.path} does not belong to a budget: choose another file")
        budget = Budget(**plan)
        if self._budget not in (None, budget):
            raise ValueError(f"ledger {self.path} was begun under another budget: give {budget}, or another file")
        self._budget, self.version = budget, line["version"]
        self._account = costs.Account(budget.delta)


def _tell_apart(total: float, spent: float, budget: float) -> tuple[str, str]:
    """Returns `total` and `spent` as text, with enough digits to tell them from each other and from `budget`."""
    texts = "", ""
    for digits in range(4, 18):
        texts = f"{total:.{digits}g}", f"{spent:.{digits}g}"
        if float(texts[0]) > max(budget, float(texts[1])) and (float(texts[1]) < budget or not spent < budget):
            break
    return texts


def _as_given(value: float) -> str:
    """Returns `value` as text with all its digits, and without a decimal point if it is an integer."""
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)


def _to_dict(release: Guarantee) -> dict[str, Any]:
    names = {kind: name for name, kind in _COSTS.items()}
    costs_ = [{"kind": names[type(cost)], **dataclasses.asdict(cost)} for cost in release.costs]
    return {**dataclasses.asdict(release), "costs": costs_}


def _from_dict(line: dict[str, Any]) -> Guarantee:
    fields = {field.name: line[field.name] for field in dataclasses.fields(Guarantee)}
    parts = [dict(cost) for cost in fields.pop("costs")]
    return Guarantee(costs=tuple(_COSTS[part.pop("kind")](**part) for part in parts), **fields)
