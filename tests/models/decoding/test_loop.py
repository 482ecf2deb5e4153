"""The loop decodes as a plain program does, resumes anywhere, and its text depends on nothing that it should not."""

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.choices import Costs, Processing
from models.decoding.draft_length import choose
from models.decoding.methods import build_method
from models.decoding.speculation import Speculation, is_plain
from tests.models.decoding.runs import (
    DRAFTERS,
    FAR,
    LONGEST,
    NEAR,
    SIZE,
    TARGET,
    ends,
    graphs,
    request,
    resume,
    run,
    speculation,
    texts,
)
from tests.oracles.speculation import Row

METHODS = [("autoregressive", 0), ("speculative", 3), ("block", 3), ("invariant", 3)]
MODELS = {"near": NEAR, "far": FAR, "target": TARGET, "hesitant": DRAFTERS["hesitant"]}
PROMPTS = [[3, 1, 4], [5]]
SEQUENCES = np.array([[-1, 3, 4], [5, 5, 5]], np.int32)
OPTIONS = [
    Processing(),
    Processing(temperature=0.7, top_k=6, repetition_penalty=1.3),
    Processing(top_p=0.9, frequency_penalty=0.5, presence_penalty=-0.25),
    Processing(temperature=0.0),
    Processing(temperature=1.5, min_p=0.1),
]


def by_oracle(method, draft_length, prompt, seed, number, processing=None, drafter="near", bias=None, **limits):
    row = Row(
        TARGET.logits,
        MODELS[drafter].logits,
        prompt,
        method,
        draft_length,
        seed,
        number,
        processing or Processing(),
        bias,
    )
    found = row.run(**limits)
    assert found.least > 1e-7, "a draw is too near to the boundary between two decisions: take another seed"
    return found


@pytest.mark.parametrize(("method", "draft_length"), METHODS)
def test_tokens_log_probs_and_counts_equal_those_of_a_plain_program(method, draft_length):
    """Two rows of different prompts, with all options for logits, stop tokens and stop sequences."""
    for seed in range(20):
        processing = OPTIONS[seed % len(OPTIONS)]
        stop = 7 if seed % 2 else -1
        found = run(PROMPTS, request(seed, [seed, 77], processing), ends(20, stop, SEQUENCES), method, draft_length)
        for row, (prompt, text) in enumerate(zip(PROMPTS, texts(found), strict=True)):
            expected = by_oracle(
                method,
                draft_length,
                prompt,
                seed,
                [seed, 77][row],
                processing,
                max_new=20,
                stop=stop,
                sequences=[(3, 4), (5, 5, 5)],
            )
            assert text == expected.tokens
            np.testing.assert_allclose(found.log_probs[row, : len(text)], expected.log_probs, atol=1e-5)
            np.testing.assert_allclose(found.unprocessed_log_probs[row, : len(text)], expected.unprocessed, atol=1e-5)
            assert not np.any(found.tokens[row, len(text) :]) and not np.any(found.log_probs[row, len(text) :])
            blocks = np.array(expected.blocks)
            assert found.counts.calls[row] == len(blocks)
            assert found.counts.decided[row] == np.sum(blocks[:, 1] + 1)
            for place in range(draft_length):
                drafted = blocks[:, 0] > place
                assert found.counts.drafted[row, place] == drafted.sum()
                assert found.counts.reached[row, place] == (drafted & (blocks[:, 1] >= place)).sum()
                assert found.counts.accepted[row, place] == (drafted & (blocks[:, 1] > place)).sum()
        assert np.all(found.is_finite)


@pytest.mark.parametrize(("method", "draft_length"), METHODS)
def test_a_text_in_parts_equals_the_text_in_one_call(method, draft_length):
    """Parts end at every place inside a block, at a stop token and at stop sequences that straddle calls."""
    for seed in range(6):
        asked = request(seed, [3, 4], OPTIONS[seed % len(OPTIONS)])
        whole = run(PROMPTS, asked, ends(), method, draft_length)
        for part in (1, 2, 5):
            found = run(PROMPTS, asked, ends(part), method, draft_length)
            rows: list = texts(found)
            probs = [found.log_probs.numpy()[:, :part]]
            while len(rows[0]) < LONGEST:
                found = resume(found, asked, ends(min(part, LONGEST - len(rows[0]))), method, draft_length)
                rows = [row + more for row, more in zip(rows, texts(found), strict=True)]
                probs.append(found.log_probs.numpy()[:, : int(found.lengths[0])])
            assert rows == texts(whole)
            np.testing.assert_array_equal(np.concatenate(probs, axis=1), whole.log_probs)
        stop = rows[0][2]
        where = ends(LONGEST, stop, SEQUENCES)
        found = run(PROMPTS, asked, where, method, draft_length)
        rows = [[] for _ in PROMPTS]
        while True:
            for row, more in zip(rows, texts(found), strict=True):
                row.extend(more)
                assert more[-1] == stop or row[-2:] == [3, 4] or row[-3:] == [5, 5, 5] or len(more) == LONGEST
            if min(len(row) for row in rows) >= LONGEST:
                break
            found = resume(found, asked, where, method, draft_length)
        assert [row[:LONGEST] for row in rows] == texts(whole)


