"""Releases by OpenDP in this kit's account: a measurement of its is recorded in a ledger before it is invoked.

OpenDP (https://docs.opendp.org, the extra `opendp`) draws its noise by itself and states its cost by the measurement's
privacy map. So this kit's mechanisms cannot take OpenDP's noise, but the two can share one budget.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee
from privacy.sampling import Relation

if TYPE_CHECKING:
    from privacy.budget import Releases

# Metric of OpenDP → relation → how far apart neighbours are in it.
_DISTANCES: dict[str, dict[str, int]] = {
    "SymmetricDistance": {"add-or-remove-one": 1, "replace-one": 2},
    "InsertDeleteDistance": {"add-or-remove-one": 1, "replace-one": 2},
    "ChangeOneDistance": {"replace-one": 1},
    "HammingDistance": {"replace-one": 1},
}


class OpenDPRelease(NamedTuple):
    """What a measurement gave.

    Attributes:
      value: the measurement's, of its type.
      guarantee: ε with all that belongs to it, by OpenDP's privacy map.
    """

    value: Any
    guarantee: Guarantee


def opendp_release(
    measurement: Any,
    data: Any,
    relation: Relation = "add-or-remove-one",
    ledger: Releases | None = None,
) -> OpenDPRelease:
    """Invokes an OpenDP measurement on records and states its guarantee; one of pure ε ("max divergence") only.

    A zCDP measurement is refused: this account composes loss distributions, and ρ alone does not give one.

    Args:
      measurement: of records (not of aggregates): its input metric counts records added, removed or changed.
      data: the records, as the measurement takes them.
      relation: that the guarantee holds for.
      ledger: of a `privacy.budget.Budget`; what is released is written there before any noise is drawn.

    Raises:
      ValueError: the measurement is none of pure ε under `relation`, or the budget does not allow it, in one line.
    """
    if relation == "add-or-remove-one" and "size=" in str(measurement.input_domain):
        raise ValueError(
            "measurement is of a number of records that is public: neighbours have as many, give relation replace-one"
        )
    metric, measure = (str(part).partition("(")[0] for part in (measurement.input_metric, measurement.output_measure))
    distance = _DISTANCES.get(metric, {}).get(relation)
    if distance is None:
        raise ValueError(f"measurement has input metric {metric}: it says nothing of records under {relation}")
    if measure != "MaxDivergence":
        raise ValueError(f"measurement has output measure {measure}: this account takes pure ε, MaxDivergence")
    guarantee = Guarantee(
        "OpenDP measurement",
        (costs.Pure(float(measurement.map(distance))),),
        relation,
        0.0,
        f"drawn by OpenDP {version('opendp')}, as hard as its measurement; ε by OpenDP's privacy map",
    )
    if ledger is not None:
        ledger.record(guarantee)
    return OpenDPRelease(measurement(data), guarantee)
