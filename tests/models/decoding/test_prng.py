import itertools

import numpy as np
import pytest
import tensorflow as tf

from models.decoding import numpy_ops, prng
from models.decoding.numpy_ops import Stream
from tests.oracles import pearson, threefry
from tests.oracles.backends import run_everywhere

# (key, counter, words) from the lines "threefry2x32 20" of kat_vectors in Random123 1.14.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


def signed(words):
    return tuple(tf.constant(np.array(word, np.uint32).view(np.int32)) for word in words)


@pytest.mark.parametrize(("key", "counter", "words"), KNOWN_ANSWERS)
def test_threefry_gives_the_known_answers(key, counter, words):
    assert threefry.threefry(key, counter) == words
    arrays = [np.array([word], np.uint32) for word in (*key, *counter)]
    assert (
        tuple(int(word[0]) for word in numpy_ops.threefry_2x32((arrays[0], arrays[1]), (arrays[2], arrays[3]))) == words
    )
    drawn = prng.threefry_2x32(signed(key), signed(counter))
    assert tuple(int(word.numpy().view(np.uint32)) for word in drawn) == words


def test_random_words_equal_those_of_the_oracle():
    rng = np.random.default_rng(0)
    for _ in range(50):
        seed, token = int(rng.integers(2**63)) * 2 + 1, int(rng.integers(2**18))
        request, position = int(rng.integers(2**31)), int(rng.integers(2**31))
        stream = Stream(int(rng.integers(len(Stream))))
        for ids in (None, token):
            drawn = numpy_ops.random_words(numpy_ops.seed_words(seed), stream, request, position, ids)
            expected = threefry.words(seed, int(stream), request, position, ids)
            assert tuple(int(word.view(np.uint32)) for word in drawn) == expected


@pytest.mark.parametrize("with_tokens", [False, True])
def test_random_words_and_uniforms_have_the_bits_of_numpy_in_every_backend(with_tokens):
    rng = np.random.default_rng(1)
    seed = rng.integers(-(2**31), 2**31, 2, np.int32)
    request = rng.integers(0, 2**31, [5, 1], np.int32)
    positions = rng.integers(0, 2**31, [5, 200], np.int32)
    tokens = rng.integers(0, 2**18, [5, 200], np.int32)

    def words(seed, request, positions, tokens):
        first, second = prng.random_words(seed, Stream.DRAFT, request, positions, tokens if with_tokens else None)
        return {"first": first, "second": second, "uniforms": prng.uniforms(first)}

    first, second = numpy_ops.random_words(seed, Stream.DRAFT, request, positions, tokens if with_tokens else None)
    expected = {"first": first, "second": second, "uniforms": numpy_ops.uniforms(first)}
    outputs = run_everywhere(words, seed=seed, request=request, positions=positions, tokens=tokens)
    for output in outputs.values():
        for name, values in expected.items():
            assert values.shape == (5, 200)
            np.testing.assert_array_equal(output[name], values)


def all_words(random_words):
    """Returns 64-bit random numbers for a grid over every part of the key."""
    seeds = [numpy_ops.seed_words(seed) for seed in (0, 1, 2**32, 2**64 - 1)]
    grid = itertools.product(seeds, Stream, (0, 1, 2**31 - 1))
    positions, tokens = np.arange(100), np.arange(30)
    numbers = []
    for seed, stream, request in grid:
        plain = random_words(seed, stream, request, positions, None)
        by_token = random_words(seed, stream, request, positions[:5, np.newaxis], tokens)
        numbers += [(np.ravel(a).astype(np.int64) << 32) + np.ravel(b) for a, b in (plain, by_token)]
    return np.concatenate(numbers)


def count_repeats(random_words):
    numbers = all_words(random_words)
    return len(numbers) - len(np.unique(numbers))


def test_random_words_do_not_repeat_across_keys():
    # Among 15,000 numbers of 64 bits a repeat has probability 6e-12.
    assert count_repeats(numpy_ops.random_words) == 0
    shared_stream = lambda seed, stream, *rest: numpy_ops.random_words(seed, Stream.SAMPLE, *rest)  # noqa: E731
    assert count_repeats(shared_stream) > 0
    same_positions = lambda s, t, r, positions, k: numpy_ops.random_words(s, t, r, positions // 2, k)  # noqa: E731
    assert count_repeats(same_positions) > 0


def test_random_words_of_a_row_do_not_depend_on_the_batch():
    seed, positions = numpy_ops.seed_words(5), np.arange(7)
    batch = numpy_ops.random_words(seed, Stream.SAMPLE, np.array([[3], [9], [4]]), positions)
    alone = numpy_ops.random_words(seed, Stream.SAMPLE, 9, positions)
    np.testing.assert_array_equal([words[1] for words in batch], alone)


def test_uniforms_are_never_0_or_1_and_resolve_32_bits_near_0():
    words = np.array([0, 1, 2, 12345, 2**31 - 1, -(2**31), -2, -1], np.int32)
    drawn = numpy_ops.uniforms(words)
    np.testing.assert_array_equal(prng.uniforms(tf.constant(words)), drawn)
    exact = (words.view(np.uint32).astype(np.float64) + 0.5) / 2**32
    np.testing.assert_array_equal(drawn[:4], exact[:4])
    np.testing.assert_allclose(drawn, exact, rtol=2.0**-24)
    assert drawn.min() > 0 and drawn.max() < 1
    # With a resolution of 23 bits these 512 numbers, all below 2**-23, would be equal.
    assert len(np.unique(numpy_ops.uniforms(np.arange(512, dtype=np.int32)))) == 512


def uniformity(words):
    """Returns the p-value of Pearson's test that the 256 values of the top byte are equally frequent."""
    counts = np.bincount(words.view(np.uint32) >> 24, minlength=256)
    return pearson.p_value(counts, np.full(256, len(words) / 256))


def test_random_words_are_uniform_and_independent_of_those_of_neighbouring_keys():
    # Seven tests at level 1e-5 each fail by chance with probability below 1e-4.
    seed, positions = numpy_ops.seed_words(2024), np.arange(1 << 17)
    base = numpy_ops.random_words(seed, Stream.SAMPLE, 0, positions)
    neighbours = [
        numpy_ops.random_words(numpy_ops.seed_words(2025), Stream.SAMPLE, 0, positions)[0],
        numpy_ops.random_words(seed, Stream.DRAFT, 0, positions)[0],
        numpy_ops.random_words(seed, Stream.SAMPLE, 1, positions)[0],
        numpy_ops.random_words(seed, Stream.SAMPLE, 0, positions + 1)[0],
        numpy_ops.random_words(seed, Stream.SAMPLE, 0, positions, 0)[0],
        base[1],
    ]
    assert uniformity(base[0]) > 1e-5
    for other in neighbours:
        assert uniformity(base[0] ^ other) > 1e-5
    # Planted: the counter itself instead of random words.
    assert uniformity(positions.astype(np.int32) ^ base[0] ^ base[0]) < 1e-5
