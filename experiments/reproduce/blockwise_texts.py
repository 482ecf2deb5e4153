"""Takes the prompts of `fedspeak reproduce blockwise` from texts of different kinds and difficulty."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.decoding_measurement import PROMPT
from experiments.bench.decoding_texts import choose_prompts, read_texts
from experiments.text_evaluation import read_text

_SHORT, _LONG, _CHAT = 8, 96, 80
_SEEN, _HELD_OUT, _ROLE = "hamlet", "macbeth", "macbeth/MACBETH"
_FORTUNES = Path("/usr/share/games/fortunes")
_REQUESTS = {
    "chat: summarise a scene": ("Macbeth", "Summarise this in one sentence: "),
    "chat: explain a manual": ("Python's manual", "Explain this to a beginner: "),
}
_DIRECTION = re.compile(r"_([^_]{3,300})_")


def choose(
    vocabulary: Any, files: Sequence[Path], bible: Path | None, count: int, seed: int
) -> dict[str, list[list[int]]]:
    """Returns up to `count` prompts of equal length for each text, token ids.

    Args:
      vocabulary: the target's vocabulary.
      files: texts to use instead of those that every installation has.
      bible: file with the King James Bible; None leaves it out.
      count: number of prompts, >= 1.
      seed: seed of the choice.

    Raises:
      OSError: a text cannot be read.
      ValueError: a text is too short, not UTF-8, or two have the same name; one line.
    """
    texts = read_texts(files)
    if files:
        return choose_prompts(texts, vocabulary, PROMPT, count, seed)
    chosen = choose_prompts(texts | _more(bible), vocabulary, PROMPT, count, seed)
    for name, length in (("short prompts", _SHORT), ("long prompts", _LONG)):
        chosen |= choose_prompts({f"Macbeth, {name}": texts["Macbeth"]}, vocabulary, length, count, seed)
    return chosen | _choose_chats(texts, vocabulary, count, seed)


def _more(bible: Path | None) -> dict[str, str]:
    """Returns texts by name: a large role, speeches with the speakers' names, stage directions, and texts of others."""
    from fl.sources import shakespeare

    source = shakespeare.load()
    files = {file.stem: file for file in source.files}
    spoken = {name: "\n".join(lines) for name, lines in source}
    directions = [text for file in source.files for text in _DIRECTION.findall(read_text(file))]
    found = {
        "Macbeth's own lines": spoken[_ROLE],
        "Macbeth, with speakers": files[_HELD_OUT].read_text(encoding="utf-8").replace("**", ""),
        "stage directions": "\n".join(" ".join(text.split()) for text in directions),
        "Hamlet (trained on)": "\n".join(text for name, text in spoken.items() if name.startswith(f"{_SEEN}/")),
    }
    if bible is not None:
        found["King James Bible (trained on)"] = read_text(bible)
    if (_FORTUNES / "fortunes").is_file():
        found["fortunes"] = read_text(_FORTUNES / "fortunes").replace("\n%\n", "\n")
    return found


def _choose_chats(texts: Mapping[str, str], vocabulary: Any, count: int, seed: int) -> dict[str, list[list[int]]]:
    """Returns prompts in the model's chat format with passages of the texts; nothing for a model without one."""
    try:
        vocabulary.chat("Hello")
    except ValueError:
        return {}
    generator, chosen = np.random.default_rng(seed), {}
    for name, (source, request) in _REQUESTS.items():
        words, prompts = texts[source].split(), list[list[int]]()
        for begin in generator.permutation(max(len(words) - _CHAT, 1)):
            # One word more at a time, until the prompt has exactly as many tokens as the others.
            longer = (vocabulary.chat(request + " ".join(words[begin:end])) for end in range(begin + 1, begin + _CHAT))
            prompt: list[int] = next((ids for ids in longer if len(ids) >= _CHAT), [])
            if len(prompt) == _CHAT:
                prompts.append(prompt)
            if len(prompts) == count:
                break
        chosen[name] = prompts
    return chosen
