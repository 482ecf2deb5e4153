"""The comparison of drafting decodings passes only files whose tokens and log-probabilities are both right."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models import parity
from models.decoding.choices import Choices
from models.device_blocks import BlockDraw

LOGITS = np.array([0.0, 1.0, -1.0, 2.0], np.float32)
TEXT = [3, 1, 2]


class FakeFile:
    """A file that draws `TEXT`; its log-probabilities are wrong by `shift`, and its host loop draws `by_host`."""

    def __init__(self, shift=0.0, by_host=TEXT, precision="float32"):
        self.facts = SimpleNamespace(automatic=False, precision=precision)
        self.shift, self.by_host = shift, by_host

    def draw_in_graph(self, prompt, choices, *, decoding, costs):
        log_probs = (LOGITS - np.logaddexp.reduce(LOGITS))[TEXT]
        log_probs[-1] += self.shift
        return {"tokens": np.array(TEXT), "unprocessed_log_probs": log_probs}

    def draws(self, prompt, choices, *, decoding, costs, compare):
        row = np.zeros([1, 3], np.float32)
        block = {"tokens": np.array([self.by_host]), "log_probs": row, "unprocessed_log_probs": row}
        counts = {"count": np.array([3]), "drafted": np.array([2])}
        signatures: Any = (lambda **inputs: block | counts, None)
        return [BlockDraw(signatures, {}, len(prompt), {}, one, context=None) for one in choices]

    def read(self, tokens, by_prefill):
        return [(LOGITS, None)] * (len(tokens) - by_prefill + 1)


def compare(monkeypatch, **changes):
    monkeypatch.setattr(parity, "_measure_tokens_per_second", lambda *_: [1.0])
    file: Any = FakeFile(**changes)
    return parity._compare_drafting(file, "block", [([0, 1], Choices(3))] * 2, spread=3.0)


def test_drafting_passes_if_tokens_and_log_probs_are_right(monkeypatch):
    found = compare(monkeypatch)
    assert found.passed and found.equal_to_blocks == 2 and found.max_log_prob_error < 1e-6
    assert (found.acceptance.calls, found.acceptance.accepted) == (2, (2, 2))


@pytest.mark.parametrize(("precision", "shift"), [("float32", 0.001), ("float16", 0.1), ("int8", -1.0)])
def test_drafting_does_not_pass_if_a_log_prob_is_outside_the_precision_s_tolerance(monkeypatch, precision, shift):
    """So does a wrong state after a rejected draft show: graph and host then draw the same wrong tokens."""
    found = compare(monkeypatch, precision=precision, shift=shift)
    assert found.equal_to_blocks == 2 and found.max_log_prob_error == pytest.approx(abs(shift), rel=1e-3)
    assert not found.passed
    assert compare(monkeypatch, precision=precision, shift=shift / 10).passed


def test_drafting_does_not_pass_if_the_host_draws_other_tokens(monkeypatch):
    found = compare(monkeypatch, by_host=[3, 1, 1])
    assert found.equal_to_blocks == 0 and not found.passed


@pytest.mark.parametrize(("wrong", "passes"), [(0, True), (1, True), (2, False)])
def test_texts_that_are_drawn_together_must_be_those_of_their_requests(wrong, passes):
    class Samples:
        facts = SimpleNamespace(automatic=False, best_of=10)

        def draw_samples(self, prompt, choices, count, *, decoding, costs):
            rows = [[choices.request + i, 7] for i in range(count)]
            if count > 1:
                rows[:wrong] = [[99, 7]] * wrong
            return [{"tokens": np.array(row)} for row in rows]

    file: Any = Samples()
    found = parity._compare_samples(file, "block", [0, 1], Choices(2))
    assert (found.texts, found.equal, found.passed) == (10, 10 - wrong, passes)
