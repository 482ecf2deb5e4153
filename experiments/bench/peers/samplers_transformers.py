"""Decodes with the verification of Hugging Face transformers' assisted generation for `bench samplers`.

`_speculative_sampling` is what `generate` calls for each block when it samples and the assistant is a model. It has no
public name, and takes one text at a time. Drafts are drawn as the assistant draws them: with `torch.multinomial` from
the softmax of its logits.
"""

from collections.abc import Iterator

import numpy as np
import torch
import transformers
from transformers.generation.utils import _speculative_sampling

from experiments.bench.peers.samplers_common import (
    DRAFT_LENGTH,
    LONG_TEXT,
    Measured,
    Pair,
    Sizes,
    count_texts,
    main,
    time_calls,
)


def decode(target: torch.Tensor, drafter: torch.Tensor, tokens: int) -> tuple[list[int], int]:
    """Decodes one text block by block, until it has at least some number of tokens.

    Args:
      target: float32 `[R, V]`, as in `Pair`.
      drafter: float32 `[R, V]`.
      tokens: number of tokens after which no block begins.

    Returns:
      All decided tokens, and the number of blocks.
    """
    rows, text, calls = len(target), [0], 0
    while len(text) <= tokens:
        last = torch.tensor([text[-1:]])
        draft, drafter_logits = [last], []
        for _ in range(DRAFT_LENGTH):
            logits = drafter[draft[-1][0] % rows]
            drafter_logits.append(logits)
            draft.append(torch.multinomial(logits.softmax(dim=-1), num_samples=1))
        candidates = torch.cat(draft, dim=-1)
        valid, _ = _speculative_sampling(
            candidates, torch.stack(drafter_logits, dim=1), DRAFT_LENGTH, target[candidates % rows]
        )
        text += valid[0].tolist()
        calls += 1
    return text[1:], calls


def measure(pair: Pair, sizes: Sizes) -> Iterator[Measured]:
    """Measures the verification with a pair."""
    torch.manual_seed(sizes.seed)
    target, drafter = torch.from_numpy(pair.target), torch.from_numpy(pair.drafter)
    texts = np.array([decode(target, drafter, pair.tokens)[0][: pair.tokens] for _ in range(sizes.texts)])
    long_texts = [decode(target, drafter, LONG_TEXT) for _ in range(sizes.long_texts)]
    yield Measured(
        "_speculative_sampling",
        pair.name,
        count_texts(texts, pair.target.shape[1]),
        [len(text) for text, _ in long_texts],
        [calls for _, calls in long_texts],
        {"eager PyTorch": time_calls(lambda: decode(target, drafter, LONG_TEXT)[1], sizes.timings)},
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        main("transformers", f"{transformers.__version__}, PyTorch {torch.__version__}", measure)
