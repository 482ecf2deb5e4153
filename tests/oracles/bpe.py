"""Encodes by byte-pair encoding as it is defined: merge the leftmost pair of least rank until no pair is left."""


def encode(pieces, text):
    """Returns the ids of `text` under a vocabulary's `pieces`, in quadratic time."""
    ids = {piece: token for token, piece in enumerate(pieces) if piece}
    symbols = [bytes([byte]) for byte in text.encode()]
    while True:
        pairs = [
            (ids[left + right], place)
            for place, (left, right) in enumerate(zip(symbols, symbols[1:], strict=False))
            if left + right in ids
        ]
        if not pairs:
            return [ids[symbol] for symbol in symbols]
        _, place = min(pairs)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
