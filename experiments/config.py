"""Defines a run's configuration, with one frozen struct for each section of its TOML file.

Each field carries its description and its range. `experiments.config_file` reads and writes the files and words the
errors. `experiments.config_reference` writes docs/config.md and the JSON Schema.
"""

from typing import Annotated, Literal

from experiments import config_checks
from experiments.config_fields import INTEGERS, Section, at_least, non_negative, positive, share, text
from experiments.config_model import ModelConfig, PretrainingConfig, VocabularyConfig
from experiments.config_privacy import SAMPLING_PROBABILITY, CohortConfig, PrivacyConfig
from privacy.plan import MAX_ROUNDS

__all__ = [
    "SAMPLING_PROBABILITY",
    "ClientConfig",
    "CohortConfig",
    "Config",
    "DataConfig",
    "ModelConfig",
    "PretrainingConfig",
    "PrivacyConfig",
    "RunConfig",
    "ServerConfig",
    "VocabularyConfig",
]

MAX_CLIENTS_AT_ONCE = 4096
USER_COLUMN, TEXT_COLUMN = "user", "text"
MOMENTUM = 0.9
ADAPTIVITY = 0.001


class DataConfig(Section, frozen=True):
    """Whose text is used, and which part of it is for what."""

    source: Annotated[
        Literal["shakespeare", "folder", "jsonl", "csv", "parquet", "sqlite"],
        text(
            "Format of the clients' text: Shakespeare's plays, a folder with one text file per client, JSON Lines, "
            "CSV, Parquet, or TFF's client data in SQLite."
        ),
    ] = "shakespeare"
    path: Annotated[str, text("File or folder of the data; unused for `shakespeare`.")] = ""
    user_column: (
        Annotated[str, text(f'`jsonl`, `csv`, `parquet`: column with the client id. Default: "{USER_COLUMN}".')] | None
    ) = None
    text_column: (
        Annotated[
            str,
            text(
                "`jsonl`, `csv`, `parquet`: column with the text. `sqlite`: text feature of an example, such as "
                f'"tokens" in TFF\'s Stack Overflow and "snippets" in its Shakespeare. Default: "{TEXT_COLUMN}".'
            ),
        ]
        | None
    ) = None
    split: (
        Annotated[str, text('`sqlite`: "train", "test" or another split. Default: all splits of a client together.')]
        | None
    ) = None
    public: Annotated[
        tuple[str, ...],
        text(
            "Text declared public, from which the vocabulary and the initial model are learned: text files; for "
            "`shakespeare` genres or plays and, where a name has a `/` or a `.`, text files. No file may be one of the "
            "clients' (checked by path); that their content is public is the operator's promise."
        ),
    ] = ("histories",)
    strict: Annotated[
        bool, text("Whether the first bad row is an error that names file and line; otherwise bad rows are counted.")
    ] = False
    merge_ids: (
        Annotated[
            Literal["normalize"],
            text(
                "`normalize` joins clients whose ids differ only by Unicode normal form, white space, invisible "
                "characters or `7`/`7.0`. Default: they stay apart, and a warning counts them."
            ),
        ]
        | None
    ) = None
    min_tokens: Annotated[
        int, at_least(2, "Minimum number of tokens of a client; clients with fewer are left out, and counted.")
    ] = 41
    validation: Annotated[float, share("Share of clients on which all choices are made.")] = 0.1
    test: Annotated[float, share("Share of clients on which results are reported.")] = 0.1
    held_out: Annotated[
        float, share("Share at the end of each training client's text on which no model is trained.")
    ] = 0.1
    split_seed: Annotated[
        int, at_least(INTEGERS[0], "Seed that splits the clients into training, validation and test.")
    ] = 0

    def __post_init__(self) -> None:
        config_checks.check_data(self)


