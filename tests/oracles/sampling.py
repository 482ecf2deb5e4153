"""Computes logits processing, sampling and the decoding loop one number at a time."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from tests.oracles import threefry


def penalized(
    logits: Sequence[float],
    prompt: Sequence[int],
    generated: Sequence[int],
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    bias: dict[int, float] | None = None,
) -> list[float]:
    """Returns the logits after the bias and the penalties for the tokens of a text; -inf for banned tokens."""
    result = []
    for token, logit in enumerate(logits):
        logit += (bias or {}).get(token, 0.0)
        if token in prompt or token in generated:
            logit = logit / repetition_penalty if logit > 0 else logit * repetition_penalty
        for repeat in range(list(generated).count(token)):
            logit -= frequency_penalty + (presence_penalty if repeat == 0 else 0)
        result.append(logit)
    return result


def distribution(
    logits: Sequence[float], temperature: float, top_k: int, top_p: float = 1.0, min_p: float = 0.0
) -> list[float]:
    """Returns the probabilities after temperature, top-k, top-p and min-p; tokens that tie with the last one stay."""
    return _filter(logits, temperature, top_k, top_p, min_p)[0]


def margin(logits: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float) -> float:
    """Returns how far top-p and min-p are, relatively, from the values at which they would keep other tokens.

    Where it is below the rounding error, other implementations may keep other tokens.
    """
    return _filter(logits, temperature, top_k, top_p, min_p)[1]


def _filter(
    logits: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[list[float], float]:
    if temperature == 0:
        best = max(range(len(logits)), key=lambda token: (logits[token], -token))
        return [float(token == best) for token in range(len(logits))], 1.0
    largest, near = max(logits), 1.0
    shares = [math.exp((x - largest) / temperature) for x in logits]
    if 0 < top_k < len(logits):
        bound = sorted(logits, reverse=True)[top_k - 1]
        shares = [share if x >= bound else 0.0 for share, x in zip(shares, logits, strict=True)]
    total = math.fsum(shares)
    if top_p < 1:
        for value in sorted(set(logits), reverse=True):
            reached = math.fsum(share for share, x in zip(shares, logits, strict=True) if x >= value) / total
            near = min(near, abs(reached - top_p) / (1 - top_p), abs(reached - top_p) / top_p)
            if reached >= top_p:
                shares = [share if x >= value else 0.0 for share, x in zip(shares, logits, strict=True)]
                break
    if min_p > 0:
        near = min([near, *(abs(share - min_p) / min_p for share in shares)])
        shares = [share if share >= min_p else 0.0 for share in shares]
    total = math.fsum(shares)
    return [share / total for share in shares], near


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
    top_p: float = 1.0,
    min_p: float = 0.0,
    **changes: Any,
) -> tuple[list[int], float]:
    """Returns the tokens after `prompt`, and the least distance of a number from the end of its share.

    Where that distance is below the rounding error, other implementations may choose another token. `changes` are the
    bias and the penalties of `penalized`.
    """
    text, least = list(prompt), 1.0
    while len(text) < len(prompt) + max_new:
        words = threefry.words(seed, 0, request, len(text))
        logits = penalized(next_logits(text), prompt, text[len(prompt) :], **changes)
        token, distance = invert(distribution(logits, temperature, top_k, top_p, min_p), words)
        least = min(least, distance, margin(logits, temperature, top_k, top_p, min_p))
        text.append(token)
        if token == stop:
            break
    return text[len(prompt) :], least
