"""What a trained run is worth: test clients' losses beside baselines, with intervals over clients; and its reports."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data, plots
from experiments.baselines import KneserNeyBigram, Unigram
from experiments.display import FIXED_KEY
from experiments.intervals import Interval, bits_per_character, mean_interval, paired_interval
from experiments.provenance import versions
from experiments.runs import RunFolder, load_trained, load_weights, read_json, write_json
from fl import checkpoints
from fl.rounds import RoundLog, checked_metrics
from privacy import report
from privacy.files import require_writable, write_private
from privacy.keys import RunKeys
from privacy.ledger import Ledger

UNIGRAM = "unigram of the training clients"
BIGRAM = "Kneser-Ney bigram of the training clients"
PUBLIC = "public model"
TRAINED = "after federated training"
NGRAM_FOOTNOTE = "With *: fitted to the training clients' text without noise, operator only, outside ε."


@dataclass(frozen=True)
class Row:
    """One predictor on the test clients.

    Attributes:
      nats: nats a token, with a 95 % bootstrap interval over clients.
      bits: bits a character (the end of a sentence counts as one).
      gain: this minus the trained model in nats a token, paired over clients; None for the trained model itself.
    """

    name: str
    nats: Interval
    bits: float
    gain: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as `privacy.report` takes it."""
        gain = None if self.gain is None else self.gain._asdict()
        return {"name": self.name, "nats": self.nats._asdict(), "bits": self.bits, "gain": gain}


def evaluate(run: RunFolder) -> str:
    """Evaluates a finished run on its test clients; returns the table as Markdown and keeps it in the run's folder."""
    config = run.read_config()
    require_writable(run.path)
    run.close_to_others()
    metrics = checked_metrics(RoundLog(run.path))
    prepared = data.prepare(config, run.vocabulary)
    run.check_data(prepared.store.digest)
    rows = test_rows(run, prepared)
    found = {"clients": len(prepared.splits.test), "rows": [row.to_dict() for row in rows], "versions": versions()}
    write_json(run.evaluation, found)
    text = table(rows, len(prepared.splits.test))
    write_private(run.table, text.encode())
    plots.loss_curve(run.path / "curve", metrics, _validation_lines(run, prepared))
    return text


def table(rows: list[Row], clients: int) -> str:
    """The rows as Markdown."""
    lines = [
        f"Test clients ({clients}), measured without noise, outside ε; 95 % bootstrap intervals over clients.",
        "",
        "| | nats a token | bits a character | worse than the trained model by (nats a token, paired) |",
        "|---|---|---|---|",
    ]
    for row in rows:
        gain = "" if row.gain is None else f"{row.gain.estimate:.3f} [{row.gain.low:.3f}, {row.gain.high:.3f}]"
        nats = f"{row.nats.estimate:.3f} [{row.nats.low:.3f}, {row.nats.high:.3f}]"
        lines.append(f"| {_marked(row.name)} | {nats} | {row.bits:.3f} | {gain} |")
    return "\n".join([*lines, "", NGRAM_FOOTNOTE]) + "\n"


def _marked(name: str) -> str:
    """A row's name, with an asterisk if the row is for the operator only."""
    return name if name in (PUBLIC, TRAINED) else f"{name}*"


def write_reports(run: RunFolder, note: Callable[[str], None]) -> list[Path]:
    """Writes the operator's report and the one for release, each as HTML, Markdown and JSON, from the ledger.

    Args:
      run: a run, finished or not.
      note: is given a line that the user must see beside the reports.

    Returns:
      The files.

    Raises:
      OSError, ValueError: one line that names the file.
    """
    run.read_config()
    require_writable(run.path)
    run.close_to_others()
    ledger = Ledger.read(run.ledger)
    metrics = checked_metrics(RoundLog(run.path))
    done = metrics[-1]["round"] if metrics else 0
    made = ledger.plan.rounds if run.weights.exists() else done
    is_whole = [row["round"] for row in metrics] == list(range(1, made + 1))
    if not is_whole:
        note(f"{run.metrics} lacks rows of the {made} rounds: the report does not say how many updates were zeroed")
    if len(ledger.rounds) < made:
        raise ValueError(
            f"ledger {run.ledger} holds {len(ledger.rounds)} of the {made} rounds that this run has made: restore it, "
            "epsilon cannot be computed without it"
        )
    newest = checkpoints.latest_document(RoundLog(run.path).checkpoints)
    if newest is not None:
        rounds, document = newest
        if len(ledger.rounds) < rounds or ledger.head_after(rounds) != document["ledger_head"]:
            raise ValueError(
                f"ledger {run.ledger} lacks rounds that this run has made ({rounds}), or is another run's: restore it, "
                "epsilon cannot be computed without it"
            )
    if run.keys.exists() and not RunKeys.load(run.keys).made(ledger.rounds):
        raise ValueError(f"ledger {run.ledger} is not of the rounds of this run's keys: restore both")
    facts: dict[str, Any] = {"versions": versions(), "run": run.path.resolve().name}
    facts["non_finite"] = int(sum(row["operator"]["non_finite"] for row in metrics)) if is_whole else None
    if run.evaluation.exists():
        facts["evaluation"] = _read_evaluation(run.evaluation)
    operators = report.build(ledger.plan, ledger, facts)
    if operators.data["status"] == "fixed key":
        note(f"privacy: epsilon stands in the reports, {FIXED_KEY}")
    written = operators.write(run.path, "report")
    if "evaluation" in facts:
        # The n-gram models are exact functions of the training clients' text: nothing of them may be released.
        rows = [row for row in facts["evaluation"]["rows"] if row["name"] in (PUBLIC, TRAINED)]
        facts["evaluation"] = {**facts["evaluation"], "rows": rows}
    return [
        *written,
        *report.build(ledger.plan, ledger, facts, release=True).write(run.path, "report-release"),
    ]


