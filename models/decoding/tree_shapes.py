"""Chooses the shape of a draft tree from measured acceptance and measured times, with NumPy alone."""

from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from typing import Any, NamedTuple

from models.decoding.choices import require_integer
from models.token_tree import MAX_NODES


class Choice(NamedTuple):
    """Holds a shape and what is expected of it.

    Attributes:
      shape: number of children by depth; () drafts nothing.
      tokens: expected number of tokens of a block.
      time: time of a block, in the unit of the measured times.
    """

    shape: tuple[int, ...]
    tokens: float
    time: float

    @property
    def speed(self) -> float:
        """Returns the expected number of tokens per unit of time."""
        return self.tokens / self.time


def best_shape(
    acceptance: Sequence[Sequence[float]],
    target_times: Sequence[float],
    draft_times: Sequence[float],
    max_nodes: int = 16,
) -> Choice:
    """Returns the shape with the most tokens per time, of all with up to `max_nodes` drafted tokens.

    The expected number of tokens takes depths as independent: 1 + a_1 + a_1 a_2 + …, with a_i the share of accepted
    nodes at depth i - 1 of which a child is accepted. Measure it on texts that are decided already, never on the draft
    that the shape is for: the text would not have the target's distribution any more.

    Args:
      acceptance: `acceptance[i][k - 1]` is that share for k children at depth i, 0 to 1. Shapes are at most as deep as
        it is long, and at most as wide.
      target_times: `target_times[n]` is the time of a call of the target that reads n + 1 tokens, > 0; at least
        `max_nodes` + 1 entries.
      draft_times: `draft_times[w - 1]` is the time of a step of the drafter for w texts, >= 0. A block takes one step
        for the nodes of each depth, the root and the last depth included. No depth has more nodes than there are times.
      max_nodes: maximum number of drafted tokens, 0 to 63.

    Raises:
      ValueError: an argument is no sequence of numbers, out of range, or too short; one line.
    """
    max_nodes = require_integer("max_nodes", max_nodes, 0, MAX_NODES - 1)
    if not isinstance(acceptance, Iterable):
        raise ValueError(f"acceptance = {acceptance!r}: must be a sequence of numbers from 0 to 1 for each depth")
    acceptance = [
        _to_numbers(f"acceptance[{depth}]", shares, 0.0, 1.0, "from 0 to 1") for depth, shares in enumerate(acceptance)
    ]
    target_times = _to_numbers("target_times", target_times, 1e-300, 1e300, "> 0")
    draft_times = _to_numbers("draft_times", draft_times, 0.0, 1e300, ">= 0")
    if len(target_times) <= max_nodes:
        raise ValueError(
            f"target_times: {len(target_times)} times are too few for max_nodes = {max_nodes}; give {max_nodes + 1}"
        )
    best = Choice((), 1.0, target_times[0])
    for shape in _shapes(acceptance, max_nodes, len(draft_times)):
        tokens = reached = 1.0
        nodes, width, time = 0, 1, draft_times[0]
        for depth, children in enumerate(shape):
            reached *= acceptance[depth][children - 1]
            tokens += reached
            width *= children
            nodes += width
            time += draft_times[width - 1]
        found = Choice(shape, tokens, time + target_times[nodes])
        if found.speed > best.speed:
            best = found
    return best


def _to_numbers(name: str, values: Any, least: float, most: float, allowed: str) -> list[float]:
    """Returns values as a list; raises ValueError unless all are numbers from `least` to `most`."""
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} = {values!r}: must be a sequence of numbers {allowed}")
    numbers = list(values)
    for value in numbers:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        # Written so that NaN, for which every comparison is False, is refused.
        if not is_number or not least <= value <= most:
            raise ValueError(f"{name}: {value!r} must be a number {allowed}")
    return numbers


def _shapes(acceptance: Sequence[Sequence[float]], max_nodes: int, max_width: int) -> Iterator[tuple[int, ...]]:
    """Yields all shapes of up to `max_nodes` nodes and `max_width` nodes at one depth."""

    def grow(shape: tuple[int, ...], nodes: int, width: int) -> Iterator[tuple[int, ...]]:
        if len(shape) == len(acceptance):
            return
        for children in range(1, len(acceptance[len(shape)]) + 1):
            wider = width * children
            if wider > max_width or nodes + wider > max_nodes:
                return
            yield (*shape, children)
            yield from grow((*shape, children), nodes + wider, wider)

    yield from grow((), 0, 1)
