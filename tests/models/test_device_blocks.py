"""A file with decodings with a drafter: graph, host and TensorFlow agree, and parts of a text are the text.

Exports take seconds per decoding. The shared file has two with a drafter; slow tests export the other decodings, other
precisions and automatic lengths.
"""

import copy
import dataclasses
import functools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from models import device
from models.decoding import numpy_ops, numpy_processing
from models.decoding.acceptance import Acceptance
from models.decoding.choices import Choices, Costs
from models.decoding.decoders import build_decoder
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import ModelDrafter
from models.decoding.loop import Ends, begin, generate
from models.decoding.numpy_ops import Stream
from models.decoding.numpy_processing import History
from models.decoding.transport import k_seq_acceptance, optimal_acceptance
from models.device_blocks import BlockDraw
from models.device_signatures import build_inputs, signature_name
from models.export import export, ops
from models.signatures import _build_request
from models.vocabulary import BOS, EOS
from tests.models import exported
from tests.oracles import pearson

FAST, SLOW = ("block", "invariant", "tree"), ("speculative", "greedy-block", "spectr")
DRAFTING = (*FAST, *SLOW)
DRAFTING_PARAMETERS: list[Any] = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
DRAFT_LENGTH, MAX_PROMPT, MAX_NEW = 2, 8, 24
SIZES: dict[str, Any] = {"draft_length": DRAFT_LENGTH, "num_drafts": 3, "tree": (3, 2)}
MODEL = exported.model()
WEIGHTS = exported.weights(MODEL)
VOCABULARY = exported.vocabulary()
PROMPT = [BOS, *VOCABULARY.encode("the")]
LONG_PROMPT = [BOS, *VOCABULARY.encode("and the other and another one in there")]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 0.0},
    {"top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
    {"temperature": 1.3, "min_p": 0.05, "presence_penalty": 0.5},
]
BIAS, BANNED = {70: 3.0, 90: -2.0}, [80, 81]
ROW = numpy_processing.make_bias(VOCABULARY.size, BIAS, BANNED)


def draft_weights():
    """Returns weights near the target's, so that some two thirds of the drafted tokens are accepted."""
    generator = np.random.default_rng(5)
    return {
        name: (value + 0.06 * value.std() * generator.standard_normal(value.shape)).astype(np.float32)
        for name, value in WEIGHTS.items()
    }


