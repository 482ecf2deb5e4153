"""Records OpenDP measurements in the ledger of a budget and invokes them.

OpenDP (https://docs.opendp.org, the extra `opendp`) draws its own noise and states its cost by the measurement's
privacy map. So fedspeak's mechanisms cannot use OpenDP's noise, but both libraries can share one budget.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from privacy.accounting import costs
from privacy.accounting.guarantee import Guarantee
from privacy.sampling import Relation

if TYPE_CHECKING:
    from privacy.budget import Releases

# OpenDP's input metric → relation → distance of neighbouring data sets in that metric.
_DISTANCES: dict[str, dict[str, int]] = {
    "SymmetricDistance": {"add-or-remove-one": 1, "replace-one": 2},
    "InsertDeleteDistance": {"add-or-remove-one": 1, "replace-one": 2},
    "ChangeOneDistance": {"replace-one": 1},
    "HammingDistance": {"replace-one": 1},
}


class OpenDPRelease(NamedTuple):
    """Holds the result of an OpenDP measurement and its guarantee.

    Attributes:
      value: result of the measurement, of its output type.
      guarantee: ε by OpenDP's privacy map, with unit, relation, mechanism and noise.
    """

    value: Any
    guarantee: Guarantee


def opendp_release(
    measurement: Any,
    data: Any,
    relation: Relation = "add-or-remove-one",
    ledger: Releases | None = None,
) -> OpenDPRelease:
    """Invokes an OpenDP measurement of pure ε ("max divergence") on records and states its guarantee.

    A zCDP measurement is refused: fedspeak composes privacy loss distributions, and ρ does not determine one.

    Args:
      measurement: a measurement on records, not on aggregates: its input metric counts records added, removed or
        changed.
      data: the records, in the form that the measurement takes.
      relation: neighbouring relation of the guarantee, "add-or-remove-one" or "replace-one".
      ledger: ledger of a `privacy.Budget`; the release is recorded there before any noise is drawn.

    Raises:
      ValueError: the measurement has no pure ε under `relation`, or the budget does not allow the release.
    """
    if relation == "add-or-remove-one" and "size=" in str(measurement.input_domain):
        raise ValueError(
            "measurement has a fixed number of records, so that none can be added or removed: give relation replace-one"
        )
    metric, measure = (str(part).partition("(")[0] for part in (measurement.input_metric, measurement.output_measure))
    distance = _DISTANCES.get(metric, {}).get(relation)
    if distance is None:
        metrics = ", ".join(name for name, distances in _DISTANCES.items() if relation in distances)
        raise ValueError(
            f"measurement has input metric {metric}, which counts no records under {relation}: use one of {metrics}"
        )
    if measure != "MaxDivergence":
        raise ValueError(f"measurement has output measure {measure}: use one of pure ε, MaxDivergence")
    guarantee = Guarantee(
        "OpenDP measurement",
        (costs.Pure(float(measurement.map(distance))),),
        relation,
        0.0,
        f"drawn by OpenDP {version('opendp')}, hardened against floating-point attacks as far as the measurement is; ε "
        "by OpenDP's privacy map",
    )
    if ledger is not None:
        ledger.record(guarantee)
    return OpenDPRelease(measurement(data), guarantee)
