"""Computes Threefry-2x32-20 in Python integers as the paper describes it (Salmon et al. 2011, section 4.1)."""

_MASK = 0xFFFFFFFF


def threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Returns the two 32-bit words for a 64-bit key and a 64-bit counter."""
    k = [key[0], key[1], 0x1BD11BDA ^ key[0] ^ key[1]]
    x, y = (counter[0] + k[0]) & _MASK, (counter[1] + k[1]) & _MASK
    for round_number in range(20):
        distance = [13, 15, 26, 6, 17, 29, 16, 24][round_number % 8]
        x = (x + y) & _MASK
        y = ((y << distance) | (y >> (32 - distance))) & _MASK
        y ^= x
        if (round_number + 1) % 4 == 0:
            injection = (round_number + 1) // 4
            x = (x + k[injection % 3]) & _MASK
            y = (y + k[(injection + 1) % 3] + injection) & _MASK
    return x, y


def words(seed: int, stream: int, request: int, position: int, token: int | None = None) -> tuple[int, int]:
    """Returns the two words for (seed, stream, request, position[, token])."""
    key = threefry((seed & _MASK, seed >> 32), (stream, request))
    return threefry(key, (position, 0 if token is None else token + 1))
