"""Rates generated texts: likelihood, length, sentiment, a scorer file or a function of the user's own.

A scorer is a Keras model (`.keras`) or a TFLite file that takes token ids int32 `[1, T]` and gives one number. The ids
are those of prompt and text, the last T if there are more, and zeros after them if there are fewer. A scorer whose T is
not fixed gets them all. Beside it stands `<file>.json`, which `describe_scorer` writes: the digest of the vocabulary
that it was trained with.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from models.alignment.checks import Array

NAMES = ("log-likelihood", "total-log-likelihood", "length", "brevity", "sentiment")
"""The rewards that need nothing but the text; `load` takes others too."""
FORMS = f"{', '.join(NAMES)}, a .keras or .tflite scorer file, or module:function"
"""What a reward can be named by, for messages and help."""


class Sample(NamedTuple):
    """Holds one generated text.

    Attributes:
      prompt: the prompt.
      text: the text after it.
      prompt_tokens: token ids of the prompt.
      tokens: token ids of the text, the stop token included.
      log_prob: log-probability of the tokens in nats under the distribution that they were drawn from.
      unprocessed_log_prob: the same under the model's softmax, before temperature, top-k and the like.
    """

    prompt: str
    text: str
    prompt_tokens: Sequence[int]
    tokens: Sequence[int]
    log_prob: float
    unprocessed_log_prob: float


Reward = Callable[[Sample], float]


def load(name: str, vocabulary_digest: str) -> Reward:
    """Returns a reward by its name.

    Args:
      name: "log-likelihood" of the model in nats per token, or "total-log-likelihood" in nats; "length" in tokens, or
        "brevity", its negative; "sentiment", VADER's compound score from -1 to 1 (extra "rewards"); path of a scorer
        file; or "module:function", a function that is called with prompt and text and returns a number.
      vocabulary_digest: digest of the generating model's vocabulary, which a scorer must share.

    Raises:
      ModuleNotFoundError: a package that the reward needs is not installed.
      OSError: a file cannot be read.
      ValueError: there is no such reward, a module cannot be imported, or a scorer does not fit; one line.
    """
    if name in _OF_SAMPLE:
        return _OF_SAMPLE[name]
    if name == "sentiment":
        analyzer = import_module("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
        return lambda sample: float(analyzer.polarity_scores(sample.text)["compound"])
    if name.endswith((".keras", ".tflite")):
        return _load_scorer(Path(name), vocabulary_digest)
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"reward = {name!r}: must be {FORMS}")
    own = getattr(_import_own(module, name), function, None)
    if own is None:
        raise ValueError(f"reward = {name!r}: the module has no {function}; name one of its functions")
    if not callable(own):
        raise ValueError(f"reward = {name!r}: is no function; name one that takes prompt and text")
    return lambda sample: own(sample.prompt, sample.text)


def rate(reward: Reward, samples: Sequence[Sample], name: str) -> Array:
    """Returns the reward of each sample, float64 `[n]`.

    Args:
      reward: the reward.
      samples: the samples.
      name: what the user calls it, for messages.

    Raises:
      ValueError: the reward raised an error, or its value is not a finite number; one line.
    """
    found = []
    for sample in samples:
        try:
            value = reward(sample)
        except (Exception, SystemExit) as error:  # a user's function may raise anything
            raise ValueError(
                f"reward = {name!r}: raised {_describe(error)} for the text {sample.text[:40]!r}"
            ) from error
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        except (TypeError, ValueError):
            raise ValueError(
                f"reward = {name!r}: gave {type(value).__name__} for the text {sample.text[:40]!r}: return a number"
            ) from None
        if not np.isfinite(number):
            raise ValueError(
                f"reward = {name!r}: gave {number} for the text {sample.text[:40]!r}: return a finite number"
            )
        found.append(number)
    return np.array(found)


def _import_own(module: str, name: str) -> Any:
    """Returns a module of the user's own, whatever it raises on import."""
    try:
        return import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"reward = {name!r}: there is no module {module}; run where Python finds it") from None
        raise ValueError(f"reward = {name!r}: the module {module} cannot be imported: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    """Returns type and first line of an error."""
    return f"{type(error).__name__} ({(str(error).splitlines() or [''])[0]})"


def describe_scorer(path: str | os.PathLike[str], vocabulary_digest: str) -> None:
    """Writes `<path>.json`, which says that a scorer was trained with a vocabulary.

    Args:
      path: the scorer file.
      vocabulary_digest: `digest` of the vocabulary.

    Raises:
      OSError: the file cannot be written.
    """
    Path(f"{os.fspath(path)}.json").write_text(f"{json.dumps({'vocabulary': vocabulary_digest})}\n")


_OF_SAMPLE: dict[str, Reward] = {
    "log-likelihood": lambda sample: sample.unprocessed_log_prob / max(len(sample.tokens), 1),
    "total-log-likelihood": lambda sample: sample.unprocessed_log_prob,
    "length": lambda sample: float(len(sample.tokens)),
    "brevity": lambda sample: -float(len(sample.tokens)),
}


def _load_scorer(path: Path, vocabulary_digest: str) -> Reward:
    if not path.is_file():
        raise FileNotFoundError(f"reward = {str(path)!r}: the file does not exist")
    facts = Path(f"{path}.json")
    try:
        known = json.loads(facts.read_text())["vocabulary"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"reward = {str(path)!r}: {facts.name} is missing or damaged: write it with "
            "models.alignment.rewards.describe_scorer and the vocabulary that the scorer was trained with"
        ) from None
    if known != vocabulary_digest:
        raise ValueError(
            f"reward = {str(path)!r}: its vocabulary ({str(known)[:12]}) is not the model's "
            f"({vocabulary_digest[:12]}): give a scorer of the model's vocabulary"
        )
    try:
        run, shape = _load_keras(path) if path.suffix == ".keras" else _load_tflite(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # Keras and the runtime raise errors of many kinds for files that are not theirs
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"reward = {str(path)!r}: cannot be loaded ({reason}): give another file") from None
    if len(shape) != 2 or (shape[1] is not None and shape[1] < 1):
        raise ValueError(f"reward = {str(path)!r}: takes an input of shape {list(shape)}: must take token ids [1, T]")

    def score(sample: Sample) -> float:
        tokens = [*sample.prompt_tokens, *sample.tokens]
        length = shape[1] or len(tokens)
        given = np.zeros([1, length], np.int32)
        kept = tokens[-length:]
        given[0, : len(kept)] = kept
        found = np.asarray(run(given))
        if found.size != 1:
            raise ValueError(f"reward = {str(path)!r}: gave {found.size} numbers for one text: must give one")
        return float(found.reshape(()))

    return score


def _load_keras(path: Path) -> tuple[Callable[[Any], Any], Sequence[Any]]:
    model = import_module("keras").models.load_model(path, compile=False)
    return lambda tokens: model(tokens, training=False), tuple(model.input_shape)


def _load_tflite(path: Path) -> tuple[Callable[[Any], Any], Sequence[Any]]:
    from models.litert import import_interpreter

    interpreter = import_interpreter()(model_path=str(path))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    # "shape" says 1 where the length is not fixed.
    shape = tuple(None if size < 0 else int(size) for size in taken["shape_signature"])

    def run(tokens: Any) -> Any:
        if None in shape:
            interpreter.resize_tensor_input(taken["index"], tokens.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(taken["index"], tokens.astype(taken["dtype"]))
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return run, shape
