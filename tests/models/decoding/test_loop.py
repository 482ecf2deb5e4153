import numpy as np
import pytest
import tensorflow as tf

from models.decoding import numpy_loop, numpy_ops
from models.decoding.choices import Choices, Processing
from models.decoding.loop import generate
from models.decoding.numpy_ops import Stream
from models.decoding.numpy_processing import process
from models.decoding.prng import random_words
from tests.oracles import sampling as oracle
from tests.oracles.backends import everywhere

SIZE, LONGEST = 12, 20
# A language model: the logits of the next token for each pair of tokens before it.
TABLE = (2 * np.random.default_rng(0).standard_normal([SIZE, SIZE, SIZE])).astype(np.float32)


def step(token, state):
    """Takes one step of the model, whose state is the previous token."""
    return tf.gather_nd(TABLE, tf.stack([state, token], axis=-1)), token


def run(prompt, seed, request, temperature, top_k, max_new, stop):
    """Generates for a batch of two rows: row 0 is `request`, and row 1 is request 77."""
    requests = tf.stack([request, 77])[:, tf.newaxis]
    words = random_words(seed, Stream.SAMPLE, requests, prompt.shape[0] + tf.range(LONGEST))
    last = tf.repeat(prompt[tf.newaxis], 2, axis=0)
    logits = tf.gather_nd(TABLE, last[:, -2:])
    drawn = generate(step, logits, last[:, -1], words, temperature, top_k, max_new, stop)
    return {"tokens": drawn.tokens, "lengths": drawn.lengths}


def arguments(prompt, choices):
    return {
        "prompt": np.array(prompt, np.int32),
        "seed": numpy_ops.seed_words(choices.seed),
        "request": np.array(choices.request, np.int32),
        "temperature": np.array(choices.temperature, np.float32),
        "top_k": np.array(choices.top_k, np.int32),
        "max_new": np.array(choices.max_new_tokens, np.int32),
        "stop": np.array(choices.stop, np.int32),
    }


def by_oracle(prompt, choices):
    tokens, least = oracle.generate(
        lambda text: TABLE[text[-2], text[-1]].tolist(),
        prompt,
        choices.seed,
        choices.request,
        choices.temperature,
        choices.top_k,
        choices.max_new_tokens,
        choices.stop,
    )
    assert least > 1e-7, "a draw is too near to the boundary between two tokens for the oracle: take another seed"
    return tokens


def by_numpy(prompt, choices, table=TABLE):
    def next_logits(token, before):
        return table[before, token], token

    logits = table[prompt[-2], prompt[-1]]
    return list(numpy_loop.draw(next_logits, logits, prompt[-1], prompt, choices))


CASES = [
    Choices(max_new_tokens=20, seed=1),
    Choices(max_new_tokens=13, seed=2**64 - 1, request=5, temperature=0.5),
    Choices(max_new_tokens=20, seed=3, request=2**31 - 1, top_k=3),
    Choices(max_new_tokens=20, seed=4, temperature=0),
    Choices(max_new_tokens=20, seed=5, temperature=2.0, stop=4),
    Choices(max_new_tokens=1, seed=6),
]


def test_generate_draws_the_tokens_of_the_oracle_in_every_backend_and_numpy():
    prompt = [3, 1, 4]
    backends = everywhere(run, **arguments(prompt, CASES[0]))
    for choices in CASES:
        expected = by_oracle(prompt, choices)
        assert by_numpy(prompt, choices) == expected
        for call in backends.values():
            output = call(**arguments(prompt, choices))
            assert output["lengths"][0] == len(expected)
            padded = expected + [0] * (LONGEST - len(expected))
            np.testing.assert_array_equal(output["tokens"][0], padded)


@pytest.fixture(scope="module")
def in_graph():
    compiled = tf.function(run)

    def draw(prompt, choices):
        output = compiled(**{name: tf.constant(value) for name, value in arguments(prompt, choices).items()})
        return output["tokens"][0, : int(output["lengths"][0])].numpy().tolist()

    return draw


def test_generate_ends_a_row_after_the_stop_token_only(in_graph):
    texts = [in_graph([3, 1], Choices(max_new_tokens=20, seed=seed, temperature=2.0, stop=4)) for seed in range(30)]
    assert any(len(text) < 20 for text in texts)
    for text in texts:
        assert 4 not in text[:-1]
        assert len(text) == 20 or text[-1] == 4


def continues(function, seeds=20):
    """Returns whether drawing from the prompt and half of a text always gives the other half."""
    for seed in range(seeds):
        whole = function([3, 1], Choices(max_new_tokens=20, seed=seed))
        half = function([3, 1, *whole[:10]], Choices(max_new_tokens=10, seed=seed))
        if half != whole[10:]:
            return False
    return True


def test_generating_from_prompt_and_half_of_a_text_gives_the_other_half(in_graph):
    assert continues(in_graph) and continues(by_numpy)

    def off_by_one(prompt, choices):
        """Planted: counts positions from the end of the prompt."""
        last, text = list(prompt[-2:]), []
        for i in range(choices.max_new_tokens):
            words = numpy_ops.random_words(numpy_ops.seed_words(choices.seed), Stream.SAMPLE, choices.request, i)
            text.append(int(numpy_ops.sample(process(TABLE[last[0], last[1]], Processing()), words)))
            last = [last[1], text[-1]]
        return text

    def stale_state(prompt, choices):
        """Planted: uses the state after the prompt for every token."""
        logits = TABLE[prompt[-2], prompt[-1]]
        return list(numpy_loop.draw(lambda token, s: (TABLE[s, token], s), logits, prompt[-1], prompt, choices))

    assert not continues(off_by_one) and not continues(stale_state)


def test_generate_draws_at_most_as_many_tokens_as_there_are_words(in_graph):
    assert len(in_graph([3, 1], Choices(max_new_tokens=1000, seed=0))) == LONGEST


def test_draw_refuses_logits_that_are_not_finite():
    table = np.where(TABLE > 4, np.float32(np.nan), TABLE)
    with pytest.raises(ValueError, match="logits at position .* are not finite"):
        for seed in range(20):
            by_numpy([3, 1], Choices(seed=seed), table)
