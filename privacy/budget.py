"""A budget for several releases about one set of records, and their ledger.

with Releases.open("ledger.jsonl", Budget(epsilon=2.0, delta=1e-6)) as ledger:
    mean = dp_mean(ages, 0, 100, epsilon=0.5, ledger=ledger)

Each release is on the disk before its noise is drawn; one that would pass the budget is refused.
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
    """What all releases about the records may cost together.

    Attributes:
      epsilon: ε, above 0.
      delta: δ, in [0, 1); 0 allows releases of pure ε only.
      relation: "add-or-remove-one" or "replace-one"; releases for another are refused, never converted.
      unit: whose data is protected.
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
            raise ValueError(f"relation {self.relation!r} is none of records: add-or-remove-one or replace-one")
        if self.unit != "record":
            raise ValueError(f"unit must be 'record', got {self.unit!r}: clients have a PrivacyPlan")


class Releases:
    """The ledger of a `Budget`: `open` begins it or goes on with it, `read` reads it without writing.

    Attributes:
      path: the file.
      budget: in its header.
      version: of the kit that began it.
      releases: what was recorded, in order.
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

        Threads may share it; a fork or a copy of it records nothing.

        Raises:
          ValueError: a damaged line, or a ledger begun under another budget.
          BlockingIOError: another process is writing it.
          OSError: it cannot be opened or written.
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
        """Reads a ledger without touching it. Raises ValueError naming a damaged line."""
        found = Releases(ChainedFile.read(path), None)
        found._replay()
        return found

    @property
    def budget(self) -> Budget:
        """That of the header."""
        assert self._budget is not None
        return self._budget

    @property
    def spent(self) -> float:
        """ε of all releases together, at the budget's δ."""
        return self._account.least.epsilon

    @property
    def accountant(self) -> str:
        """What gave `spent`: "PLD", "RDP" or "sum", see `privacy.accounting.costs.Least`."""
        return self._account.least.accountant

    def __str__(self) -> str:
        """ε of all releases together, with all that belongs to it."""
        budget = self.budget
        at = f" at delta {budget.delta:.3g}" if budget.delta else ""
        return (
            f"epsilon {format_epsilon(self.spent)}{at} of {budget.epsilon:g}; unit {budget.unit}, {budget.relation}; "
            f"{len(self.releases)} releases, samplers and noise as of each"
        )

    @property
    def head(self) -> str:
        """SHA-256 of the last line."""
        return self._file.digests[-1]

    def record(self, release: Guarantee) -> None:
        """Writes down a release and returns once it is on the disk. Call it before its noise is drawn.

        Raises:
          ValueError: it is for another unit or relation, or the budget does not allow it; nothing was written.
          OSError: the disk would not take it; nothing may be released.
        """
        for name in ("unit", "relation"):
            if getattr(release, name) != getattr(self.budget, name):
                raise ValueError(
                    f"release of {name} {getattr(release, name)}: the budget is of {getattr(self.budget, name)}"
                )
        if self.budget.delta == 0 and release.delta:
            raise ValueError(f"release at delta {release.delta:g}: the budget's is 0, use a pure mechanism")
        with self._file.writing():
            account = self._account.plus(release.costs)
            total = account.least.epsilon
            if not total <= self.budget.epsilon * (1 + 1e-9):
                raise ValueError(
                    f"budget: with this release epsilon would be {total:.4g}, above {self.budget.epsilon:g} "
                    f"({self.spent:.4g} is spent): release less, or with more noise"
                )
            self._file.append({"kind": "release", "number": len(self.releases), **_to_dict(release)})
            self._append(release, account)

    @property
    def has_seeded_noise(self) -> bool:
        """Whether some noise came from a seed: then ε does not hold."""
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
                    raise ValueError("it is out of order")
                else:
                    release = _from_dict(line)
                    self._append(release, self._account.plus(release.costs))
            except (KeyError, TypeError) as error:
                raise ValueError(f"ledger {self.path} line {number} is no ledger of a budget: {error!r}") from None
        if len(self._file.digests) == 1:
            self.version = version()
            budget = {"kind": "budget", **dataclasses.asdict(self.budget)}
            with self._file.writing():
                self._file.append({"kind": "header", "format": FORMAT, "version": self.version, "plan": budget})

    def _begin(self, line: dict[str, Any]) -> None:
        plan = dict(line["plan"])
        if line["format"] != FORMAT or plan.pop("kind", None) != "budget":
            raise ValueError(f"ledger {self.path} is not that of a budget: choose another file")
        budget = Budget(**plan)
        if self._budget not in (None, budget):
            raise ValueError(f"ledger {self.path} was begun under another budget, {budget}: go on with it, or anew")
        self._budget, self.version = budget, line["version"]
        self._account = costs.Account(budget.delta)


def _to_dict(release: Guarantee) -> dict[str, Any]:
    names = {kind: name for name, kind in _COSTS.items()}
    costs_ = [{"kind": names[type(cost)], **dataclasses.asdict(cost)} for cost in release.costs]
    return {**dataclasses.asdict(release), "costs": costs_}


def _from_dict(line: dict[str, Any]) -> Guarantee:
    fields = {field.name: line[field.name] for field in dataclasses.fields(Guarantee)}
    parts = [dict(cost) for cost in fields.pop("costs")]
    return Guarantee(costs=tuple(_COSTS[part.pop("kind")](**part) for part in parts), **fields)
