"""Measures on a device what a block of speculative decoding costs, for draft lengths that are chosen at run time."""

import json
import os
import statistics
import time

from models.atomic_file import replace_file
from models.decoding.choices import Choices, Costs, check_costs
from models.device import DeviceModel
from models.litert import runtime

_FORMAT = "fedspeak costs 1"
_TIMINGS = 7
_LARGEST_FILE = 1 << 16
# Costs that make every draft of one length: none, one token, or as many as possible.
_NEVER, _ONE, _LONGEST = Costs(1e-9, 1.0, 1.0), Costs(1e9, 1e-9, 1.0), Costs(1e9, 1.0, 0.0)


def measure(file: DeviceModel, decoding: str) -> Costs:
    """Returns the times of a block of `decoding`, in units of the time that plain decoding takes for one token.

    All are times of the loop in the graph, on one thread, without reading the prompt: of plain decoding, and of blocks
    with drafts of no token, one token and G tokens. Each is the median of several measurements, taken in turn. Between
    1 and G drafted tokens, the time is taken to grow evenly.

    Raises:
      ValueError: the file's draft lengths are fixed, or it lacks one of the decodings.
    """
    if not file.facts.automatic:
        raise ValueError(f"{file.path}: its draft length is fixed; export it with draft_length auto")
    kinds = {"plain": ("autoregressive", None)} | {
        name: (decoding, costs) for name, costs in (("nothing", _NEVER), ("one", _ONE), ("longest", _LONGEST))
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(_TIMINGS + 1):
        for kind, (name, costs) in kinds.items():
            times[kind].append(_time_block(file, name, costs))
    plain, nothing, one, longest = (statistics.median(values[1:]) for values in times.values())  # the first warms up
    steps = max(file.facts.draft_length - 1, 1)
    draft = max(longest - one, 0.0) / steps
    return Costs(nothing / plain, max(one - draft, 1e-3 * plain) / plain, draft / plain)


def _time_block(file: DeviceModel, decoding: str, costs: Costs | None) -> float:
    """Returns the seconds of one call of the target, without reading the prompt."""
    prompt, seconds, calls = [file.vocabulary.start], [], []
    for tokens in (1, file.facts.max_new_tokens):
        begin = time.perf_counter()
        drawn = file.draw_in_graph(prompt, Choices(max_new_tokens=tokens), decoding=decoding, costs=costs)
        seconds.append(time.perf_counter() - begin)
        calls.append(int(drawn["calls"]))
    if calls[1] == calls[0]:
        return seconds[1] / calls[1]
    return max(seconds[1] - seconds[0], 0.1 * seconds[1]) / (calls[1] - calls[0])


def save(costs: Costs, file: DeviceModel, decoding: str, path: str | os.PathLike[str]) -> None:
    """Writes costs with what they are for as JSON.

    Raises:
      OSError: `path` cannot be written.
    """
    content = {"format": _FORMAT, **costs._asdict(), **_facts(file, decoding), "runtime": runtime()}
    with replace_file(path) as target:
        target.write((json.dumps(content, indent=1) + "\n").encode())


def read(path: str | os.PathLike[str], file: DeviceModel, decoding: str) -> Costs:
    """Reads the costs that `save` wrote for a decoding of a file.

    Raises:
      OSError: `path` cannot be read.
      ValueError: it is damaged, or was measured with another model file or decoding.
    """
    try:
        with open(path, "rb") as source:
            content = json.loads(source.read(_LARGEST_FILE))
        costs = check_costs(Costs(*(content[name] for name in Costs._fields)))
        if content["format"] != _FORMAT:
            raise ValueError
        measured = {name: content[name] for name in _facts(file, decoding)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{path}: not from `fedspeak costs`, or damaged; measure again") from None
    for name, value in _facts(file, decoding).items():
        if measured[name] != value:
            what = "another model file" if name == "flatbuffer_sha256" else f"{name} = {measured[name]!r}"
            raise ValueError(f"{path}: measured with {what}, but {file.path} needs {value!r}; measure again")
    return costs


def _facts(file: DeviceModel, decoding: str) -> dict[str, object]:
    """Returns what costs are for."""
    return {
        "flatbuffer_sha256": file.facts.flatbuffer_sha256,
        "decoding": decoding,
        "draft_length": file.facts.draft_length,
    }
