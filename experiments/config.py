"""A run's configuration: one frozen struct a section of its TOML file.

Each field carries its description and its range. `experiments.config_file` reads and writes the files and words the
errors; `experiments.config_reference` writes docs/config.md and the JSON Schema.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from models.vocabulary import SMALLEST as LEAST_SIZE
from privacy.plan import DELTA_EXPONENT, AdaptiveClip, PrivateMetrics

# Training computes in float32, where smaller numbers are 0 and larger ones infinite.
SMALLEST, LARGEST = 1e-37, 1e38
MAX_CLIENTS_AT_ONCE = 4096
SAMPLING_PROBABILITY = 0.1
MOMENTUM = 0.9
ADAPTIVITY = 0.001


def _positive(description: str) -> Meta:
    return Meta(ge=SMALLEST, le=LARGEST, description=description)


def _share(description: str) -> Meta:
    return Meta(ge=0, lt=1, description=description)


def _open_share(description: str) -> Meta:
    return Meta(gt=0, lt=1, description=description)


def _at_least(least: int, description: str, most: int | None = None) -> Meta:
    return Meta(ge=least, le=most, description=description)


def _text(description: str) -> Meta:
    return Meta(description=description)


def _only_for(key: str, value: object, kind: str, kinds: Sequence[str]) -> None:
    """Refuses a key that has no effect with the chosen kind."""
    if value is not None and kind not in kinds:
        raise ValueError(f'{key} = {value!r} has no effect with "{kind}", only with {", ".join(kinds)}: remove the key')


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A section of the file: keys that are unknown or have the wrong type are refused."""


class DataConfig(_Section, frozen=True):
    """Whose text is used, and which part of it is for what."""

    source: Annotated[
        Literal["shakespeare", "folder", "jsonl", "csv", "parquet", "sqlite"],
        _text(
            "Format of the clients' text: Shakespeare's plays, a folder with one text file per client, JSON Lines, "
            "CSV, Parquet, or TFF's client data in SQLite."
        ),
    ] = "shakespeare"
    path: Annotated[str, _text("File or folder of the data; unused for `shakespeare`.")] = ""
    user_column: (
        Annotated[str, _text('`jsonl`, `csv`, `parquet`: column with the client id. Default: "user".')] | None
    ) = None
    text_column: (
        Annotated[
            str,
            _text(
                "`jsonl`, `csv`, `parquet`: column with the text. `sqlite`: name of the text feature of an example, "
                'such as "tokens" in TFF\'s Stack Overflow and "snippets" in its Shakespeare. Default: "text".'
            ),
        ]
        | None
    ) = None
    split: (
        Annotated[str, _text('`sqlite`: "train", "test" or another split. Default: all splits of a client together.')]
        | None
    ) = None
    public: Annotated[
        tuple[str, ...],
        _text(
            "Text declared public, from which the vocabulary and the initial model are learned: genres or plays for "
            "`shakespeare`, otherwise text files. No file may be one of the clients' (checked by path); that their "
            "content is public is the operator's promise."
        ),
    ] = ("histories",)
    strict: Annotated[
        bool, _text("Whether the first bad row is an error that names file and line; otherwise bad rows are counted.")
    ] = False
    merge_ids: (
        Annotated[
            Literal["normalize"],
            _text(
                "`normalize` joins clients whose ids differ only by Unicode normal form, white space, invisible "
                "characters or `7`/`7.0`. Default: they stay apart, and a warning counts them."
            ),
        ]
        | None
    ) = None
    min_tokens: Annotated[
        int, _at_least(2, "Minimum number of tokens of a client; clients with fewer are left out, and counted.")
    ] = 41
    validation: Annotated[float, _share("Share of clients on which all choices are made.")] = 0.1
    test: Annotated[float, _share("Share of clients on which results are reported.")] = 0.1
    held_out: Annotated[
        float, _share("Share at the end of each training client's text on which no model is trained.")
    ] = 0.1
    split_seed: Annotated[int, _text("Seed that splits the clients into training, validation and test.")] = 0

    def __post_init__(self) -> None:
        tables = ("jsonl", "csv", "parquet")
        _only_for("data.user_column", self.user_column, self.source, tables)
        _only_for("data.text_column", self.text_column, self.source, (*tables, "sqlite"))
        _only_for("data.split", self.split, self.source, ("sqlite",))


class VocabularyConfig(_Section, frozen=True):
    """The sub-words, learned from the public text only."""

    size: Annotated[
        int, _at_least(LEAST_SIZE, "Number of token ids: padding, begin, end, the 256 bytes, and merged pieces.")
    ] = 1024


