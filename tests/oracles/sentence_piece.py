"""Encodes by sentencepiece's BPE as it is defined: merge the leftmost pair of highest score until no pair is left."""


def encode(tokens, scores, text, add_space=True):
    """Returns the ids of `text` in quadratic time; characters that are no pieces become the tokens of their bytes.

    The first tokens are "<unk>", "<s>", "</s>" and those of the bytes, "<0x00>" to "<0xFF>"; the others are pieces.
    """
    pieces = {token: (score, i) for i, (token, score) in enumerate(zip(tokens, scores, strict=True)) if i >= 259}
    symbols = list((" " * (add_space and text != "") + text).replace(" ", "\u2581"))
    while True:
        pairs = [
            (-pieces[left + right][0], place)
            for place, (left, right) in enumerate(zip(symbols, symbols[1:], strict=False))
            if left + right in pieces
        ]
        if not pairs:
            break
        _, place = min(pairs)
        symbols[place : place + 2] = [symbols[place] + symbols[place + 1]]
    ids = []
    for symbol in symbols:
        ids += [pieces[symbol][1]] if symbol in pieces else [3 + byte for byte in symbol.encode()]
    return ids