def test_rows(run: RunFolder, prepared: data.Data) -> list[Row]:
    """A finished run and its baselines on the test clients."""
    from fl.evaluation import Evaluator

    model, weights, _ = load_trained(run.path)
    neural = {TRAINED: weights}
    if run.read_config().warm_start.epochs:
        neural = {PUBLIC: load_weights(run.public_weights, model), **neural}
    sequences = [prepared.whole(client) for client in prepared.splits.test]
    training = [prepared.training(client) for client in prepared.splits.train]
    size = prepared.vocabulary.size
    tokens = np.array([np.count_nonzero(rows[:, 1:]) for rows in sequences])
    characters = float(sum(prepared.vocabulary.characters[rows[:, 1:]].sum() for rows in sequences))
    baselines: dict[str, Unigram | KneserNeyBigram] = {
        UNIGRAM: Unigram.fit(training, size),
        BIGRAM: KneserNeyBigram.fit(training, size),
    }
    losses = {
        name: np.array([baseline.token_losses(rows).sum() for rows in sequences])
        for name, baseline in baselines.items()
    }
    evaluate_model = Evaluator(model, sequences)
    losses |= {name: evaluate_model(weights).loss for name, weights in neural.items()}
    if bad := int(np.count_nonzero(~np.isfinite(losses[TRAINED]))):
        raise ValueError(
            f"{run.path}: the trained model's loss is not finite on {bad} of {len(sequences)} test clients, its "
            "training diverged: start a new run with other settings (the warnings in training name the likely cause); "
            "fedspeak report writes the privacy report of this one"
        )
    return [
        Row(
            name,
            mean_interval(loss, tokens),
            bits_per_character(float(loss.sum()), characters),
            None if name == TRAINED else paired_interval(loss, losses[TRAINED], tokens),
        )
        for name, loss in losses.items()
    ]


def _validation_lines(run: RunFolder, prepared: data.Data) -> dict[str, float]:
    """What the curve of validation losses is compared with."""
    from fl.evaluation import Evaluator

    sequences = [prepared.whole(client) for client in prepared.splits.validation]
    training = [prepared.training(client) for client in prepared.splits.train]
    bigram = KneserNeyBigram.fit(training, prepared.vocabulary.size)
    loss = sum(bigram.token_losses(rows).sum() for rows in sequences)
    lines = {_marked(BIGRAM): float(loss) / sum(np.count_nonzero(rows[:, 1:]) for rows in sequences)}
    if run.read_config().warm_start.epochs:
        model, _, _ = load_trained(run.path)
        lines[PUBLIC] = Evaluator(model, sequences)(load_weights(run.public_weights, model)).loss_per_token
    return lines


def seeds_table(evaluations: list[list[Row]]) -> str:
    """Repetitions of one run as Markdown: each repetition, then mean and standard deviation over them."""
    compared = [row.name for row in evaluations[0] if row.gain is not None]
    header = ["repetition", "nats a token", "bits a character", *(f"{_marked(name)} worse by" for name in compared)]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    columns = []
    for number, rows in enumerate(evaluations, 1):
        by_name = {row.name: row for row in rows}
        gains = [by_name[name].gain for name in compared]
        trained = by_name[TRAINED]
        columns.append([trained.nats.estimate, trained.bits, *(gain.estimate for gain in gains if gain)])
        shown = "".join(f" {g.estimate:.3f} [{g.low:.3f}, {g.high:.3f}] |" for g in gains if g)
        lines.append(f"| {number} | {trained.nats.estimate:.3f} | {trained.bits:.3f} |{shown}")
    mean, deviation = np.mean(columns, 0), np.std(columns, 0, ddof=1)
    summary = "".join(f" {m:.3f} ± {d:.3f} |" for m, d in zip(mean, deviation, strict=True))
    return "\n".join([*lines, f"| mean ± standard deviation |{summary}", "", NGRAM_FOOTNOTE]) + "\n"


def _read_evaluation(path: Path) -> dict[str, Any]:
    """What `evaluate` wrote."""
    found = read_json(path, "clients", "rows", "versions")
    rows, keys = found["rows"], {field.name for field in fields(Row)}
    if not (isinstance(rows, list) and all(isinstance(row, dict) and set(row) == keys for row in rows)):
        raise ValueError(f"{path} is damaged: make it anew with fedspeak evaluate")
    return found