def test_invariant_text_depends_neither_on_the_drafter_nor_on_the_draft_length_nor_on_the_batch():
    kinds = [("invariant", 0), ("invariant", 3), ("invariant", 3, "far"), ("invariant", 1), ("invariant", 3, "target")]
    prompts = [[3, 1, 4], [5], [8, 8], [2]]
    for seed in range(20):
        processing = OPTIONS[seed % len(OPTIONS)]
        expected = texts(run(prompts, request(seed, [1, 2, 3, 4], processing), ends(), *kinds[0]))
        for kind in kinds[1:]:
            assert texts(run(prompts, request(seed, [1, 2, 3, 4], processing), ends(), *kind)) == expected
        reverse = run(prompts[::-1], request(seed, [4, 3, 2, 1], processing), ends(), *kinds[1])
        assert texts(reverse) == expected[::-1]


@pytest.mark.parametrize(("method", "draft_length"), METHODS[1:])
def test_a_drafter_equal_to_the_target_is_always_accepted(method, draft_length):
    found = run(PROMPTS, request(0, [1, 2]), ends(), method, draft_length, "target")
    np.testing.assert_array_equal(found.counts.accepted, found.counts.drafted)
    np.testing.assert_array_equal(found.counts.calls, [LONGEST // (draft_length + 1)] * 2)


@pytest.mark.parametrize("method", ["speculative", "block", "invariant"])
def test_a_drafter_may_propose_nothing_or_end_a_draft_early(method):
    lengths = set()
    for seed in range(20):
        found = run(PROMPTS, request(seed, [1, 2]), ends(), method, 3, "hesitant")
        for row, prompt in enumerate(PROMPTS):
            expected = by_oracle(method, 3, prompt, seed, row + 1, drafter="hesitant", max_new=LONGEST)
            assert texts(found)[row] == expected.tokens
            lengths |= {drafted for drafted, _ in expected.blocks}
    assert lengths == {0, 1, 2, 3}


class Chooser:
    """Chooses draft lengths as a plain program, from what became of the blocks before."""

    def __init__(self, costs, longest):
        self.costs, self.longest = costs, longest

    def __call__(self, blocks):
        evidence = np.zeros(2, np.float32)
        for drafted, accepted in blocks:
            evidence = evidence * np.float32(0.98) + np.array([accepted, accepted < drafted], np.float32)
        return int(choose(tf.constant(evidence[np.newaxis]), Costs(*self.costs), self.longest)[0])


@pytest.mark.parametrize("method", ["speculative", "block"])
def test_automatic_draft_lengths_follow_the_evidence_of_earlier_blocks(method):
    lengths = set()
    for seed in range(12):
        costs = [(1.2, 0.05), (1.6, 0.1)][seed % 2]
        asked = request(seed, [1, 2], costs=costs)
        found = run(PROMPTS, asked, ends(), method, 3, "far", automatic=True)
        for row, prompt in enumerate(PROMPTS):
            expected = by_oracle(
                method, 3, prompt, seed, row + 1, drafter="far", max_new=LONGEST, draft_lengths=Chooser(costs, 3)
            )
            assert texts(found)[row] == expected.tokens
            lengths |= {drafted for drafted, _ in expected.blocks}
        alone = run(PROMPTS[1:], request(seed, [2], costs=costs), ends(), method, 3, "far", automatic=True)
        assert texts(alone)[0] == texts(found)[1]
    assert {0, 3} <= lengths


def test_automatic_draft_length_is_zero_where_drafts_cannot_pay_and_longest_where_they_are_free():
    evidence = tf.constant([[0.0, 50.0], [50.0, 0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(choose(evidence, Costs(3.0, 0.2), 4)[:1], [0])
    np.testing.assert_array_equal(choose(evidence, Costs(1.0, 0.0), 4), [4, 4, 4])
    np.testing.assert_array_equal(choose(evidence, Costs(6.0, 0.2), 4), [0, 0, 0])


@pytest.mark.parametrize(("method", "draft_length"), [("autoregressive", 0), ("block", 3), ("invariant", 3)])
def test_xla_decodes_as_the_graph_does(method, draft_length):
    for seed in range(5):
        asked = request(seed, [1, 2], OPTIONS[seed % len(OPTIONS)])
        expected = run(PROMPTS, asked, ends(20, 7, SEQUENCES), method, draft_length)
        found = run(PROMPTS, asked, ends(20, 7, SEQUENCES), method, draft_length, compiled=True)
        assert texts(found) == texts(expected)
        tf.nest.map_structure(np.testing.assert_array_equal, found.counts, expected.counts)


@pytest.mark.parametrize(("method", "draft_length"), METHODS)
def test_a_row_whose_logits_are_not_finite_ends_and_says_so(method, draft_length):
    healthy = run(PROMPTS, request(1, [1, 2]), ends(), method, draft_length)
    banned = np.zeros([2, SIZE], np.float32)
    banned[0] = -np.inf
    found = run(PROMPTS, request(1, [1, 2], bias=tf.constant(banned)), ends(), method, draft_length)
    np.testing.assert_array_equal(found.is_finite, [False, True])
    np.testing.assert_array_equal(found.lengths, [0, LONGEST])
    assert texts(found)[1] == texts(healthy)[1]


@pytest.mark.parametrize(("method", "draft_length"), [("autoregressive", 0), ("block", 2), ("invariant", 2)])
def test_nan_logits_in_the_middle_of_a_text_end_it_before_the_first_token_from_them(method, draft_length, monkeypatch):
    whole = texts(run(PROMPTS[:1], request(2, [1]), ends(), method, draft_length))[0]
    damaged = TARGET.table.copy()
    damaged[whole[8], whole[9], 3] = np.nan
    first = next(i for i in range(1, LONGEST) if whole[i - 1 : i + 1] == whole[8:10])
    monkeypatch.setattr(TARGET, "table", damaged)
    graphs.cache_clear()
    found = run(PROMPTS[:1], request(2, [1]), ends(), method, draft_length)
    graphs.cache_clear()
    assert not found.is_finite[0]
    text = texts(found)[0]
    assert text == whole[: len(text)] and first - draft_length < len(text) <= first + 1


def test_host_masks_apply_at_every_prefix_of_a_draft():
    """A grammar in which no token comes twice in a row; drafts break it, the text does not."""
    own, asked = speculation("block", 3), request(5, [1])
    state = own.begin(tf.constant([4]), own.initial_state(1))
    text = [4]
    for _ in range(12):
        words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
        draft = own.draft(state, asked, words)
        before = [text[-1], *draft.tokens[0].numpy().tolist()]
        allowed = np.ones([1, 4, SIZE], bool)
        allowed[0, np.arange(4), before] = False
        block, state = own.verify(state, draft, asked, tf.constant([True]), tf.constant(allowed))
        text += block.tokens[0, : int(block.count[0])].numpy().tolist()
    assert all(one != other for one, other in zip(text, text[1:], strict=False))


@pytest.mark.parametrize("plain", [False, True])
def test_the_path_for_plain_requests_changes_nothing(plain):
    for method, draft_length in METHODS:
        asked = request(3, [1, 2], Processing(temperature=0.8))
        bias = tf.zeros([SIZE])
        asked = asked._replace(bias=bias, is_plain=is_plain(asked.processing, bias) if plain else ())
        expected = run(PROMPTS, request(3, [1, 2], Processing(temperature=0.8)), ends(), method, draft_length)
        found = run(PROMPTS, asked, ends(), method, draft_length)
        assert texts(found) == texts(expected)
        np.testing.assert_array_equal(found.log_probs, expected.log_probs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draft_length": -1}, "draft_length = -1: must be an integer >= 0"),
        ({"draft_length": 2}, "draft_length = 2: must be above 0 with a drafter, and 0 without one"),
        ({"drafter": DRAFTERS["near"]}, "draft_length = 0: must be above 0 with a drafter, and 0 without one"),
    ],
)
def test_draft_lengths_that_do_not_fit_the_drafter_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Speculation(TARGET, {}, build_method("block"), **arguments)
