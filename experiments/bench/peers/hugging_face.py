"""Computes logits and greedy continuations of a GGUF file with Hugging Face transformers, for `bench pretrained`.

Arguments: the GGUF file, a JSON list of texts, and the `.npz` file to write.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.memory import resident

_TOKENS, _GREEDY = 200, 64


def main(checkpoint: Path, texts: Path, output: Path) -> None:
    """Writes ids, logits and greedy tokens of each text; prints speed and memory as JSON."""
    folder, name = str(checkpoint.parent), checkpoint.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    model.eval()
    arrays = {}

    def extend(ids: torch.Tensor) -> torch.Tensor:
        # Without an end token, all of the tokens are generated.
        drawn = model.generate(ids, max_new_tokens=_GREEDY, do_sample=False, eos_token_id=None, pad_token_id=0)
        return drawn[0, ids.shape[1] :]

    with torch.no_grad():
        for number, text in enumerate(json.loads(texts.read_text())):
            every = tokenizer(text, add_special_tokens=False).input_ids
            ids = torch.tensor([every[:_TOKENS]])
            arrays[f"ids_{number}"] = np.array(every)
            arrays[f"logits_{number}"] = model(ids).logits[0].numpy()
            arrays[f"greedy_{number}"] = extend(ids).numpy()
        torch.set_num_threads(1)
        extend(ids[:, :1])
        begin = time.perf_counter()
        extend(ids[:, :1])
        seconds = time.perf_counter() - begin
    np.savez(output, **arrays)
    memory = resident("VmHWM")
    print(json.dumps({"tokens_per_second": _GREEDY / seconds, "peak_megabytes": memory}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
