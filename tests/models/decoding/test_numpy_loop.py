import numpy as np
import pytest

from models.decoding.choices import Choices
from models.decoding.numpy_loop import draw
from models.decoding.numpy_processing import make_bias
from tests.oracles import sampling as oracle

SIZE = 7
TABLE = (2 * np.random.default_rng(0).standard_normal([SIZE, SIZE])).astype(np.float32)
PROMPT = [3, 1, 3]


def tokens(choices, prompt=PROMPT, **changes):
    return list(draw(lambda token, state: (TABLE[token], state), TABLE[prompt[-1]], None, prompt, choices, **changes))


@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 0.7},
        {"min_p": 0.2, "temperature": 1.5},
        {"repetition_penalty": 1.7},
        {"presence_penalty": 0.9},
        {"frequency_penalty": 0.4},
        {"frequency_penalty": -0.4, "presence_penalty": 0.3, "repetition_penalty": 0.8, "top_k": 5, "top_p": 0.9},
    ],
)
def test_draw_honours_every_option(options):
    for seed in range(5):
        choices = Choices(max_new_tokens=25, seed=seed, **options)
        fixed = {name: options[name] for name in options if name not in ("temperature", "top_k")}
        expected, least = oracle.generate(
            lambda text: [float(x) for x in TABLE[text[-1]]],
            PROMPT,
            seed,
            choices.request,
            choices.temperature,
            choices.top_k,
            25,
            -1,
            **fixed,
        )
        assert least > 1e-6, "a draw is too near to the boundary for the oracle: take another seed"
        assert tokens(choices) == expected
        assert tokens(Choices(max_new_tokens=25, seed=seed)) != expected


def test_each_of_many_tokens_has_random_words_of_its_own():
    """More tokens than the words of one call, which are those of 64 positions."""
    for seed in range(2):
        expected, least = oracle.generate(lambda text: TABLE[text[-1]].tolist(), PROMPT, seed, 0, 1.0, 0, 150, -1)
        assert least > 1e-6, "a draw is too near to the boundary for the oracle: take another seed"
        assert tokens(Choices(max_new_tokens=150, seed=seed)) == expected


def test_draw_never_draws_banned_tokens_and_follows_the_bias():
    drawn = tokens(Choices(max_new_tokens=200, temperature=3.0), bias=make_bias(SIZE, {5: 20.0}, [0, 6]))
    assert not {0, 6} & set(drawn) and drawn.count(5) > 150


def test_draw_calls_the_mask_with_the_tokens_so_far_and_obeys_it():
    calls = []

    def mask(generated):
        calls.append(generated)
        if len(generated) == 3:
            return None
        return np.arange(SIZE) == (len(generated) + 1) % SIZE

    drawn = tokens(Choices(max_new_tokens=6), mask=mask, bias=make_bias(SIZE, banned=[0]))
    assert drawn[:3] == [1, 2, 3] and drawn[4:] == [5, 6]
    assert calls == [drawn[:i] for i in range(6)]


def test_draw_refuses_a_mask_without_tokens_or_of_another_shape():
    with pytest.raises(ValueError, match="bias, banned and mask leave no token at position 3: allow at least one"):
        tokens(Choices(), mask=lambda _: np.arange(SIZE) == 2, bias=make_bias(SIZE, banned=[2]))
    for wrong in (np.ones(SIZE + 1, bool), np.ones(SIZE, np.int32), [True] * SIZE):
        with pytest.raises(ValueError, match=r"^mask = .*: must return a bool array of shape \[7\], or None$"):
            tokens(Choices(), mask=lambda _, wrong=wrong: wrong)
