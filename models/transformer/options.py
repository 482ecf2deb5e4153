"""Defines the options of a decoder-only transformer and the shapes of the weights that follow from them."""

from dataclasses import asdict, dataclass
from numbers import Integral
from typing import Any

_KINDS = {
    "normalization": ("layer", "rms"),
    "attention": ("softmax", "relu"),
    "positions": ("rotary", "learned"),
    "activation": ("relu", "swiglu"),
}
# Smaller matrices change nothing in a scale-invariant model but how far a step of SGD turns them: with this scale, the
# learning rates that suit other models suit it too (measured on Shakespeare's plays).
_INVARIANT_SCALE = 0.3


@dataclass(frozen=True)
class TransformerOptions:
    """Holds the options of a decoder-only transformer.

    With E, F, H and K the sizes below and D = E / H, the weights are float32 arrays: "embedding" `[V, E]` and for each
    block NN (from 00): "block_NN.query_key_value" `[E, (H + 2K) D]`, "block_NN.attention_output" `[E, E]`,
    "block_NN.inner" `[E, F]` (`[E, 2F]` with "swiglu": gate, value) and "block_NN.outer" `[F, E]`. Options add
    "block_NN.query_key_value_bias" `[(H + 2K) D]`; the scales `[E]` of "rms" normalisation, "block_NN.attention_norm",
    "block_NN.feed_forward_norm" and "final_norm"; "embedding_projection" `[E, E]`; "output" `[V, E]`; and "positions"
    `[context, E]`.

    Attributes:
      vocabulary_size: number of token ids V, >= 1.
      embedding: size E of a token's vector, >= 1, a multiple of `heads`.
      blocks: number of blocks, 1 to 99.
      heads: number of query heads H, >= 1.
      feed_forward: inner size F of the feed-forward layers, >= 1.
      context: maximum number of tokens of a row, >= 1.
      key_value_heads: number of key and value heads K, which must divide `heads`; None means as many as `heads`.
      normalization: "layer" (without scale and offset) or "rms" (with a scale).
      norm_epsilon: added to the variance or the mean square, >= 0. 0 makes normalisation scale-invariant.
      attention: "softmax" or "relu" (scale-invariant); see `models.transformer.layers.attend`.
      positions: "rotary" (D must be even) or "learned".
      rotary_base: base of the rotary angles, > 0.
      activation: "relu" or "swiglu".
      attention_bias: whether queries, keys and values have a bias.
      tied: whether the embedding is also the output layer.
      degree_two_embedding: whether a matrix multiplies the embedded tokens, so that they are of degree 2 in the weights
        as every block's output is; scale invariance needs it.
      cache_length: number of positions S of the key-value cache, 1 to `context`; None means `context`. See `fit`.

    Raises:
      ValueError: an option is unknown, or a size is out of range.
    """

    vocabulary_size: int
    embedding: int
    blocks: int
    heads: int
    feed_forward: int
    context: int = 512
    key_value_heads: int | None = None
    normalization: str = "layer"
    norm_epsilon: float = 1e-5
    attention: str = "softmax"
    positions: str = "rotary"
    rotary_base: float = 10000.0
    activation: str = "relu"
    attention_bias: bool = False
    tied: bool = True
    degree_two_embedding: bool = False
    cache_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "embedding", "blocks", "heads", "feed_forward", "context"):
            self._require_integer(name)
        for name in ("key_value_heads", "cache_length"):
            if getattr(self, name) is not None:
                self._require_integer(name)
        for name, kinds in _KINDS.items():
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name}: {getattr(self, name)!r} is not one of {', '.join(map(repr, kinds))}")
        for name, least in (("norm_epsilon", 0.0), ("rotary_base", 1e-30)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, float | int) or not least <= value < float("inf"):
                raise ValueError(f"{name}: {value!r} is not a number {'>= 0' if least == 0 else '> 0'}")
            object.__setattr__(self, name, float(value))
        for name in ("attention_bias", "tied", "degree_two_embedding"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: {getattr(self, name)!r} is not true or false")
        if self.blocks > 99:
            raise ValueError(f"blocks: {self.blocks} is more than 99")
        if self.embedding % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the embedding size {self.embedding}")
        if self.heads % self.groups:
            raise ValueError(f"key_value_heads: {self.groups} does not divide the {self.heads} heads")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"heads: with {self.heads} a head has {self.head_size} entries; rotary needs an even number"
            )
        if self.cache_length is not None and self.cache_length > self.context:
            raise ValueError(f"cache_length: {self.cache_length} is more than the model's context {self.context}")

    def _require_integer(self, name: str) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"{name}: {value!r} is not a positive integer")
        object.__setattr__(self, name, int(value))

    @property
    def is_scale_invariant(self) -> bool:
        """Returns whether the hidden states do not change if all weights are multiplied by one positive number."""
        return (
            self.attention == self.activation == "relu"
            and self.normalization == "layer"
            and self.norm_epsilon == 0
            and self.degree_two_embedding
        )

    @property
    def groups(self) -> int:
        """Returns the number K of key and value heads."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def head_size(self) -> int:
        """Returns the size D of a head."""
        return self.embedding // self.heads

    @property
    def positions_cached(self) -> int:
        """Returns the number S of positions of the key-value cache."""
        return self.context if self.cache_length is None else self.cache_length

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each weight by name, in sorted order and without a client axis."""
        size, inner = self.embedding, self.feed_forward * (2 if self.activation == "swiglu" else 1)
        projected = (self.heads + 2 * self.groups) * self.head_size
        shapes: dict[str, tuple[int, ...]] = {"embedding": (self.vocabulary_size, size)}
        for block in map(block_name, range(self.blocks)):
            shapes[f"{block}.query_key_value"] = (size, projected)
            shapes[f"{block}.attention_output"] = (size, size)
            shapes[f"{block}.inner"] = (size, inner)
            shapes[f"{block}.outer"] = (self.feed_forward, size)
            if self.attention_bias:
                shapes[f"{block}.query_key_value_bias"] = (projected,)
            if self.normalization == "rms":
                shapes[f"{block}.attention_norm"] = shapes[f"{block}.feed_forward_norm"] = (size,)
        if self.normalization == "rms":
            shapes["final_norm"] = (size,)
        if self.degree_two_embedding:
            shapes["embedding_projection"] = (size, size)
        if not self.tied:
            shapes["output"] = (self.vocabulary_size, size)
        if self.positions == "learned":
            shapes["positions"] = (self.context, size)
        return dict(sorted(shapes.items()))

    def initial_distribution(self, name: str) -> tuple[float, float]:
        """Returns mean and standard deviation of the normal distribution that `init` draws a weight from."""
        kind = name.rpartition(".")[2]
        shape = self.shapes()[name]
        if len(shape) == 1:
            return float(kind.endswith("norm")), 0.0
        if kind in ("embedding", "output", "positions"):
            return 0.0, self.embedding**-0.5
        deviation = shape[0] ** -0.5
        if kind in ("attention_output", "outer"):
            deviation /= (2 * self.blocks) ** 0.5
        return 0.0, deviation * (_INVARIANT_SCALE if self.is_scale_invariant else 1.0)

    def config(self) -> dict[str, Any]:
        """Returns the attributes and the architecture's name, for `models.presets.from_config` to rebuild the model."""
        return {"architecture": "transformer", **asdict(self)}


def block_name(index: int) -> str:
    """Returns the prefix of the names of a block's weights."""
    return f"block_{index:02d}"