class ModelConfig(_Section, frozen=True):
    """The language model: a preset with changes."""

    preset: Annotated[str, _text("`tiny`, `cifg-4.7m`, `cifg-18.8m`, `si-cifg-4.7m` or `si-cifg-18.8m`.")] = "tiny"
    cell: Annotated[Literal["cifg", "si-cifg"], _text("Recurrent cell. Default: the preset's.")] | None = None
    embedding: Annotated[int, _at_least(1, "Size of the embedding. Default: the preset's.")] | None = None
    units: Annotated[int, _at_least(1, "Units of the cell. Default: the preset's.")] | None = None
    layer_norm: Annotated[bool, _text("Whether the cell normalises its hidden state.")] = False
    output_bias: Annotated[bool, _text("Whether the logits have a bias per sub-word.")] = False
    seed: Annotated[int, _at_least(0, "Seed of the initial weights.")] = 0


class WarmStartConfig(_Section, frozen=True):
    """Centralised training with Adam on the public text before the first round."""

    epochs: Annotated[int, _at_least(0, "Passes over the public text; 0 starts from random weights.")] = 0
    learning_rate: Annotated[float, _positive("Learning rate of Adam.")] = 0.002
    batch_size: Annotated[int, _at_least(1, "Sequences per step.")] = 32


class ClientConfig(_Section, frozen=True):
    """Local training of a client: plain SGD."""

    learning_rate: Annotated[float, _positive("Learning rate of local SGD.")] = 1.0
    batch_size: Annotated[int, _at_least(1, "Sequences per step.")] = 16
    epochs: Annotated[int, _at_least(1, "Passes over a client's text per round.")] = 1
    sequence_length: Annotated[int, _at_least(1, "Tokens per sequence; sentences are packed back to back.")] = 20
    max_sequences: Annotated[int, _at_least(1, "Maximum number of sequences of a client per round.")] = 64


class ServerConfig(_Section, frozen=True):
    """The server's step, from the mean of the clients' updates."""

    optimizer: Annotated[Literal["momentum", "adam", "yogi", "adagrad"], _text("Server optimizer.")] = "momentum"
    learning_rate: Annotated[float, _positive("Learning rate on the mean update.")] = 1.0
    momentum: Annotated[float, _share(f"`momentum`: decay of the velocity. Default: {MOMENTUM}.")] | None = None
    epsilon: (
        Annotated[
            float, _positive(f"`adam`, `yogi`, `adagrad`: constant added to the denominator. Default: {ADAPTIVITY}.")
        ]
        | None
    ) = None
    average_decay: Annotated[
        float,
        _share(
            "Decay d of the running average of the weights after each round: average ← d · average + (1 − d) · "
            "weights. The average is the trained model; with 0 it is the weights of the last round."
        ),
    ] = 0.0
    weighting: Annotated[
        Literal["uniform", "examples"],
        _text("Weight of a client in the mean; with a clip norm it must be `uniform`."),
    ] = "uniform"

    def __post_init__(self) -> None:
        _only_for("server.momentum", self.momentum, self.optimizer, ("momentum",))
        _only_for("server.epsilon", self.epsilon, self.optimizer, ("adam", "yogi", "adagrad"))


