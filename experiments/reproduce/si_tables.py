"""Writes the results of `fedspeak reproduce si` as Markdown; what is not measured yet reads "not measured yet"."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments import config_file
from experiments.config import SAMPLING_PROBABILITY
from experiments.markdown import markdown_table
from experiments.reproduce import seeds
from experiments.reproduce.si_analysis import (
    NOT_MEASURED,
    Comparison,
    Study,
    choose_cell,
    comparisons,
    near_rates,
    rounds_to,
    verdict,
)
from experiments.reproduce.si_arms import MOMENTUM, PUBLIC, SCALES, SCALES_OF_WEIGHTS, arms, change
from experiments.reproduce.si_choice import MissingError, Rows, count_all
from experiments.reproduce.si_gradients import PARTS
from experiments.reproduce.si_models import PAIRS, STANDARD, count_weights
from privacy.accounting.guarantee import format_epsilon

_TITLES = {
    MOMENTUM: "FedAvg, server momentum",
    "adam": "FedAvg, server Adam",
    "proximal": "FedProx, server momentum",
    "client adam": "clients with Adam, server momentum",
    PUBLIC: "private, from a public model",
    "variants": "variants, as FedAvg with server momentum",
}


def read(found: Mapping[str, Any]) -> Study:
    """Returns what conclusions are drawn from, of a results file."""
    config, scale = config_file.parse(found["config"], "of the results"), SCALES[found["scale"]]
    by_name = {arm.name: arm for arm in arms(config, scale)}
    return Study(by_name, scale, config.run.rounds, Rows(found["rows"]), found["vocabulary"])


def format_tables(found: Mapping[str, Any]) -> str:
    """Returns the results as Markdown."""
    study = read(found)
    cells, rounds = count_all(study.arms.values(), study.scale, study.rounds)
    done = sum(row["rounds"] for row in found["rows"])
    clients = found["clients"]
    parts = [
        [f"{len(found['rows'])} of about {cells} cells and {done:,} of {rounds:,} rounds are trained."],
        ["### Verdicts", "", *_verdicts(study, found["guarantees"])],
        [
            "### Final results",
            "",
            f"Test clients ({clients['test']}) after {study.rounds} rounds with the rates chosen on validation clients "
            f"({clients['validation']}): mean over {len(study.scale.seeds)} seeds ± half of the 95 % Student's t "
            "interval. A loss above that of a uniform guess, or not finite, counts as that of a uniform guess. After "
            "*not* stand rates that were better in the choice, but did not train with one of the seeds. "
            f"*Rounds*: until the loss on validation clients is that of a unigram, {found['unigram']:.3f}. *Moved*: "
            "distance of embedding and of all other weights from the initial ones, relative to their norm. *Within*: "
            "clients whose update is within the clip norm.",
            "",
            *_finals(study, found["unigram"]),
        ],
        ["### Learning rates of the clients", "", *_rates(study)],
        ["### Initial weights", "", *_scales(study)],
        ["### Gradients of the initial weights", "", *_gradients(found["gradients"])],
        ["### Privacy", "", *_guarantees(found["guarantees"])],
        ["### Cost", "", *_costs(found, study)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def title(arm: str, guarantees: Mapping[str, Any]) -> str:
    """Returns the title of an arm, with ε if it is private."""
    if arm in guarantees:
        epsilon = f"ε = {format_epsilon(guarantees[arm]['epsilon'])}"
        return f"{_TITLES[arm]}, {epsilon}" if arm in _TITLES else f"{epsilon} ({arm})"
    return _TITLES.get(arm, arm)


def _verdicts(study: Study, guarantees: Mapping[str, Any]) -> list[str]:
    found = comparisons(study)
    claims = {
        MOMENTUM: "better: loss of FedAvg, server momentum",
        "rounds": "faster: rounds to the loss at which the slower model ends",
        "rates": "more learning rates: mean loss over all of the clients' rates, after half the rounds",
    }
    claims |= {f"scale {scale:g}": f"initial weights x {scale:g}: rise of the loss" for scale in SCALES_OF_WEIGHTS}
    claims |= {name: f"loss: {title(name, guarantees)}" for name in study.arms if name not in claims}
    cells = [
        (claim, *(_verdict(found[name, each], name) if (name, each) in found else "" for each in PAIRS))
        for name, claim in claims.items()
        if any((name, each) in found for each in PAIRS)
    ]
    return [
        "Scale-invariant minus standard model, paired by seed, with 95 % Student's t intervals; below 0 the "
        "scale-invariant model is better. Losses in nats per token, one interval each, not corrected for their number.",
        "",
        *markdown_table(("", *(f"{invariant} against {standard}" for standard, invariant in PAIRS.items())), cells),
        "",
        f"Cell that follows for private training from a public model, as in the demo: {choose_cell(study)}.",
    ]


def _verdict(comparison: Comparison | None, name: str) -> str:
    if comparison is None:
        return NOT_MEASURED
    mean, half = comparison.difference["mean"], comparison.difference["half"]
    digits = 1 if name == "rounds" else 3
    interval = f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"{verdict(comparison)}: {interval}"


def _finals(study: Study, unigram: float) -> list[str]:
    header = ("rates of client and server", "nats per token", "accuracy, %", "rounds", "moved", "within")
    cells = [
        (_TITLES.get(name, name), model, *_or_not_measured(len(header), _final, study, name, model, unigram))
        for name, arm in study.arms.items()
        for model in arm.models
    ]
    return markdown_table(("", "", *header), cells)


def _final(study: Study, arm: str, model: str, unigram: float) -> list[str]:
    rows, chosen, over = study.final(arm, model), study.chosen(arm, model), study.passed_over(arm, model)
    reached = [rounds_to(row, unigram) for row in rows]
    done = [each for each in reached if each is not None]
    moved = [np.mean([row["moved"][part] or np.nan for row in rows]) for part in ("embedding", "others")]
    within = [row["within_clip"] for row in rows if row["within_clip"] is not None]
    accuracy = [100 * (row["test"]["accuracy"] or 0.0) for row in rows]
    return [
        "; not ".join(f"{cell.client_rate:g}, {cell.server_rate:g}" for cell in (chosen, *over)),
        _plus_minus(study.losses(arm, model), 3),
        _plus_minus(accuracy, 1),
        f"{np.mean(done):.0f}" if len(done) == len(rows) else f"{len(done)} of {len(rows)} seeds",
        ", ".join(f"{each:.2f}" for each in moved),
        f"{100 * np.mean(within):.0f} %" if within else "",
    ]


def _rates(study: Study) -> list[str]:
    rates = study.arms[MOMENTUM].client_rates
    cells = [(model, *_or_not_measured(len(rates) + 1, _by_rate, study, model)) for model in STANDARD]
    return [
        f"FedAvg with server momentum, loss on validation clients after {study.rounds // 2} rounds, by the clients' "
        "learning rate, with the server's rate as chosen. *Near*: number of rates within 0.2 nats of the best, mean "
        "over the seeds.",
        "",
        *markdown_table(("", *(f"{rate:g}" for rate in rates), "near"), cells),
    ]


def _by_rate(study: Study, model: str) -> list[str]:
    return [*(_plus_minus(losses, 3) for losses in study.by_rate(model).values()), f"{near_rates(study, model):.1f}"]


def _scales(study: Study) -> list[str]:
    scales = sorted((1.0, *SCALES_OF_WEIGHTS))
    cells = [
        (model, *(cell for scale in scales for cell in _or_not_measured(1, _scaled, study, model, scale)))
        for model in STANDARD
    ]
    return [
        "FedAvg with server momentum, loss on test clients with the initial weights of the cell's gates, or of the "
        "transformer's blocks, times a factor, at the rates that were chosen for 1.",
        "",
        *markdown_table(("", *(f"x {scale:g}" for scale in scales)), cells),
    ]


def _scaled(study: Study, model: str, scale: float) -> list[str]:
    return [_plus_minus(study.losses(MOMENTUM, model, scale), 3)]


def _gradients(gradients: Mapping[str, Mapping[str, float]]) -> list[str]:
    cells = [
        (model, *(f"{own[part]:.2g}" if part in own else "" for part in (*PARTS, "hidden")))
        for model, own in gradients.items()
    ]
    return [
        "Norm of the gradient relative to that of the weights, and root mean square of what the output layer reads, of "
        "untrained models (seed 0) on sequences of validation clients. The larger a relative gradient, the smaller the "
        "learning rates at which plain SGD trains, and diverges.",
        "",
        *markdown_table(("", "embedding", "projection", "gates or blocks", "output layer reads"), cells),
    ]


def _guarantees(guarantees: Mapping[str, Any]) -> list[str]:
    cells = [
        (
            name,
            format_epsilon(own["epsilon"]),
            f"{own['delta']:.2g}",
            f"{own['sampling_probability']:g}",
            f"{own['population']:,}",
            own["rounds"],
            f"{own['noise_multiplier']:g}",
        )
        for name, own in guarantees.items()
    ]
    header = ("", "ε", "δ", "sampling probability", "declared clients", "rounds", "noise multiplier")
    return [
        "Guarantees for one client (add or remove one), with secret keys, Poisson sampling and the Gaussian mechanism "
        "on sums of clipped updates, each for one training; the choice of rates is not accounted.",
        "",
        *markdown_table(header, cells),
    ]


def _costs(found: Mapping[str, Any], study: Study) -> list[str]:
    cells = []
    for model in STANDARD:
        rows = [row for row in found["rows"] if row["model"] == model]
        own = [[row for row in rows if study.arms[row["arm"]].is_private == private] for private in (False, True)]
        seconds = [
            f"{sum(row['processor_seconds'] for row in each) / sum(row['rounds'] for row in each):.2f}"
            if each
            else NOT_MEASURED
            for each in own
        ]
        parameters = f"{rows[0]['parameters']:,}" if rows else NOT_MEASURED
        cells.append((model, parameters, *seconds))
    lines = [
        f"Weights of each model, and processor seconds per round ({'; '.join(found['kernels'])}), evaluations during "
        "training included.",
        "",
        *markdown_table(("", "weights", "not private", "private"), cells),
    ]
    return lines if found["scale"] == "full" else [*lines, "", _describe_full(found, study)]


def _describe_full(found: Mapping[str, Any], study: Study) -> str:
    """Says how long the scale `full` takes, from the cost of a round so far."""
    scale = SCALES["full"]
    config = change(config_file.load("si"), scale.changes)
    full = arms(config, scale)
    cells, rounds = count_all(full, scale, config.run.rounds)
    rows = found["rows"]
    done = sum(row["rounds"] for row in rows)
    if not done:
        return f"The scale `full` trains {cells} cells for {rounds:,} rounds in all; its time is {NOT_MEASURED}."
    own = config_file.parse(found["config"], "of the results")
    weights = count_weights(config, config.vocabulary.size) / rows[0]["parameters"]
    text = [
        (each.cohort.sampling_probability or SAMPLING_PROBABILITY) * each.clients.max_sequences
        for each in (config, own)
    ]
    seconds = sum(row["processor_seconds"] for row in rows) / done * weights * text[0] / text[1]
    return (
        f"The scale `full` trains {cells} cells for {rounds:,} rounds in all. If a round costs in proportion to the "
        f"weights ({weights:.0f} times as many) and to the text (up to {text[0] / text[1]:.1f} times as much), these "
        f"are {rounds * seconds / 86400:,.0f} days of one processor core."
    )


def _or_not_measured(cells: int, make: Callable[..., list[str]], *arguments: Any) -> list[str]:
    """Returns the cells of a row, as many as `cells`; the first says so if something is not measured yet."""
    try:
        return make(*arguments)
    except MissingError:
        return [NOT_MEASURED, *[""] * (cells - 1)]


def _plus_minus(values: Sequence[float] | np.ndarray, digits: int) -> str:
    found = seeds.interval([float(value) for value in values])
    return f"{found['mean']:.{digits}f} ± {found['half']:.{digits}f}"
