"""Defines the options of a request for tokens, and the part of them that changes the logits."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

DECODINGS = ("autoregressive", "speculative", "block", "greedy-block", "invariant", "spectr", "tree", "blockwise")
"""Names of the ways to draw a text, from which `models.decoding.decoders` builds decoders."""

LONGEST_TEXT = 1 << 16
"""Maximum number of tokens of a prompt, and of new tokens, that a graph is made for."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6
MIN_REPETITION, MAX_REPETITION = 0.01, 100.0
MAX_PENALTY = 100.0


class Processing(NamedTuple):
    """Holds the options that change logits before a token is drawn, in Python numbers or in scalar tensors.

    A tensor makes an option an input of the graph. A Python number is a constant, and an option that is off by such a
    constant adds no op to the graph. The ranges are those of `Choices`, which checks them.

    Attributes:
      temperature: float32 number that the logits are divided by; 0 is greedy.
      top_k: int32 number of likeliest tokens that stay; 0 is off.
      top_p: float32 probability that the likeliest tokens that stay must reach; 1 is off.
      min_p: float32 least probability of a token that stays, as a fraction of the likeliest token's; 0 is off.
      repetition_penalty: float32 number by which positive logits of tokens of the text are divided, and negative ones
        multiplied; 1 is off.
      presence_penalty: float32 number subtracted from the logit of each generated token; 0 is off.
      frequency_penalty: float32 number subtracted as often as the token was generated; 0 is off.
    """

    temperature: Any = 1.0
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    repetition_penalty: Any = 1.0
    presence_penalty: Any = 0.0
    frequency_penalty: Any = 0.0


OFF = Processing()


class Costs(NamedTuple):
    """Holds the times of a block, in units of the time that plain decoding takes for one token.

    Attributes:
      nothing: float32 scalar > 0, a block without a draft.
      verify: float32 scalar > 0, a block with a draft, without the time for its tokens.
      draft: float32 scalar >= 0, the time for each drafted token.
    """

    nothing: Any
    verify: Any
    draft: Any


def require_integer(name: str, value: Any, least: int, most: int | None = None) -> int:
    """Returns an integer as Python's own.

    Args:
      name: what it is, for the message.
      value: the integer.
      least: its minimum.
      most: its maximum; None for none.

    Raises:
      ValueError: it is not an integer in the range; one line.
    """
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_integer or value < least or (most is not None and value > most):
        allowed = f"from {least} to {most}" if most is not None else f">= {least}"
        raise ValueError(f"{name} = {value!r}: must be an integer {allowed}")
    return int(value)


def check_costs(costs: Costs) -> Costs:
    """Returns costs as they are.

    Raises:
      ValueError: they are no `Costs`, or one of them is not a finite number in its range; one line.
    """
    if not isinstance(costs, Costs):
        raise ValueError(f"costs = {costs!r}: must be Costs(nothing, verify, draft); measure them")
    for name, value in costs._asdict().items():
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        # Written so that NaN, for which every comparison is False, is refused.
        if not is_number or not 0 <= value <= 1e9 or (value == 0 and name != "draft"):
            bound = "from 0" if name == "draft" else "above 0"
            raise ValueError(f"costs: {name} = {value!r}: must be a number {bound} and at most 1e9; measure again")
    return costs


def check_ids(name: str, ids: Sequence[int], size: int, kind: str = "token id") -> list[int]:
    """Returns ids as a list of Python integers.

    Args:
      name: what they are, for the message.
      ids: integers, or an array of them.
      size: number of ids that there are.
      kind: what one of them is called in the message.

    Raises:
      ValueError: there is none, or one is not an integer from 0 to `size` - 1; one line.
    """
    found = list(ids) if isinstance(ids, Iterable) and not isinstance(ids, str) else []
    are_integers = all(isinstance(i, Integral) and not isinstance(i, bool) for i in found)
    if not found or not are_integers or min(found) < 0 or max(found) >= size:
        shown = repr(ids) if len(repr(ids)) < 40 else f"{repr(ids)[:40]}…"
        raise ValueError(f"{name} = {shown}: must be one {kind} or more, integers from 0 to {size - 1}")
    return [int(i) for i in found]


