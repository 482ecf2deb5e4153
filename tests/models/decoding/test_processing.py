import numpy as np
import pytest
import tensorflow as tf
from hypothesis import assume, given
from hypothesis import strategies as st

from models.decoding import numpy_ops, numpy_processing, sampling
from models.decoding.choices import OFF, Processing
from models.decoding.numpy_ops import LEFT_OUT
from models.decoding.numpy_processing import History
from models.decoding.processing import process, process_plain
from tests.oracles import sampling as oracle
from tests.oracles.backends import everywhere, run_everywhere

LOGITS = st.lists(
    st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]) | st.floats(-20, 20, width=32, allow_subnormal=False),
    min_size=1,
    max_size=12,
)
OPTIONS = st.builds(
    Processing,
    st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    st.integers(0, 14),
    st.sampled_from([1.0]) | st.floats(0.01, 1),
    st.sampled_from([0.0]) | st.floats(0, 0.99),
    st.sampled_from([1.0, 0.5, 1.3]),
    st.sampled_from([0.0, 0.7, -1.0]),
    st.sampled_from([0.0, 0.25, -0.3]),
)


def kept(processed):
    return processed > LEFT_OUT


def probabilities(processed):
    masses = np.exp(processed.astype(np.float64))
    return masses / masses.sum(axis=-1, keepdims=True)


def make_history(size, prompt, generated):
    return History(np.isin(np.arange(size), prompt), np.bincount(generated, minlength=size).astype(np.int32))


