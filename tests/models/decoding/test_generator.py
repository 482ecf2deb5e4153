"""The generator decodes batches, resumes and streams them, and refuses what it cannot do."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.alignment import Outcomes, tilt_to_kl
from models.alignment.tilt import tilted_logits
from models.decoding.choices import Choices, Costs, Processing
from models.decoding.drafters import Drafter, ModelDrafter
from models.decoding.generator import LONGEST_STOP, Generator
from models.presets import preset
from models.transformer.decoder import TransformerLanguageModel
from tests.models.decoding.runs import SIZE, TABLES, TARGET, Chooser
from tests.models.decoding.table_model import TableModel
from tests.oracles.distributions import assert_law
from tests.oracles.speculation import Row

TABLE: Any = TableModel(TABLES["near"])
NEAR = ModelDrafter(TABLE, {})
PROMPTS = [[3, 1, 4], [5], [2, 2]]


class FittingTable:
    """The table model with what the generator asks of a language model."""

    context = None

    def fit(self, context):
        return TARGET

    def shapes(self):
        return {}


MODEL: Any = FittingTable()
for name in ("vocabulary_size", "initial_state", "prefill", "extend", "rewind"):
    setattr(MODEL, name, getattr(TARGET, name))


@pytest.fixture(scope="module")
def generator():
    return Generator(MODEL, {}, "block", NEAR, 2, max_prompt=6, max_new_tokens=20)


def test_a_row_alone_has_the_text_that_it_has_in_a_batch(generator):
    whole = generator(PROMPTS, Choices(max_new_tokens=20, seed=4, request=7))
    assert [len(row) for row in whole.tokens] == [20] * 3
    for row, prompt in enumerate(PROMPTS):
        alone = generator([prompt], Choices(max_new_tokens=20, seed=4, request=7 + row))
        assert alone.tokens[0] == whole.tokens[row]
        assert alone.acceptance[0] == whole.acceptance[row]
        assert alone.log_probs[0] == pytest.approx(whole.log_probs[row], abs=1e-5)
    again = generator(PROMPTS[::-1], Choices(max_new_tokens=20, seed=4), requests=[9, 8, 7])
    assert again.tokens == whole.tokens[::-1] and again.acceptance == whole.acceptance[::-1]
    np.testing.assert_allclose(again.log_probs, whole.log_probs[::-1], atol=1e-5)
    np.testing.assert_allclose(again.unprocessed_log_probs, whole.unprocessed_log_probs[::-1], atol=1e-5)
    assert whole.total.calls == sum(one.calls for one in whole.acceptance)


def test_streamed_tokens_are_those_of_one_call_with_stops_across_parts(generator):
    choices = Choices(max_new_tokens=20, seed=5)
    free = generator(PROMPTS, choices).tokens
    stops = [free[0][7:10], free[1][4:6]]
    choices = Choices(max_new_tokens=20, seed=5, stop=free[2][11])
    whole = generator(PROMPTS, choices, stop_sequences=stops)
    assert all(whole.is_ended) and len(whole.tokens[0]) <= 10
    for every in (1, 3, 20):
        rows: list[list[int]] = [[], [], []]
        for new in generator.stream(PROMPTS, choices, every=every, stop_sequences=stops):
            for row, tokens in zip(rows, new, strict=True):
                row.extend(tokens)
        assert rows == whole.tokens


def test_automatic_lengths_are_those_of_a_plain_program():
    generator = Generator(MODEL, {}, "block", NEAR, 1, automatic=True, max_prompt=6, max_new_tokens=20)
    for costs, expected in ((Costs(1.0, 0.6, 0.38), 1), (Costs(1.0, 1.6, 0.3), 0), (Costs(1.0, 1.1, 0.4), None)):
        found = generator(PROMPTS, Choices(max_new_tokens=20, request=7), costs=costs)
        for row, prompt in enumerate(PROMPTS):
            plain = Row(TARGET.logits, TABLE.logits, prompt, "block", 1, 0, 7 + row, Processing())
            blocks = plain.run(max_new=20, draft_lengths=Chooser(costs, 1)).blocks
            drafted = sum(length for length, _ in blocks)
            assert found.tokens[row] == plain.found.tokens and found.acceptance[row].drafted == (drafted,)
            assert expected is None or drafted == expected * len(blocks)
    with pytest.raises(ValueError, match=r"^costs = None: needed with automatic draft lengths; measure and give them$"):
        generator(PROMPTS, Choices(max_new_tokens=5))


def test_resume_continues_after_a_stop_token(generator):
    choices = Choices(max_new_tokens=20, seed=6)
    free = generator(PROMPTS[:1], choices)
    stopped = generator(PROMPTS[:1], Choices(max_new_tokens=20, seed=6, stop=free.tokens[0][4]))
    rest = generator.resume(stopped, Choices(max_new_tokens=20 - len(stopped.tokens[0])))
    assert stopped.tokens[0] + rest.tokens[0] == free.tokens[0]
    assert stopped.log_probs[0] + rest.log_probs[0] == free.log_probs[0]
    with pytest.raises(ValueError, match="max_new_tokens = 20: the longest row has room for 3 more; ask for fewer"):
        generator.resume(free, Choices(max_new_tokens=20))


def test_banned_tokens_never_come_and_all_banned_is_refused(generator):
    result = generator(PROMPTS, Choices(max_new_tokens=20), banned=[1, 2, 3], bias={4: 5.0})
    assert not {1, 2, 3} & {token for row in result.tokens for token in row}
    with pytest.raises(ValueError, match=r"banned"):
        generator(PROMPTS, Choices(max_new_tokens=5), banned=range(SIZE))


def test_resume_has_room_for_the_longest_of_ragged_rows(generator):
    result = generator(PROMPTS, Choices(max_new_tokens=20))
    with pytest.raises(ValueError, match="^max_new_tokens = 4: the longest row has room for 3 more; ask for fewer$"):
        generator.resume(result, Choices(max_new_tokens=4))
    rest = generator.resume(result, Choices(max_new_tokens=3))
    assert [len(row) for row in rest.tokens] == [3, 3, 3]


def test_log_probs_are_processed_with_temperature_and_bias_and_unprocessed_ones_are_not(generator):
    shift = np.where(np.arange(SIZE) == 4, 3.0, 0.0)
    result = generator(PROMPTS, Choices(max_new_tokens=20, temperature=0.5), bias={4: 3.0})
    plain = generator(PROMPTS, Choices(max_new_tokens=20, temperature=0.5))
    assert sum(row.count(4) for row in result.tokens) > sum(row.count(4) for row in plain.tokens)
    for row, prompt in enumerate(PROMPTS):
        for i, token in enumerate(result.tokens[row]):
            logits = TARGET.logits([*prompt, *result.tokens[row][:i]]).astype(np.float64)
            processed = (logits + shift) / 0.5
            expected = processed[token] - np.logaddexp.reduce(processed)
            assert result.log_probs[row][i] == pytest.approx(expected, abs=1e-4)
            expected = logits[token] - np.logaddexp.reduce(logits)
            assert result.unprocessed_log_probs[row][i] == pytest.approx(expected, abs=1e-4)


class MemorylessTable(TableModel):
    """Draws each token independently; the optimal policy of whole texts then tilts each token alike."""

    def __init__(self, p):
        super().__init__(np.broadcast_to(np.log(p), [len(p)] * 3))

    def fit(self, context):
        return self

    def shapes(self):
        return {}


def test_bias_of_weighted_rewards_draws_from_the_tilt_of_a_memoryless_model():
    p, rewards = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.0, 1.0, 2.0, 4.0])
    best = tilt_to_kl(Outcomes(p, rewards), 0.4)
    memoryless: Any = MemorylessTable(p)
    generator = Generator(memoryless, {}, max_prompt=1, max_new_tokens=20)
    bias = {token: best.reward_weight * reward for token, reward in enumerate(rewards)}
    result = generator([[0]], Choices(max_new_tokens=20, seed=3), num_samples=100, bias=bias)
    tokens = np.array(result.tokens)
    np.testing.assert_allclose(np.exp(result.log_probs), best.distribution[tokens], rtol=1e-5)
    assert_law(tokens.ravel(), best.distribution)
    logits = tilted_logits(np.log(p), rewards, best.reward_weight)
    np.testing.assert_allclose(np.exp(logits - np.logaddexp.reduce(logits)), best.distribution, rtol=1e-12)


class Narrow(Drafter):
    def initial_state(self, batch):
        return ()

    def step(self, tokens, state):
        return tf.zeros([tokens.shape[0], SIZE - 1]), state


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoding": "blocks"}, "decoding = 'blocks': must be one of autoregressive, speculative"),
        ({"decoding": "block"}, "decoding = 'block' needs a drafter: give one"),
        ({"drafter": NEAR, "draft_length": 2}, "decoding = 'autoregressive' takes no drafter: drop it"),
        ({"decoding": "block", "drafter": NEAR, "draft_length": 0}, "draft_length = 0: must be above 0"),
        ({"decoding": "block", "drafter": Narrow(), "draft_length": 2}, "drafter proposes from 11 tokens, but the ta"),
        ({"max_prompt": 0}, "max_prompt = 0: must be an integer from 1 to 65536"),
        ({"max_new_tokens": True}, "max_new_tokens = True: must be an integer from 1"),
        ({"max_new_tokens": 2**31}, "max_new_tokens = 2147483648: must be an integer from 1"),
        (
            {"decoding": "greedy-block", "drafter": NEAR, "draft_length": 2, "automatic": True},
            "draft_length = 'auto': the decoding carries",
        ),
    ],
)
def test_options_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Generator(MODEL, {}, **arguments)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts: must be at least one list"),
        ([[]], {}, "prompt 0 = ..: must be one token id or more, integers from 0 to 11"),
        ([[1] * 7], {}, "prompt 0 has 7 tokens: must have at most max_prompt = 6"),
        ([[SIZE]], {}, r"prompt 0 = .12.: must be one token id or more, integers from 0 to 11"),
        ([[1]], {"requests": [1, 2]}, "requests = .1, 2.: must be one number for each of 1 texts"),
        ([[1]], {"stop_sequences": [[]]}, "stop_sequences = ..: must be one token id or more"),
        ([[1]], {"stop_sequences": [[1] * 17]}, f"stop_sequences = .*: must be at most {LONGEST_STOP} token ids"),
        ([[1]], {"stop_sequences": [[SIZE]]}, "stop_sequences = .12.: must be one token id or more, integers from 0"),
        ([[1.5]], {}, "prompt 0 = .1.5.: must be one token id or more"),
        ([1], {}, "prompt 0 = 1: must be one token id or more"),
        ([[1]], {"requests": [-1]}, "requests = .-1.: must be one request number or more"),
        (5, {}, "prompts = 5: must be a list of lists of token ids"),
        (iter([[1]]), {}, "prompts = <.*>: must be a list of lists"),
        ([[1]], {"stop_sequences": None}, "stop_sequences = None: must be a list of lists of token ids"),
        ([[1]], {"stop_sequences": [5]}, "stop_sequences = 5: must be one token id or more"),
        ([[1]], {"choices": {}}, "choices = {}: must be Choices"),
        ([[1]], {"costs": (1, 1, 1)}, "costs = .1, 1, 1.: must be Costs"),
        ([[1]], {"bias": [1, 2]}, "bias = list: must be a dict"),
        ([[1]], {"choices": Choices(max_new_tokens=5, stop=SIZE)}, "stop = 12: must be a token id from 0 to 11"),
        ([[1]], {"costs": Costs(1.1, 1.1, 0.1)}, "costs = .*: only with automatic draft lengths; drop them"),
        ([[1]], {"choices": Choices(max_new_tokens=21)}, "max_new_tokens = 21: the generator was made for 20"),
    ],
)
def test_requests_out_of_range_are_refused_by_a_call_and_by_stream_at_once(generator, prompts, options, message):
    for decode in (generator, generator.stream):
        with pytest.raises(ValueError, match=message):
            decode(prompts, **{"choices": Choices(max_new_tokens=5), **options})


def test_stream_refuses_unknown_options_at_once(generator):
    with pytest.raises(TypeError, match="foo"):
        generator.stream([[1]], foo=1)
    with pytest.raises(ValueError, match="every = 0: must be an integer >= 1"):
        generator.stream([[1]], every=0)


def test_a_context_that_is_too_small_is_refused():
    model = preset("transformer-4m", 40, context=16, embedding=8, heads=2, blocks=1, feed_forward=8)
    with pytest.raises(ValueError, match="do not fit together in the model's context of 16 tokens"):
        Generator(model, model.init(0), "block", ModelDrafter(model, model.init(0)), 2, max_prompt=8, max_new_tokens=8)
    target, drafter = preset("tiny", 40), ModelDrafter(model, model.init(0))
    with pytest.raises(ValueError, match="do not fit together in the drafter's context of 16 tokens: lower them"):
        Generator(target, target.init(0), "block", drafter, 2, max_prompt=8, max_new_tokens=7)


def test_missing_weights_are_refused_when_the_generator_is_made():
    with pytest.raises(
        ValueError, match="^weights: '.*' is missing; give the weights that were trained with this model"
    ):
        Generator(preset("tiny", 40), {})


def test_logits_that_are_not_finite_are_an_error_that_names_the_row():
    model = preset("tiny", 20)
    weights = {name: np.full_like(value, np.nan) for name, value in model.init(0).items()}
    generator = Generator(model, weights, max_prompt=2, max_new_tokens=4)
    with pytest.raises(ValueError, match="logits of row 0 after 0 new tokens are not finite"):
        generator([[1]], Choices(max_new_tokens=4))


class _Quiet(ModelDrafter):
    """Drafts with the target itself, and proposes nothing after the prompt of a row that begins with token 7."""

    may_pass = True

    def initial_state(self, batch):
        return super().initial_state(batch), tf.zeros([batch], tf.bool)

    def prefill(self, tokens, lengths, state):
        return super().prefill(tokens, lengths, state[0]), state[1] | tf.equal(tokens[:, 0], 7)

    def step(self, tokens, state):
        logits, after = super().step(tokens, state[0])
        return tf.where(state[1][:, tf.newaxis], -np.inf, logits), (after, state[1])

    def rewind(self, states, kept):
        return super().rewind([state for state, _ in states], kept), states[0][1]

    def step_level(self, tokens, trail, tree, level):
        logits, after = super().step_level(tokens, trail[0], tree, level)
        return tf.where(trail[1][:, tf.newaxis, tf.newaxis], -np.inf, logits), (after, trail[1])

    def rewind_tree(self, trail, kept, tree):
        return super().rewind_tree(trail[0], kept, tree), trail[1]


@pytest.mark.parametrize(
    "sizes",
    [
        {"decoding": "block", "draft_length": 4},
        pytest.param({"decoding": "tree", "tree": (2, 1, 1)}, marks=pytest.mark.slow),
    ],
)
def test_a_row_that_is_done_goes_beyond_no_cache_while_others_are_drawn(sizes):
    """The first row accepts all drafts and gives more tokens than asked for in its last block; the second is slow."""
    model = TransformerLanguageModel(23, embedding=8, blocks=1, heads=2, feed_forward=8, context=64)
    weights = {name: 2 * value for name, value in model.init(1).items()}
    decoding, sizes = sizes["decoding"], {name: value for name, value in sizes.items() if name != "decoding"}
    generator = Generator(model, weights, decoding, _Quiet(model, weights), max_prompt=3, max_new_tokens=11, **sizes)
    plain = Generator(model, weights, max_prompt=3, max_new_tokens=11)
    prompts = [[3, 1, 4], [7, 2, 2]]
    found = generator(prompts, Choices(11, temperature=0.0))
    assert found.tokens == plain(prompts, Choices(11, temperature=0.0)).tokens
    assert found.acceptance[0].calls < 5 and found.acceptance[1].calls == 11


def test_graphs_hold_no_copy_of_the_weights_of_target_and_drafter():
    model = preset("tiny", 3000)
    weights = model.init(0)
    generator = Generator(model, weights, "block", ModelDrafter(model, weights), draft_length=2, max_prompt=4)
    inputs = generator._prepare([[1, 2]], Choices(max_new_tokens=4))
    graph = generator._start.get_concrete_function(*inputs).graph.as_graph_def()
    assert graph.ByteSize() < weights["embedding"].nbytes
