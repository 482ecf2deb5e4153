"""Trains one run, from its config to the trained model in its folder; a run can be resumed after any interruption."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from experiments import assembly, data, initial_model
from experiments.config import MAX_CLIENTS_AT_ONCE, Config
from experiments.display import FIXED_KEY, FOOTNOTE, OPERATOR_ONLY, PRIVATE_METRICS, ConsoleDisplay
from experiments.initial_model import InitialModel
from experiments.provenance import versions
from experiments.public_run import load_initial, train_public
from experiments.runs import RunFolder, load_weights, read_json, save_weights, write_json
from fl.divergence import likely_cause
from fl.round_metrics import read_metrics
from fl.runtime.kernels import describe_kernels
from privacy import accounting
from privacy.accounting.guarantee import format_epsilon
from privacy.files import require_writable
from privacy.ledger import Ledger
from privacy.noise.training import NOT_STATED
from privacy.plan import PrivacyPlan


def train(run: RunFolder, command: str, show: ConsoleDisplay, hosts: Any = None) -> None:
    """Trains a run to its end, whether it is new, was interrupted or is finished already.

    Args:
      run: folder of the run. It must hold the run's config (`RunFolder.create`); all results are written there.
      command: the command line, which is recorded in the run's `facts.json`.
      show: display of the notes and the progress.
      hosts: connected `fl.runtime.hosts.Hosts` that train the clients; None: this machine trains them.

    Raises:
      OSError, ValueError: training cannot begin or go on; one line. The run can be resumed after the cause is fixed.
    """
    config = run.read_config()
    require_writable(run.path)
    run.close_to_others()
    if run.weights.exists():
        show.note(f"{run.path} holds a trained model already: nothing is trained")
        return
    run.require_federated()
    if config.pretraining.freeze_base:
        raise ValueError(
            "pretraining.freeze_base = true: federated rounds train the model of model.init with the heads; set it to "
            "false, or train the heads alone with fedspeak pretrain"
        )
    show.note(f"run: {run.path}")
    initial = load_initial(config)
    prepared = data.prepare(config, run.vocabulary)
    run.check_data(prepared.store.digest)
    summary = data.describe(prepared)
    show.note(summary)
    model = assembly.build_model(config, prepared.vocabulary.size, None if initial is None else initial.model)
    ledger = Ledger.read(run.ledger) if _has_header(run.ledger) else None
    begun = None if ledger is None else ledger.plan
    if warning := assembly.check_clients(config, prepared):
        show.note(warning)
    uses = _describe_public_uses(config, prepared, initial)
    if begun is None and config.privacy.mechanism in ("banded", "blt"):
        show.note("searching for the matrix with the least error …")
    plan = assembly.build_plan(config, len(prepared.splits.train), uses, begun)
    if plan.noise_multiplier:
        _require_other_texts(config, initial, prepared, show)
    if warning := _check_population(plan, len(prepared.splits.train)):
        show.note(warning)
    show.note(_describe_privacy(plan, config.run.fixed_key is not None))
    if not run.facts.exists():
        lines = summary.splitlines()
        facts = {"command": command, "versions": versions(), "data": lines, "store": prepared.store.digest}
        digest = None if initial is None else initial.digest
        write_json(run.facts, {**facts, "vocabulary": prepared.vocabulary.digest, "initial": digest})
    kernels = _describe_kernels(hosts)
    if warning := run.check_kernels(kernels):
        show.note(warning)

    show.note("loading TensorFlow Federated …")
    public_weights = _load_public_weights(run, config, prepared, model, initial, show)
    last_inputs = ledger.rounds[-1].facts.get("inputs") if ledger is not None and ledger.rounds else None
    weights = _train_rounds(run, config, prepared, plan, model, public_weights, last_inputs, show, hosts, kernels)
    write_json(run.model, model.config())
    save_weights(run.weights, weights)


def _require_other_texts(
    config: Config, initial: InitialModel | None, prepared: data.Data, show: ConsoleDisplay
) -> None:
    """Raises ValueError if the run would begin with something that was learned from its clients' text."""
    initial_model.require_other_public_text(config, prepared)
    if initial is not None:
        show.note("comparing the clients' text with that of the initial model …")
        initial_model.require_other_text(initial, prepared)