def random_case(rng):
    """Draws logits, options that are all on, the tokens of prompt and generated text, and a bias."""
    size = int(rng.integers(2, 30))
    logits = (2 * rng.standard_normal(size)).astype(np.float32)
    uniform = rng.uniform
    options = Processing(
        float(uniform(0.5, 2)),
        int(rng.integers(2, size + 2)),
        float(uniform(0.3, 0.99)),
        float(uniform(0.01, 0.5)),
        float(uniform(0.5, 2)),
        float(uniform(-1, 1)),
        float(uniform(-1, 1)),
    )
    prompt, generated = rng.integers(0, size, size // 3), rng.integers(0, size, size // 2)
    bias = {int(token): float(np.float32(rng.standard_normal())) for token in rng.integers(0, size, 3)}
    bias[int(rng.integers(size))] = -np.inf
    return logits, options, prompt, generated, bias


def follows_oracle(process_function, cases=150):
    """Returns whether the function gives the distributions of the oracle in random cases with all options on."""
    rng, compared = np.random.default_rng(11), 0
    for _ in range(cases):
        logits, options, prompt, generated, bias = random_case(rng)
        penalties = {name: getattr(options, name) for name in Processing._fields if name.endswith("_penalty")}
        changed = oracle.penalized(logits.tolist(), prompt.tolist(), generated.tolist(), bias=bias, **penalties)
        if oracle.margin(changed, *options[:4]) < 1e-4:
            continue
        size = len(logits)
        row = numpy_processing.make_bias(size, bias)
        processed = process_function(logits, options, make_history(size, prompt, generated), row)
        expected = np.array(oracle.distribution(changed, *options[:4]))
        compared += 1
        # The penalties are multiples of 2**-15, and a token may have been generated fifteen times.
        if not np.allclose(probabilities(processed), expected, rtol=1e-3, atol=1e-12):
            return False
    assert compared > 0.9 * cases
    return True


def test_process_follows_the_oracle_and_planted_faults_do_not():
    right = numpy_processing.process
    assert follows_oracle(right)

    def change_history(change):
        return lambda logits, options, history, bias: right(logits, options, change(history), bias)

    def temperature_first(logits, options, history, bias):
        return right(logits / np.float32(options.temperature), options._replace(temperature=1.0), history, bias)

    def top_p_first(logits, options, history, bias):
        first = right(logits, options._replace(top_k=0, min_p=0.0), history, bias)
        return right(
            first, OFF._replace(top_k=options.top_k, min_p=options.min_p), None, np.where(kept(first), 0, LEFT_OUT)
        )

    def min_p_of_one(logits, options, history, bias):
        processed = right(logits, options._replace(min_p=0.0), history, bias)
        return np.where(probabilities(processed) >= options.min_p, processed, np.float32(LEFT_OUT))

    def bias_last(logits, options, history, bias):
        return right(right(logits, OFF._replace(repetition_penalty=options[4]), history), options, history, bias)

    def without_crossing_token(logits, options, history, bias):
        processed = right(logits, options, history, bias)
        last = processed.min(where=kept(processed), initial=0)
        return np.where((processed > last) | (processed == 0), processed, np.float32(LEFT_OUT))

    def multiply_always(logits, options, history, bias):
        return right(-np.abs(logits), options, history, bias)

    planted = [
        change_history(lambda history: History(history.prompt, np.minimum(history.counts, 1))),
        change_history(lambda history: History(np.zeros_like(history.prompt), history.counts)),
        change_history(lambda history: History(history.prompt, history.counts + history.prompt)),
        change_history(lambda history: None),
        temperature_first,
        top_p_first,
        min_p_of_one,
        bias_last,
        without_crossing_token,
        multiply_always,
    ]
    for fault in planted:
        assert not follows_oracle(fault), fault


@given(LOGITS, OPTIONS)
def test_process_gives_the_distribution_of_the_oracle(logits, options):
    options = options._replace(top_p=float(np.float32(options.top_p)), min_p=float(np.float32(options.min_p)))
    assume(oracle.margin(logits, *options[:4]) > 1e-5)
    expected = oracle.distribution(logits, *options[:4])
    processed = numpy_processing.process(np.array(logits, np.float32), options)
    assert processed.max() == 0
    np.testing.assert_array_equal(kept(processed), np.array(expected) > 0)
    np.testing.assert_allclose(probabilities(processed), expected, rtol=1e-5, atol=1e-12)


@given(st.lists(st.integers(0, 400), min_size=2, max_size=30), st.integers(0, 29), st.integers(-1, 1))
def test_top_p_keeps_exactly_the_smallest_set_whose_integer_weight_reaches_p(steps, place, nudge):
    """P is the share of one of the sets, rounded to float32, and its two neighbours. Many logits are tied."""
    logits = -np.array(steps, np.float32) / 64
    scaled = numpy_processing.process(logits, OFF)
    weights = [int(weight) for weight in numpy_ops.weights(scaled)]
    bounds = sorted(set(scaled.tolist()), reverse=True)
    sums = [sum(w for w, x in zip(weights, scaled.tolist(), strict=True) if x >= bound) for bound in bounds]
    share = np.float32(sums[place % len(sums)] / sums[-1])
    p = float(np.nextafter(share, np.float32(share + nudge)))
    assume(0 < p < 1)
    numerator, denominator = p.as_integer_ratio()
    bound = next(b for b, reached in zip(bounds, sums, strict=True) if reached * denominator >= numerator * sums[-1])
    processed = numpy_processing.process(logits, Processing(top_p=p))
    np.testing.assert_array_equal(kept(processed), scaled >= bound)
    by_tensorflow = process(tf.constant(logits), Processing(top_p=tf.constant(p)))
    np.testing.assert_array_equal(by_tensorflow, processed)


@given(LOGITS, OPTIONS, st.randoms(use_true_random=False))
def test_permuting_the_vocabulary_permutes_the_processed_logits(logits, options, random):
    size = len(logits)
    logits = np.array(logits, np.float32)
    history = make_history(size, [0], [0, size - 1, size - 1])
    order = np.array(random.sample(range(size), size))
    assume(options.temperature > 0 or len(set(logits.tolist())) == size)
    assume(options.temperature > 0 or options[4:] == OFF[4:])
    processed = numpy_processing.process(logits, options, history)
    permuted = numpy_processing.process(logits[order], options, History(*(each[order] for each in history)))
    np.testing.assert_array_equal(permuted, processed[order])


@given(LOGITS, OPTIONS)
def test_options_that_are_off_change_nothing(logits, options):
    logits = np.array(logits, np.float32)
    history = make_history(len(logits), [0], [0, 0])
    plain = numpy_processing.process(logits, options)
    unpenalized = Processing(*options[:4])
    zeros = np.zeros_like(logits)
    np.testing.assert_array_equal(numpy_processing.process(logits, unpenalized, history, zeros), plain)
    np.testing.assert_array_equal(numpy_processing.process(logits, OFF), logits - logits.max())


@given(LOGITS, OPTIONS, st.floats(0, 1), st.floats(0, 1))
def test_filters_keep_fewer_tokens_the_stricter_they_are(logits, options, first, second):
    logits = np.array(logits, np.float32)
    for field, strict, loose in (
        ("top_p", max(min(first, second), 1e-9), max(first, second, 1e-9)),
        ("min_p", max(first, second), min(first, second)),
        ("top_k", 1 + int(14 * min(first, second)), 1 + int(14 * max(first, second))),
    ):
        few, many = (
            kept(numpy_processing.process(logits, options._replace(**{field: value}))) for value in (strict, loose)
        )
        if field != "top_k" or options.top_p == 1:  # a larger top-k spreads probability, so that top-p keeps others
            assert few.any() and not (few & ~many).any()


CASES = [
    OFF,
    Processing(0.7, 10),
    Processing(1.0, -3, 0.9),
    Processing(0.7, 40, 0.9, 0.05, 1.3, 0.37, 0.11),
    Processing(1.0, 0, 0.5, 0.0, 0.8, -2.3, 7.77),
    Processing(1e6, 50, 0.9, 0.2, 100.0, -100.0, 100.0),
    Processing(1e6, 50, 0.9),
    Processing(1e-6, 5, 1e-9, 0.0, 3.0, 0.1, 0.0),
    Processing(1.0, 999, 1e-9, 0.0, 0.01, 100.0, -100.0),
    Processing(1.0, 1000, float(np.nextafter(np.float32(1), np.float32(0))), 0.0, 1.1, 0.1, 0.2),
    Processing(1.0, 2000, 1.0, 0.99999994, 1.1, 0.1, 0.2),
    Processing(3.0, 1, 0.3, 0.2, 1.3, 0.1, 0.1),
    Processing(0.0, 7, 0.3, 0.2, 1.3, 0.1, 0.1),
]


def make_rows(size=1000):
    """Returns the inputs of a batch of rows, each with another difficulty."""
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal([8, size])).astype(np.float32)
    bias = rng.standard_normal(logits.shape).astype(np.float32)
    bias[:, rng.random(size) < 0.1] = -np.inf
    bias[0] = 0
    logits[1], bias[1] = np.round(logits[1]), 0  # many ties
    logits[2], bias[2] = 0, 0  # all tied
    bias[3] = LEFT_OUT
    bias[3, 17] = -0.5  # one token left
    logits[4, : size // 2] = np.nextafter(np.float32(1), np.float32(2))  # adjacent floats
    logits[4, size // 2 :], bias[4] = 1, 0
    logits[5], bias[5] = 1e-30 * logits[5], 0
    logits[6] *= 1e20
    logits[7], bias[7] = 1e-4 * logits[7], 0  # logits that differ, but whose differences from the largest are tied
    logits[7, 3] = 1e4
    prompt = rng.random(logits.shape) < 0.3
    counts = (rng.poisson(0.5, logits.shape) * 10 ** rng.integers(0, 5, logits.shape)).astype(np.int32)
    prompt[[2, 4, 5, 7]], counts[[2, 4, 5, 7]] = False, 0
    return {"logits": logits, "prompt": prompt, "counts": counts, "bias": bias}


def test_process_gives_the_bits_of_numpy_in_every_backend():
    rows = make_rows()

    def run(logits, prompt, counts, bias, numbers, top_k):
        options = Processing(numbers[0], top_k, *(numbers[i] for i in range(1, 6)))
        return {"all": process(logits, options, History(prompt, counts), bias), "plain": process(logits, options)}

    def inputs(case):
        return {"numbers": np.array([case[0], *case[2:]], np.float32), "top_k": np.array(case.top_k, np.int32)}

    functions = everywhere(run, **rows, **inputs(CASES[0]))
    for case in CASES:
        expected = {
            "all": numpy_processing.process(
                rows["logits"], case, History(rows["prompt"], rows["counts"]), rows["bias"]
            ),
            "plain": numpy_processing.process(rows["logits"], case),
        }
        assert np.all(expected["all"].max(axis=-1) == 0) and np.all(kept(expected["all"])[3] == (np.arange(1000) == 17))
        for backend, function in functions.items():
            output = function(**rows, **inputs(case))
            for name, values in expected.items():
                np.testing.assert_array_equal(output[name], values, err_msg=f"{backend} {name} {case}")


def test_process_gives_the_bits_of_numpy_if_options_are_constants():
    """Compilers rewrite arithmetic with constants, which must not change a bit."""
    rows = make_rows(200)
    case = CASES[3]

    def run(logits, prompt, counts, bias):
        return {"processed": process(logits, case, History(prompt, counts), bias)}

    expected = numpy_processing.process(rows["logits"], case, History(rows["prompt"], rows["counts"]), rows["bias"])
    for output in run_everywhere(run, **rows).values():
        np.testing.assert_array_equal(output["processed"], expected)


def test_penalties_round_alike_under_xla_for_many_values():
    """XLA fuses a product and a subtraction into one rounding if it can, which changes one logit in five here."""
    rng = np.random.default_rng(2)
    logits = (5 * rng.standard_normal([4, 5000])).astype(np.float32)
    history = History(rng.random(logits.shape) < 0.5, rng.poisson(1, logits.shape).astype(np.int32))

    @tf.function(jit_compile=True, autograph=False)
    def run(numbers):
        return process(logits, Processing(1.0, 0, 1.0, 0.0, numbers[0], numbers[1], numbers[2]), history)

    for _ in range(20):
        numbers = rng.uniform([0.5, -2, -2], [2, 2, 2]).astype(np.float32)
        expected = numpy_processing.process(logits, Processing(1.0, 0, 1.0, 0.0, *numbers.tolist()), history)
        np.testing.assert_array_equal(run(tf.constant(numbers)), expected)


@pytest.mark.parametrize("size", [1, 3])
def test_rows_without_tokens_are_nan_and_sample_to_minus_one_in_every_backend(size):
    logits = np.arange(2 * size, dtype=np.float32).reshape(2, size)
    bias = np.full([2, size], -np.inf, np.float32)
    bias[1, 0] = 0

    def run(logits, bias, top_p, words):
        processed = process(logits, Processing(1.0, 2, top_p, 0.1), bias=bias)
        return {"processed": processed, "token": sampling.sample(processed, (words, words))}

    words = np.array([-1, 5], np.int32)
    for output in run_everywhere(run, logits=logits, bias=bias, top_p=np.array(0.5, np.float32), words=words).values():
        assert np.isnan(output["processed"][0]).all()
        np.testing.assert_array_equal(output["processed"][1], [0, LEFT_OUT, LEFT_OUT][:size])
        np.testing.assert_array_equal(output["token"], [-1, 0])


@pytest.mark.parametrize("top_k", [1, 2, 150, 151, 299])
def test_process_keeps_the_k_likeliest_tokens_and_ties_with_the_kth(top_k):
    distinct = np.random.default_rng(top_k).permutation(300).astype(np.float32)
    adjacent = np.where(np.arange(300) < 150, np.nextafter(np.float32(1), np.float32(2)), np.float32(1))
    for logits, count in ((distinct, top_k), (adjacent, 150 if top_k <= 150 else 300)):
        processed = process(tf.constant(logits), Processing(1.0, tf.constant(top_k)))
        assert kept(processed.numpy()).sum() == count


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
@pytest.mark.parametrize("options", [OFF, Processing(0.0, 2, 0.9, 0.5)])
def test_process_keeps_the_first_likeliest_token_without_a_positive_temperature(temperature, options):
    logits = np.array([1.0, 4.0, 4.0, -1.0], np.float32)
    expected = np.array([LEFT_OUT, 0, LEFT_OUT, LEFT_OUT], np.float32)
    options = options._replace(temperature=temperature)
    np.testing.assert_array_equal(numpy_processing.process(logits, options), expected)
    np.testing.assert_array_equal(process(tf.constant(logits), options), expected)
    # The likeliest token is that after bias and penalties.
    history = make_history(4, [], [1, 1])
    bias = np.array([0, 0, -np.inf, 0], np.float32)
    options = options._replace(frequency_penalty=2.0)
    expected = np.array([0, LEFT_OUT, LEFT_OUT, LEFT_OUT], np.float32)
    np.testing.assert_array_equal(process(tf.constant(logits), options, history, tf.constant(bias)), expected)


def test_plain_processing_gives_the_bits_of_process_at_every_temperature():
    generator = np.random.default_rng(3)
    rows = generator.normal(0, 5, (6, 9)).astype(np.float32)
    rows[0, 3:5] = rows[0].max() + 1  # a tie
    for temperature in (0.0, 0.7, -1.0, 3.0):
        expected = process(tf.constant(rows), OFF._replace(temperature=temperature))
        np.testing.assert_array_equal(process_plain(tf.constant(rows), temperature), expected)
        np.testing.assert_array_equal(process_plain(tf.constant(rows), tf.constant(temperature)), expected)
    assert np.isnan(process_plain(tf.fill([1, 9], -np.inf), 0.0)).all()


def test_filters_that_are_off_add_no_loop_and_run_none():
    """A file on a phone pays for every iteration over a vocabulary of 49,152 tokens."""

    def loops(options):
        graph = (
            tf.function(lambda x: process(x, options), autograph=False)
            .get_concrete_function(tf.TensorSpec([1, 9]))
            .graph
        )
        return [op.type for op in graph.get_operations() if "While" in op.type or "If" in op.type]

    assert loops(OFF) == []
    assert loops(Processing(0.5, 3)) != []
    iterations = tf.Variable(0)

    def counted(condition, body, variables):
        def count(*values):
            iterations.assign_add(1)
            return body(*values)

        while bool(condition(*variables)):
            variables = count(*variables)
        return variables

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "while_loop", counted)
        logits = tf.constant(np.random.default_rng(0).standard_normal([1, 5000]), tf.float32)
        for options, least, most in (
            (Processing(1.0, 0, 1.0, 0.1), 0, 0),
            (Processing(1.0, 5000), 0, 0),
            (Processing(0.0, 3, 0.5), 0, 0),
            (Processing(1.0, 40), 1, 25),
            (Processing(1.0, 0, 0.9), 1, 25),
        ):
            iterations.assign(0)
            process(logits, Processing(*(tf.constant(value) for value in options)))
            assert least <= int(iterations.numpy()) <= most, options