def make(folder, precision, decodings=(*DRAFTING, "autoregressive"), automatic=False):
    path = folder / f"{precision}.tflite"
    limits: dict[str, Any] = {"max_prompt": MAX_PROMPT, "max_new_tokens": MAX_NEW, **SIZES}
    drafter = ModelDrafter(MODEL, draft_weights())
    export(
        MODEL, WEIGHTS, VOCABULARY, path, precision, **limits, decodings=decodings, drafter=drafter, automatic=automatic
    )
    return device.load(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make(tmp_path_factory.mktemp("blocks"), "float32", (*FAST, "autoregressive"))


@pytest.fixture(scope="module")
def other_file(tmp_path_factory):
    """Returns a file with the decodings that only slow tests run."""
    return make(tmp_path_factory.mktemp("others"), "float32", SLOW)


@pytest.fixture
def file_with(request):
    """Returns a function from a decoding to a file that was exported for it."""
    return lambda decoding: request.getfixturevalue("other_file" if decoding in SLOW else "file")


@pytest.fixture(scope="module")
def flexible(tmp_path_factory):
    """Returns a file with automatic draft lengths and one decoding."""
    return make(tmp_path_factory.mktemp("automatic"), "float32", ("block",), automatic=True)


@functools.cache
def in_tensorflow(decoding, automatic=False):
    """Returns the loop as TensorFlow runs it, a function of the prompt and the inputs of a signature."""
    drafter = None if decoding == "autoregressive" else ModelDrafter(MODEL, draft_weights())
    own = build_decoder(decoding, MODEL, WEIGHTS, drafter, DraftOptions(automatic=automatic, **SIZES))

    @tf.function(autograph=False)
    def run(tokens, length, inputs, max_new, stop):
        request = _build_request(inputs)
        state = own.read(tokens, length - 1, own.initial_state(1))
        state = own.begin(tf.gather(tokens, length - 1, axis=1, batch_dims=1), state)
        words = own.words(request, state.position, MAX_NEW)
        return generate(own, begin(own, state), request, Ends(max_new, stop, tf.zeros([0, 1], tf.int32)), words)

    return run


def draw_in_tensorflow(file, prompt, choices, decoding, costs=None):
    inputs = build_inputs(file.path, file.facts, choices, ROW, decoding, costs)
    ordered = [inputs.pop(name) for name in ("seed", "request")]
    bias = inputs.pop("bias")
    places = [name for name in inputs if not name.endswith("_cost")]
    ordered += [inputs[name] for name in places] + [bias] + [inputs[name] for name in inputs if name not in places]
    padded = file._padded(prompt)
    length = tf.constant([len(prompt)])
    limits = (tf.constant(choices.max_new_tokens), tf.constant(choices.stop))
    found = in_tensorflow(decoding, costs is not None)(padded["tokens"], length, [*map(tf.constant, ordered)], *limits)
    return found.tokens[0, : int(found.lengths[0])].numpy().tolist()


def requests(seeds):
    for seed in seeds:
        stop = EOS if seed % 3 == 0 else -1
        prompt = [PROMPT, [BOS], LONG_PROMPT[:MAX_PROMPT]][seed % 3]
        yield prompt, Choices(MAX_NEW - seed % 4, seed=seed, request=seed % 2, stop=stop, **OPTIONS[seed % 5])


def compare(file, decoding, seeds, costs=None):
    """Compares graph, host and TensorFlow; returns how many texts TensorFlow draws as the file does."""
    options: dict[str, Any] = {"decoding": decoding, "costs": costs, "bias": BIAS, "banned": BANNED}
    equal = 0
    for prompt, choices in requests(seeds):
        graph = file.draw_in_graph(prompt, choices, **options)
        host = file.draw(prompt, choices, **options)
        assert list(host) == graph["tokens"].tolist()
        equal += draw_in_tensorflow(file, prompt, choices, decoding, costs) == graph["tokens"].tolist()
        if isinstance(host, BlockDraw):
            np.testing.assert_array_equal(host.log_probs, graph["log_probs"])
            np.testing.assert_array_equal(host.unprocessed_log_probs, graph["unprocessed_log_probs"])
            names = ("calls", "decided", "drafted", "reached", "accepted")
            counts = {name: graph[name][np.newaxis] for name in names}
            assert host.acceptance == Acceptance.from_counts(counts, is_best=decoding == "tree")
    return equal


@pytest.mark.numerical
@pytest.mark.parametrize("decoding", [*DRAFTING_PARAMETERS, "autoregressive"])
def test_graph_host_and_tensorflow_give_the_same_tokens(file_with, decoding):
    """Rounding changes a token with probability 1e-4: of 25 texts of 24 tokens, more than two with probability 4e-5."""
    assert compare(file_with(decoding), decoding, range(25)) >= 23


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize("decoding", [*DRAFTING, "autoregressive"])
def test_graph_host_and_tensorflow_give_the_same_tokens_for_many_seeds(file_with, decoding):
    """Rounding changes more than four of 100 texts of 24 tokens with probability 1e-5."""
    assert compare(file_with(decoding), decoding, range(100, 200)) >= 96


@pytest.mark.slow
@pytest.mark.numerical
def test_automatic_draft_lengths_in_graph_host_and_tensorflow_are_the_same(flexible):
    costs = Costs(1.15, 2.15, 0.15)
    assert compare(flexible, "block", range(15), costs) >= 13
    drafted = set()
    for prompt, choices in requests(range(15)):
        host = flexible.draw(prompt, choices, costs=costs, bias=BIAS, banned=BANNED)
        list(host)
        drafted |= {length for length, _ in host._blocks}
    assert len(drafted) > 1


@pytest.mark.slow
def test_costs_decide_whether_drafts_are_drawn(flexible):
    for costs, share in ((Costs(1.0, 1e9, 0.0), 0), (Costs(1.0, 1e-9, 0.0), 1)):
        host = flexible.draw(PROMPT, Choices(MAX_NEW), costs=costs)
        list(host)
        assert host.acceptance.drafted == (share * host.acceptance.calls,) * DRAFT_LENGTH


@pytest.mark.parametrize("decoding", DRAFTING_PARAMETERS)
def test_a_text_that_is_extended_after_cap_and_stop_token_is_the_text_of_one_call(file_with, decoding):
    file = file_with(decoding)
    for seed in range(4):
        options: dict[str, Any] = {"seed": seed, **OPTIONS[seed]}
        expected = list(file.draw(PROMPT, Choices(60, **options), decoding=decoding))
        stop = expected[4]
        drawn = file.draw(PROMPT, Choices(3, stop=stop, **options), decoding=decoding)
        text = list(drawn)
        assert text == expected[: min(3, expected.index(stop) + 1)]
        while len(text) < 50:
            more = list(drawn.extend(5))
            assert len(more) == 5 or more[-1:] == [stop]
            assert stop not in more[:-1]
            text += more
            assert drawn.position == len(PROMPT) + len(text)
            assert len(drawn.log_probs) == len(drawn.unprocessed_log_probs) == len(text)
        assert text == expected[: len(text)]


@pytest.mark.parametrize("decoding", FAST)
def test_read_that_begins_a_prompt_ignores_the_state_that_it_is_given(file, decoding):
    read = file._signatures[signature_name("read", decoding)]
    details = read.get_input_details().items()
    states = {name: detail for name, detail in details if name.startswith("state_")}
    old, zeros = (
        {name: np.full(detail["shape"], value, detail["dtype"]) for name, detail in states.items()} for value in (1, 0)
    )

    def after(begins_here, state):
        flags = {name: np.array(flag, np.int32) for name, flag in (("begins_here", begins_here), ("ends_here", 1))}
        return read(**file._padded(PROMPT), **flags, **state)

    fresh = after(1, zeros)
    tf.nest.map_structure(np.testing.assert_array_equal, after(1, old), fresh)
    # Without the flag the state does matter.
    assert any(np.any(value != fresh[name]) for name, value in after(0, old).items())


def test_extend_refuses_a_bad_number_and_more_than_the_context(file):
    with pytest.raises(ValueError, match="^max_new_tokens = 0: must be an integer from 1"):
        file.draw(PROMPT, Choices(3)).extend(0)
    signatures: Any = (None, None)
    drawn = BlockDraw(signatures, {}, 6, {}, Choices(3), context=10)
    assert drawn.extend(4) is drawn
    with pytest.raises(ValueError, match="^max_new_tokens = 5: the text has 6 of the 10 tokens that the file was"):
        drawn.extend(5)


@pytest.mark.slow
def test_spectr_file_gives_the_distributions_of_first_tokens(file_with):
    loaded = file_with("spectr")
    drawn = loaded.draws(PROMPT, [Choices(1)], decoding="spectr", compare=True)[0]
    next(drawn)
    *_, (logits, _) = loaded.read(PROMPT)
    weights = [WEIGHTS, draft_weights()]
    q, p = (
        tf.nn.softmax(MODEL.extend(own, tf.constant([PROMPT]), MODEL.initial_state(1))[0])[0, -1] for own in weights
    )
    np.testing.assert_allclose(q, tf.nn.softmax(logits), atol=1e-5)
    assert drawn.acceptance.by_k_seq == pytest.approx(k_seq_acceptance(p, q, 3), abs=1e-4)
    assert drawn.acceptance.by_best == pytest.approx(optimal_acceptance(p, q, 3), abs=1e-4)


def test_draws_read_the_prompt_once_for_all_texts(file, monkeypatch):
    name, read_lengths = signature_name("read", "block"), []
    read = file._signatures[name]

    class Counting:
        get_input_details = staticmethod(read.get_input_details)

        def __call__(self, **inputs):
            read_lengths.append(int(inputs["length"]))
            return read(**inputs)

    choices = [Choices(12, seed=5, request=request) for request in range(3)]
    alone = [list(file.draw(LONG_PROMPT, one)) for one in choices]
    monkeypatch.setitem(file._signatures, name, Counting())
    texts = file.draws(LONG_PROMPT, choices)
    assert sum(read_lengths) == len(LONG_PROMPT)
    # In turns, so that a state that one text changes would show in another.
    assert [list(tokens) for tokens in zip(*zip(*texts, strict=True), strict=True)] == alone


@pytest.mark.numerical
@pytest.mark.parametrize("decoding", DRAFTING_PARAMETERS)
def test_log_probs_are_those_of_the_file_s_own_logits_also_after_long_prompts(file_with, decoding):
    """A state that is wrong after a rejection or after a part of the prompt would show here."""
    file = file_with(decoding)
    assert len(LONG_PROMPT) > 2 * MAX_PROMPT
    for seed, options in enumerate(OPTIONS):
        choices = Choices(MAX_NEW, seed=seed, **options)
        drawn = file.draw(LONG_PROMPT, choices, decoding=decoding, bias=BIAS, banned=BANNED)
        text = list(drawn)
        rows = [logits for logits, _ in file.read([*LONG_PROMPT, *text[:-1]], 1)][-len(text) :]
        for i, (token, logits) in enumerate(zip(text, rows, strict=True)):
            raw = logits.astype(np.float64)
            assert drawn.unprocessed_log_probs[i] == pytest.approx(raw[token] - np.logaddexp.reduce(raw), abs=1e-3)
            prompt = np.isin(np.arange(VOCABULARY.size), LONG_PROMPT)
            history = History(prompt, np.bincount(text[:i], minlength=VOCABULARY.size).astype(np.int32))
            processed = numpy_processing.process(logits, choices.processing, history, ROW).astype(np.float64)
            assert drawn.log_probs[i] == pytest.approx(processed[token] - np.logaddexp.reduce(processed), abs=1e-3)
    assert drawn.acceptance.decided >= MAX_NEW


def test_file_has_builtin_ops_only(file):
    counts = ops(flatbuffer(file))
    assert counts["WHILE"] > 5
    assert not [name for name in counts if name.startswith(("CUSTOM", "Flex"))]


def test_weights_of_target_and_drafter_are_stored_once(file):
    content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(flatbuffer(file), 0))
    sizes = Counter(len(buffer.data) for buffer in content.buffers if buffer.data is not None)
    weights = Counter(value.nbytes for values in (WEIGHTS, draft_weights()) for value in values.values())
    matrices = {size: count for size, count in weights.items() if size > 3000}
    assert len(matrices) == 3 and {size: sizes[size] for size in matrices} == matrices