def _check_population(plan: PrivacyPlan, clients: int) -> str | None:
    """Returns a warning if the declared population differs from the clients' number by more than a factor of two."""
    if not plan.any_population or plan.population / 2 <= clients <= 2 * plan.population:
        return None
    return (
        f"warning: cohort.population = {plan.population:,}, but the data holds {clients:,} clients (operator only): δ "
        "and the mean's denominator are computed from cohort.population, so each round moves the model too little or "
        "too much; correct it if a better public estimate is known"
    )


def _describe_kernels(hosts: Any) -> str:
    """Describes the kernels that compute the clients' updates: this machine's, or those of the workers in `hosts`.

    A driver does not learn which kernels its workers have.
    """
    if hosts is None:
        return describe_kernels()
    return f"unknown kernels on {len(hosts)} worker{'s' * (len(hosts) > 1)}"


def _recording_kernels(run: RunFolder, kernels: str, rounds: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Passes on the rounds' rows, and records in the run's facts, once there is a row, which kernels computed it.

    The kernels are not recorded earlier, because before the first round this process may not have the ledger's lock,
    and it may end without computing any round.
    """
    for number, row in enumerate(rounds):
        if number == 0:
            facts = read_json(run.facts)
            before = facts.get("kernels", [])
            if before[-1:] != [kernels]:
                write_json(run.facts, {**facts, "kernels": [*before, kernels]})
        yield row


def _has_header(ledger: Path) -> bool:
    """Returns whether the ledger has its first line in full; a process killed while writing may leave part of it."""
    return ledger.exists() and b"\n" in ledger.read_bytes()


def _describe_public_uses(config: Config, prepared: data.Data, initial: InitialModel | None) -> tuple[str, ...]:
    """Describes each use of the public text and the initial model; the plan lists these as public inputs."""
    uses = ["vocabulary learned from"] if initial is None else []
    if config.pretraining.epochs:
        uses.append("initial model trained on")
    elif config.model.output_bias:
        uses.append("initial output bias from")
    described = [f"{use} {source}" for use in uses for source in prepared.declared_public]
    return (*described, *([] if initial is None else [initial.description]))


def _load_public_weights(
    run: RunFolder,
    config: Config,
    prepared: data.Data,
    model: Any,
    initial: InitialModel | None,
    show: ConsoleDisplay,
) -> dict[str, Any]:
    """Returns the weights before the first round; they are trained if the run's folder does not hold them yet."""
    if run.public_weights.exists():
        return load_weights(run.public_weights, model)
    weights = train_public(model, prepared.public, config, initial, show)
    save_weights(run.public_weights, weights)
    return weights


def _train_rounds(
    run: RunFolder,
    config: Config,
    prepared: data.Data,
    plan: PrivacyPlan,
    model: Any,
    public_weights: dict[str, Any],
    last_inputs: str | None,
    show: ConsoleDisplay,
    hosts: Any,
    kernels: str,
) -> dict[str, Any]:
    """Trains the remaining rounds and returns the final weights.

    `last_inputs` is the `inputs` string in the ledger's last round: `clients_at_once` and a digest of data, settings
    and starting weights (`assembly.describe_inputs`). It is None if the ledger has no round. `kernels` are those that
    compute the rounds.
    """
    from experiments.board import Board
    from fl.evaluation import Evaluator
    from fl.rounds import Evaluated, RoundLog, final_state, require_ledger, run_rounds
    from fl.runtime import local_runtime

    require_ledger(RoundLog(run.path))
    keys = assembly.load_keys(config, run.keys, begun=run.ledger.exists())
    maximum = config.run.evaluate_clients
    validation_clients = data.choose_clients(prepared.splits.validation, maximum)
    evaluate_validation = Evaluator(model, [prepared.whole(client) for client in validation_clients])
    held_out_sequences = [prepared.held_out(client) for client in data.choose_clients(prepared.splits.train, maximum)]
    evaluate_held_out = Evaluator(model, held_out_sequences) if any(map(len, held_out_sequences)) else None

    def evaluate(done: int, weights: Any) -> Evaluated:
        if done % config.run.evaluate_every and done != plan.rounds:
            return {}, {}
        result = evaluate_validation(weights)
        operator = {} if evaluate_held_out is None else {"held_out_loss": evaluate_held_out(weights).loss_per_token}
        return {"validation_loss": result.loss_per_token, "validation_accuracy": result.accuracy}, operator

    with local_runtime(concurrent_calls=config.run.shards) as runtime:
        reach = (
            "OPEN to any host and account" if runtime.worker.is_open else "reachable by this account on loopback only"
        )
        show.note(f"TFF worker: process {runtime.worker.pid}, port {runtime.worker.port}, {reach}")
        clients_at_once = _choose_clients_at_once(run, config, model, plan, public_weights, last_inputs, show)
        shards = config.run.shards * (1 if hosts is None else len(hosts))
        config_of_hosts = msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, shards=shards))
        engine = assembly.build_engine(config_of_hosts, model, public_weights, plan, clients_at_once)
        if hosts is not None:
            engine = hosts.spread(engine)
        inputs = assembly.describe_inputs(config, prepared, public_weights, clients_at_once)
        federation = assembly.build_federation(config, prepared, plan, keys, engine, inputs)
        log, board = RoundLog(run.path, config.run.keep_checkpoints), Board(run.tensorboard)
        if plan.is_private:
            show.note("computing epsilon for all rounds …")
        epsilons = _epsilon_by_round(plan)
        epsilon_name = "epsilon" if config.run.fixed_key is None else "epsilon_fixed_key"
        show.note(FOOTNOTE)
        size = sum(value.size for value in public_weights.values())
        with show.task("rounds", plan.rounds) as advance, board:
            for row in _recording_kernels(run, kernels, run_rounds(federation, log, evaluate)):
                if warning := _check_divergence(row, run.metrics, plan, size):
                    show.note(warning)
                operator = _replace_none(_select_operator_metrics(row["operator"]))
                metrics = {name: row["released"][name] for name in PRIVATE_METRICS if name in row["released"]}
                metrics = _replace_none(metrics | row["evaluation"])
                if epsilons is not None:
                    metrics[epsilon_name] = epsilons[row["round"] - 1]
                board.write(row["round"], {**metrics, **{f"operator/{name}": v for name, v in operator.items()}})
                advance(row["round"], {**operator, **metrics})
                if config.run.recycle_worker and row["round"] % config.run.recycle_worker == 0:
                    runtime.recycle()
        state = final_state(federation, log)
    return dict(state["average"])


