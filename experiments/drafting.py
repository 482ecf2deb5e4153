"""Builds the drafter of speculative decoding that a user names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs import load_trained
from models.vocabularies import AnyVocabulary

if TYPE_CHECKING:  # so that TensorFlow loads only when a drafter is built
    from models.decoding.drafters import Drafter
    from models.katz import KatzModel
    from models.ngram import NGramModel

_NGRAM = "ngram:"
FORMS = "the folder of a model, lookup, self, heads or ngram:FILE"
"""What a drafter can be named by, for messages and help."""


def load_drafter(
    name: str, model: Any, weights: dict[str, np.ndarray], vocabulary: AnyVocabulary, context: int
) -> "Drafter":
    """Builds the drafter that a user names, for a target.

    Args:
      name: "lookup" for what followed the last tokens earlier in the text; "self" for the target with weights rounded
        to int8; "heads" for the target's own prediction heads; "ngram:FILE" for an n-gram model that `fedspeak ngram`
        wrote; or the folder of a model. A model of another vocabulary drafts the tokens that both vocabularies have.
      model: the target's language model.
      weights: its weights by name.
      vocabulary: its vocabulary.
      context: maximum number of tokens of a prompt and its continuation, the tokens of a draft included, >= 2.

    Raises:
      FileNotFoundError: there is no such file or folder, or its training is not finished.
      ValueError: it is damaged, it is for another vocabulary than the target's, or its context is too small.
    """
    with naming("drafter =", name, f"a drafter is {FORMS}"):
        return read_drafter(name, model, weights, vocabulary, context)


@contextmanager
def naming(option: str, name: str, advice: str) -> Iterator[None]:
    """Puts what the user typed before the message of an error, and the advice after that of a file."""
    try:
        yield
    except FileNotFoundError as error:
        reason = f"{error.filename} does not exist" if error.filename else str(error)
        raise FileNotFoundError(f"{option} {name!r}: {reason}; {advice}") from None
    except OSError as error:
        reason = f"{error.filename} cannot be read ({error.strerror})" if error.filename else str(error)
        raise OSError(f"{option} {name!r}: {reason}; {advice}") from None
    except ValueError as error:
        raise ValueError(f"{option} {name!r}: {error}") from None


def short_name(name: str) -> str:
    """Returns what results call a drafter that a user names: the folder or file without those above it."""
    return Path(name.removeprefix(_NGRAM)).name or name


def read_drafter(
    name: str, model: Any, weights: dict[str, np.ndarray], vocabulary: AnyVocabulary, context: int
) -> "Drafter":
    """Does the same as `load_drafter`; its messages do not name the drafter."""
    if name == "lookup":
        from models.decoding.lookup_drafter import LookupDrafter

        return LookupDrafter(vocabulary.size, context)
    if name == "heads":
        from models.decoding.heads_drafter import HeadsDrafter

        return HeadsDrafter()
    if name.startswith(_NGRAM):
        return _load_ngram_drafter(ngram_file(name), vocabulary)
    if Path(name).is_file():
        raise ValueError(f"it is a file: give {_NGRAM}{name} if it is an n-gram model, or the folder of a model")
    from models.decoding.drafters import ModelDrafter
    from models.heads import without_heads

    if name == "self":
        from models.decoding.rounded_weights import quantized

        model, weights = without_heads(model, weights)
        return ModelDrafter(model.fit(context), quantized(model, weights))
    own_model, own_weights, own_vocabulary = load_trained(Path(name))
    own_model, own_weights = without_heads(own_model, own_weights)
    if own_vocabulary.digest == vocabulary.digest:
        return ModelDrafter(own_model.fit(context), own_weights)
    from models.decoding.shared_vocabulary import SharedVocabularyDrafter

    # A text may have more of the drafter's tokens than of the target's.
    room = 4 * context + 16
    own_model = own_model.fit(room if own_model.context is None else min(room, own_model.context))
    return SharedVocabularyDrafter(ModelDrafter(own_model, own_weights), vocabulary, own_vocabulary)


def ngram_file(name: str) -> Path:
    """Returns FILE of ngram:FILE; raises ValueError if it is empty."""
    if name == _NGRAM:
        raise ValueError("it names no file: give ngram:FILE")
    return Path(name.removeprefix(_NGRAM))


def load_ngram(path: Path, vocabulary: AnyVocabulary) -> "KatzModel | NGramModel":
    """Reads an n-gram model of either smoothing that `fedspeak ngram` wrote for a vocabulary.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is another kind of file or damaged, or it is for another vocabulary; one line.
    """
    from models.katz import KatzModel
    from models.ngram import NGramModel

    tables: KatzModel | NGramModel
    if KatzModel.wrote(path):
        tables = KatzModel.load(path)
    else:
        tables = NGramModel.load(path)
    if (tables.vocabulary_digest, tables.vocabulary_size) != (vocabulary.digest, vocabulary.size):
        raise ValueError(
            f"{path} was learned with another vocabulary ({tables.vocabulary_digest[:12] or 'not named'}) than the "
            f"target's ({vocabulary.digest[:12]}): learn it with fedspeak ngram and the target's folder"
        )
    return tables


def load_katz(path: Path, vocabulary: AnyVocabulary) -> "KatzModel":
    """Reads a Katz model, as `load_ngram`, and refuses one of another smoothing."""
    from models.katz import KatzModel

    tables = load_ngram(path, vocabulary)
    if not isinstance(tables, KatzModel):
        raise ValueError(f"{path} has another smoothing: learn it with fedspeak ngram --smoothing katz")
    return tables


def _load_ngram_drafter(path: Path, vocabulary: AnyVocabulary) -> "Drafter":
    from models.decoding.katz_drafter import KatzDrafter
    from models.decoding.ngram_drafter import NGramDrafter
    from models.katz import KatzModel

    tables = load_ngram(path, vocabulary)
    return KatzDrafter(tables) if isinstance(tables, KatzModel) else NGramDrafter(tables)
