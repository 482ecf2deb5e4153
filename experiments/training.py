"""One run, from its config to a trained model in its folder; resumable at any point."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from experiments import assembly, data, warm_start
from experiments.config import MAX_CLIENTS_AT_ONCE, Config
from experiments.display import FIXED_KEY, FOOTNOTE, OPERATOR_ONLY, PRIVATE_METRICS, ConsoleDisplay, rounded_up
from experiments.provenance import versions
from experiments.runs import RunFolder, load_weights, read_json, save_weights, write_json
from fl.divergence import likely_cause
from fl.round_metrics import read_metrics
from fl.runtime.kernels import describe_kernels
from privacy import accounting
from privacy.files import require_writable
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan


def train(run: RunFolder, command: str, show: ConsoleDisplay, hosts: Any = None) -> None:
    """Carries a run (begun or not) to its end. The folder must hold its config (`RunFolder.create`).

    Args:
      run: where everything is read from and written to.
      command: the command line, for the run's `facts.json`.
      show: who shows the run's course.
      hosts: connected `fl.runtime.hosts.Hosts` that train the clients; None: this machine.

    Raises:
      OSError, ValueError: one line; the run can be resumed once the cause is mended.
    """
    config = run.read_config()
    require_writable(run.path)
    run.close_to_others()
    if run.weights.exists():
        show.note(f"{run.path} is trained already")
        return
    show.note(f"run: {run.path}")
    prepared = data.prepare(config, run.vocabulary)
    run.check_data(prepared.store.digest)
    described = data.describe(prepared)
    show.note(described)
    model = assembly.build_model(config, prepared.vocabulary.size)
    begun = Ledger.read(run.ledger) if _has_lines(run.ledger) else None
    noise = None if begun is None else begun.plan.noise_multiplier
    assembly.check_clients(config, prepared)
    plan = assembly.build_plan(config, len(prepared.splits.train), _declared(config, prepared), noise)
    if warning := _far_from_declared(plan, len(prepared.splits.train)):
        show.note(warning)
    show.note(_promise(plan, config.run.fixed_key is not None))
    if not run.facts.exists():
        lines = described.splitlines()
        facts = {"command": command, "versions": versions(), "data": lines, "store": prepared.store.digest}
        write_json(run.facts, {**facts, "vocabulary": prepared.vocabulary.digest, "kernels": [describe_kernels()]})
    elif warning := _other_kernels(run):
        show.note(warning)

    show.note("loading TensorFlow Federated …")
    public_weights = _public_weights(run, config, prepared, model, show)
    recorded = begun.rounds[-1].facts.get("inputs") if begun is not None and begun.rounds else None
    weights = _federated(run, config, prepared, plan, model, public_weights, recorded, show, hosts)
    write_json(run.model, model.config())
    save_weights(run.weights, weights)


def _far_from_declared(plan: PrivacyPlan, clients: int) -> str | None:
    """A warning for the operator if the declared population is off by more than a factor of two."""
    if not plan.any_population or plan.population / 2 <= clients <= 2 * plan.population:
        return None
    return (
        f"warning: cohort.population is {plan.population:,} and the data holds {clients:,} clients (operator only): δ "
        "and the mean's denominator follow from the first, so that a round moves the model too little or too much"
    )


def _other_kernels(run: RunFolder) -> str | None:
    """Records the kernels of a resumed run; returns a warning if they are not those of the rounds before."""
    facts, kernels = read_json(run.facts), describe_kernels()
    before = facts.get("kernels", [])
    if not before or before[-1] == kernels:
        return None
    write_json(run.facts, {**facts, "kernels": [*before, kernels]})
    return (
        f"warning: the rounds before were computed with {before[-1]}, those from here on with {kernels}: the result "
        "will not be bit-equal to that of a run without interruption (set TF_ENABLE_ONEDNN_OPTS as it was)"
    )


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
    recorded: str | None,
    show: ConsoleDisplay,
    hosts: Any,
) -> dict[str, Any]:
    """Runs the rounds that are left; returns the final weights. `recorded`: the ledger's inputs of its last round."""
    from experiments.board import Board
    from fl.evaluation import Evaluator
    from fl.rounds import Evaluated, RoundLog, final_state, require_ledger, run_rounds
    from fl.runtime import local_runtime

    require_ledger(RoundLog(run.path))
    keys = assembly.load_keys(config, run.keys, begun=run.ledger.exists())
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
        clients_at_once = _clients_at_once(run, config, model, plan, public_weights, recorded, show)
        shards = config.run.shards * (1 if hosts is None else len(hosts))
        spread = msgspec.structs.replace(config, run=msgspec.structs.replace(config.run, shards=shards))
        engine = assembly.build_engine(spread, model, public_weights, plan, clients_at_once)
        if hosts is not None:
            engine = hosts.spread(engine)
        inputs = assembly.describe_inputs(config, prepared, public_weights, clients_at_once)
        federation = assembly.build_federation(config, prepared, plan, keys, engine, inputs)
        log, board = RoundLog(run.path, config.run.keep_checkpoints), Board(run.tensorboard)
        if plan.is_private:
            show.note("accounting for all rounds …")
        spent, epsilon = _epsilon_by_round(plan), "epsilon" if config.run.fixed_key is None else "epsilon_fixed_key"
        show.note(FOOTNOTE)
        size = sum(value.size for value in public_weights.values())
        with show.task("rounds", plan.rounds) as advance, board:
            for row in run_rounds(federation, log, evaluate):
                if warning := _divergence(row, run.metrics, plan, size):
                    show.note(warning)
                operator = _with_nan(_shown_to_the_operator(row["operator"]))
                shown = {name: row["released"][name] for name in PRIVATE_METRICS if name in row["released"]}
                shown = _with_nan(shown | row["evaluation"])
                if spent is not None:
                    shown[epsilon] = spent[row["round"] - 1]
                board.write(row["round"], {**shown, **{f"operator/{name}": v for name, v in operator.items()}})
                advance(row["round"], {**operator, **shown})
                if config.run.recycle_worker and row["round"] % config.run.recycle_worker == 0:
                    runtime.recycle()
        state = final_state(federation, log)
    return dict(state["average"])


