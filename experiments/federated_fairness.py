"""Tests the fairness of a trained run on its test clients, each of which adds to the sums of one group.

Only the totals of each group leave the clients. Without noise they are for the operator only. With noise they are one
Gaussian release, charged to the run's ledger before the noise is drawn, so that the run's privacy reports cover it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments import assembly, data, results
from experiments.config import Config
from experiments.display import FIXED_KEY
from experiments.runs import RunFolder, load_trained
from experiments.tables import read_columns
from fl.fairness import FairnessFrame, client_sums
from fl.sources.shakespeare import Shakespeare
from privacy import accounting, checks
from privacy.accounting import composition
from privacy.accounting.guarantee import format_epsilon
from privacy.ledger import Ledger
from privacy.noise.rounded import rounded_gaussian
from privacy.noise.training import exact_delta

if TYPE_CHECKING:
    from privacy.plan import PrivacyPlan

CLIENT_COLUMN = "client"
MAX_GROUPS = 100_000
MIN_NOISE_MULTIPLIER = 0.01
MAX_NOISE_MULTIPLIER = 1000.0
METRIC = "accuracy"


class Groups(NamedTuple):
    """Holds the groups of clients.

    Attributes:
      features: names of the attributes.
      names: values of each group; all combinations of the attributes' values are listed, which are public.
      codes: int64 [clients], each client's group.
    """

    features: list[str]
    names: list[tuple[str, ...]]
    codes: np.ndarray


class Result(NamedTuple):
    """Holds the result of a federated test.

    Attributes:
      frame: the test and the groups.
      privacy: facts about the noise, by name, for the report; None without noise.
      clients: number of test clients, and of those among them without a token, who do not count; None with noise,
        because no ε covers these numbers.
    """

    frame: FairnessFrame
    privacy: dict[str, str] | None
    clients: tuple[int, int] | None


def evaluate(
    run: RunFolder,
    features: Sequence[str],
    table: Path | None,
    *,
    noise_multiplier: float | None,
    epsilon: float | None = None,
    note: Callable[[str], None],
    **setting: Any,
) -> Result:
    """Returns the test of whether the model is as accurate for the test clients of all groups.

    Args:
      run: folder of a finished run.
      features: names of the attributes whose combinations are the groups.
      table: table with a column `client` and the attributes; None: the attributes of Shakespeare's characters.
      noise_multiplier: standard deviation of the noise / sensitivity of the sums to one client; None: no noise, or the
        least that keeps `epsilon`.
      epsilon: largest ε of the run and its releases together, for a release with noise. None: the ε of the run's plan.
      note: called with each line that the user must see.
      **setting: alpha, level and gap of the test.

    Raises:
      OSError, ValueError: the run is not finished, a file of it is missing, damaged or another run's, or an argument is
        out of range; one line.
    """
    run.require_federated()
    config = run.read_config()
    run.require_trained()
    run.close_to_others()
    ledger = Ledger.read(run.ledger)
    if epsilon is not None:
        checks.positive("--epsilon", epsilon, "give the largest ε of the run and its releases together")
    if noise_multiplier is not None or epsilon is not None:
        _require_private(ledger.plan)
    if noise_multiplier is not None:
        _check_noise(noise_multiplier)
    elif epsilon is not None:
        noise_multiplier = calibrate(ledger, epsilon)
        note(f"privacy: --epsilon {epsilon:g} takes --noise-multiplier {noise_multiplier:g}; repeat it with that")
    prepared = data.prepare(config, run.vocabulary)
    run.check_data(prepared.store.digest)
    groups = divide(config, prepared.splits.test, features, table)
    totals = _compute_totals(run, config, prepared, groups)
    if noise_multiplier is None:
        sums = client_sums.exact_sums(totals)
        frame = FairnessFrame.from_counts(
            sums.counts, sums.sums, sums.squares, names=groups.names, metric=METRIC, **setting
        )
        privacy, counted = None, len(groups.codes)
        clients = (counted, counted - int(sums.counts.sum()))
    else:
        noise, privacy = _draw_noise(run, config, groups, totals, noise_multiplier, epsilon, note)
        noisy = client_sums.noisy_sums(totals, noise, noise_multiplier)
        try:
            frame = FairnessFrame.from_noisy_sums(noisy, names=groups.names, metric=METRIC, **setting)
        except ValueError as error:
            # That the test is impossible is a result, too.
            raise ValueError(f"{error} (this release is charged to the ledger)") from None
        clients = None
    frame.sensitive_levels = groups.features
    return Result(frame, privacy, clients)


def divide(config: Config, clients: Sequence[str], features: Sequence[str], table: Path | None) -> Groups:
    """Returns the group of each client.

    Raises:
      OSError, ValueError: the attributes are unknown, or a client has none; one line that names the option.
    """
    if table is None:
        source, _, _ = data.sources(config)
        if not isinstance(source, Shakespeare):
            raise ValueError(
                f"--attributes is missing: clients of data.source = {config.data.source!r} have no attributes of their "
                f"own; give a table with a column {CLIENT_COLUMN!r} and the columns of --groups"
            )
        values, attributes = source.attribute_values(), source.attributes()
        if unknown := [name for name in features if name not in values]:
            raise ValueError(f"--groups {unknown[0]} is unknown: Shakespeare's characters have {', '.join(values)}")
    else:
        columns = read_columns(table, [CLIENT_COLUMN, *features])
        rows = [[str(value) for value in columns[name]] for name in (CLIENT_COLUMN, *features)]
        if len(set(rows[0])) < len(rows[0]):
            raise ValueError(f"--attributes {table} names a client twice: give each client one row")
        values = {name: sorted(set(column)) for name, column in zip(features, rows[1:], strict=True)}
        attributes = {client: dict(zip(features, row, strict=True)) for client, *row in zip(*rows, strict=True)}
    number = math.prod(len(values[name]) for name in features)
    if not 2 <= number <= MAX_GROUPS:
        raise ValueError(
            f"--groups {','.join(features)} make {number:,} groups: give attributes for 2 to {MAX_GROUPS:,}"
        )
    names = list(itertools.product(*(values[name] for name in features)))
    place = {name: index for index, name in enumerate(names)}
    lacking = next((client for client in clients if client not in attributes), None)
    if lacking is not None:
        raise ValueError(
            f"--attributes {table or 'of the plays'} lacks the client {lacking!r}: give each client one row"
        )
    codes = [place[tuple(attributes[client][name] for name in features)] for client in clients]
    return Groups(list(features), names, np.array(codes, np.int64))


def relative_multiplier(noise_multiplier: float, relation: str) -> float:
    """Returns the standard deviation of the noise / sensitivity of the sums under a neighbouring relation."""
    # A client who is zeroed out leaves the sums, as one who is removed.
    factors = {"add-or-remove-one": 1.0, "zero-out": 1.0, "replace-one": client_sums.REPLACE_ONE}
    return noise_multiplier / factors[relation]


def calibrate(ledger: Ledger, target: float) -> float:
    """Returns the least noise multiplier, to 0.2 %, of a release after which a run and all its releases have `target`.

    Raises:
      ValueError: the run and its releases before have this ε already, or nearly; one line.
    """

    def after(noise_multiplier: float) -> float:
        return _epsilon(ledger, relative_multiplier(noise_multiplier, str(ledger.plan.relation)))

    low, high = MIN_NOISE_MULTIPLIER, MAX_NOISE_MULTIPLIER
    if after(high) > target:
        raise ValueError(
            f"--epsilon {target:g} leaves no room for a release: the run and its releases have ε "
            f"{format_epsilon(_epsilon(ledger))} already; give more"
        )
    if after(low) <= target:
        return low
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if after(middle) <= target else (middle, high)
    # Rounded up to four digits, so that the number that is printed is the number that is used.
    unit = 10.0 ** (math.floor(math.log10(high)) - 3)
    return float(f"{math.ceil(high / unit) * unit:.4g}")


def _epsilon(ledger: Ledger, *further: float) -> float:
    """Returns the ε of the rounds and releases in a ledger and of further releases together."""
    charged = [release.noise_multiplier for release in ledger.releases]
    return accounting.epsilon(ledger.plan, len(ledger.rounds), [*charged, *further]).value


def draw_noise(seed: bytes, noise_multiplier: float, groups: int) -> np.ndarray:
    """Returns the noise on the three totals of each group, int64 [groups, 3], from two independent streams."""
    sides, middle = client_sums.noise_stddevs(noise_multiplier)
    outer = rounded_gaussian(seed + b"sides", sides, 2 * groups).reshape(-1, 2)
    inner = rounded_gaussian(seed + b"middle", middle, groups)
    return np.stack([outer[:, 0], inner, outer[:, 1]], 1)


def _check_noise(noise_multiplier: float) -> None:
    checks.noise_multiplier(noise_multiplier, "1 is a usual start", "--noise-multiplier")
    if noise_multiplier > MAX_NOISE_MULTIPLIER:
        raise ValueError(
            f"--noise-multiplier {noise_multiplier:g} hides all clients: give at most {MAX_NOISE_MULTIPLIER:g}"
        )


def _require_private(plan: PrivacyPlan) -> None:
    if not plan.is_private:
        raise ValueError(
            "--noise-multiplier and --epsilon: the run itself is not private, so that no epsilon holds for it and the "
            "evaluation together: leave them out"
        )


def _require_budget(ledger: Ledger, noise_multiplier: float, after: float, limit: float | None) -> None:
    """Raises ValueError if a release would take ε above the limit that the user gave, or else above the plan's ε."""
    most = accounting.epsilon(ledger.plan).value if limit is None else limit
    if after > most:
        named = f"the {format_epsilon(most)} of the plan" if limit is None else f"--epsilon {limit:g}"
        raise ValueError(
            f"--noise-multiplier {noise_multiplier:g} raises ε from {format_epsilon(_epsilon(ledger))} to "
            f"{format_epsilon(after)}, above {named}: "
            f"add more noise, or accept it by --epsilon {math.ceil(after * 100) / 100:g}"
        )