class CohortConfig(_Section, frozen=True):
    """Who takes part in a round."""

    sampler: Annotated[Literal["poisson", "fixed-size", "cyclic"], _text("How cohorts are drawn.")] = "poisson"
    sampling_probability: (
        Annotated[
            float,
            Meta(
                gt=0,
                le=1,
                description="`poisson`: probability with which each client joins each round. "
                f"Default: {SAMPLING_PROBABILITY}.",
            ),
        ]
        | None
    ) = None
    size: Annotated[int, _text("`fixed-size`: clients per round.")] | None = None
    cohorts: (
        Annotated[
            int,
            _text(
                "`cyclic`: number of cohorts that take turns; two rounds in which the same client takes part are at "
                "least this many rounds apart."
            ),
        ]
        | None
    ) = None
    population: (
        Annotated[
            int,
            _at_least(
                2,
                "`poisson`: number of clients N as a public number, declared without looking at the data, near "
                "the true one. δ and the denominator of the mean follow from it, and ε covers how "
                "many clients there really are. Default: the clients are counted, and the report says that ε does not "
                "cover the count.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        _only_for("cohort.sampling_probability", self.sampling_probability, self.sampler, ("poisson",))
        _only_for("cohort.size", self.size, self.sampler, ("fixed-size",))
        _only_for("cohort.population", self.population, self.sampler, ("poisson",))
        _only_for("cohort.cohorts", self.cohorts, self.sampler, ("cyclic",))


class PrivacyConfig(_Section, frozen=True):
    """The privacy of a client. With neither `noise_multiplier` nor `epsilon` the run is NOT PRIVATE, and says so."""

    noise_multiplier: (
        Annotated[
            float,
            Meta(
                ge=0,
                le=LARGEST,
                description="Total noise multiplier z: a round costs as much privacy as one release of the sum of "
                "clipped updates with Gaussian noise of standard deviation z times the clip norm. With `metrics_share` "
                "= 0 and a fixed clip norm, that is the noise on the sum; otherwise the noise on the sum is larger.",
            ),
        ]
        | None
    ) = None
    epsilon: (
        Annotated[
            float, _positive("Budget ε, instead of `noise_multiplier`: the least noise that keeps it is computed.")
        ]
        | None
    ) = None
    delta: Annotated[float, _open_share(f"δ of the guarantee. Default: N^{DELTA_EXPONENT} for N clients.")] | None = (
        None
    )
    clip_norm: (
        Annotated[
            float,
            _positive("Maximum L2 norm of a client's update; with `clip_quantile`, that of the first round."),
        ]
        | None
    ) = None
    clip_quantile: (
        Annotated[
            float,
            _open_share("Quantile of the update norms that the clip norm follows privately. Default: it is fixed."),
        ]
        | None
    ) = None
    clip_learning_rate: (
        Annotated[
            float,
            _positive(f"Step size of the clip norm's logarithm. Default: {AdaptiveClip.learning_rate}."),
        ]
        | None
    ) = None
    clip_count_stddev: (
        Annotated[
            float,
            _positive(
                "With `clip_quantile`: standard deviation of the noise on the number of clients whose update norm is "
                "at most the clip norm. Default: a twentieth of the expected number of clients in a round."
            ),
        ]
        | None
    ) = None
    metrics_share: (
        Annotated[
            float,
            _share(
                "Share of a round's privacy budget, measured as 1 / `noise_multiplier`², that is spent on releasing "
                "the round's [training loss, accuracy and number of clients](privacy.md#the-metrics-of-a-round) with "
                "noise; 0 releases none of them. "
                f"Default: {PrivateMetrics.share} in a private run."
            ),
        ]
        | None
    ) = None
    loss_bound: (
        Annotated[
            float,
            _positive(
                f"Maximum of a client's mean loss in those metrics, in nats per token; public. "
                f"Default: {PrivateMetrics.loss_bound:g}."
            ),
        ]
        | None
    ) = None
    noise: Annotated[
        Literal["floating-point", "exact"],
        _text(
            "`exact` takes [integer sums and rounded exact Gaussian noise](privacy.md#noise), hardened against "
            "floating-point attacks; clients are then trained one after another (`run.clients_at_once` is 1)."
        ),
    ] = "floating-point"

    def __post_init__(self) -> None:
        for name in ("clip_learning_rate", "clip_count_stddev"):
            if getattr(self, name) is not None and self.clip_quantile is None:
                raise ValueError(f"privacy.{name} has no effect without privacy.clip_quantile: remove the key")
        if self.loss_bound is not None and self.metrics_share == 0:
            raise ValueError("privacy.loss_bound has no effect with privacy.metrics_share = 0: remove the key")


class RunConfig(_Section, frozen=True):
    """The rounds of the run and what is kept of them."""

    rounds: Annotated[int, _at_least(1, "Number of rounds.")] = 20
    evaluate_every: Annotated[
        int, _at_least(1, "Rounds between evaluations on validation clients and held-out text.")
    ] = 5
    evaluate_clients: Annotated[
        int,
        _at_least(
            1,
            "Maximum number of validation clients, and of training clients with held-out text, in an evaluation: a "
            "fixed random choice, so that its cost does not grow with the population.",
        ),
    ] = 1000
    keep_checkpoints: Annotated[int, _at_least(1, "Number of checkpoints kept, the latest ones.")] = 3
    shards: Annotated[
        int,
        _at_least(
            1,
            "Number of shards into which a round's clients are divided; they are trained at the same time, one core "
            "each, so use the number of cores. With [several workers](scaling.md) it is the number per worker.",
            4096,
        ),
    ] = 2
    clients_at_once: (
        Annotated[
            int,
            _at_least(
                1,
                "Clients of a shard trained together; 1 trains them one after another. Default: measured on made-up "
                "data when the run begins, and kept.",
                MAX_CLIENTS_AT_ONCE,
            ),
        ]
        | None
    ) = None
    recycle_worker: (
        Annotated[
            int,
            _at_least(
                1,
                "Rounds after which a new TFF worker process replaces the old one, whose memory grows; results stay "
                "equal to the bit. Default: never.",
            ),
        ]
        | None
    ) = None
    fixed_key: (
        Annotated[
            int, _at_least(0, "Seed of cohorts and noise, for tests only: every ε shown is marked as not holding.")
        ]
        | None
    ) = None


class Config(_Section, frozen=True):
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
