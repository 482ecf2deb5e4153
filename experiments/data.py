"""Prepares a config's data: the public text, the vocabulary, the token store and three disjoint sets of clients."""

import contextlib
import filecmp
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from experiments.config import TEXT_COLUMN, USER_COLUMN, Config
from fl import clients, splits
from fl.clients import BuildStatistics, TokenStore
from fl.sources import csv_rows, folder, jsonl, parquet, shakespeare, sqlite
from fl.sources.base import Source
from models import vocabularies, vocabulary
from models.vocabularies import AnyVocabulary
from privacy.files import close_to_others, make_private_folder


@dataclass(frozen=True)
class Data:
    """Holds the data of a config, ready to train on.

    Attributes:
      vocabulary: sub-word vocabulary, learned from the public text alone.
      store: tokens of every client; the public text is not in it.
      splits: ids of the training, validation and test clients.
      public: int32 [n, T+1], the public text as sequences.
      declared_public: descriptions of the public text, which the privacy plan names.
      sequence_length: number T of predicted tokens in a sequence.
      held_out_share: share at the end of each training client's text on which no model is trained, in [0, 1).
    """

    vocabulary: AnyVocabulary
    store: TokenStore
    splits: splits.Splits
    public: np.ndarray
    declared_public: tuple[str, ...]
    sequence_length: int
    held_out_share: float

    def training(self, client_id: str) -> np.ndarray:
        """Returns the sequences that a training client trains on, without its held-out text; int32 [n, T+1]."""
        return self._sequences(splits.hold_out(self._tokens(client_id), self.held_out_share)[0])

    def held_out(self, client_id: str) -> np.ndarray:
        """Returns the held-out text of a training client as sequences, int32 [n, T+1]; n may be 0."""
        return self._sequences(splits.hold_out(self._tokens(client_id), self.held_out_share)[1])

    def whole(self, client_id: str) -> np.ndarray:
        """Returns all text of a client as sequences, int32 [n, T+1]; meant for validation and test clients."""
        return self._sequences(self._tokens(client_id))

    def _tokens(self, client_id: str) -> np.ndarray:
        return self.store.tokens(self.store.index(client_id))

    def _sequences(self, tokens: np.ndarray) -> np.ndarray:
        return clients.sequences(tokens, self.sequence_length)


STORES = Path("runs") / "data"
"""Folder of the token stores, which all runs of a working folder share; a deleted store is built again."""


def prepare(config: Config, vocabulary_path: Path | None) -> Data:
    """Prepares the data of a config; a vocabulary or token store that exists already is used again.

    Args:
      config: configuration of the run.
      vocabulary_path: file of the run's vocabulary. If it does not exist, the vocabulary is learned and written there.
        None: the vocabulary is learned and not saved.

    Raises:
      OSError, ValueError: the data cannot be used; one line that names the file, row or option.
    """
    if config.vocabulary.of is not None:
        raise ValueError(
            f"vocabulary.of = {config.vocabulary.of!r} is for fedspeak pretrain: remove it, or begin from the "
            "pretrained model with model.init"
        )
    source, public, declared = sources(config)
    words = _load_or_learn_vocabulary(config, public, vocabulary_path)
    name = hashlib.sha256(f"{config.data} {words.digest}".encode()).hexdigest()[:16]
    make_private_folder(STORES)
    with _parameters_named_as_keys({"min_tokens": "data.min_tokens", "strict": "data.strict"}):
        store = TokenStore.build(
            STORES / f"{name}.tokens",
            source,
            words,
            min_tokens=config.data.min_tokens,
            split_seed=config.data.split_seed,
            merge_ids=config.data.merge_ids,
        )
    with contextlib.suppress(PermissionError):  # another account owns the store and lets us read it
        close_to_others(STORES / f"{name}.tokens", STORES / f"{name}.tokens")
    with _parameters_named_as_keys({"validation": "data.validation", "test": "data.test"}):
        sets = splits.split_store(store, config.data.validation, config.data.test)
    for set_name, ids in zip(sets._fields, sets, strict=True):
        if not ids:
            raise ValueError(_describe_empty_set(config, set_name, store))
    length = config.clients.sequence_length
    rows = _public_sequences(config, public, words)
    return Data(words, store, sets, rows, declared, length, config.data.held_out)


def prepare_public(config: Config, vocabulary_path: Path) -> tuple[AnyVocabulary, np.ndarray, tuple[str, ...]]:
    """Prepares only the public text of a config; the clients' text is not read.

    Args:
      config: as for `prepare`.
      vocabulary_path: as for `prepare`.

    Returns:
      The vocabulary, the public text as sequences int32 [n, T+1], and descriptions of the public text.

    Raises:
      OSError, ValueError: as for `prepare`.
    """
    public, declared = public_text(config)
    words = _load_or_learn_vocabulary(config, public, vocabulary_path)
    return words, _public_sequences(config, public, words), declared