def _divergence(row: dict[str, Any], metrics: Path, plan: PrivacyPlan, size: int) -> str | None:
    """A warning, with the likely cause, if a round's row shows that training has diverged.

    `metrics` is the file that holds the row and those before it, `size` the number of the model's weights.
    """
    if _is_lost(row):
        what = "no client's update was finite, each counts as zero"
    elif row["evaluation"].get("validation_loss", 0.0) is None:
        what = "the validation loss is not finite"
    else:
        return None
    first = read_metrics(metrics)[0]
    if first["round"] == 1 and _is_lost(first):  # on the initial model, which neither noise nor the server has changed
        cause = "clients.learning_rate is too large for this model"
    else:
        cause = likely_cause(plan, row["released"].get("clip"), size)
    return f"warning: round {row['round']}: {what}: {cause} (operator only, outside ε)"


def _is_lost(row: dict[str, Any]) -> bool:
    """Whether no client's update of the round was finite."""
    return bool(row["operator"]["non_finite"]) and not row["operator"]["tokens"]


def _with_nan(values: dict[str, float | None]) -> dict[str, float]:
    """NaN for None, which stands in metrics for what is not finite."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def _shown_to_the_operator(measured: dict[str, float | None]) -> dict[str, float | None]:
    """Of what was read from training clients; no loss is a number of no tokens."""
    shown = {name: measured[name] for name in OPERATOR_ONLY if name in measured}
    return shown if measured["tokens"] else {**shown, "loss": None}


def _some(clients: Sequence[str], most: int) -> list[str]:
    """At most that many of them, the same ones every time."""
    if len(clients) <= most:
        return list(clients)
    return [clients[int(i)] for i in np.sort(np.random.default_rng(0).choice(len(clients), most, replace=False))]


def _clients_at_once(
    run: RunFolder,
    config: Config,
    model: Any,
    plan: PrivacyPlan,
    weights: dict[str, Any],
    recorded: str | None,
    show: ConsoleDisplay,
) -> int:
    """Clients of a shard trained together: what the config says, else what was measured when the run began.

    Raises:
      ValueError: the rounds that are `recorded` were made with another number.
    """
    from fl.engines.calibration import calibrate

    if plan.noise == "exact":
        if config.run.clients_at_once not in (None, 1):
            raise ValueError(
                f'run.clients_at_once is {config.run.clients_at_once} with privacy.noise "exact": use 1, or leave it '
                "out; clients trained together change the last bits of each other"
            )
        return 1
    if config.run.clients_at_once is not None:
        return config.run.clients_at_once
    before = None if recorded is None else assembly.read_clients_at_once(recorded)
    if run.engine.exists():
        return _clients_at_once_in(run.engine, run.ledger, before)
    if before is not None:
        show.note(f"{run.engine} is missing: {before} clients of a shard are trained at once, as {run.ledger} says")
        write_json(run.engine, {"clients_at_once": before})
        return before
    seconds = calibrate(
        lambda users: assembly.build_engine(config, model, weights, plan, users),
        assembly.build_task(config, model, plan),
        weights,
        assembly.build_local_sgd(config),
        config.run.shards,
        plan.expected_cohort,
    )
    chosen = min(seconds, key=seconds.__getitem__)
    write_json(run.engine, {"clients_at_once": chosen, "seconds": {str(users): s for users, s in seconds.items()}})
    measured = ", ".join(f"{users} at once {s:.2f} s" for users, s in seconds.items())
    show.note(f"clients of a shard trained at once: {chosen} ({measured}; fix it with run.clients_at_once)")
    return chosen


def _clients_at_once_in(engine: Path, ledger: Path, before: int | None) -> int:
    """The number in `engine.json`, which must be that of the rounds `before`, if it is known."""
    found = read_json(engine, "clients_at_once")["clients_at_once"]
    if type(found) is not int or not 1 <= found <= MAX_CLIENTS_AT_ONCE or before not in (None, found):
        fix = "restore it" if before is None else "delete it, the number is read from the ledger then"
        made = "" if before is None else f" and the rounds in {ledger} were made with {before}"
        raise ValueError(f"{engine} says clients_at_once {found!r}{made}: {fix}")
    return found


def _epsilon_by_round(plan: PrivacyPlan) -> list[float] | None:
    """Epsilon after each round, for show; in a long run that of the next of 25 rounds, an upper bound."""
    if not plan.is_private:
        return None
    stride = -(-plan.rounds // 25)
    ends = [min(end, plan.rounds) for end in range(stride, plan.rounds + stride, stride)]
    return [float(value) for value in np.repeat(accounting.epsilon_curve(plan, ends), stride)[: plan.rounds]]


def _promise(plan: PrivacyPlan, has_fixed_key: bool) -> str:
    if not plan.is_private:
        return "privacy: NOT PRIVATE (no noise)"
    figure = accounting.epsilon(plan)
    return (
        f"privacy: epsilon {rounded_up(figure.value)} at delta {plan.target_delta:.3g} ({plan.delta_rule}), "
        f"unit {plan.unit}, {plan.relation}, {plan.sampling.describe()}, {plan.rounds} rounds, "
        f"noise multiplier {plan.noise_multiplier:.4g}{f'; {FIXED_KEY}' if has_fixed_key else ''}"
    )
