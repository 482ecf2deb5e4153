"""Evaluates a model on text files."""

from pathlib import Path

import numpy as np

from experiments.head_evaluation import HeadEvaluator, table
from experiments.intervals import bits_per_character, format_interval, mean_interval
from experiments.markdown import markdown_table
from experiments.runs import load_trained

_LENGTH = 256
"""Maximum number of tokens of a sequence; each sequence is predicted without the text before it."""


def evaluate_text(folder: Path, files: tuple[Path, ...]) -> str:
    """Evaluates a trained or imported model on text files.

    Args:
      folder: folder of a finished run or of an imported model.
      files: the text files, UTF-8.

    Returns:
      The results as Markdown: the loss of all files together, with an interval over their sequences; and the results
      of each prediction head, if the model has more than one.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is not UTF-8 or holds fewer than two tokens, or the model is damaged.
    """
    texts = [read_text(file) for file in files]
    from fl.clients import sequences
    from fl.evaluation import Evaluator
    from models.heads import HeadedLanguageModel

    model, weights, vocabulary = load_trained(folder)
    length = min(_LENGTH, model.context or _LENGTH)
    rows = []
    for file, text in zip(files, texts, strict=True):
        tokens = np.array(vocabulary.document(text), np.int32)
        if len(tokens) < 3:
            raise ValueError(f"{file}: fewer than two tokens of text: give a longer file")
        rows.append(sequences(tokens, length))
    pieces = [row[np.newaxis] for part in rows for row in part]
    found = Evaluator(model, pieces)(weights)
    targets = np.concatenate(pieces)[:, 1:]
    nats = mean_interval(found.loss, found.tokens)
    bits = bits_per_character(float(found.loss.sum()), float(vocabulary.characters[targets].sum()))
    names = ", ".join(file.name for file in files)
    heads = ""
    if isinstance(model, HeadedLanguageModel):
        heads = "\n" + table(HeadEvaluator(model, pieces)(weights).to_dict(), "the same text (sequences)")
    about = f"{names}: {found.tokens.sum():,} tokens in sequences of up to {length}, with a 95 % interval over these."
    header = ("nats per token", "bits per character", "perplexity", "accuracy")
    perplexity = f"{np.exp(nats.estimate):,.1f}"
    cells = (format_interval(nats._asdict(), 3), f"{bits:.3f}", perplexity, f"{found.accuracy:.1%}")
    return "\n".join([about, "", *markdown_table(header, [cells]), heads])


def read_text(file: Path) -> str:
    """Returns the text of a UTF-8 file; raises OSError or, if it is not UTF-8, ValueError."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start}): convert it first") from None
