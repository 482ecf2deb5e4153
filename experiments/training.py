"""One run, from its config to a trained model in its folder; resumable at any point."""

import json
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

from experiments import assembly, data, warm_start
from experiments.config import Config
from experiments.runs import RunFolder, load_weights, save_weights
from fl.checkpoints import write_atomically
from privacy.plan import PrivacyPlan


class Display(Protocol):
    """Who shows a run's course (`experiments.display`)."""

    def note(self, text: str) -> None: ...

    def task(self, name: str, total: int) -> Any: ...


@dataclass(frozen=True)
class Trained:
    """What a finished run hands on."""

    config: Config
    data: data.Data
    model: Any
    plan: PrivacyPlan
    public_weights: dict[str, Any]
    weights: dict[str, Any]


def train(run: RunFolder, command: str, show: Display) -> Trained:
    """Carries a run (begun or not) to its end. The folder must hold its config (`RunFolder.create`).

    Raises:
      OSError, ValueError: one line; the run can be resumed once the cause is mended.
    """
    config = run.read_config()
    prepared = data.prepare(config, run.path.parent / "data", run.vocabulary)
    statistics = prepared.store.statistics
    show.note(
        f"clients: {len(prepared.splits.train)} train, {len(prepared.splits.validation)} validation, "
        f"{len(prepared.splits.test)} test; {statistics.summary()}"
    )
    show.note(f"public: {'; '.join(prepared.declared_public)} (vocabulary of {prepared.vocabulary.size} sub-words)")
    language_model = assembly.model(config, prepared.vocabulary.size)
    declared = [f"vocabulary learned from {source}" for source in prepared.declared_public]
    if config.warm_start.epochs:
        declared += [f"initial model trained on {source}" for source in prepared.declared_public]
    plan = assembly.plan(config, len(prepared.splits.train), tuple(declared))
    assembly.local_sgd(config)  # bad settings are told before the long imports
    show.note(_promise(plan))

    show.note("loading TensorFlow Federated …")
    with _quiet_tensorflow():
        import tensorflow_federated as tff  # noqa: F401

    if run.public_weights.exists():
        public_weights = load_weights(run.public_weights)
    else:
        with show.task("public model", config.warm_start.epochs) as advance:
            public_weights = warm_start.train_on_public_text(
                language_model,
                prepared.public,
                config.warm_start,
                config.model.seed,
                lambda epoch, loss: advance(epoch, {"public loss": loss}),
            )
        save_weights(run.public_weights, public_weights)
    weights = _federated(run, config, prepared, plan, language_model, public_weights, show)
    _write_json(run.model, language_model.config())
    save_weights(run.weights, weights)
    return Trained(config, prepared, language_model, plan, public_weights, weights)


def versions() -> dict[str, str]:
    """What a reader needs to repeat a run: interpreter and key packages."""
    found = {"python": platform.python_version()}
    for package in ("fedspeak", "tensorflow", "tensorflow-federated", "tensorflow-privacy", "dp-accounting", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _federated(
    run: RunFolder,
    config: Config,
    prepared: data.Data,
    plan: PrivacyPlan,
    language_model: Any,
    public_weights: dict[str, Any],
    show: Display,
) -> dict[str, Any]:
    """Runs the rounds that are left; returns the final weights."""
    import tensorflow as tf

    from fl.evaluation import Evaluator
    from fl.rounds import RoundLog, final_state, run_rounds
    from fl.runtime import local_runtime
    from privacy import accounting

    secrets = assembly.keys(config, run.keys)
    validation = Evaluator(language_model, [prepared.whole(client) for client in prepared.splits.validation])
    held_out_sequences = [prepared.held_out(client) for client in prepared.splits.train]
    held_out = Evaluator(language_model, held_out_sequences) if any(map(len, held_out_sequences)) else None

    def evaluate(done: int, weights: Any) -> dict[str, float]:
        if done % config.run.evaluate_every and done != plan.rounds:
            return {}
        found = validation(weights)
        row = {"validation_loss": found.loss_per_token, "validation_accuracy": found.accuracy}
        if held_out is not None:
            row["held_out_loss"] = held_out(weights).loss_per_token
        return row

    with local_runtime(concurrent_calls=config.run.shards) as worker:
        show.note(f"TFF worker: process {worker.pid}, port {worker.port} on loopback")
        federation = assembly.federation(config, prepared, public_weights, plan, secrets)
        log = RoundLog(run.path, config.run.keep_checkpoints)
        board = tf.summary.create_file_writer(str(run.path / "tensorboard"))
        spent = accounting.epsilon_curve(plan, range(1, plan.rounds + 1)) if plan.is_private else None
        with show.task("rounds", plan.rounds) as advance, board.as_default():
            for row in run_rounds(federation, log, evaluate):
                shown = {"loss": row["operator"]["loss"], **row["evaluation"]}
                if spent is not None:
                    shown["epsilon"] = float(spent[row["round"] - 1])
                for name, value in shown.items():
                    tf.summary.scalar(name, value, step=row["round"])
                advance(row["round"], shown)
        state = final_state(federation, log)
    return dict(state["weights"])


def _promise(plan: PrivacyPlan) -> str:
    from privacy import accounting

    if not plan.is_private:
        return "privacy: NOT PRIVATE (no noise)"
    figure = accounting.epsilon(plan)
    return (
        f"privacy: epsilon {figure.value:.2f} at delta {plan.target_delta:.3g} ({plan.delta_rule}), unit {plan.unit}, "
        f"{plan.relation}, {plan.sampling.describe()}, {plan.rounds} rounds, noise multiplier {plan.noise_multiplier:.4g}"
    )


@contextmanager
def _quiet_tensorflow() -> Iterator[None]:
    """TensorFlow's C++ start-up remarks (missing GPU, CPU flags) are no news to anybody."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    yield


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")


Advance = Callable[[int, dict[str, float]], None]
