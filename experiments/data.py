"""From a config to data: public text, vocabulary, token store, three disjoint sets of clients."""

import contextlib
import filecmp
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from experiments.config import Config
from fl import clients, splits
from fl.clients import BuildStatistics, TokenStore
from fl.sources import csv_rows, folder, jsonl, parquet, shakespeare, sqlite
from fl.sources.base import Source
from models import vocabulary
from models.vocabulary import Vocabulary
from privacy.files import close_to_others, make_private_folder


@dataclass(frozen=True)
class Data:
    """A config's data, ready to train on.

    Attributes:
      vocabulary: learned from the public text alone.
      store: every client's tokens (no client has public text).
      splits: training, validation and test clients.
      public: int32 [n, T+1], the public text as sequences.
      declared_public: what was declared public, in words, for the plan.
    """

    vocabulary: Vocabulary
    store: TokenStore
    splits: splits.Splits
    public: np.ndarray
    declared_public: tuple[str, ...]
    sequence_length: int
    held_out_share: float

    def training(self, client_id: str) -> np.ndarray:
        """int32 [n, T+1], the sequences a training client trains on (its held-out text left out)."""
        return self._sequences(splits.hold_out(self._tokens(client_id), self.held_out_share)[0])

    def held_out(self, client_id: str) -> np.ndarray:
        """int32 [n, T+1], the held-out text of a training client; n may be 0."""
        return self._sequences(splits.hold_out(self._tokens(client_id), self.held_out_share)[1])

    def whole(self, client_id: str) -> np.ndarray:
        """int32 [n, T+1], all text of a client (validation and test clients)."""
        return self._sequences(self._tokens(client_id))

    def _tokens(self, client_id: str) -> np.ndarray:
        return self.store.tokens(self.store.index(client_id))

    def _sequences(self, tokens: np.ndarray) -> np.ndarray:
        return clients.sequences(tokens, self.sequence_length)


STORES = Path("runs") / "data"
"""Token stores, shared by all runs of a working folder; a store can always be built anew."""


def prepare(config: Config, vocabulary_path: Path | None) -> Data:
    """Builds what is missing and re-uses the rest.

    Args:
      config: the run's.
      vocabulary_path: where the run keeps its vocabulary; learned and written if it is not there. None: learned.

    Raises:
      OSError, ValueError: one line that names the file, row or option.
    """
    source, public, declared = sources(config)
    if vocabulary_path is not None and vocabulary_path.exists():
        words = Vocabulary.load(vocabulary_path)
    else:
        words = vocabulary.learn(public, config.vocabulary.size)
        if vocabulary_path is not None:
            words.save(vocabulary_path)
    name = hashlib.sha256(f"{config.data} {words.digest}".encode()).hexdigest()[:16]
    make_private_folder(STORES)
    store = TokenStore.build(
        STORES / f"{name}.tokens",
        source,
        words,
        min_tokens=config.data.min_tokens,
        split_seed=config.data.split_seed,
        merge_ids=config.data.merge_ids,
    )
    with contextlib.suppress(PermissionError):  # another user's store may be read
        close_to_others(STORES / f"{name}.tokens", STORES / f"{name}.tokens")
    sets = splits.split_store(store, config.data.validation, config.data.test)
    for set_name, ids in zip(sets._fields, sets, strict=True):
        if not ids:
            raise ValueError(
                f"data.{set_name}: no client of {len(store.clients)} fell into this set: enlarge its share, or bring "
                f"more clients{store.statistics.left_out}"
            )
    length = config.clients.sequence_length
    tokens = np.array([clients.BOS, *(t for line in public for t in [*words.encode(line), clients.EOS])], np.int32)
    return Data(words, store, sets, clients.sequences(tokens, length), declared, length, config.data.held_out)


def describe(data: Data) -> str:
    """What is in the data, for people: counts of clients, tokens and rows left out."""
    tokens, sets = data.store.num_tokens, data.splits
    lines = [
        f"public: {'; '.join(data.declared_public)}",
        f"vocabulary: {data.vocabulary.size} sub-words ({data.vocabulary.digest[:12]})",
        f"clients: {len(sets.train)} train*, {len(sets.validation)} validation, {len(sets.test)} test",
        f"tokens a client*: median {np.median(tokens):.0f}, mean {tokens.mean():.0f}, most {tokens.max()}",
        *_left_out(data.store.statistics),
        *_near_equal(data.store.statistics),
        "* read from clients' text without noise: operator only, outside ε",
    ]
    return "\n".join(lines)


