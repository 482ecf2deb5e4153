"""A run is one TOML file of typed keys in sections. An unknown or ill-typed key is an error that names the mend."""

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

CONFIGS = Path(__file__).parent / "configs"
_SMALLEST, _LARGEST = 1e-37, 1e38
MAX_USERS_AT_ONCE = 4096


def _at_least(key: str, value: int, least: int, most: int | None = None) -> None:
    if value < least:
        raise ValueError(f"{key} is {value}: at least {least} is needed")
    if most is not None and value > most:
        raise ValueError(f"{key} is {value}: at most {most} is needed")


def _positive(key: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{key} is {value}: a positive number is needed")


def _share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{key} is {value}: a number from 0 to below 1 is needed")


def _only_for(key: str, value: object, kind: str, kinds: Sequence[str]) -> None:
    if value is not None and kind not in kinds:
        raise ValueError(
            f'{key} is {value!r} and has no effect with "{kind}", only with {", ".join(kinds)}: leave it out'
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Whose text, and which part of it is for what."""

    source: Literal["shakespeare", "folder", "jsonl", "csv", "parquet", "sqlite"] = "shakespeare"
    path: str = ""  # of the last five
    user_column: str | None = None  # of jsonl, csv and parquet; left out: "user"
    text_column: str | None = None  # of these, of sqlite the feature of the examples; left out: "text"
    split: str | None = None  # of sqlite: "train", "test", …; left out: all splits of a client together
    public: tuple[str, ...] = ("histories",)  # shakespeare: genres or plays; otherwise text files. No client has them
    strict: bool = False  # refuse bad rows instead of counting them
    merge_ids: Literal["normalize"] | None = None  # join near-equal ids to one client; left out: they stay apart
    min_tokens: int = 41  # clients with fewer tokens are left out (and counted)
    validation: float = 0.1  # share of clients on which all choices are made
    test: float = 0.1  # share of clients on which figures are reported
    held_out: float = 0.1  # share at the end of each training client's text that is never trained on
    split_seed: int = 0

    def __post_init__(self) -> None:
        tables = ("jsonl", "csv", "parquet")
        _only_for("data.user_column", self.user_column, self.source, tables)
        _only_for("data.text_column", self.text_column, self.source, (*tables, "sqlite"))
        _only_for("data.split", self.split, self.source, ("sqlite",))
        _at_least("data.min_tokens", self.min_tokens, 2)
        for name in ("validation", "test", "held_out"):
            _share(f"data.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """The sub-words."""

    size: int = 1024  # learned from the public text only


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A preset of `models.presets`, with changes."""

    preset: str = "tiny"
    cell: Literal["cifg", "si-cifg"] | None = None  # left out: the preset's, as the next two
    embedding: int | None = None
    units: int | None = None
    layer_norm: bool = False
    output_bias: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("model.seed", self.seed, 0)
        for name in ("embedding", "units"):
            if getattr(self, name) is not None:
                _at_least(f"model.{name}", getattr(self, name), 1)


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """Centralised training on the public text before the first round."""

    epochs: int = 0  # 0: start from random weights
    learning_rate: float = 0.002  # of Adam
    batch_size: int = 32

    def __post_init__(self) -> None:
        _at_least("warm_start.epochs", self.epochs, 0)
        _at_least("warm_start.batch_size", self.batch_size, 1)
        _positive("warm_start.learning_rate", self.learning_rate)


@dataclasses.dataclass(frozen=True)
class ClientConfig:
    """Local training of a client: plain SGD."""

    learning_rate: float = 1.0
    batch_size: int = 16
    epochs: int = 1
    sequence_length: int = 20  # tokens; sentences are packed back to back
    max_sequences: int = 64  # most sequences a client trains on in a round

    def __post_init__(self) -> None:
        _positive("clients.learning_rate", self.learning_rate)
        for name in ("batch_size", "epochs", "sequence_length", "max_sequences"):
            _at_least(f"clients.{name}", getattr(self, name), 1)


@dataclasses.dataclass(frozen=True)
class ServerConfig:
    """What the server makes of the clients' updates."""

    optimizer: Literal["momentum", "adam", "yogi", "adagrad"] = "momentum"
    learning_rate: float = 1.0
    momentum: float | None = None  # of momentum; left out: 0.9
    epsilon: float | None = None  # of adam, yogi and adagrad; left out: 0.001
    average_decay: float = 0.0  # the trained model is this running average of the rounds' weights; 0: the last weights
    weighting: Literal["uniform", "examples"] = "uniform"  # a private run is always uniform

    def __post_init__(self) -> None:
        _only_for("server.momentum", self.momentum, self.optimizer, ("momentum",))
        _only_for("server.epsilon", self.epsilon, self.optimizer, ("adam", "yogi", "adagrad"))
        _positive("server.learning_rate", self.learning_rate)
        _share("server.average_decay", self.average_decay)
        if self.momentum is not None:
            _share("server.momentum", self.momentum)
        if self.epsilon is not None:
            _positive("server.epsilon", self.epsilon)


@dataclasses.dataclass(frozen=True)
class CohortConfig:
    """Who takes part in a round."""

    sampler: Literal["poisson", "fixed-size", "cyclic"] = "poisson"
    rate: float | None = None  # poisson: chance of each client in each round; left out: 0.1
    size: int | None = None  # fixed-size: clients a round
    cohorts: int | None = None  # cyclic: cohorts that take turns; a client's rounds are this far apart
    population: int | None = (
        None  # poisson: a public number of clients; left out: counted, which epsilon does not cover
    )

    def __post_init__(self) -> None:
        _only_for("cohort.rate", self.rate, self.sampler, ("poisson",))
        _only_for("cohort.size", self.size, self.sampler, ("fixed-size",))
        _only_for("cohort.population", self.population, self.sampler, ("poisson",))
        if self.population is not None:
            _at_least("cohort.population", self.population, 2)
        _only_for("cohort.cohorts", self.cohorts, self.sampler, ("cyclic",))


@dataclasses.dataclass(frozen=True)
class PrivacyConfig:
    """What is promised to a client. Neither noise_multiplier nor epsilon: NOT PRIVATE."""

    noise_multiplier: float | None = None  # noise standard deviation / clip norm
    epsilon: float | None = None  # instead: the least noise that keeps this epsilon
    delta: float | None = None  # left out: population**-1.1
    clip: float | None = None  # clip norm of a client's update (with a quantile: of the first round)
    clip_quantile: float | None = None  # the clip norm follows this quantile of the update norms, privately
    clip_learning_rate: float | None = None  # of that; left out: 0.2
    count_stddev: float | None = None  # noise of its count; left out: a twentieth of the expected cohort
    metrics_share: float | None = None  # of a round's privacy, for training loss, accuracy and clients; left out: 0.02
    loss_bound: float | None = None  # nats a token that a client's loss counts as at most; left out: 10
    noise: Literal["floating-point", "exact"] = "floating-point"  # exact: hardened against floating-point attacks

    def __post_init__(self) -> None:
        for name in ("clip_learning_rate", "count_stddev"):
            if getattr(self, name) is not None and self.clip_quantile is None:
                raise ValueError(f"privacy.{name} has no effect without privacy.clip_quantile: leave it out")
        if self.loss_bound is not None and self.metrics_share == 0:
            raise ValueError("privacy.loss_bound has no effect with privacy.metrics_share = 0: leave it out")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The course of the run."""

    rounds: int = 20
    evaluate_every: int = 5
    evaluate_clients: int = 1000  # most validation clients, and most training clients' held-out texts, looked at then
    keep_checkpoints: int = 3
    shards: int = 2  # client computations at once: the number of cores
    users_at_once: int | None = None  # clients of a shard trained together; left out: measured when the run begins
    recycle_worker: int | None = None  # rounds after which TFF's worker process is replaced; left out: never
    fixed_key: int | None = None  # for tests only: the report says that epsilon does not hold

    def __post_init__(self) -> None:
        _at_least("run.evaluate_every", self.evaluate_every, 1)
        _at_least("run.evaluate_clients", self.evaluate_clients, 1)
        _at_least("run.keep_checkpoints", self.keep_checkpoints, 1)
        _at_least("run.shards", self.shards, 1, 4096)
        if self.users_at_once is not None:
            _at_least("run.users_at_once", self.users_at_once, 1, MAX_USERS_AT_ONCE)
        if self.recycle_worker is not None:
            _at_least("run.recycle_worker", self.recycle_worker, 1)
        _at_least("run.rounds", self.rounds, 1)
        if self.fixed_key is not None:
            _at_least("run.fixed_key", self.fixed_key, 0)


@dataclasses.dataclass(frozen=True)
class Config:
    """A run. Every section may be left out."""

    data: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: ModelConfig = ModelConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    clients: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    cohort: CohortConfig = CohortConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    run: RunConfig = RunConfig()


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file, or one of the shipped ones by name (`demo`), with `section.key=value` overrides on top.

    `section.key=none` takes a key out.

    Raises:
      FileNotFoundError, ValueError: one line that names the key, the value and the mend.
    """
    file = Path(path)
    if not file.is_file() and (CONFIGS / f"{path}.toml").exists():
        file = CONFIGS / f"{path}.toml"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        shipped = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.toml")))
        raise FileNotFoundError(f"config {path} does not exist: give a TOML file, or one of {shipped}") from None
    except UnicodeDecodeError:
        raise ValueError(f"config {file} is not UTF-8 text: give a TOML file") from None
    return parse(text, str(file), overrides)


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """A config from TOML text; `name` stands in the messages. Raises ValueError as `load` does."""
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"config {name} is not TOML: {error}") from None
    for override in overrides:
        section, _, rest = override.partition(".")
        key, equals, value = rest.partition("=")
        if not (section and key and equals):
            raise ValueError(f"--set {override}: write section.key=value")
        table = tree.setdefault(section.strip(), {})
        if not isinstance(table, dict):
            raise ValueError(f"config {name}: {section} is a section, not a value: write [{section}]")
        if value.strip() == "none":
            table.pop(key.strip(), None)
        else:
            table[key.strip()] = _toml_value(value)
    sections = {field.name: field for field in dataclasses.fields(Config)}
    values = {}
    for section, table in tree.items():
        if section not in sections:
            raise ValueError(f"config {name}: unknown section [{section}]{_nearest(section, sections)}")
        if not isinstance(table, dict):
            raise ValueError(f"config {name}: {section} is a section, not a value: write [{section}]")
        values[section] = _section(sections[section].type, section, table, name)
    return Config(**values)


def dump(config: Config) -> str:
    """The config as TOML, every key that is set written out; `parse` gives it back."""
    lines = []
    for section in dataclasses.fields(config):
        lines.append(f"[{section.name}]")
        table = getattr(config, section.name)
        values = {field.name: getattr(table, field.name) for field in dataclasses.fields(table)}
        lines += [f"{key} = {_literal(value)}" for key, value in values.items() if value is not None]
        lines.append("")
    return "\n".join(lines)


def _section(kind: Any, section: str, table: dict[str, Any], name: str) -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"config {name}: unknown key {section}.{key}{_nearest(key, hints)}")
        try:
            values[key] = _typed(hints[key], value)
        except TypeError as error:
            raise ValueError(f"config {name}: {section}.{key} is {value!r}: {error}") from None
    return kind(**values)


def _typed(hint: Any, value: Any) -> Any:
    if type(None) in typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value in choices and isinstance(value, str):
            return value
        raise TypeError(f"one of {', '.join(map(repr, choices))} is needed")
    if typing.get_origin(hint) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise TypeError('a list of texts is needed, as in ["a", "b"]')
    if hint is float and type(value) in (int, float):
        # Training computes in float32, where others are infinite, or nothing.
        if value and not _SMALLEST <= abs(value) <= _LARGEST:
            raise TypeError(f"a finite number is needed, in size from {_SMALLEST:g} to {_LARGEST:g}, or 0")
        return float(value)
    if type(value) is hint:
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text in quotes"}
    raise TypeError(f"{words[hint]} is needed")


def _toml_value(text: str) -> Any:
    """The value as TOML reads it; a bare word is a text, so that --set model.preset=tiny needs no quotes."""
    try:
        read = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return read["value"] if len(read) == 1 else text


def _literal(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML refuses a bare DEL
        case tuple():
            return f"[{', '.join(_literal(item) for item in value)}]"
    return repr(value)


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