@dataclass(frozen=True)
class Choices:
    """Holds the options of one request for tokens.

    Real numbers are rounded to float32 where they are used, and the two subtracted penalties to multiples of 2**-15.

    Attributes:
      max_new_tokens: maximum number of tokens to draw, 1 to 2**31 - 1.
      temperature: number that the logits are divided by, 1e-6 to 1e6; or 0, which always draws the likeliest token.
      top_k: number of likeliest tokens to draw from, 1 to 2**31 - 1; 0 draws from all.
      top_p: draws from the smallest set of likeliest tokens whose probability reaches this number, above 0 and at most
        1; 1 draws from all.
      min_p: draws only from tokens whose probability is at least this fraction of the likeliest token's, 0 to below 1;
        0 draws from all.
      repetition_penalty: number by which positive logits of the tokens of prompt and generated text are divided, and
        negative ones multiplied, 0.01 to 100; 1 is off.
      presence_penalty: number that is subtracted from the logits of generated tokens, -100 to 100; 0 is off.
      frequency_penalty: number that is subtracted from a token's logit as often as the token was generated, -100 to
        100; 0 is off.
      seed: seed of the random numbers, 0 to 2**64 - 1.
      request: number that identifies the request, 0 to 2**31 - 1. Different requests with the same seed draw
        independently. A draw depends only on the logits, the position, the seed, the request, the options of
        `Processing` and, if a penalty is on, the tokens of prompt and generated text.
      stop: id of the token to end after, 0 to 2**31 - 1 (the token itself is drawn); -1 for none.

    Raises:
      ValueError: a value is outside its range.
    """

    max_new_tokens: int = 64
    temperature: float = OFF.temperature
    top_k: int = OFF.top_k
    top_p: float = OFF.top_p
    min_p: float = OFF.min_p
    repetition_penalty: float = OFF.repetition_penalty
    presence_penalty: float = OFF.presence_penalty
    frequency_penalty: float = OFF.frequency_penalty
    seed: int = 0
    request: int = 0
    stop: int = -1

    def __post_init__(self) -> None:
        for name, least, bits in _INTEGERS:
            value = getattr(self, name)
            is_integer = isinstance(value, Integral) and not isinstance(value, bool)
            if not is_integer or not least <= value < 1 << bits:
                raise ValueError(f"{name} = {value!r}: must be an integer from {least} to 2^{bits} - 1")
            object.__setattr__(self, name, int(value))
        for name, allowed in _NUMBERS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real) or not _is_inside(name, value):
                raise ValueError(f"{name} = {value!r}: must be {allowed}")

    @property
    def processing(self) -> Processing:
        """The options that change logits."""
        return Processing(*(getattr(self, name) for name in Processing._fields))

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens of the text so far change the logits."""
        return self.processing[-3:] != OFF[-3:]


_INTEGERS = (
    ("max_new_tokens", 1, 31),
    ("top_k", 0, 31),
    ("seed", 0, 64),
    ("request", 0, 31),
    ("stop", -1, 31),
)
_PENALTY = f"a number from {-MAX_PENALTY:g} to {MAX_PENALTY:g} (0 is off)"
_NUMBERS = {
    "temperature": f"0 (greedy) or a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}",
    "top_p": "a number above 0 and at most 1 (1 is off)",
    "min_p": "a number from 0 (off) to below 1",
    "repetition_penalty": f"a number from {MIN_REPETITION:g} to {MAX_REPETITION:g} (1 is off)",
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
}


def _is_inside(name: str, value: Any) -> bool:
    """Returns whether `value` is in the range of the option; False for NaN, for which every comparison is False."""
    if name == "temperature":
        return value == 0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE
    if name == "top_p":
        return 0 < value <= 1
    if name == "min_p":
        return 0 <= value < 1
    if name == "repetition_penalty":
        return MIN_REPETITION <= value <= MAX_REPETITION
    return -MAX_PENALTY <= value <= MAX_PENALTY