def _check_divergence(row: dict[str, Any], metrics: Path, plan: PrivacyPlan, size: int) -> str | None:
    """Returns a warning with the likely cause if a round's metrics show that training has diverged.

    `metrics` is the file of all rounds' metrics, this round's included; `size` is the number of the model's weights.
    """
    if _is_lost(row):
        what = "no client's update was finite, so each counts as zero"
    elif row["evaluation"].get("validation_loss", 0.0) is None:
        what = "the validation loss is not finite"
    else:
        return None
    cause = _name_cause(row, read_metrics(metrics)[0], plan, size)
    return f"warning: round {row['round']}: {what}: {cause} (operator only, outside ε)"


def _name_cause(row: dict[str, Any], first: dict[str, Any], plan: PrivacyPlan, size: int) -> str:
    # In round 1, clients train the initial model, which neither noise nor the server has changed yet.
    if first["round"] == 1 and _is_lost(first):
        return "clients.learning_rate is too large for this model; start a new run with a smaller one"
    return likely_cause(plan, row["released"].get("clip"), size)


def last_cause(run: RunFolder, size: int) -> str:
    """Returns the likely cause of a finished run's divergence, as of its last round; `size` is the number of weights.

    It is the cause that the last warning during training named, if there was one.
    """
    rows = read_metrics(run.metrics)
    return _name_cause(rows[-1], rows[0], Ledger.read(run.ledger).plan, size)


def _is_lost(row: dict[str, Any]) -> bool:
    """Returns whether the round had updates and none of them was finite."""
    return bool(row["operator"]["non_finite"]) and not row["operator"]["tokens"]


def _replace_none(values: dict[str, float | None]) -> dict[str, float]:
    """Replaces None by NaN; in metrics, None stands for a number that is not finite."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _select_operator_metrics(metrics: dict[str, float | None]) -> dict[str, float | None]:
    """Returns the operator's metrics that are displayed; the loss is None where no token was trained on."""
    selected = {name: metrics[name] for name in OPERATOR_ONLY if name in metrics}
    return selected if metrics["tokens"] else {**selected, "loss": None}