def _left_out(statistics: BuildStatistics) -> list[str]:
    """Lines on what did not come into the store; none if all did."""
    lines = []
    if statistics.dropped_clients:
        lines.append(
            f"left out*: {statistics.dropped_clients} clients below min_tokens ({statistics.dropped_tokens} tokens)"
        )
    if statistics.bad_rows:
        lines.append(f"left out*: {statistics.bad_rows} bad rows, the first ones:")
        lines += [f"  {example}" for example in statistics.examples[:5]]
    return [*lines, *(f"note*: {note}" for note in statistics.notes)]


def _near_equal(statistics: BuildStatistics) -> list[str]:
    """A line on client ids that may be one person's; none if there are none."""
    if not statistics.near_groups:
        return []
    ids, groups = statistics.near_ids, statistics.near_groups
    examples = "; ".join(statistics.near_examples)
    if statistics.merged_ids:
        return [f"joined*: {ids} near-equal client ids to {groups} clients (data.merge_ids), for example {examples}"]
    return [
        f"warning*: {ids} client ids form {groups} groups that differ only in white space, invisible characters, "
        f"Unicode form or a final .0, for example {examples}; if a group is one person, ε is per id, not per person: "
        'set data.merge_ids = "normalize" to join each group'
    ]


def absolute(config: Config) -> Config:
    """The config with its paths made absolute, so that a run can be resumed from any folder."""
    data = config.data
    if data.source == "shakespeare":
        return config
    public = tuple(str(Path(name).absolute()) for name in data.public)
    path = str(Path(data.path).absolute()) if data.path else ""
    return msgspec.structs.replace(config, data=msgspec.structs.replace(data, path=path, public=public))


def sources(config: Config) -> tuple[Source, Iterable[str], tuple[str, ...]]:
    """(the clients' source, the public sentences, what was declared public in words)."""
    data = config.data
    if data.source == "shakespeare":
        if data.path:
            raise ValueError("data.path is for other sources: leave it out for shakespeare")
        public, private = shakespeare.load(strict=data.strict).divide(data.public)
        if not public.files:
            raise ValueError(
                'data.public is empty: name genres or plays to learn the vocabulary from, as in ["histories"]'
            )
        return (
            private,
            _Sentences(public),
            (f"Shakespeare's {', '.join(data.public)} ({', '.join(public.genres)})",),
        )
    if not data.path:
        raise ValueError(f"data.path is missing: give the path of the {data.source} source")
    if not data.public:
        raise ValueError(
            "data.public is empty: give text files that may be made public, the vocabulary is learned from them"
        )
    files = tuple(Path(name) for name in data.public)
    path = Path(data.path)
    for file in files:
        if path.resolve() in (file.resolve(), *file.resolve().parents) or _is_copy(file, path):
            raise ValueError(f"data.public names {file}, which is clients' text (data.path is {path}): keep them apart")
    declared = tuple(f"text file {file.name}" for file in files)
    user, text = data.user_column or "user", data.text_column or "text"
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
    return source, _Lines(files), declared


def _is_copy(file: Path, clients_text: Path) -> bool:
    """Whether the clients' file, or one of their folder, has these very bytes."""
    if not file.is_file():
        return False
    size = file.stat().st_size
    theirs = clients_text.rglob("*") if clients_text.is_dir() else (clients_text,)
    same_size = (one for one in theirs if one.is_file() and one.stat().st_size == size > 0)
    return any(filecmp.cmp(one, file, shallow=False) for one in same_size)


@dataclass(frozen=True)
class _Sentences(Iterable[str]):
    source: shakespeare.Shakespeare

    def __iter__(self) -> Iterator[str]:
        return self.source.sentences()


@dataclass(frozen=True)
class _Lines(Iterable[str]):
    files: tuple[Path, ...]

    def __iter__(self) -> Iterator[str]:
        for path in self.files:
            try:
                text = path.read_text(encoding="utf-8-sig")
            except FileNotFoundError:
                raise FileNotFoundError(f"public text {path} does not exist: correct data.public") from None
            except UnicodeDecodeError as error:
                raise ValueError(f"public text {path} is not UTF-8 at byte {error.start}: convert it") from None
            yield from (line for line in text.splitlines() if line.strip())