def flatbuffer(file):
    with open(file.path, "rb") as source:
        return source.read(file.facts.flatbuffer_bytes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": lambda _: None}, "mask: decoding = 'block' draws blocks in the graph; choose 'autoregressive'"),
        ({"decoding": "greedy"}, "decoding = 'greedy': .* was exported for block, invariant, .*; choose one"),
        ({"decoding": "Block"}, "decoding = 'Block': .* was exported for"),
        ({"bias": {1: float("nan")}}, "bias"),
        ({"decoding": "autoregressive", "costs": Costs(1, 1, 1)}, "costs: decoding = 'autoregressive' makes no drafts"),
    ],
)
def test_draw_refuses_bad_options_in_one_line(file, options, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        file.draw(PROMPT, Choices(3), **options)
    assert "\n" not in str(caught.value)


def with_facts(file, **changes):
    """Returns a loaded file that says something else of itself."""
    other = copy.copy(file)
    other.facts = dataclasses.replace(file.facts, **changes)
    return other


def test_file_without_a_decoding_names_those_that_it_has(file):
    other = with_facts(file, decodings=["block"])
    with pytest.raises(ValueError, match="^decoding = 'invariant': .* was exported for block; choose one"):
        other.draw(PROMPT, Choices(3), decoding="invariant")
    with pytest.raises(ValueError, match="^decoding = 'autoregressive': the graph of .* has the loop of block only"):
        other.draw_in_graph(PROMPT, Choices(3), decoding="autoregressive")


def test_automatic_file_refuses_a_request_without_costs(file):
    other = with_facts(file, automatic=True)
    for draw in (other.draw, other.draw_in_graph):
        with pytest.raises(ValueError, match="^costs: .* chooses draft lengths by costs; give") as caught:
            draw(PROMPT, Choices(3))
        assert "\n" not in str(caught.value)


def test_banning_all_tokens_but_none_is_an_error_in_one_line(file):
    with pytest.raises(ValueError, match="^banned = all 269 tokens: must leave at least one token$") as caught:
        file.draw(PROMPT, Choices(3), banned=range(VOCABULARY.size))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_quantised_files_have_the_same_random_bits_and_the_law_of_their_own_logits(precision, tmp_path):
    """Pearson's test over all texts of three tokens with top_k = 2; a right file fails with probability 1e-6 each."""
    file = make(tmp_path, precision)
    plain = file.draw_in_graph(PROMPT, Choices(MAX_NEW, seed=9), decoding="autoregressive")
    expected = numpy_ops.random_words(numpy_ops.seed_words(9), Stream.SAMPLE, 0, len(PROMPT) + np.arange(MAX_NEW))
    np.testing.assert_array_equal(plain["word_0"], expected[0])
    np.testing.assert_array_equal(plain["word_1"], expected[1])
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        law = {(*text, token): p * q for text, p in law.items() for token, q in next_tokens(file, text)}
    draws = 3000
    for decoding in (*DRAFTING, "autoregressive"):
        observed = dict.fromkeys(law, 0)
        for request in range(draws):
            choices = Choices(3, top_k=2, seed=3, request=request)
            observed[tuple(file.draw_in_graph(PROMPT, choices, decoding=decoding)["tokens"].tolist())] += 1
        expected_counts = draws * np.array(list(law.values()))
        assert pearson.p_value(np.array(list(observed.values())), expected_counts) > 1e-6
        compare(file, decoding, range(10))


def next_tokens(file, text):
    *_, (logits, _) = file.read([*PROMPT, *text])
    weights = numpy_ops.weights(numpy_processing.process(logits, Choices(top_k=2).processing)).astype(np.float64)
    return [(int(token), weights[token] / weights.sum()) for token in np.flatnonzero(weights)]
