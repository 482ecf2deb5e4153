import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import device_costs
from models.decoding.choices import Costs


class _FakeFile:
    """A model file whose loop takes known times: `target`, `draft` and `verify` seconds, and `prompt` for a prompt.

    As the real loop, it drafts G tokens where drafts are cheap and none where they are dear. It yields one token per
    block, so that a call of the target is a token.
    """

    path = "m.tflite"
    vocabulary = SimpleNamespace(start=1)

    def __init__(self, clock, automatic=True, target=2.0, draft=0.3, verify=5.0, prompt=7.0, pause=()):
        self.facts = SimpleNamespace(
            automatic=automatic, draft_length=3, max_new_tokens=11, flatbuffer_sha256="abc", decodings=["block"]
        )
        self.clock, self.target, self.draft, self.verify, self.prompt = clock, target, draft, verify, prompt
        self.calls: list[Any] = []
        self.pauses = dict(pause)

    def draw_in_graph(self, prompt, choices, *, decoding, costs):
        blocks = choices.max_new_tokens
        if decoding == "autoregressive":
            block = self.target
        elif costs.verify > 1:
            block = self.target + self.draft
        else:
            block = self.verify + 4 * self.draft
        self.clock.now += self.prompt + blocks * block + self.pauses.get(len(self.calls), 0.0)
        self.calls.append((decoding, blocks))
        return {"calls": np.array(blocks)}


FakeFile: Any = _FakeFile


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    own = Clock()
    monkeypatch.setattr(device_costs, "time", own)
    return own


def test_measured_costs_are_the_times_in_units_of_one_token_without_the_prompt(clock):
    found = device_costs.measure(FakeFile(clock), "block")
    assert found.verify == pytest.approx(5.0 / 2.0) and found.draft == pytest.approx(0.3 / 2.0)


def test_a_pause_of_the_machine_does_not_change_the_costs(clock):
    found = device_costs.measure(FakeFile(clock, pause={13: 100.0, 20: 50.0}), "block")
    assert found.verify == pytest.approx(2.5) and found.draft == pytest.approx(0.15)


def test_first_measurement_does_not_count(clock):
    """It warms up. Two pauses in the other five leave the median as it is."""
    file = FakeFile(clock, pause={5: 100.0, 11: 100.0, 17: 100.0})
    assert device_costs.measure(file, "block").verify == pytest.approx(2.5)
    assert {decoding for decoding, _ in file.calls} == {"autoregressive", "block"}
    assert len(file.calls) == 2 * 3 * 6


def test_costs_are_never_below_those_of_one_token(clock):
    found = device_costs.measure(FakeFile(clock, draft=-0.5, verify=0.5), "block")
    assert found.verify >= 1 and found.draft == 0


def test_measure_refuses_a_file_with_fixed_draft_lengths(clock):
    with pytest.raises(ValueError, match="^m.tflite: its draft length is fixed; export it with draft_length auto$"):
        device_costs.measure(FakeFile(clock, automatic=False), "block")


def test_saved_costs_are_read_back(clock, tmp_path):
    file, costs = FakeFile(clock), Costs(1.25, 0.0)
    device_costs.save(costs, file, "block", tmp_path / "costs.json")
    assert device_costs.read(tmp_path / "costs.json", file) == costs
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["decoding"] == "block" and content["draft_length"] == 3 and content["runtime"]


def test_costs_of_another_file_are_refused(clock, tmp_path):
    file = FakeFile(clock)
    device_costs.save(Costs(1.25, 0.1), file, "block", tmp_path / "costs.json")
    file.facts.flatbuffer_sha256 = "other"
    with pytest.raises(ValueError, match="costs.json: measured with another model file than m.tflite; measure again$"):
        device_costs.read(tmp_path / "costs.json", file)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "fedspeak costs 2"},
        {"verify": 0},
        {"verify": float("nan")},
        {"draft": float("nan")},
        {"draft": -0.1},
        {"verify": float("inf")},
        {"draft": "x"},
        {"draft": None},
        {"flatbuffer_sha256": ...},
        {"verify": ...},
        {"format": ...},
    ],
)
def test_damaged_costs_are_refused_in_one_line(clock, tmp_path, changes):
    path = tmp_path / "costs.json"
    file = FakeFile(clock)
    device_costs.save(Costs(1.25, 0.1), file, "block", path)
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))
    with pytest.raises(ValueError, match="costs.json: not from `fedspeak costs`, or damaged; measure again$") as caught:
        device_costs.read(path, file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"\xff\xfe", b"null"])
def test_files_of_another_kind_are_refused_in_one_line(clock, tmp_path, content):
    (tmp_path / "costs.json").write_bytes(content)
    with pytest.raises(ValueError, match="not from `fedspeak costs`, or damaged") as caught:
        device_costs.read(tmp_path / "costs.json", FakeFile(clock))
    assert "\n" not in str(caught.value)