class ClientConfig(Section, frozen=True):
    """Local training of a client: SGD, or Adam as a reference that devices can seldom afford."""

    learning_rate: Annotated[float, positive("Learning rate of local training.")] = 1.0
    batch_size: Annotated[int, at_least(1, "Sequences per step.")] = 16
    epochs: Annotated[int, at_least(1, "Passes over a client's text per round.")] = 1
    sequence_length: Annotated[int, at_least(1, "Tokens per sequence; sentences are packed back to back.")] = 20
    max_sequences: Annotated[int, at_least(1, "Maximum number of sequences of a client per round.")] = 64
    proximal: Annotated[
        float,
        non_negative("FedProx: half this number times the squared distance from the received weights joins the loss."),
    ] = 0.0
    weight_decay: Annotated[
        float, non_negative("Half this number times the squared norm of the weights joins the loss.")
    ] = 0.0
    optimizer: Annotated[
        Literal["sgd", "adam"],
        text("Local optimizer; `adam` begins anew with each client, and holds two more copies of the weights."),
    ] = "sgd"


class ServerConfig(Section, frozen=True):
    """The server's step, from the mean of the clients' updates."""

    optimizer: Annotated[Literal["momentum", "adam", "yogi", "adagrad"], text("Server optimizer.")] = "momentum"
    learning_rate: Annotated[float, positive("Learning rate on the mean update.")] = 1.0
    momentum: Annotated[float, share(f"`momentum`: decay of the velocity. Default: {MOMENTUM}.")] | None = None
    epsilon: (
        Annotated[
            float, positive(f"`adam`, `yogi`, `adagrad`: constant added to the denominator. Default: {ADAPTIVITY}.")
        ]
        | None
    ) = None
    average_decay: Annotated[
        float,
        share(
            "Decay d of the running average of the weights after each round: average ← d · average + (1 − d) · "
            "weights. The average is the trained model; with 0 it is the weights of the last round."
        ),
    ] = 0.0
    cooldown: Annotated[
        float,
        share("Share of the rounds, the last ones, in which the learning rate falls linearly to a twentieth."),
    ] = 0.0
    weighting: Annotated[
        Literal["uniform", "examples"],
        text("Weight of a client in the mean; with a clip norm it must be `uniform`."),
    ] = "uniform"

    def __post_init__(self) -> None:
        config_checks.check_server(self)


class RunConfig(Section, frozen=True):
    """The rounds of the run and what is kept of them."""

    rounds: Annotated[int, at_least(1, "Number of rounds.", MAX_ROUNDS)] = 20
    evaluate_every: Annotated[
        int, at_least(1, "Rounds between evaluations on validation clients and held-out text.")
    ] = 5
    evaluate_clients: Annotated[
        int,
        at_least(
            1,
            "Maximum number of validation clients, and of training clients with held-out text, in an evaluation: a "
            "fixed random choice, so that its cost does not grow with the population.",
        ),
    ] = 1000
    keep_checkpoints: Annotated[int, at_least(1, "Number of checkpoints kept, the latest ones.")] = 3
    shards: Annotated[
        int,
        at_least(
            1,
            "Number of shards into which a round's clients are divided; they are trained at the same time, one core "
            "each, so use the number of cores. With [several workers](scaling.md) it is the number per worker.",
            4096,
        ),
    ] = 2
    clients_at_once: (
        Annotated[
            int,
            at_least(
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
            at_least(
                1,
                "Rounds after which a new TFF worker process replaces the old one, whose memory grows; results stay "
                "equal to the bit. Default: never.",
            ),
        ]
        | None
    ) = None
    fixed_key: (
        Annotated[
            int,
            at_least(
                0,
                "Seed of cohorts and noise, for tests only: every ε shown is marked as not holding. Two runs are equal "
                "to the bit if `run.clients_at_once` is the same too.",
            ),
        ]
        | None
    ) = None


class Config(Section, frozen=True):
    """A run. Every section may be left out."""

    data: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: ModelConfig = ModelConfig()
    pretraining: PretrainingConfig = PretrainingConfig()
    clients: ClientConfig = ClientConfig()
    server: ServerConfig = ServerConfig()
    cohort: CohortConfig = CohortConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self) -> None:
        config_checks.check_together(self)