def _load_or_learn_vocabulary(config: Config, public: Iterable[str], path: Path | None) -> AnyVocabulary:
    if path is not None and path.exists():
        return vocabularies.load(path)
    for key, model in (("model.init", config.model.init), ("vocabulary.of", config.vocabulary.of)):
        if model is None:
            continue
        file = Path(model) / "vocabulary.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"{key} = {model!r} holds no model (no vocabulary.json): give the folder of a pretrained, trained or "
                "imported model"
            )
        words = vocabularies.load(file)
        if path is not None:
            words.save(path)
        return words
    with _parameters_named_as_keys({"size": "vocabulary.size"}):
        words = vocabulary.learn(public, config.vocabulary.size)
    if path is not None:
        words.save(path)
    return words


def _public_sequences(config: Config, public: Iterable[str], words: AnyVocabulary) -> np.ndarray:
    tokens = np.array([words.start, *(t for line in public for t in [*words.encode(line), clients.EOS])], np.int32)
    return clients.sequences(tokens, config.clients.sequence_length)


@contextlib.contextmanager
def _parameters_named_as_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Names parameters of the library in a ValueError's message ("size = …") by the keys of the configuration."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for parameter, key in keys.items():
            message = re.sub(rf"(?<![\w.]){parameter} = ", f"{key} = ", message)
        if message == str(error):
            raise
        raise ValueError(message) from error


def _describe_empty_set(config: Config, name: str, store: TokenStore) -> str:
    shares = f"data.validation = {config.data.validation:g} and data.test = {config.data.test:g}"
    fix = "lower them" if name == "train" else f"raise data.{name}"
    return (
        f"{shares} leave none of the {len(store.clients)} clients in the {name} set: {fix}, or give more clients"
        f"{store.statistics.left_out}"
    )


def choose_clients(clients: Sequence[str], maximum: int) -> list[str]:
    """Returns at most `maximum` clients, chosen at random but the same ones in every call."""
    if len(clients) <= maximum:
        return list(clients)
    return [clients[int(i)] for i in np.sort(np.random.default_rng(0).choice(len(clients), maximum, replace=False))]


def describe(data: Data) -> str:
    """Returns a summary of the data for the operator: counts of clients and tokens, and of the rows left out."""
    tokens, sets = data.store.num_tokens, data.splits
    lines = [
        f"public: {'; '.join(data.declared_public)}",
        f"vocabulary: {data.vocabulary.size} sub-words ({data.vocabulary.digest[:12]})",
        f"clients: {len(sets.train)} train*, {len(sets.validation)} validation, {len(sets.test)} test",
        f"tokens per client*: median {np.median(tokens):.0f}, mean {tokens.mean():.0f}, maximum {tokens.max()}",
        *_describe_left_out(data.store.statistics),
        *_describe_near_equal_ids(data.store.statistics),
        "* computed from clients' text without noise: operator only, outside ε",
    ]
    return "\n".join(lines)


def _describe_left_out(statistics: BuildStatistics) -> list[str]:
    """Returns lines on the clients and rows that were left out of the store; none if nothing was."""
    lines = []
    if statistics.dropped_clients:
        lines.append(
            f"left out*: {statistics.dropped_clients} clients with fewer tokens than data.min_tokens "
            f"({statistics.dropped_tokens} tokens)"
        )
    if statistics.bad_rows:
        some = "1 bad row" if statistics.bad_rows == 1 else f"{statistics.bad_rows} bad rows, of which the first are"
        lines.append(f"left out*: {some}:")
        lines += [f"  {example}" for example in statistics.examples[:5]]
    return [*lines, *(f"note*: {note}" for note in statistics.notes)]


def _describe_near_equal_ids(statistics: BuildStatistics) -> list[str]:
    """Returns a line on client ids that may belong to one person; none if there are no such ids."""
    if not statistics.near_groups:
        return []
    ids, groups = statistics.near_ids, statistics.near_groups
    examples = "; ".join(statistics.near_examples)
    if statistics.merged_ids:
        return [f"joined*: {ids} near-equal client ids into {groups} clients (data.merge_ids), for example {examples}"]
    return [
        f"warning*: {ids} client ids form {groups} groups that differ only in white space, invisible characters, "
        f"Unicode form or a final .0, for example {examples}; ε holds per id, so not per person where a group is one "
        'person: set data.merge_ids = "normalize" to join each group into one client'
    ]


def absolute(config: Config) -> Config:
    """Returns the config with absolute paths, so that a run can be resumed from any folder."""
    data = config.data
    if config.model.init is not None:
        model = msgspec.structs.replace(config.model, init=str(Path(config.model.init).absolute()))
        config = msgspec.structs.replace(config, model=model)
    if config.vocabulary.of is not None:
        words = msgspec.structs.replace(config.vocabulary, of=str(Path(config.vocabulary.of).absolute()))
        config = msgspec.structs.replace(config, vocabulary=words)
    is_plays = data.source == "shakespeare"
    public = tuple(name if is_plays and not _is_path(name) else str(Path(name).absolute()) for name in data.public)
    path = str(Path(data.path).absolute()) if data.path else ""
    return msgspec.structs.replace(config, data=msgspec.structs.replace(data, path=path, public=public))


