"""Takes the prompts of `fedspeak bench decoding` from texts of different kinds that every installation has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_PLAYS = ("Macbeth", "Twelfth Night")
_CODE = ("argparse", "textwrap", "zipfile", "statistics")
_CHARACTERS_PER_TOKEN = 16


def read_texts(files: Sequence[Path]) -> dict[str, str]:
    """Returns texts by name: the files, or without any two plays, Python's manual and source of its library.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is not UTF-8, or two have the same name; one line.
    """
    from experiments.text_evaluation import read_text

    if files:
        texts = {file.name: read_text(file) for file in files}
        if len(texts) < len(files):
            raise ValueError("--text: two files have the same name: rename one")
        return texts
    import inspect
    from importlib import import_module
    from pydoc_data.topics import topics

    from fl.sources import shakespeare

    plays = {file.stem: file for file in shakespeare.load().files}
    found = {name: plays[_stem(name)].read_text(encoding="utf-8") for name in _PLAYS}
    found["Python's manual"] = "\n".join(topics[name] for name in sorted(topics))
    found["Python source"] = "\n".join(inspect.getsource(import_module(name)) for name in _CODE)
    return found


def choose_prompts(
    texts: Mapping[str, str], vocabulary: Any, length: int, count: int, seed: int
) -> dict[str, list[list[int]]]:
    """Returns for each text up to `count` prompts of `length` tokens, the begin token included, from random lines.

    Raises:
      ValueError: no line of a text has that many tokens after it; one line.
    """
    generator, chosen = np.random.default_rng(seed), {}
    for name, text in texts.items():
        starts = [0, *(place + 1 for place, character in enumerate(text) if character == "\n")]
        prompts: list[list[int]] = []
        for place in generator.permutation(starts):
            prompt = vocabulary.prompt(text[place : place + _CHARACTERS_PER_TOKEN * length])[:length]
            if len(prompt) == length:
                prompts.append(prompt)
            if len(prompts) == count:
                break
        if not prompts:
            raise ValueError(f"--text {name}: fewer than {length} tokens: give a longer text")
        chosen[name] = prompts
    return chosen


def _stem(play: str) -> str:
    return play.lower().replace(" ", "-")
