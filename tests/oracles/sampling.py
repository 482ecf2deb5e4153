"""Computes temperature, top-k, sampling and the decoding loop one number at a time."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

from tests.oracles import threefry


def distribution(logits: Sequence[float], temperature: float, top_k: int) -> list[float]:
    """Returns the probabilities after temperature and top-k; all tokens that tie with the k-th stay."""
    if temperature == 0:
        best = max(range(len(logits)), key=lambda token: (logits[token], -token))
        return [float(token == best) for token in range(len(logits))]
    bound = sorted(logits, reverse=True)[top_k - 1] if 0 < top_k < len(logits) else -math.inf
    largest = max(logits)
    masses = [math.exp((x - largest) / temperature) if x >= bound else 0.0 for x in logits]
    return [mass / math.fsum(masses) for mass in masses]


def invert(probabilities: Sequence[float], words: tuple[int, int]) -> tuple[int, float]:
    """Returns the token whose share of [0, 1) holds the number 0.w0w1, and the distance to the share's nearer end.

    31 bits of each word are used.
    """
    number = Fraction((words[0] >> 1) * 2**31 + (words[1] >> 1), 2**62)
    total = sum(map(Fraction, probabilities), Fraction(0))
    upper = Fraction(0)
    for token, probability in enumerate(probabilities):
        lower, upper = upper, upper + Fraction(probability) / total
        if number < upper:
            return token, float(min(number - lower, upper - number))
    raise AssertionError("no share of [0, 1) holds the number: the shares must add up to 1")


def generate(
    next_logits: Callable[[list[int]], Sequence[float]],
    prompt: Sequence[int],
    seed: int,
    request: int,
    temperature: float,
    top_k: int,
    max_new: int,
    stop: int,
) -> tuple[list[int], float]:
    """Returns the tokens after `prompt`, and the least distance of a number from the end of its share.

    Where that distance is below the rounding error, other implementations may choose another token.
    """
    text, least = list(prompt), 1.0
    while len(text) < len(prompt) + max_new:
        words = threefry.words(seed, 0, request, len(text))
        token, distance = invert(distribution(next_logits(text), temperature, top_k), words)
        least = min(least, distance)
        text.append(token)
        if token == stop:
            break
    return text[len(prompt) :], least
