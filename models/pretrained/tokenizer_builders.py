"""Builds tokenizers from the fields of a GGUF file, as the JSON of the `tokenizers` library."""

from collections.abc import Sequence
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_PATTERNS = {"gpt-2": _GPT2, "llama-bpe": _LLAMA_3, "qwen2": _QWEN_2, "smollm": _GPT2}
"""Regular expression that splits text into words, by the name in the field `tokenizer.ggml.pre`."""


def byte_level(
    tokens: Sequence[str], merges: Sequence[str], special: Sequence[str], whole: Sequence[str], pre: str, where: str
) -> str:
    """Builds a byte-level BPE tokenizer.

    Args:
      tokens: the token of each id.
      merges: pairs of pieces, each separated by a space, in the order in which they merge.
      special: tokens that plain text is never encoded with.
      whole: tokens that are found in plain text before it is split into words.
      pre: name of the rule that splits text into words.
      where: file, for the message.

    Raises:
      ValueError: `pre` is unknown, or a merge is not a pair of pieces.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    if pre not in _PATTERNS:
        raise ValueError(f"{where}: the pre-tokeniser {pre!r} is unknown; the known ones: {', '.join(_PATTERNS)}")
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if not all(left and right and " " not in right for left, right in pairs):
        raise ValueError(f"{where}: a merge of the tokenizer is not a pair of pieces: the file is damaged")
    known = set(tokens)
    for left, right in pairs:
        if not {left, right, left + right} <= known:
            raise ValueError(f"{where}: the merge {left!r} {right!r} names no tokens: the file is damaged")
    encoder = Tokenizer(
        # Llama 3 looks a whole word up before it merges.
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs, ignore_merges=pre == "llama-bpe")
    )
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    steps.append(pre_tokenizers.Split(Regex(_PATTERNS[pre]), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(steps)
    encoder.decoder = decoders.ByteLevel()
    encoder.add_tokens([AddedToken(token, normalized=False) for token in whole])
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(encoder.to_str())


def sentence_piece(
    tokens: Sequence[str], scores: Sequence[float], special: Sequence[str], whole: Sequence[str], add_space: bool
) -> str:
    """Builds a sentencepiece tokenizer with byte fallback, as BPE.

    sentencepiece merges the pair whose result has the highest score. So every pair of pieces that gives a piece is a
    merge, in the order of the scores.

    Args:
      tokens: the token of each id.
      scores: the score of each token.
      special: tokens that plain text is never encoded with.
      whole: tokens that are found in plain text before it is split into pieces.
      add_space: whether a space is put before the text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    ids = {token: i for i, token in enumerate(tokens)}
    apart = {*special, *whole, *(f"<0x{byte:02X}>" for byte in range(256))}
    merges: list[tuple[float, int, int, tuple[str, str]]] = []
    for token, score in zip(tokens, scores, strict=True):
        if token in apart:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-score, ids[left], ids[right], (left, right)))
    merges.sort(key=lambda merge: merge[:3])
    unknown = next((token for token in special if "unk" in token), None)
    encoder = Tokenizer(
        models.BPE(
            vocab=ids, merges=[merge[3] for merge in merges], fuse_unk=True, byte_fallback=True, unk_token=unknown
        )
    )
    steps: list[Any] = [normalizers.Prepend("\u2581")] if add_space else []
    encoder.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    encoder.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    encoder.add_tokens([AddedToken(token, normalized=False) for token in whole])
    encoder.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return str(encoder.to_str())