def sources(config: Config) -> tuple[Source, Iterable[str], tuple[str, ...]]:
    """Opens the clients' source and the public text of a config.

    Returns:
      The source of the clients' text, the public sentences, and descriptions of the public text for the privacy plan.

    Raises:
      OSError, ValueError: `data.path` or `data.public` cannot be used; one line that names it.
    """
    data = config.data
    if data.source == "shakespeare":
        public, declared = public_text(config)
        public_plays, private = shakespeare.load(strict=data.strict).divide(_plays(config))
        if not public_plays.files:
            raise ValueError(f"data.public {_NO_PLAYS}")
        return private, public, declared
    if not data.path:
        raise ValueError(f'data.path is missing: data.source = "{data.source}" needs the path of the clients\' text')
    public, declared = public_text(config)
    path = Path(data.path)
    user, text = data.user_column or USER_COLUMN, data.text_column or TEXT_COLUMN
    match data.source:
        case "folder":
            source: Source = folder.load(path, strict=data.strict)
        case "jsonl":
            source = jsonl.load(path, user, text, strict=data.strict)
        case "csv":
            source = csv_rows.load(path, user, text, strict=data.strict)
        case "parquet":
            source = parquet.load(path, user, text, strict=data.strict)
        case "sqlite":
            source = sqlite.load(path, text, split=data.split, strict=data.strict)
    return source, public, declared


_NO_PLAYS = 'is empty: name the genres or plays to learn the vocabulary from, as in ["histories"]'


def public_text(config: Config) -> tuple[Iterable[str], tuple[str, ...]]:
    """Opens only the public text of a config; the clients' text need not be there.

    Returns:
      The public sentences, and descriptions of the public text for the privacy plan.

    Raises:
      OSError, ValueError: `data.public` cannot be used, or names clients' text; one line.
    """
    data, plays = config.data, _plays(config)
    files = tuple(Path(name) for name in data.public if name not in plays)
    if not data.public:
        words = "is empty: name text files that may be published; the vocabulary is learned from them"
        raise ValueError(f"data.public {_NO_PLAYS if data.source == 'shakespeare' else words}")
    if data.source == "shakespeare" and data.path:
        raise ValueError(
            f'data.path = {data.path!r} has no effect with data.source = "shakespeare": remove it, or set another '
            "data.source"
        )
    if data.path:
        path = Path(data.path)
        for file in files:
            if path.resolve() in (file.resolve(), *file.resolve().parents) or _is_copy(file, path):
                raise ValueError(
                    f"data.public names {file}, which is clients' text (data.path is {path}): name files without "
                    "clients' text"
                )
    if not plays:
        return _Lines(files), _describe_files(files)
    public, _ = shakespeare.load(strict=data.strict).divide(plays)
    declared = (f"Shakespeare's {', '.join(plays)} ({', '.join(public.genres)})", *_describe_files(files))
    return _Both(_Sentences(public), _Lines(files)), declared


def _plays(config: Config) -> tuple[str, ...]:
    """Returns the genres and plays that `data.public` names; none unless the source is Shakespeare's plays."""
    is_plays = config.data.source == "shakespeare"
    return tuple(name for name in config.data.public if is_plays and not _is_path(name))


def _is_copy(file: Path, clients_text: Path) -> bool:
    """Returns whether the clients' file, or one in their folder, has the same bytes as `file`."""
    if not file.is_file():
        return False
    size = file.stat().st_size
    candidates = clients_text.rglob("*") if clients_text.is_dir() else (clients_text,)
    same_size = (other for other in candidates if other.is_file() and other.stat().st_size == size > 0)
    return any(filecmp.cmp(other, file, shallow=False) for other in same_size)


def _is_path(name: str) -> bool:
    """Returns whether an entry of `data.public` beside Shakespeare's plays is a text file; plays have no such names."""
    return "/" in name or "." in name


def _describe_files(files: tuple[Path, ...]) -> tuple[str, ...]:
    return tuple(f"text file {file.name}" for file in files)


@dataclass(frozen=True)
class _Both(Iterable[str]):
    """Yields the sentences of two public texts, one after the other."""

    first: Iterable[str]
    second: Iterable[str]

    def __iter__(self) -> Iterator[str]:
        yield from self.first
        yield from self.second


@dataclass(frozen=True)
class _Sentences(Iterable[str]):
    """Yields the sentences of public plays; each iteration reads the plays again."""

    source: shakespeare.Shakespeare

    def __iter__(self) -> Iterator[str]:
        return self.source.sentences()


@dataclass(frozen=True)
class _Lines(Iterable[str]):
    """Yields the lines of public text files that are not blank; each iteration reads the files again."""

    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]:
        for path in self.files:
            try:
                text = path.read_text(encoding="utf-8-sig")
            except FileNotFoundError:
                raise FileNotFoundError(f"data.public names {path}, which does not exist: correct the name") from None
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"data.public names {path}, which is not UTF-8 at byte {error.start}: convert the file to UTF-8"
                ) from None
            yield from (line for line in text.splitlines() if line.strip())
