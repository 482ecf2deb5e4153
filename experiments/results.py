"""Evaluates a trained run on its test clients, beside baselines, and writes its privacy reports."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data, head_evaluation, plots
from experiments.baselines import KneserNeyBigram, Unigram
from experiments.display import FIXED_KEY
from experiments.head_evaluation import HeadEvaluator
from experiments.intervals import Interval, bits_per_character, format_interval, mean_interval, paired_interval
from experiments.markdown import markdown_table
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
    """Holds the result of one model on the test clients.

    Attributes:
      name: name of the model, as in the table.
      nats: loss in nats per token, with a 95 % bootstrap interval over clients.
      bits: loss in bits per character; the end of a sentence counts as one character.
      gain: loss of this model minus that of the trained model in nats per token, paired over clients, with a 95 %
        bootstrap interval; None for the trained model itself.
    """

    name: str
    nats: Interval
    bits: float
    gain: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the row as JSON-able values, in the form that `privacy.report` takes."""
        gain = None if self.gain is None else self.gain._asdict()
        return {"name": self.name, "nats": self.nats._asdict(), "bits": self.bits, "gain": gain}


def evaluate(run: RunFolder) -> str:
    """Evaluates a finished run on its test clients and writes the results and the loss curve into the run's folder.

    Args:
      run: folder of a finished run.

    Returns:
      The table of results as Markdown.

    Raises:
      OSError, ValueError: the run is not finished, or a file of it is missing, damaged or another run's.
    """
    run.require_federated()
    config = run.read_config()
    require_writable(run.path)
    run.close_to_others()
    metrics = checked_metrics(RoundLog(run.path))
    prepared = data.prepare(config, run.vocabulary)
    run.check_data(prepared.store.digest)
    rows = test_rows(run, prepared)
    evaluation = {"clients": len(prepared.splits.test), "rows": [row.to_dict() for row in rows], "versions": versions()}
    write_json(run.evaluation, evaluation)
    text = table(rows, len(prepared.splits.test)) + _evaluate_heads(run, prepared)
    write_private(run.table, text.encode())
    plots.loss_curve(run.path / "curve", metrics, _validation_lines(run, prepared))
    return text


def _evaluate_heads(run: RunFolder, prepared: data.Data) -> str:
    """Evaluates the prediction heads on the test clients, and returns a table; nothing if the model has none."""
    from models.heads import HeadedLanguageModel

    model, weights, _ = load_trained(run.path)
    if not isinstance(model, HeadedLanguageModel):
        return ""
    found = HeadEvaluator(model, [prepared.whole(client) for client in prepared.splits.test])(weights).to_dict()
    write_json(run.heads, found)
    return "\n" + head_evaluation.table(found, "the test clients, without noise, outside ε")


def table(rows: list[Row], clients: int) -> str:
    """Returns the results as Markdown.

    Args:
      rows: one result per model.
      clients: number of test clients.
    """
    about = f"Test clients ({clients}), measured without noise, outside ε; 95 % bootstrap intervals over clients."
    header = ("", "nats per token", "bits per character", "worse than the trained model by (nats per token, paired)")
    cells = [
        (_marked(row.name), _format(row.nats), f"{row.bits:.3f}", "" if row.gain is None else _format(row.gain))
        for row in rows
    ]
    return "\n".join([about, "", *markdown_table(header, cells), "", NGRAM_FOOTNOTE]) + "\n"


def _format(interval: Interval) -> str:
    return format_interval(interval._asdict(), 3)


def _marked(name: str) -> str:
    """Returns a row's name, with an asterisk if the row is for the operator only."""
    return name if name in (PUBLIC, TRAINED) else f"{name}*"