def _compute_totals(run: RunFolder, config: Config, prepared: data.Data, groups: Groups) -> np.ndarray:
    """Returns the exact totals of each group, int64 [groups, 3]."""
    from fl import group_sums
    from fl.runtime import local_runtime

    model, weights, _ = load_trained(run.path)
    total = group_sums.build(model, weights, prepared.sequence_length, len(groups.names))
    with local_runtime(concurrent_calls=config.run.shards):
        sequences = [prepared.whole(client) for client in prepared.splits.test]
        return total(sequences, groups.codes, config.run.shards)


def _draw_noise(
    run: RunFolder,
    config: Config,
    groups: Groups,
    totals: np.ndarray,
    noise_multiplier: float,
    limit: float | None,
    note: Callable[[str], None],
) -> tuple[np.ndarray, dict[str, str]]:
    """Charges the release to the ledger, writes the privacy reports, and then draws the noise.

    Returns:
      The noise, int64 [groups, 3], and what the report says about it.
    """
    keys = assembly.load_keys(config, run.keys, begun=True)
    content = json.dumps([groups.features, groups.names, totals.tolist()]).encode()
    with Ledger.open(run.ledger, Ledger.read(run.ledger).plan) as ledger:
        plan = ledger.plan
        if not keys.match(ledger.rounds):
            raise ValueError(f"the keys are not those of the rounds in {run.ledger}: restore this run's own")
        relative = relative_multiplier(noise_multiplier, str(plan.relation))
        purpose = f"fairness by {', '.join(groups.features)}"
        again = ledger.has_charged(keys, purpose, content, relative)
        if not again:
            after = _epsilon(ledger, relative)
            _require_budget(ledger, noise_multiplier, after, limit)
            before = format_epsilon(_epsilon(ledger))
            note(f"privacy: this release raises ε from {before} to {format_epsilon(after)}")
        seed = ledger.charge(keys, purpose, content, relative)
        spent = _epsilon(ledger)
    results.write_reports(run, note)
    if again:
        note("this release is in the ledger already: the same noise is shown again, and costs nothing more")
    if keys.is_fixed:
        note(f"privacy: {FIXED_KEY}")
    alone = composition.gaussian_epsilon(relative, exact_delta(plan.target_delta))
    holds = "; it does not hold, because the key is fixed" if keys.is_fixed else ""
    privacy = {
        "unit": "one client, with all its text and its group",
        "neighbouring relation": str(plan.relation),
        "ε of the run and its releases together": f"{format_epsilon(spent)}{holds}",
        "ε of this release alone": f"{format_epsilon(alone)}{holds}",
        "δ": f"{plan.target_delta:.3g}",
        "mechanism": f"Gaussian, noise multiplier {noise_multiplier:g}, rounded to integers exactly, on the sums of "
        f"x², x(1 − x) and (1 − x)² of all {len(totals):,} groups",
        "public": f"the list of groups by {', '.join(groups.features)}, that is, every value in the table of "
        "attributes, also one that a single client has; the group of a client is not",
    }
    planned = accounting.epsilon(plan).value
    if spent > planned:
        privacy["warning"] = f"ε is above the {format_epsilon(planned)} of the run's plan, by the releases after it"
    return draw_noise(seed.tobytes(), noise_multiplier, len(totals)), privacy
