"""Lists bugs of n-gram models and of blockwise decoding, each with the test that must catch it."""

from tests.mutation.bug import Bug

_P_BEST = "models/decoding/p_best.py"
_KATZ = "models/decoding/katz_tables.py"
_HEADS = "models/decoding/heads_drafter.py"
_LATTICE = "models/decoding/lattice_drafter.py"

_TESTS = "tests/models/decoding/"
_BEST_PATHS = _TESTS + "test_p_best.py::test_paths_are_the_best_of_all_paths[graph-2-3]"
_KATZ_LAW = _TESTS + "test_katz_tables.py::test_log_probs_are_those_of_the_reference[3]"
_REFINED_BLOCKS = (
    _TESTS + "test_blockwise.py::test_blocks_of_drafts_that_are_refined_token_by_token_are_those_of_the_definition"
)
_BEST_PATH_BLOCKS = _TESTS + "test_blockwise.py::test_blocks_of_best_paths_are_those_of_the_definition"

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
    Bug(
        "blockwise: head 1 is rescored",
        _HEADS,
        "self._heads = model, weights, range(2, depth + 2)",
        "self._heads = model, weights, range(1, depth + 1)",
        _REFINED_BLOCKS,
    ),
    Bug(
        "blockwise: ties in a draft go to the highest id",
        _HEADS,
        "tf.where(scores >= bound, refined, ",
        "tf.where(scores >= bound, refined + 1e-3 * tf.range(scores.shape[-1], dtype=tf.float32), ",
        _REFINED_BLOCKS,
    ),
    Bug(
        "blockwise: weight of the rescorer applied twice",
        _HEADS,
        "scores + self.alpha * ",
        "scores + self.alpha**2 * ",
        _REFINED_BLOCKS,
    ),
    Bug(
        "blockwise: weight of the n-gram model applied twice",
        _LATTICE,
        "find_best_paths(tokens, scores, history, self.alpha, ",
        "find_best_paths(tokens, scores, history, self.alpha**2, ",
        _BEST_PATH_BLOCKS,
    ),
    Bug(
        "blockwise: the lattice does not begin after the model's own token",
        _LATTICE,
        "history = tf.concat([state, last[:, tf.newaxis]], axis=1)[:, 1:]",
        "history = state",
        _BEST_PATH_BLOCKS,
    ),
    Bug(
        "blockwise: state after the first path, not the accepted one",
        "models/decoding/tree_speculation.py",
        "kept = tf.where(count > 0, node + 1, 0)",
        "kept = tf.where(count > 0, tf.gather([level.start for level in self.tree.levels], accepted) + 1, 0)",
        _BEST_PATH_BLOCKS,
    ),
    Bug(
        "blockwise: the model's own token counted twice",
        "models/decoding/acceptance.py",
        "return self.decided / self.calls if",
        "return (self.decided + self.calls) / self.calls if",
        _TESTS + "test_blockwise.py::test_block_efficiency_of_heads_that_are_right_independently_is_its_closed_form",
    ),
)
