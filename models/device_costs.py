"""Measures on a device what a block of speculative decoding costs, for draft lengths that are chosen at run time."""

import json
import os
import statistics
import time

from models.atomic_file import replace_file
from models.decoding.choices import Choices, Costs
from models.device import DeviceModel
from models.litert import runtime

_FORMAT = "fedspeak costs 1"
_TIMINGS = 5


def measure(file: DeviceModel, decoding: str) -> Costs:
    """Returns the times of a block of `decoding`, in units of the time that the target takes for one token.

    All are times of the loop in the graph, on one thread: of plain decoding, of blocks that draft nothing, and of
    blocks that draft G tokens; the median of several measurements, taken in turn.

    Raises:
      ValueError: the file's draft lengths are fixed, or it lacks one of the decodings.
    """
    if not file.facts.automatic:
        raise ValueError(f"{file.path}: its draft length is fixed; export it with draft_length auto")
    never, always = Costs(verify=1e9, draft=0.0), Costs(verify=1e-9, draft=0.0)
    kinds = {"plain": ("autoregressive", never), "nothing": (decoding, never), "longest": (decoding, always)}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(_TIMINGS + 1):
        for kind, (name, costs) in kinds.items():
            times[kind].append(_time_block(file, name, costs))
    plain, nothing, longest = (statistics.median(values[1:]) for values in times.values())  # the first one warms up
    draft = max(nothing - plain, 0.0)
    return Costs(verify=max(longest - (file.facts.draft_length + 1) * draft, plain) / plain, draft=draft / plain)


def _time_block(file: DeviceModel, decoding: str, costs: Costs) -> float:
    """Returns the seconds of one call of the target, without reading the prompt."""
    prompt, seconds, calls = [file.vocabulary.start], [], []
    for tokens in (1, file.facts.max_new_tokens):
        begin = time.perf_counter()
        drawn = file.draw_in_graph(prompt, Choices(max_new_tokens=tokens), decoding=decoding, costs=costs)
        seconds.append(time.perf_counter() - begin)
        calls.append(int(drawn["calls"]))
    return max(seconds[1] - seconds[0], 1e-9) / max(calls[1] - calls[0], 1)


def save(costs: Costs, file: DeviceModel, decoding: str, path: str | os.PathLike[str]) -> None:
    """Writes costs with what they are for as JSON.

    Raises:
      OSError: `path` cannot be written.
    """
    content = {
        "format": _FORMAT,
        **costs._asdict(),
        "decoding": decoding,
        "draft_length": file.facts.draft_length,
        "flatbuffer_sha256": file.facts.flatbuffer_sha256,
        "runtime": runtime(),
    }
    with replace_file(path) as target:
        target.write((json.dumps(content, indent=1) + "\n").encode())


def read(path: str | os.PathLike[str], file: DeviceModel) -> Costs:
    """Reads the costs that `save` wrote for a file.

    Raises:
      OSError: `path` cannot be read.
      ValueError: it is damaged, or was measured with another model file.
    """
    try:
        with open(path, "rb") as source:
            content = json.loads(source.read())
        costs = Costs(float(content["verify"]), float(content["draft"]))
        if content["format"] != _FORMAT or not 0 < costs.verify < 1e9 or not 0 <= costs.draft < 1e9:
            raise ValueError
        measured = content["flatbuffer_sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not from `fedspeak costs`, or damaged; measure again") from None
    if measured != file.facts.flatbuffer_sha256:
        raise ValueError(f"{path}: measured with another model file than {file.path}; measure again")
    return costs