def write_reports(run: RunFolder, note: Callable[[str], None]) -> list[Path]:
    """Writes the operator's report and the report for publication, each as HTML, Markdown and JSON.

    The privacy guarantee is computed from the ledger, which must hold all rounds that the run has trained.

    Args:
      run: folder of a run, finished or not.
      note: called with each line that the user must see beside the reports.

    Returns:
      Paths of the files.

    Raises:
      OSError, ValueError: a file of the run is missing, damaged or another run's; one line that names it.
    """
    run.require_federated()
    run.read_config()
    require_writable(run.path)
    run.close_to_others()
    ledger = Ledger.read(run.ledger)
    metrics = checked_metrics(RoundLog(run.path))
    trained_rounds = ledger.plan.rounds if run.weights.exists() else metrics[-1]["round"] if metrics else 0
    is_complete = [row["round"] for row in metrics] == list(range(1, trained_rounds + 1))
    if not is_complete:
        note(
            f"{run.metrics} lacks rows of the {trained_rounds} rounds: the report does not say how many updates were "
            "zeroed"
        )
    if len(ledger.rounds) < trained_rounds:
        raise ValueError(
            f"ledger {run.ledger} holds {len(ledger.rounds)} of the {trained_rounds} rounds that this run has trained: "
            "restore it, epsilon cannot be computed without it"
        )
    newest = checkpoints.latest_document(RoundLog(run.path).checkpoints)
    if newest is not None:
        rounds, document = newest
        if len(ledger.rounds) < rounds or ledger.head_after(rounds) != document["ledger_head"]:
            raise ValueError(
                f"ledger {run.ledger} lacks some of the {rounds} rounds that this run has trained, or is another "
                "run's: restore it, epsilon cannot be computed without it"
            )
    if run.keys.exists() and not RunKeys.load(run.keys).match(ledger.rounds):
        raise ValueError(
            f"ledger {run.ledger} holds rounds that were not made with the keys in {run.keys}: restore both files of "
            "this run"
        )
    facts: dict[str, Any] = {"versions": versions(), "run": run.path.resolve().name}
    facts["non_finite"] = int(sum(row["operator"]["non_finite"] for row in metrics)) if is_complete else None
    if run.evaluation.exists():
        facts["evaluation"] = _read_evaluation(run.evaluation)
    operator_report = report.build(ledger.plan, ledger, facts)
    if operator_report.data["status"] == "fixed key":
        note(f"privacy: the reports state an epsilon, {FIXED_KEY}")
    paths = operator_report.write(run.path, "report")
    if "evaluation" in facts:
        # The n-gram models are exact functions of the training clients' text: their results may not be published.
        rows = [row for row in facts["evaluation"]["rows"] if row["name"] in (PUBLIC, TRAINED)]
        facts["evaluation"] = {**facts["evaluation"], "rows": rows}
    return [
        *paths,
        *report.build(ledger.plan, ledger, facts, release=True).write(run.path, "report-release"),
    ]


def test_rows(run: RunFolder, prepared: data.Data) -> list[Row]:
    """Evaluates a finished run and its baselines on the test clients.

    Args:
      run: folder of a finished run.
      prepared: data of the run's config.

    Returns:
      One row each for the unigram, the bigram, the public model (if there is one) and the trained model.

    Raises:
      OSError, ValueError: a file of the run is missing or damaged, or the trained model's loss is not finite.
    """
    from experiments.training import last_cause
    from fl.evaluation import Evaluator

    model, weights, _ = load_trained(run.path)
    neural = {TRAINED: weights}
    if run.read_config().pretraining.epochs:
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
            f"{run.path}: the trained model's loss is not finite on {bad} of {len(sequences)} test clients, so its "
            "training diverged: start a new run with other settings. Likely cause: "
            f"{last_cause(run, sum(value.size for value in weights.values()))}. fedspeak report still writes the "
            "privacy report of this run"
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
    """Returns the losses on validation clients, in nats per token, that the curve is compared with, by name."""
    from fl.evaluation import Evaluator

    sequences = [prepared.whole(client) for client in prepared.splits.validation]
    training = [prepared.training(client) for client in prepared.splits.train]
    bigram = KneserNeyBigram.fit(training, prepared.vocabulary.size)
    loss = sum(bigram.token_losses(rows).sum() for rows in sequences)
    lines = {_marked(BIGRAM): float(loss) / sum(np.count_nonzero(rows[:, 1:]) for rows in sequences)}
    if run.read_config().pretraining.epochs:
        model, _, _ = load_trained(run.path)
        lines[PUBLIC] = Evaluator(model, sequences)(load_weights(run.public_weights, model)).loss_per_token
    return lines


def seeds_table(evaluations: list[list[Row]]) -> str:
    """Returns the results of a run's repetitions as Markdown, with their mean and standard deviation in the last row.

    Args:
      evaluations: for each repetition, its result rows; at least two repetitions.
    """
    compared = [row.name for row in evaluations[0] if row.gain is not None]
    header = ["repetition", "nats per token", "bits per character", *(f"{_marked(name)} worse by" for name in compared)]
    cells, columns = [], []
    for number, rows in enumerate(evaluations, 1):
        by_name = {row.name: row for row in rows}
        gains = [gain for name in compared if (gain := by_name[name].gain)]
        trained = by_name[TRAINED]
        columns.append([trained.nats.estimate, trained.bits, *(gain.estimate for gain in gains)])
        cells.append([number, f"{trained.nats.estimate:.3f}", f"{trained.bits:.3f}", *map(_format, gains)])
    summary = zip(np.mean(columns, 0), np.std(columns, 0, ddof=1), strict=True)
    cells.append(["mean ± standard deviation", *(f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in summary)])
    return "\n".join([*markdown_table(header, cells), "", NGRAM_FOOTNOTE]) + "\n"


def _read_evaluation(path: Path) -> dict[str, Any]:
    """Reads the file that `evaluate` wrote; raises ValueError if it is damaged."""
    evaluation = read_json(path, "clients", "rows", "versions")
    rows, keys = evaluation["rows"], {field.name for field in fields(Row)}
    if not (isinstance(rows, list) and all(isinstance(row, dict) and set(row) == keys for row in rows)):
        raise ValueError(f"{path} is damaged: write it again with fedspeak evaluate")
    return evaluation
