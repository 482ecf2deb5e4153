"""Lists bugs of n-gram models and of blockwise decoding, each with the test that must catch it."""

from tests.mutation.bug import Bug

_P_BEST = "models/decoding/p_best.py"
_KATZ = "models/decoding/katz_tables.py"
_HEADS = "models/decoding/heads_drafter.py"
_LATTICE = "models/decoding/lattice_drafter.py"

_OPTIONS = "experiments/commands/heads_options.py"
_STUDY = "experiments/reproduce/"

_TESTS = "tests/models/decoding/"
_BEST_PATHS = _TESTS + "test_p_best.py::test_paths_are_the_best_of_all_paths[graph-2-3]"
_KATZ_LAW = _TESTS + "test_katz_tables.py::test_log_probs_are_those_of_the_reference[3]"
_REFINED_BLOCKS = (
    _TESTS + "test_blockwise.py::test_blocks_of_drafts_that_are_refined_token_by_token_are_those_of_the_definition"
)
_BEST_PATH_BLOCKS = _TESTS + "test_blockwise.py::test_blocks_of_best_paths_are_those_of_the_definition"
_LEVELS = _TESTS + "test_heads_drafter.py::TestHeads::test_step_level_reads_a_tree_as_step_reads_the_path_to_each_node"
_OPTIONS_GIVEN = "tests/experiments/commands/test_heads_options.py::test_drafter_has_the_numbers_that_were_given"
_STUDY_TESTS = "tests/experiments/reproduce/test_blockwise.py::"

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
    Bug(
        "heads: every depth of a tree is drafted by head 2",
        _HEADS,
        "depth = min(tree.levels.index(level), trail.logits.shape[1] - 1)",
        "depth = 0",
        _LEVELS,
    ),
    Bug(
        "heads: drafts of a tree are not refined",
        _HEADS,
        "return self._refine(scores, rescored), trail._replace(rescorer=after)",
        "return scores, trail._replace(rescorer=after)",
        _LEVELS,
    ),
    Bug(
        "heads: rescorer goes on after the first node of a tree, not the accepted one",
        _HEADS,
        "self.rescorer.rewind_tree(trail.rescorer, kept, tree)",
        "self.rescorer.rewind_tree(trail.rescorer, tf.ones_like(kept), tree)",
        _TESTS + "test_heads_drafter.py::TestHeads::test_rewind_tree_goes_on_after_each_node_as_after_the_same_tokens",
    ),
    Bug(
        "heads: no gradient of the heads with a client axis",
        "models/heads.py",
        "outputs += [self.head_hidden(weights, hidden[..., : 1 - head, :], head) for head in self._extra_heads]",
        "outputs += [(tf.stop_gradient if tokens.shape.rank == 3 else tf.identity)(self.head_hidden(weights, "
        "hidden[..., : 1 - head, :], head)) for head in self._extra_heads]",
        "tests/experiments/commands/test_prediction_heads.py::"
        "test_federated_training_without_noise_moves_the_heads_by_their_gradients",
    ),
    Bug(
        "best paths: a sum of 32 bits overflows",
        _P_BEST,
        "limit = _LARGEST // positions",
        "limit = _LARGEST",
        _TESTS + "test_p_best.py::test_paths_with_several_hopeless_candidates_are_the_last_ones",
    ),
    Bug(
        "export: --alpha has no effect on drafts refined token by token",
        _OPTIONS,
        "return HeadsDrafter(rescorer, top_k, alpha)",
        "return HeadsDrafter(rescorer, top_k)",
        _OPTIONS_GIVEN,
    ),
    Bug(
        "export: --alpha has no effect on best paths",
        _OPTIONS,
        "return LatticeDrafter(KatzTables(ngram), top_k, alpha)",
        "return LatticeDrafter(KatzTables(ngram), top_k)",
        _OPTIONS_GIVEN,
    ),
    Bug(
        "study of blockwise: measures on the prompts that chose the weights",
        _STUDY + "blockwise.py",
        "lattices.take(slice(tuned, None))",
        "lattices.take(slice(0, None))",
        _STUDY_TESTS + "test_prompts_that_choose_the_weights_are_not_measured",
    ),
    Bug(
        "study of blockwise: the largest entropy, not the mean",
        _STUDY + "blockwise_drafts.py",
        "-tf.reduce_mean(tf.reduce_sum(tf.exp(log_probs) * log_probs, -1))",
        "tf.reduce_max(-tf.reduce_sum(tf.exp(log_probs) * log_probs, -1))",
        _STUDY_TESTS + "test_entropies_are_means_over_all_places_of_all_texts",
    ),
    Bug(
        "study of blockwise: tokens and calls are resampled from different texts",
        _STUDY + "blockwise_study.py",
        "[rows].sum(axis=1) for part in sums)",
        "[np.concatenate([rows[:1], np.roll(rows[1:], n, 0)])].sum(axis=1) for n, part in enumerate(sums))",
        _STUDY_TESTS + "test_gain_that_is_the_same_for_every_text_has_an_interval_without_width",
    ),
    Bug(
        "study of blockwise: speed is the ratio the wrong way round",
        _STUDY + "blockwise_speed.py",
        "mean_interval(plain, own)",
        "mean_interval(own, plain)",
        _STUDY_TESTS + "test_speed_is_the_time_of_plain_decoding_by_that_of_the_other_way",
    ),
    Bug(
        "study of blockwise: the 2-gram model's place is taken by another model and weight",
        _STUDY + "blockwise.py",
        'HeadsDrafter(KatzDrafter(self._katz[2]), TOP_K, alphas["2-gram"])',
        'HeadsDrafter(KatzDrafter(self._katz[4]), TOP_K, alphas["neural"])',
        _STUDY_TESTS + "test_drafters_of_sampled_and_timed_texts_are_those_of_their_names",
    ),
)
