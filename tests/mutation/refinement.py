"""Lists bugs of n-gram models and of the best paths through a lattice, each with the test that must catch it."""

from tests.mutation.bug import Bug

_P_BEST = "models/decoding/p_best.py"
_KATZ = "models/decoding/katz_tables.py"

_TESTS = "tests/models/decoding/"
_BEST_PATHS = _TESTS + "test_p_best.py::test_paths_are_the_best_of_all_paths[graph-2-3]"
_KATZ_LAW = _TESTS + "test_katz_tables.py::test_log_probs_are_those_of_the_reference[3]"

REFINEMENT = (
    Bug(
        "n-gram: history read from its end",
        _KATZ,
        "enumerate(tf.unstack(histories, axis=-1))",
        "enumerate(tf.unstack(histories, axis=-1)[::-1])",
        _KATZ_LAW,
    ),
    Bug(
        "n-gram: back-off weight left out",
        _KATZ,
        'found + tf.gather(tables["backoff"], context)[..., tf.newaxis]',
        "found",
        _KATZ_LAW,
    ),
    Bug(
        "n-gram: slot of another pair taken for the pair's own",
        _KATZ,
        ' & tf.equal(tf.gather(tables["token"], slots), tokens)',
        "",
        _KATZ_LAW,
    ),
    Bug(
        "best paths: ties go to the highest id",
        _P_BEST,
        "tf.math.top_k(-tokens, width)",
        "tf.math.top_k(tokens, width)",
        _BEST_PATHS,
    ),
    Bug(
        "best paths: a full context loses its last candidate, not its first",
        _P_BEST,
        "tf.reshape(arcs, [batch, repeats, -1, 1]) + after",
        "tf.reshape(arcs, [batch, -1, repeats, 1]) + tf.reshape(ends, [batch, -1, 1, ends.shape[2]])",
        _BEST_PATHS,
    ),
    Bug(
        "best paths: one end kept after each context",
        _P_BEST,
        "tf.math.top_k(sums, min(count, sums.shape[2]))",
        "tf.math.top_k(sums, min(count if position == 0 else 1, sums.shape[2]))",
        _BEST_PATHS,
    ),
    Bug(
        "best paths: scores that nearly tie are rounded to equal ones",
        _P_BEST,
        "tf.floor(tf.maximum(nats, -_LARGEST / _UNITS) * _UNITS)",
        "tf.round(tf.maximum(nats, -_LARGEST / _UNITS) * _UNITS)",
        _TESTS
        + "test_p_best.py::test_first_path_without_the_model_is_the_argmax_of_every_head_also_where_scores_nearly_tie",
    ),
)
