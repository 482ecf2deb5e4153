"""Learns an n-gram model from public text, with the vocabulary of a model folder."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import data
from experiments.runs import RunFolder
from experiments.text_evaluation import read_text
from models import katz, ngram, vocabularies
from models.katz import KatzModel
from models.ngram import NGramModel
from models.vocabulary import EOS

SMOOTHINGS: dict[str, Callable[..., NGramModel | KatzModel]] = {"kneser-ney": ngram.learn, "katz": katz.learn}
"""Kinds of smoothing by name."""


def learn(
    folder: Path,
    files: tuple[Path, ...],
    order: int,
    max_entries: int,
    max_successors: int | None,
    min_counts: Sequence[int] = (),
    smoothing: str = "kneser-ney",
) -> tuple[NGramModel | KatzModel, int]:
    """Learns an n-gram model for the vocabulary of a model.

    Args:
      folder: folder of a run, a pretrained or an imported model.
      files: UTF-8 text files that may be published; if there are none, the text that the config in `folder` declares
        public.
      order: maximum number of tokens of an n-gram, 1 to 5.
      max_entries: maximum number of stored n-grams.
      max_successors: maximum number of stored successors of a context; None for the default of the smoothing.
      min_counts: how often n-grams of two tokens, of three, and so on must occur to be stored; 1 where left out.
      smoothing: one of `SMOOTHINGS`.

    Returns:
      The model and the number of tokens that it was learned from.

    Raises:
      OSError, ValueError: the folder has no vocabulary, or a text is empty or cannot be used; one line.
    """
    run = RunFolder(folder)
    if not run.vocabulary.is_file():
        raise FileNotFoundError(
            f"{folder} holds no model (no vocabulary.json): give the folder of a trained, pretrained or imported model"
        )
    vocabulary = vocabularies.load(run.vocabulary)
    if not files and not run.config.is_file():
        raise ValueError(f"{folder} names no public text (no config.toml): give text files to learn from")

    def rows() -> Iterator[np.ndarray]:
        for file in files:
            text = read_text(file)
            if not text.strip():
                raise ValueError(f"{file} holds no text: give public text to learn from")
            yield np.array(vocabulary.document(text), np.int32)
        if not files:
            public, _ = data.public_text(run.read_config())
            lines = (token for line in public for token in [*vocabulary.encode(line), EOS])
            yield np.array([vocabulary.start, *lines], np.int32)

    texts = list(rows())
    limits: dict[str, Any] = {
        "max_entries": max_entries,
        "min_counts": min_counts,
        "vocabulary_digest": vocabulary.digest,
    }
    if max_successors is not None:
        limits["max_successors"] = max_successors
    model = SMOOTHINGS[smoothing](texts, vocabulary.size, order, **limits)
    return model, sum(map(len, texts))
