"""One run, from its config to a trained model in its folder; resumable at any point."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import assembly, data, warm_start
from experiments.config import Config
from experiments.display import OPERATOR_ONLY, PRIVATE_METRICS, ConsoleDisplay, rounded_up
from experiments.runs import RunFolder, load_weights, read_json, save_weights, write_json
from experiments.versions import versions
from privacy import accounting
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan


def train(run: RunFolder, command: str, show: ConsoleDisplay, hosts: Any = None) -> None:
    """Carries a run (begun or not) to its end. The folder must hold its config (`RunFolder.create`).

    Args:
      run: where everything is read from and written to.
      command: the command line, for the run's `facts.json`.
      show: who shows the run's course.
      hosts: connected `fl.hosts.Hosts` that train the clients; None: this machine.

    Raises:
      OSError, ValueError: one line; the run can be resumed once the cause is mended.
    """
    config = run.read_config()
    if run.weights.exists():
        show.note(f"{run.path} is trained already")
        return
    show.note(f"run: {run.path}")
    prepared = data.prepare(config, run.vocabulary)
    run.check_data(prepared.store.digest)
    described = data.describe(prepared)
    show.note(described)
    model = assembly.model(config, prepared.vocabulary.size)
    begun = Ledger.read(run.ledger).plan.noise_multiplier if _has_lines(run.ledger) else None
    plan = assembly.plan(config, len(prepared.splits.train), _declared(config, prepared), begun)
    show.note(_promise(plan))
    if not run.facts.exists():
        lines = described.splitlines()
        facts = {"command": command, "versions": versions(), "data": lines, "store": prepared.store.digest}
        write_json(run.facts, {**facts, "vocabulary": prepared.vocabulary.digest})

    show.note("loading TensorFlow Federated …")
    public_weights = _public_weights(run, config, prepared, model, show)
    weights = _federated(run, config, prepared, plan, model, public_weights, show, hosts)
    write_json(run.model, model.config())
    save_weights(run.weights, weights)


def _has_lines(ledger: Path) -> bool:
    """Whether its header is there: a kill may have left less."""
    return ledger.exists() and b"\n" in ledger.read_bytes()


def _declared(config: Config, prepared: data.Data) -> tuple[str, ...]:
    """What the plan declares public."""
    uses = ["vocabulary learned from"]
    if config.warm_start.epochs:
        uses.append("initial model trained on")
    elif config.model.output_bias:
        uses.append("initial output bias from")
    return tuple(f"{use} {source}" for use in uses for source in prepared.declared_public)


def _public_weights(
    run: RunFolder, config: Config, prepared: data.Data, model: Any, show: ConsoleDisplay
) -> dict[str, Any]:
    """The weights before the first round: trained once, then read back."""
    if run.public_weights.exists():
        return load_weights(run.public_weights, model)
    with show.task("public model", config.warm_start.epochs) as advance:
        weights = warm_start.train_on_public_text(
            model,
            prepared.public,
            config.warm_start,
            config.model.seed,
            lambda epoch, loss: advance(epoch, {"public_loss": loss}),
        )
    save_weights(run.public_weights, weights)
    return weights


def _federated(
    run: RunFolder,
    config: Config,
    prepared: data.Data,
    plan: PrivacyPlan,
    model: Any,
    public_weights: dict[str, Any],
    show: ConsoleDisplay,
    hosts: Any,
) -> dict[str, Any]:
    """Runs the rounds that are left; returns the final weights."""
    import tensorflow as tf

    from fl.evaluation import Evaluator
    from fl.rounds import Evaluated, RoundLog, final_state, require_ledger, run_rounds
    from fl.runtime import local_runtime

    require_ledger(RoundLog(run.path))
    secrets = assembly.keys(config, run.keys, begun=run.ledger.exists())
    most = config.run.evaluate_clients
    validation = Evaluator(model, [prepared.whole(client) for client in _some(prepared.splits.validation, most)])
    held_out_sequences = [prepared.held_out(client) for client in _some(prepared.splits.train, most)]
    held_out = Evaluator(model, held_out_sequences) if any(map(len, held_out_sequences)) else None

    def evaluate(done: int, weights: Any) -> Evaluated:
        if done % config.run.evaluate_every and done != plan.rounds:
            return {}, {}
        found = validation(weights)
        operator = {} if held_out is None else {"held_out_loss": held_out(weights).loss_per_token}
        return {"validation_loss": found.loss_per_token, "validation_accuracy": found.accuracy}, operator

    with local_runtime(concurrent_calls=config.run.shards) as runtime:
        reach = "OPEN to any host and account" if runtime.worker.is_open else "on loopback, for this account only"
        show.note(f"TFF worker: process {runtime.worker.pid}, port {runtime.worker.port}, {reach}")
        users_at_once = _users_at_once(run, config, prepared.vocabulary.size, plan, public_weights, show)
        shards = config.run.shards * (1 if hosts is None else len(hosts))
        spread = dataclasses.replace(config, run=dataclasses.replace(config.run, shards=shards))
        engine = assembly.engine(spread, prepared.vocabulary.size, public_weights, plan, users_at_once)
        if hosts is not None:
            engine = hosts.spread(engine)
        federation = assembly.federation(config, prepared, public_weights, plan, secrets, engine)
        log = RoundLog(run.path, config.run.keep_checkpoints)
        board = tf.summary.create_file_writer(str(run.path / "tensorboard"))
        if plan.is_private:
            show.note("accounting for all rounds …")
        spent = _epsilon_by_round(plan)
        with show.task("rounds", plan.rounds) as advance, board.as_default():
            for row in run_rounds(federation, log, evaluate):
                operator = _shown_to_the_operator(row["operator"])
                if operator["non_finite"] and not row["operator"]["tokens"]:
                    show.note(
                        f"warning: round {row['round']}: no client's update was finite, each counts as zero: "
                        "clients.learning_rate is too large for this model"
                    )
                shown = {name: row["released"][name] for name in PRIVATE_METRICS if name in row["released"]}
                shown |= row["evaluation"]
                if spent is not None:
                    shown["epsilon"] = spent[row["round"] - 1]
                for name, value in {**shown, **{f"operator/{name}": value for name, value in operator.items()}}.items():
                    tf.summary.scalar(name, value, step=row["round"])
                advance(row["round"], {**operator, **shown})
                if config.run.recycle_worker and row["round"] % config.run.recycle_worker == 0:
                    runtime.recycle()
        state = final_state(federation, log)
    return dict(state["average"])


def _shown_to_the_operator(measured: dict[str, float]) -> dict[str, float]:
    """Of what was read from training clients; no loss is a number of no tokens."""
    shown = {name: measured[name] for name in OPERATOR_ONLY if name in measured}
    return shown if measured["tokens"] else {**shown, "loss": math.nan}


def _some(clients: Sequence[str], most: int) -> list[str]:
    """At most that many of them, the same ones every time."""
    if len(clients) <= most:
        return list(clients)
    return [clients[int(i)] for i in np.sort(np.random.default_rng(0).choice(len(clients), most, replace=False))]


def _users_at_once(
    run: RunFolder,
    config: Config,
    vocabulary_size: int,
    plan: PrivacyPlan,
    weights: dict[str, Any],
    show: ConsoleDisplay,
) -> int:
    """Clients of a shard trained together: what the config says, else what was measured when the run began."""
    from fl.engines.calibration import calibrate

    if config.run.users_at_once is not None:
        return config.run.users_at_once
    if run.engine.exists():
        return int(read_json(run.engine, "users_at_once")["users_at_once"])
    seconds = calibrate(
        lambda users: assembly.engine(config, vocabulary_size, weights, plan, users),
        assembly.task(config, vocabulary_size, plan),
        weights,
        assembly.local_sgd(config),
        config.run.shards,
        plan.expected_cohort,
    )
    chosen = min(seconds, key=seconds.__getitem__)
    write_json(run.engine, {"users_at_once": chosen, "seconds": {str(users): s for users, s in seconds.items()}})
    measured = ", ".join(f"{users} at once {s:.2f} s" for users, s in seconds.items())
    show.note(f"clients of a shard trained at once: {chosen} ({measured}; fix it with run.users_at_once)")
    return chosen


def _epsilon_by_round(plan: PrivacyPlan) -> list[float] | None:
    """Epsilon after each round, for show; in a long run that of the next of 25 rounds, an upper bound."""
    if not plan.is_private:
        return None
    stride = -(-plan.rounds // 25)
    ends = [min(end, plan.rounds) for end in range(stride, plan.rounds + stride, stride)]
    return [float(value) for value in np.repeat(accounting.epsilon_curve(plan, ends), stride)[: plan.rounds]]


def _promise(plan: PrivacyPlan) -> str:
    if not plan.is_private:
        return "privacy: NOT PRIVATE (no noise)"
    figure = accounting.epsilon(plan)
    return (
        f"privacy: epsilon {rounded_up(figure.value)} at delta {plan.target_delta:.3g} ({plan.delta_rule}), "
        f"unit {plan.unit}, {plan.relation}, {plan.sampling.describe()}, {plan.rounds} rounds, "
        f"noise multiplier {plan.noise_multiplier:.4g}"
    )