def _choose_clients_at_once(
    run: RunFolder,
    config: Config,
    model: Any,
    plan: PrivacyPlan,
    weights: dict[str, Any],
    last_inputs: str | None,
    show: ConsoleDisplay,
) -> int:
    """Returns how many clients of a shard are trained at once.

    The config may set the number. Otherwise the fastest one is measured when the run begins, and kept. `last_inputs` is
    the `inputs` string in the ledger's last round: `clients_at_once` and a digest of data, settings and starting
    weights (`assembly.describe_inputs`). It is None if the ledger has no round.

    Raises:
      ValueError: earlier rounds were trained with another number than `engine.json` says.
    """
    from fl.engines.calibration import calibrate

    if plan.noise == "exact":
        return 1
    if config.run.clients_at_once is not None:
        return config.run.clients_at_once
    in_ledger = None if last_inputs is None else assembly.read_clients_at_once(last_inputs)
    if run.engine.exists():
        return _read_clients_at_once(run.engine, run.ledger, in_ledger)
    if in_ledger is not None:
        show.note(f"{run.engine} is missing: {in_ledger} clients of a shard are trained at once, as {run.ledger} says")
        write_json(run.engine, {"clients_at_once": in_ledger})
        return in_ledger
    seconds = calibrate(
        lambda clients_at_once: assembly.build_engine(config, model, weights, plan, clients_at_once),
        assembly.build_task(config, model, plan),
        weights,
        assembly.build_local_sgd(config),
        config.run.shards,
        plan.expected_cohort,
    )
    fastest = min(seconds, key=seconds.__getitem__)
    write_json(run.engine, {"clients_at_once": fastest, "seconds": {str(number): s for number, s in seconds.items()}})
    timings = ", ".join(f"{number} at once {s:.2f} s" for number, s in seconds.items())
    show.note(f"clients of a shard trained at once: {fastest} ({timings}; run.clients_at_once sets another number)")
    return fastest


def _read_clients_at_once(engine: Path, ledger: Path, in_ledger: int | None) -> int:
    """Reads the number from `engine.json`; raises ValueError if it is invalid or not the ledger's (where known)."""
    number = read_json(engine, "clients_at_once")["clients_at_once"]
    if type(number) is not int or not 1 <= number <= MAX_CLIENTS_AT_ONCE or in_ledger not in (None, number):
        fix = "restore it" if in_ledger is None else "delete it, and the number will be read from the ledger"
        conflict = "" if in_ledger is None else f", but the rounds in {ledger} were trained with {in_ledger}"
        raise ValueError(f"{engine} says clients_at_once {number!r}{conflict}: {fix}")
    return number


def _epsilon_by_round(plan: PrivacyPlan) -> list[float] | None:
    """Returns ε after each round, for display; None without privacy.

    ε is computed at 25 rounds or fewer. A round between two of them gets the ε of the later one, an upper bound.
    """
    if not plan.is_private:
        return None
    stride = -(-plan.rounds // 25)
    ends = [min(end, plan.rounds) for end in range(stride, plan.rounds + stride, stride)]
    return [float(value) for value in np.repeat(accounting.epsilon_curve(plan, ends), stride)[: plan.rounds]]


def _describe_privacy(plan: PrivacyPlan, has_fixed_key: bool) -> str:
    if not plan.is_private:
        return "privacy: NOT PRIVATE (no noise)"
    epsilon = accounting.epsilon(plan)
    unstated = f" ({NOT_STATED})" if math.isinf(epsilon.value) else ""
    noise = f"noise multiplier {plan.noise_multiplier:.4g}"
    if plan.mechanism is not None:
        noise += f", {plan.mechanism.describe()}"
    return (
        f"privacy: epsilon {format_epsilon(epsilon.value)}{unstated} at delta {plan.target_delta:.3g} "
        f"({plan.delta_rule}), unit {plan.unit}, {plan.relation}, {plan.sampling.describe()}, {plan.rounds} rounds, "
        f"{noise}{f'; {FIXED_KEY}' if has_fixed_key else ''}"
    )
