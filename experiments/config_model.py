"""Defines the sections of a configuration that describe the model: vocabulary, model and pretraining."""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from experiments import config_checks
from experiments.config_fields import Section, at_least, positive, text
from models.presets import MAX_HEADS, NAMES, TRANSFORMERS
from models.vocabulary import SMALLEST as LEAST_SIZE

if TYPE_CHECKING:
    Preset = str
else:
    Preset = Literal[NAMES]

DEFAULT_PRESET = "tiny"
VOCABULARY_SIZE = 1024


class VocabularyConfig(Section, frozen=True):
    """The sub-words, learned from the public text only."""

    size: Annotated[
        int, at_least(LEAST_SIZE, "Number of token ids: padding, begin, end, the 256 bytes, and merged pieces.")
    ] = VOCABULARY_SIZE
    of: (
        Annotated[
            str,
            text(
                "`fedspeak pretrain`: folder of a pretrained, trained or imported model whose vocabulary is used "
                "instead, so that the new model can draft for that model or refine its drafts; without `size`."
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.of is not None and self.size != VOCABULARY_SIZE:
            raise ValueError(
                f"vocabulary.size = {self.size} has no effect with vocabulary.of, whose vocabulary is used: remove it"
            )


class ModelConfig(Section, frozen=True):
    """The language model: a preset with changes."""

    init: (
        Annotated[
            str,
            text(
                "Folder of a pretrained, trained or imported model to start from; its vocabulary is used too, so "
                "that no other key of this section but `prediction_heads` and `seed`, and no `vocabulary.size`, is "
                "allowed. A private run refuses a model that was trained on text of its own clients."
            ),
        ]
        | None
    ) = None
    preset: (
        Annotated[
            Preset,
            text(f'Name of a predefined model; the keys below override its settings. Default: "{DEFAULT_PRESET}".'),
        ]
        | None
    ) = None
    embedding: Annotated[int, at_least(1, "Size of the embedding. Default: the preset's.")] | None = None
    cell: (
        Annotated[Literal["cifg", "si-cifg"], text("Recurrent presets: kind of cell. Default: the preset's.")] | None
    ) = None
    units: Annotated[int, at_least(1, "Recurrent presets: units of the cell. Default: the preset's.")] | None = None
    layer_norm: (
        Annotated[bool, text("Recurrent presets: whether the cell normalises its hidden state. Default: false.")] | None
    ) = None
    output_bias: (
        Annotated[bool, text("Recurrent presets: whether the logits have a bias per sub-word. Default: false.")] | None
    ) = None
    blocks: (
        Annotated[int, Meta(ge=1, le=99, description="Transformers: number of blocks. Default: the preset's.")] | None
    ) = None
    heads: (
        Annotated[int, at_least(1, "Transformers: attention heads; must divide `embedding`. Default: the preset's.")]
        | None
    ) = None
    feed_forward: (
        Annotated[int, at_least(1, "Transformers: inner size of the feed-forward layers. Default: the preset's.")]
        | None
    ) = None
    context: (
        Annotated[
            int, at_least(1, "Transformers: maximum number of tokens of a sequence or a generated text. Default: 512.")
        ]
        | None
    ) = None
    prediction_heads: Annotated[
        int,
        at_least(
            1,
            "Number of heads that each predict one token, from 1 to this many places ahead; 1 is the model alone. With "
            "more, losses in training are sums over the heads. Heads are added to a model of `init` that has none; for "
            "one that has heads, give their number.",
            MAX_HEADS,
        ),
    ] = 1
    seed: Annotated[
        int, at_least(0, "Seed of the initial weights, and of the order of the public text in pretraining.")
    ] = 0

    def __post_init__(self) -> None:
        config_checks.check_model(self, TRANSFORMERS, DEFAULT_PRESET)


class PretrainingConfig(Section, frozen=True):
    """Centralised training with Adam on the public text: by `fedspeak pretrain`, or before the first round."""

    epochs: Annotated[int, at_least(0, "Maximum number of passes over the public text; 0 trains nothing.")] = 0
    learning_rate: Annotated[float, positive("Learning rate of Adam.")] = 0.002
    warmup_steps: Annotated[int, at_least(0, "Steps over which the learning rate rises from 0.")] = 0
    schedule: Annotated[
        Literal["constant", "cosine"],
        text("Learning rate after the warm-up: `constant`, or falling to 0 as half a cosine until the last step."),
    ] = "constant"
    batch_size: Annotated[int, at_least(1, "Sequences per step.")] = 32
    accumulate: Annotated[
        int,
        at_least(
            1,
            "Parts of a batch, computed one after another to save memory; the result differs by rounding only.",
        ),
    ] = 1
    evaluate_every: (
        Annotated[
            int, at_least(1, "Steps between two evaluations on held-out public text. Default: those of an epoch.")
        ]
        | None
    ) = None
    freeze_base: Annotated[
        bool,
        text(
            "Whether `fedspeak pretrain` trains only the prediction heads, and the model of `model.init` stays as it "
            "is, bit for bit. Not for `fedspeak train`."
        ),
    ] = False
    patience: Annotated[
        int, at_least(1, "Training stops after this many evaluations in a row without a lower held-out loss.")
    ] = 2

    def __post_init__(self) -> None:
        config_checks.check_pretraining(self)
