"""Defines `fedspeak reproduce dp-ftrl`: correlated noise against DP-SGD at equal ε, and what each mechanism costs.

The task is that of the configuration `production`. DP-SGD gets Poisson cohorts of the same expected size, which no
server could draw from devices that check in when they can: it is there for comparison. Its relation is
add-or-remove-one, and that of the others is zero-out; one client's contribution vanishes under both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec
import numpy as np

from experiments import extras, options
from experiments.display import ConsoleDisplay
from experiments.provenance import command_line, versions
from experiments.reproduce import dp_ftrl_memory, dp_ftrl_tables
from experiments.reproduce.dp_ftrl_errors import BANDS, LONG, Setting, compute_errors, measure_rounds
from experiments.reproduce.dp_ftrl_tables import DPSGD
from experiments.runs import RunFolder, write_json
from privacy.correlated import Participation
from privacy.files import make_private_folder, write_private

# Fewer sequences of a client than in `production`, and more rounds, so that 6 arms, 2 ε and 3 seeds train in hours.
SETTINGS = (
    "clients.max_sequences=8",
    "cohort.size=120",
    "cohort.min_separation=8",
    "cohort.max_participations=4",
    "privacy.metrics_share=0",
    "run.rounds=32",
    "run.evaluate_every=32",
)


class Arm(NamedTuple):
    """Describes one run of the study.

    Attributes:
      name: name of the noise.
      epsilon: ε of the run.
      seed: fixed key of its cohorts and noise.
      config: its configuration.
    """

    name: str
    epsilon: float
    seed: int
    config: Any

    @property
    def folder(self) -> str:
        """Returns the name of the run's folder."""
        return f"{self.name.replace(', ', '-').replace(' ', '-').lower()}-epsilon-{self.epsilon:g}-seed-{self.seed}"


