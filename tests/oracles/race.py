"""Computes the Gumbel number of one token with decimal numbers of 40 digits."""

import math
from decimal import Decimal, localcontext

from tests.oracles import threefry


def gumbel_of_words(own: int, partner: int) -> Decimal:
    """Returns -ln(-ln(1 - v)) with v = (own + |partner| / 2**32) / 2**32 or 2**-34; the partner's word is signed."""
    with localcontext() as context:
        context.prec = 40
        distance = min(partner, 2**32 - partner)
        v = max((own + Decimal(distance) / 2**32) / 2**32, Decimal(2) ** -34)
        return -((-((1 - v).ln())).ln())


def gumbel(seed: int, stream: int, request: int, position: int, token: int) -> float:
    """Returns the number of a token; blocks of 512 token ids share 256 calls of Threefry."""
    block, within = divmod(token, 512)
    call = 256 * block + within % 256
    words = threefry.words(seed, stream, request, position, call)
    own = within // 256
    return float(gumbel_of_words(words[own], words[1 - own]))


def probabilities(logits: list[float]) -> list[float]:
    """Returns the softmax of the logits."""
    largest = max(logits)
    masses = [math.exp(x - largest) for x in logits]
    return [mass / math.fsum(masses) for mass in masses]
