import numpy as np

from models.decoding import numpy_processing
from models.decoding.choices import Processing
from models.decoding.history import block_histories, extend_history
from models.decoding.numpy_processing import History
from models.decoding.processing import process
from tests.oracles.backends import run_everywhere

SIZE = 12
OPTIONS = Processing(0.7, 8, 0.9, 0.01, 1.3, 0.4, 0.3)


def begin(seed):
    rng = np.random.default_rng(seed)
    return History(rng.random([3, SIZE]) < 0.3, rng.poisson(0.5, [3, SIZE]).astype(np.int32))


def one_by_one(history, tokens):
    """Adds a token to the counts of each row; a negative token is skipped."""
    counts = history.counts.copy()
    for row, token in enumerate(tokens):
        if token >= 0:
            counts[row, token] += 1
    return History(history.prompt, counts)


def test_block_histories_hold_the_drafted_tokens_before_each_position_in_every_backend():
    history, rng = begin(0), np.random.default_rng(1)
    drafted = np.array([[3, 3, 3, 0], [11, 0, -1, -1], [5, 6, 5, 6]], np.int32)
    logits = (2 * rng.standard_normal([3, 5, SIZE])).astype(np.float32)

    def run(logits, prompt, counts, drafted):
        before = History(prompt, counts)
        histories, extended = block_histories(before, drafted), extend_history(before, drafted[:, 0])
        # Planted: every position of the block is processed with the history of the last one.
        last = History(prompt[:, None], histories.counts[:, -1:])
        return {
            "prompt": histories.prompt,
            "counts": histories.counts,
            "extended": extended.counts,
            "processed": process(logits, OPTIONS, histories),
            "planted": process(logits, OPTIONS, last),
        }

    expected = []
    for i in range(5):
        expected.append(history)
        if i < 4:
            history = one_by_one(history, drafted[:, i])
    counts = np.stack([each.counts for each in expected], axis=1)
    processed = np.stack(
        [numpy_processing.process(logits[:, i], OPTIONS, each) for i, each in enumerate(expected)], axis=1
    )
    first = expected[0]
    for output in run_everywhere(
        run, logits=logits, prompt=first.prompt, counts=first.counts, drafted=drafted
    ).values():
        np.testing.assert_array_equal(output["counts"], counts)
        np.testing.assert_array_equal(output["extended"], counts[:, 1])
        np.testing.assert_array_equal(output["prompt"], np.broadcast_to(first.prompt[:, None], counts.shape))
        np.testing.assert_array_equal(output["processed"], processed)
        assert not np.array_equal(output["planted"], processed)
