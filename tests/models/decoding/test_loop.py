"""The loop decodes as a plain program does, resumes anywhere, and its text depends on nothing that it should not."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.choices import Processing
from models.decoding.loop import generate
from tests.models.decoding.runs import (
    LONGEST,
    NO_SEQUENCES,
    SIZE,
    TARGET,
    Chooser,
    drafter_logits,
    ends,
    request,
    resume,
    rows,
    run,
    speculation,
    start,
    texts,
)
from tests.models.decoding.table_model import TableModel
from tests.oracles.speculation import Row

PLAIN: dict[str, Any] = {"method": "autoregressive", "draft_length": 0}
TOKEN: dict[str, Any] = {"method": "speculative", "draft_length": 2}
BLOCK: dict[str, Any] = {"method": "block", "draft_length": 3}
FLEXIBLE_BLOCK: dict[str, Any] = {"method": "block", "draft_length": 2, "flexible": True}
GREEDY: dict[str, Any] = {"method": "greedy-block", "draft_length": 3, "flexible": True}
INVARIANT: dict[str, Any] = {"method": "invariant", "draft_length": 2, "flexible": True}
# Token by token differs from block verification in the rule only, which has tests of its own.
_MARKS = {"speculative": pytest.mark.slow}
KINDS = [
    pytest.param(kind, id=kind["method"], marks=_MARKS.get(kind["method"], ()))
    for kind in (PLAIN, TOKEN, BLOCK, GREEDY, INVARIANT)
]
PROMPTS = [[3, 1, 4], [5]]
SEQUENCES = np.array([[-1, 3, 4], [5, 5, 5]], np.int32)
OPTIONS = [
    Processing(),
    Processing(temperature=0.7, top_k=6, repetition_penalty=1.3),
    Processing(top_p=0.9, frequency_penalty=0.5, presence_penalty=-0.25),
    Processing(temperature=0.0),
    Processing(temperature=1.5, min_p=0.1),
]


def by_oracle(kind, prompt, seed, number, processing=None, drafter="near", **limits):
    options = processing or Processing()
    draft = drafter_logits(drafter)
    row = Row(TARGET.logits, draft, prompt, kind["method"], kind["draft_length"], seed, number, options)
    found = row.run(**limits)
    assert found.least > 1e-7, "a draw is too near to the boundary between two decisions: take another seed"
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_log_probs_and_counts_equal_those_of_a_plain_program(kind):
    """Two rows of different prompts, with all options for logits, stop tokens and stop sequences."""
    for seed in range(10):
        processing, numbers = OPTIONS[seed % len(OPTIONS)], [seed, 77]
        stop = 7 if seed % 2 else -1
        found = run(PROMPTS, request(seed, numbers, processing), ends(20, stop, SEQUENCES), **kind)
        for row, (prompt, text) in enumerate(zip(PROMPTS, texts(found), strict=True)):
            limits: dict[str, Any] = {"max_new": 20, "stop": stop, "sequences": [(3, 4), (5, 5, 5)]}
            expected = by_oracle(kind, prompt, seed, numbers[row], processing, **limits)
            assert text == expected.tokens
            np.testing.assert_allclose(found.log_probs[row, : len(text)], expected.log_probs, atol=1e-5)
            np.testing.assert_allclose(found.unprocessed_log_probs[row, : len(text)], expected.unprocessed, atol=1e-5)
            assert not np.any(found.tokens[row, len(text) :]) and not np.any(found.log_probs[row, len(text) :])
            blocks = np.array(expected.blocks)
            assert found.counts.calls[row] == len(blocks)
            assert found.counts.decided[row] == np.sum(blocks[:, 1] + 1)
            for place in range(kind["draft_length"]):
                drafted = blocks[:, 0] > place
                assert found.counts.drafted[row, place] == drafted.sum()
                assert found.counts.reached[row, place] == (drafted & (blocks[:, 1] >= place)).sum()
                assert found.counts.accepted[row, place] == (drafted & (blocks[:, 1] > place)).sum()
        assert np.all(found.is_finite)


@pytest.mark.parametrize("kind", [*KINDS, pytest.param(FLEXIBLE_BLOCK, id="automatic")])
def test_a_text_in_parts_equals_the_text_in_one_call(kind):
    """Parts end at every place inside a block, at a stop token and at stop sequences that straddle calls.

    What the parts report adds up to what the one call reports.
    """
    for seed in range(5):
        # With these costs, automatic draft lengths are now 0, now the longest.
        asked = request(seed, [3, 4], OPTIONS[seed], costs=(1.0, 1.1, 0.38))
        whole = run(PROMPTS, asked, ends(), **kind)
        for part in (1, 2, 5):
            found = run(PROMPTS, asked, ends(part), **kind)
            given: list = texts(found)
            parts = [found]
            while len(given[0]) < LONGEST:
                found = resume(found, asked, ends(min(part, LONGEST - len(given[0]))), **kind)
                given = [row + more for row, more in zip(given, texts(found), strict=True)]
                parts.append(found)
            assert given == texts(whole)
            for name in ("log_probs", "unprocessed_log_probs"):
                probs = [getattr(one, name).numpy()[:, : int(one.lengths[0])] for one in parts]
                np.testing.assert_array_equal(np.concatenate(probs, axis=1), getattr(whole, name))
            sums = tf.nest.map_structure(lambda *counts: sum(counts), *(one.counts for one in parts))
            tf.nest.map_structure(np.testing.assert_array_equal, sums, whole.counts)
        stop = given[0][2]
        where = ends(LONGEST, stop, SEQUENCES)
        found = run(PROMPTS, asked, where, **kind)
        given = [[] for _ in PROMPTS]
        while True:
            for row, more in zip(given, texts(found), strict=True):
                row.extend(more)
                assert more[-1] == stop or row[-2:] == [3, 4] or row[-3:] == [5, 5, 5] or len(more) == LONGEST
            if min(len(row) for row in given) >= LONGEST:
                break
            found = resume(found, asked, where, **kind)
        assert [row[:LONGEST] for row in given] == texts(whole)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_stop_sequence_of_a_pending_and_a_new_token_ends_the_text_there(kind):
    straddling = 0
    for seed in range(8):
        asked, row = request(seed, [3, 4]), seed % 2
        text = texts(run(PROMPTS, asked, ends(), **kind))[row]
        first = run(PROMPTS, asked, ends(1), **kind)
        pending = int(first.progress.pending.count[row])
        straddling += pending > 0
        sequence = text[pending : pending + 2]
        length = next(n for n in range(2, LONGEST + 1) if text[n - 2 : n] == sequence)
        found = resume(first, asked, ends(LONGEST, -1, [[-1, *sequence], NO_SEQUENCES[0]]), **kind)
        assert texts(found)[row] == text[1:length]
        assert np.all(found.progress.pending.count < kind["draft_length"] + 1)
        rest = resume(found, asked, ends(LONGEST - length), **kind)
        assert texts(rest)[row] == text[length:]
    assert straddling >= 2


def test_more_tokens_than_there_are_words_for_count_as_so_many():
    asked = request(0, [1, 2])
    expected = run(PROMPTS, asked, ends(), **BLOCK)
    found = run(PROMPTS, asked, ends(LONGEST + 5), **BLOCK)
    tf.nest.map_structure(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("kind", [BLOCK, GREEDY], ids=["block", "greedy-block"])
def test_tokens_after_cap_or_stop_token_are_pending_at_every_place_of_a_block(kind):
    """The cap and the stop token fall on every pair of places of a block, also on one place and in two blocks."""
    pairs = set()
    for seed in range(5):
        asked = request(seed, [3, 4])
        expected = [by_oracle(kind, prompt, seed, 3 + row, max_new=18) for row, prompt in enumerate(PROMPTS)]
        decided = [np.cumsum([accepted + 1 for _, accepted in row.blocks]) for row in expected]
        places = [[int(n - row[row <= n].max(initial=0)) for n in range(row[-1])] for row in decided]
        # The pending tokens are those that a longer call gives.
        whole = texts(run(PROMPTS, asked, ends(), **kind))
        for end in range(6):
            stop = whole[0][end]
            for cap in range(1, 9):
                found = run(PROMPTS, asked, ends(cap, stop), **kind)
                pending = rows(found.progress.pending.tokens, found.progress.pending.count)
                for row, text in enumerate(texts(found)):
                    first = whole[row].index(stop) + 1 if stop in whole[row] else LONGEST
                    length = min(cap, first)
                    block_end = int(decided[row][np.searchsorted(decided[row], length)])
                    assert text == whole[row][:length]
                    assert pending[row] == whole[row][length:block_end]
                    assert found.counts.decided[row] == block_end
                    if first <= LONGEST - 8:
                        pairs.add((places[row][cap - 1], places[row][first - 1], np.sign(cap - first)))
    width = kind["draft_length"] + 1
    assert {pair[:2] for pair in pairs} == {(a, b) for a in range(width) for b in range(width)}
    assert {pair[2] for pair in pairs} == {-1, 0, 1}


def test_invariant_text_depends_neither_on_the_drafter_nor_on_the_draft_length_nor_on_the_batch():
    short = {"method": "invariant", "draft_length": 1}
    kinds = [{**INVARIANT, "drafter": name} for name in ("near", "far", "hesitant", "target")]
    for seed in range(10):
        asked = request(seed, [1, 2], OPTIONS[seed % len(OPTIONS)])
        expected = texts(run(PROMPTS, asked, ends(), **short))
        for kind in kinds[seed % 2 :: 2]:
            assert texts(run(PROMPTS, asked, ends(), **kind)) == expected
        costs = (1.1, 1.4, 0.1)
        other = [[8, 8], PROMPTS[0]]
        asked = request(seed, [9, 1], OPTIONS[seed % len(OPTIONS)], costs=costs)
        assert texts(run(other, asked, ends(), **INVARIANT))[1] == expected[0]


@pytest.mark.parametrize("kind", KINDS)
def test_text_does_not_depend_on_the_other_row_of_the_batch(kind):
    for seed in range(4):
        asked = request(seed, [1, 2], OPTIONS[seed])
        expected = texts(run(PROMPTS, asked, ends(), **kind))
        other = run([PROMPTS[1], [9, 9, 9, 0]], request(seed, [2, 5], OPTIONS[seed]), ends(), **kind)
        assert texts(other)[0] == expected[1]


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_drafter_equal_to_the_target_is_always_accepted(kind):
    found = run(PROMPTS, request(0, [1, 2]), ends(), drafter="target", **kind)
    np.testing.assert_array_equal(found.counts.accepted, found.counts.drafted)
    np.testing.assert_array_equal(found.counts.calls, [LONGEST // (kind["draft_length"] + 1)] * 2)


@pytest.mark.parametrize("kind", [FLEXIBLE_BLOCK, INVARIANT], ids=lambda kind: kind["method"])
def test_a_drafter_equal_to_the_target_is_always_accepted_also_with_drafts_shorter_than_the_longest(kind):
    costs = (1.0, 0.5, 0.6)  # one drafted token is best, at any rate of acceptance above 0.2
    found = run(PROMPTS, request(0, [1, 2], costs=costs), ends(), drafter="target", **kind)
    np.testing.assert_array_equal(found.counts.drafted, [[LONGEST // 2, 0]] * 2)
    np.testing.assert_array_equal(found.counts.accepted, found.counts.drafted)


@pytest.mark.parametrize("kind", [FLEXIBLE_BLOCK, GREEDY, INVARIANT], ids=lambda kind: kind["method"])
def test_a_drafter_may_propose_nothing_or_end_a_draft_early(kind):
    lengths = set()
    for seed in range(6):
        found = run(PROMPTS, request(seed, [1, 2]), ends(), drafter="hesitant", **kind)
        for row, prompt in enumerate(PROMPTS):
            expected = by_oracle(kind, prompt, seed, row + 1, drafter="hesitant", max_new=LONGEST)
            assert texts(found)[row] == expected.tokens
            assert found.counts.calls[row] == len(expected.blocks)
            lengths |= {drafted for drafted, _ in expected.blocks}
    assert lengths == set(range(kind["draft_length"] + 1))


@pytest.mark.parametrize("kind", [FLEXIBLE_BLOCK, INVARIANT], ids=lambda kind: kind["method"])
def test_automatic_draft_lengths_follow_the_evidence_of_earlier_blocks(kind):
    lengths = set()
    for seed in range(8):
        costs, drafter = [(1.05, 1.25, 0.05), (1.1, 1.7, 0.1)][seed % 2], ("far", "hesitant")[seed // 2 % 2]
        found = run(PROMPTS, request(seed, [1, 2], costs=costs), ends(), drafter=drafter, **kind)
        for row, prompt in enumerate(PROMPTS):
            choose_length = Chooser(costs, kind["draft_length"])
            limits = {"max_new": LONGEST, "draft_lengths": choose_length}
            expected = by_oracle(kind, prompt, seed, row + 1, drafter=drafter, **limits)
            assert texts(found)[row] == expected.tokens
            assert found.counts.calls[row] == len(expected.blocks)
            lengths |= {drafted for drafted, _ in expected.blocks}
    assert lengths == set(range(kind["draft_length"] + 1))


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(FLEXIBLE_BLOCK, id="block"),
        *(pytest.param(kind, id=kind["method"], marks=pytest.mark.slow) for kind in (PLAIN, TOKEN, GREEDY, INVARIANT)),
    ],
)
def test_xla_decodes_as_the_graph_does(kind):
    for seed in range(5):
        asked, where = request(seed, [1, 2], OPTIONS[seed]), ends(20, 7, SEQUENCES)
        expected = run(PROMPTS, asked, where, **kind)
        found = run(PROMPTS, asked, where, compiled=True, **kind)
        assert texts(found) == texts(expected)
        tf.nest.map_structure(np.testing.assert_array_equal, found.counts, expected.counts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_whose_logits_are_not_finite_ends_and_says_so(kind):
    healthy = run(PROMPTS, request(1, [1, 2]), ends(), **kind)
    banned = np.zeros([2, SIZE], np.float32)
    banned[0] = -np.inf
    found = run(PROMPTS, request(1, [1, 2], bias=banned), ends(), **kind)
    np.testing.assert_array_equal(found.is_finite, [False, True])
    np.testing.assert_array_equal(found.lengths, [0, LONGEST])
    assert texts(found)[1] == texts(healthy)[1]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_logits_in_the_middle_of_a_text_end_it_before_the_first_token_from_them(kind):
    asked = request(2, [1, 2])
    whole = texts(run(PROMPTS, asked, ends(), **kind))[0]
    damaged = TARGET.table.copy()
    damaged[whole[8], whole[9], 3] = np.nan
    first = next(i for i in range(1, LONGEST) if whole[i - 1 : i + 1] == whole[8:10])
    found = run(PROMPTS, asked, ends(), table=damaged, **kind)
    assert not found.is_finite[0]
    text = texts(found)[0]
    assert text == whole[: len(text)] and first - kind["draft_length"] < len(text) <= first + 1


@pytest.mark.parametrize("kind", [TOKEN, INVARIANT], ids=lambda kind: kind["method"])
def test_nan_logits_after_rejected_tokens_change_nothing(kind):
    """All logits are NaN after two tokens that follow one another nowhere in the texts; rejected drafts hold some."""
    asked = request(2, [1, 2])
    whole = texts(run(PROMPTS, asked, ends(), **kind))
    damaged = np.full_like(TARGET.table, np.nan)
    for prompt, text in zip(PROMPTS, whole, strict=True):
        full = [0, *prompt, *text]
        damaged[full[:-1], full[1:]] = TARGET.table[full[:-1], full[1:]]
    found = run(PROMPTS, asked, ends(LONGEST - kind["draft_length"] - 1), table=damaged, **kind)
    assert np.all(found.is_finite)
    assert texts(found) == [text[: LONGEST - kind["draft_length"] - 1] for text in whole]


@pytest.mark.parametrize("kind", KINDS)
def test_the_path_for_plain_requests_changes_nothing(kind):
    for processing in (Processing(temperature=0.8), Processing(temperature=0.0, top_k=2, top_p=0.5)):
        assert request(3, [1, 2], processing).is_plain
        fast, general = (
            run(PROMPTS, request(3, [1, 2], processing, plain=plain), ends(), **kind) for plain in (True, False)
        )
        assert texts(fast) == texts(general)
        np.testing.assert_array_equal(fast.log_probs, general.log_probs)
        np.testing.assert_array_equal(fast.unprocessed_log_probs, general.unprocessed_log_probs)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"temperature": 0.8}, True),
        ({"temperature": 0.0, "min_p": 0.1}, True),
        ({"temperature": 0.8, "top_k": 2}, False),
        ({"temperature": 0.8, "top_p": 0.9}, False),
        ({"temperature": 0.8, "min_p": 0.1}, False),
        ({"temperature": 0.0, "repetition_penalty": 1.1}, False),
        ({"temperature": 0.0, "presence_penalty": 0.1}, False),
        ({"temperature": 0.0, "frequency_penalty": 0.1}, False),
        ({"temperature": 0.8, "repetition_penalty": 0.5}, False),
        ({"temperature": 0.8, "presence_penalty": -0.1}, False),
        ({"temperature": 0.8, "frequency_penalty": -0.1}, False),
    ],
)
def test_requests_are_plain_if_the_temperature_alone_changes_logits(options, expected):
    assert bool(request(0, [0, 1], Processing(**options)).is_plain) == expected
    none, last, banned = np.zeros(SIZE), np.eye(SIZE)[-1], np.where(np.eye(SIZE)[0] > 0, -np.inf, 0.0)
    for shifts in ([last, last], [none, last], [last, none], [none, -last], [none, banned]):
        assert not request(0, [0, 1], Processing(**options), shifts).is_plain


@pytest.mark.parametrize(("presence", "is_kept"), [(0.0, True), (0.5, False)])
def test_tokens_of_a_plain_request_do_not_enter_the_history(presence, is_kept):
    """No penalty of the request reads it; a request with a penalty counts every token."""
    before = start(PROMPTS, speculation(**BLOCK)).state.history
    found = run(PROMPTS, request(3, [1, 2], Processing(presence_penalty=presence)), ends(), **BLOCK)
    after = found.progress.state.history
    np.testing.assert_array_equal(after.prompt, before.prompt)
    generated = found.counts.decided.numpy()
    np.testing.assert_array_equal(tf.reduce_sum(after.counts, axis=1), np.zeros(2) if is_kept else generated)


@pytest.mark.parametrize("kind", KINDS)
def test_unprocessed_log_probs_are_finite_where_the_softmax_of_the_logits_is_zero(kind):
    """A high temperature, and a bias, draw tokens whose logits are more than 150 below the largest."""
    steep: Any = TableModel(60 * TARGET.table)
    forced = np.where(np.arange(SIZE) == 4, 1e4, 0.0)
    for processing, bias in ((Processing(temperature=200.0), None), (Processing(), [forced] * 2)):
        found = run(PROMPTS, request(0, [1, 2], processing, bias), ends(), table=steep.table, **kind)
        expected = np.zeros([2, LONGEST])
        for row, (prompt, text) in enumerate(zip(PROMPTS, texts(found), strict=True)):
            for i, token in enumerate(text):
                logits = steep.logits([*prompt, *text[:i]]).astype(np.float64)
                expected[row, i] = logits[token] - np.logaddexp.reduce(logits)
        assert expected.min() < -150
        np.testing.assert_allclose(found.unprocessed_log_probs, expected, atol=1e-4)
        assert np.all(np.isfinite(found.log_probs))


def test_what_a_call_keeps_and_computes_grows_linearly_with_the_maximum_number_of_tokens():
    own, longest = speculation("autoregressive", 0), 500
    words = (tf.zeros([len(PROMPTS), longest], tf.int32),) * 2

    @tf.function(autograph=False)
    def proceed(progress, asked, where):
        return generate(own, progress, asked, where, words)

    graph = proceed.get_concrete_function(start(PROMPTS, own), request(0, [1, 2]), ends()).graph
    sizes = [output.shape.num_elements() or 0 for op in graph.get_operations() for output in op.outputs]
    assert len(PROMPTS) * longest < max(sizes) < 40 * longest
