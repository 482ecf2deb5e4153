"""Byte-pair encoding by its definition: merge the leftmost pair of least rank until none is left."""


def encode(pieces, text):
    """Ids of `text` under a vocabulary's `pieces`; quadratic."""
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