def _parse_epsilons(context: click.Context, option: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        epsilons = tuple(float(each) for each in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a list of numbers, as in 2,8") from None
    if not all(0 < each <= 500 for each in epsilons):
        raise click.BadParameter(f"{value!r}: each epsilon must lie in (0, 500]")
    return epsilons


@click.command("dp-ftrl")
@click.option("--epsilons", default="2,8", show_default=True, callback=_parse_epsilons, help="Values of ε, by commas.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds of each run.")
@click.option(
    "--weights",
    type=click.IntRange(1),
    default=4_700_000,
    show_default=True,
    help="Number of weights for which a round's noise is timed.",
)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a key of all runs.")
@click.option("--no-training", is_flag=True, help="Compute errors, time and memory only.")
@options.output("runs/dp-ftrl", "the runs, the tables and the plot")
def dp_ftrl(
    epsilons: tuple[float, ...],
    seeds: int,
    weights: int,
    overrides: tuple[str, ...],
    no_training: bool,
    output: Path,
) -> None:
    """Compare tree, banded and BLT noise with DP-SGD at equal ε.

    An interrupted study continues where it stopped when the command is given again.
    """
    extras.require("federated")
    from experiments import assembly, config_file
    from experiments.bench.table import machine

    make_private_folder(output)
    base = config_file.load("production", (*SETTINGS, *overrides))
    section = base.cohort
    assert section.min_separation is not None and section.size is not None  # `production` has them
    limits = assembly.build_sampling(base).max_participations(base.run.rounds)
    setting = Setting(base.run.rounds, Participation(section.min_separation, limits))
    show = ConsoleDisplay()
    content: dict[str, Any] = {
        "command": command_line(),
        "versions": versions(),
        "machine": machine(),
        "weights": weights,
        "errors": {"trained": compute_errors(setting), "long": compute_errors(LONG)},
        "rounds": {"trained": setting.rounds, "long": LONG.rounds},
        "participation": {"trained": list(setting.participation), "long": list(LONG.participation)},
    }
    show.note(f"timing a round's noise of {weights:,} weights …")
    content["timing"] = measure_rounds(LONG, weights)
    for row in content["timing"]:
        show.note(f"measuring the memory of rounds with {row['mechanism']} …")
        row["peak_bytes"] = dp_ftrl_memory.measure_memory(row["mechanism"], weights, output / "memory.log")
    if not no_training:
        content |= _train(base, epsilons, range(1, seeds + 1), output, show)
    write_json(output / "metrics.json", content)
    table = format_study(content)
    write_private(output / "table.md", table.encode())
    if not no_training:
        from experiments import plots

        plots.losses_by_epsilon(output / "plot", content["arms"], content["public"])
    click.echo(table)


def format_study(content: dict[str, Any]) -> str:
    """Returns all tables of the study as Markdown."""
    parts = []
    for name in ("trained", "long"):
        separation, participations = content["participation"][name]
        heading = f"{content['rounds'][name]} rounds, separation {separation}, {participations} participations"
        parts += [f"{heading}:\n", dp_ftrl_tables.format_errors(content["errors"][name])]
    parts += [f"Noise of a round, {content['weights']:,} weights:\n", dp_ftrl_tables.format_rounds(content["timing"])]
    if "arms" in content:
        parts += [dp_ftrl_tables.format_training(content["arms"]), dp_ftrl_tables.format_orders(content["orders"])]
    return "\n".join(parts)


def build_arms(base: Any, epsilons: Sequence[float], seeds: Sequence[int], clients: int) -> Iterator[Arm]:
    """Yields the runs of the study.

    Args:
      base: configuration with the sampler "check-in" and BLT noise.
      epsilons: values of ε.
      seeds: fixed keys.
      clients: number of training clients, which decides the probability of DP-SGD's Poisson cohorts.
    """
    poisson = msgspec.structs.replace(
        base.cohort,
        sampler="poisson",
        sampling_probability=base.cohort.size / clients,
        size=None,
        min_separation=None,
        max_participations=None,
    )
    mechanisms: dict[str, dict[str, Any]] = {
        DPSGD: {"mechanism": "gaussian"},
        "tree": {"mechanism": "tree"},
        **{f"banded, {bands} bands": {"mechanism": "banded", "bands": bands} for bands in BANDS},
        "BLT": {"mechanism": "blt"},
    }
    for seed in seeds:
        for epsilon in epsilons:
            for name, keys in mechanisms.items():
                config = msgspec.structs.replace(
                    base,
                    cohort=poisson if name == DPSGD else base.cohort,
                    privacy=msgspec.structs.replace(base.privacy, epsilon=epsilon, **keys),
                    run=msgspec.structs.replace(base.run, fixed_key=seed),
                )
                yield Arm(name, epsilon, seed, config)


def _train(
    base: Any, epsilons: Sequence[float], seeds: Sequence[int], output: Path, show: ConsoleDisplay
) -> dict[str, Any]:
    """Trains and evaluates all runs, and returns their results."""
    from experiments import data, training
    from experiments.runs import load_trained, load_weights
    from fl.evaluation import Evaluator

    prepared = data.prepare(base, output / "vocabulary.json")
    arms = list(build_arms(base, epsilons, seeds, len(prepared.splits.train)))
    sequences = [prepared.whole(client) for client in prepared.splits.test]
    tokens = np.array([np.count_nonzero(rows[:, 1:]) for rows in sequences])
    evaluate, public, losses = None, None, {}
    for number, arm in enumerate(arms, 1):
        run = RunFolder(output / arm.folder)
        _prepare(run, arm, output, RunFolder(output / arms[0].folder))
        if not run.weights.exists():
            show.note(f"run {number} of {len(arms)}: {arm.folder}")
            training.train(run, command_line(), show)
        model, weights, _ = load_trained(run.path)
        if evaluate is None:
            evaluate = Evaluator(model, sequences)
            public = evaluate(load_weights(run.public_weights, model)).loss
        losses[arm.name, arm.epsilon, arm.seed] = evaluate(weights).loss
    assert public is not None
    return summarize(losses, public, tokens, epsilons, seeds)


def _prepare(run: RunFolder, arm: Arm, output: Path, first: RunFolder) -> None:
    """Prepares the folder of a run with the vocabulary of the study and the public model of its first run.

    Raises:
      ValueError: the folder holds a run of another configuration.
    """
    if not run.config.exists():
        run.create(arm.config)
    if run.read_config() != arm.config:
        raise ValueError(f"{run.path} is a run of another configuration: delete it, or give another --output")
    if not run.vocabulary.exists():
        write_private(run.vocabulary, (output / "vocabulary.json").read_bytes())
    if first.public_weights.exists() and not run.public_weights.exists():
        write_private(run.public_weights, first.public_weights.read_bytes())


def summarize(
    losses: dict[tuple[str, float, int], np.ndarray],
    public: np.ndarray,
    tokens: np.ndarray,
    epsilons: Sequence[float],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Returns each arm's test loss, averaged over seeds, and the comparison with the literature.

    Intervals are 95 % bootstrap intervals over test clients, of each client's loss averaged over the seeds.

    Args:
      losses: each test client's sum of losses, float64 [clients], by name of the arm, ε and seed.
      public: those of the public model.
      tokens: number of tokens of each test client.
      epsilons, seeds: values of the keys.
    """
    from experiments.intervals import mean_interval, paired_interval

    names = list(dict.fromkeys(name for name, _, _ in losses))
    means = {
        (name, epsilon): np.mean([losses[name, epsilon, seed] for seed in seeds], axis=0)
        for name in names
        for epsilon in epsilons
    }
    arms = [
        {
            "name": name,
            "epsilon": epsilon,
            "nats": mean_interval(mean, tokens)._asdict(),
            "over_public": paired_interval(mean, public, tokens)._asdict(),
            "by_seed": [float(losses[name, epsilon, seed].sum() / tokens.sum()) for seed in seeds],
        }
        for (name, epsilon), mean in sorted(means.items(), key=lambda item: item[0][1])
    ]
    orders = []
    for claim, epsilon, a, b, may_be_equal in dp_ftrl_tables.expected_orders(epsilons):
        difference = paired_interval(means[a, epsilon], means[b, epsilon], tokens)._asdict()
        orders.append(
            {"claim": claim, "difference": difference, "verdict": dp_ftrl_tables.judge(difference, may_be_equal)}
        )
    return {
        "epsilons": list(epsilons),
        "seeds": list(seeds),
        "public": float(public.sum() / tokens.sum()),
        "arms": arms,
        "orders": orders,
    }
