"""Lists bugs, many of other implementations, with the test that must catch each.

They are bugs of decoding, alignment, fairness and correlated noise.
"""

from tests.mutation.alignment import ALIGNMENT
from tests.mutation.bug import Bug
from tests.mutation.correlated import CORRELATED
from tests.mutation.fairness import FAIRNESS
from tests.mutation.refinement import REFINEMENT
from tests.mutation.several_drafts import SEVERAL_DRAFTS

__all__ = ["CATALOGUE", "Bug"]

_VERIFICATION = "models/decoding/verification.py"
_GREEDY = "models/decoding/greedy_block.py"
_PRNG = "models/decoding/prng.py"
_METHODS = "models/decoding/methods.py"
_SPECULATION = "models/decoding/speculation.py"
_TRAVERSAL = "models/decoding/traversal.py"
_SPECTR = "models/decoding/spectr.py"
_TREES = "models/decoding/tree_speculation.py"

_TESTS = "tests/models/decoding/"
_TOKEN_LAW = _TESTS + "test_verification.py::test_output_has_exactly_the_law_of_the_target[token-float64]"
_BLOCK_LAW = _TESTS + "test_verification.py::test_output_has_exactly_the_law_of_the_target[block-float64]"
_DRAWS = _TESTS + "test_verification.py::test_draws_have_the_law_of_the_rule[token]"
_WORDS = _TESTS + "test_keys.py::test_words_of_a_block_are_those_of_its_keys[4]"
_GREEDY_LAW = (
    _TESTS + "test_greedy_block.py::test_output_over_several_blocks_has_exactly_the_law_of_the_target[3-float64]"
)
_JOINT_LAW = _TESTS + "test_loop_law.py::test_joint_law_of_the_loop_is_that_of_the_target"
_EARLY_ENDS = _TESTS + "test_greedy_block.py::test_drafts_that_end_early_keep_the_law_of_the_target"

_TREE_LAW = _TESTS + "test_tree_rules.py::test_output_has_the_joint_distribution_of_the_target"
_K_SEQ_LAW = _TESTS + "test_k_seq.py::test_output_has_the_law_of_the_target_and_accepts_as_often_as_the_root_says"
_TREE_LOOP_LAW = _TESTS + "test_tree_loop_law.py::test_joint_law_of_texts_drafted_as_trees_is_that_of_the_target"

_RESIDUAL = "tf.nn.relu(target_weight[..., tf.newaxis] * target - drafter_weight[..., tf.newaxis] * drafter)"
_SCAN = "scan_from_the_end(weight, excess, excess + 1 - weight, weight, tf.ones_like(weight), lengths)"
_COUNT_ALL = """counts = tf.ones_like(accept[:, :1])
    for share in tf.split(tf.where(real, accept, 0.0), accept.shape[1], axis=1):
        counts = tf.pad(counts * (1 - share), [[0, 0], [0, 1]]) + tf.pad(counts * share, [[0, 0], [1, 0]])
    return _with_ends(counts, ones, ones, lengths)"""
_FIRST_REJECT = """reject = tf.pad(1 - stop[:, 1:], [[0, 0], [0, 1]], constant_values=1.0)
    survive = _products(stop[:, 1:])
    return _with_ends(survive * reject, target_weight, drafter_weight, lengths)"""

CATALOGUE = (
    Bug(
        "SpecTr draws with the random number of the whole block at every depth",
        _SPECTR,
        "uniform = (uniform - begin) / tf.where(width > 0, width, tf.ones_like(width))",
        "uniform = uniform + 0 * width",
        _TESTS + "test_tree_rules.py::test_spectr_draws_nodes_with_the_probabilities_of_all_nodes",
    ),
    Bug(
        "SpecTr follows drafts of another text after a token",
        _SPECTR,
        "alive &= tf.equal(tokens, token[:, tf.newaxis])",
        "alive &= tokens >= 0",
        _TESTS + "test_tree_rules.py::test_spectr_draws_nodes_with_the_probabilities_of_all_nodes",
    ),
    Bug(
        "temperature 0: a penalty does not stop the quick path",
        "models/decoding/block_decoder.py",
        "~tf.reduce_any(tf.stack(list(changes.values())))",
        '~changes["bias"]',
        _TESTS + "test_loop.py::test_requests_are_plain_if_the_temperature_alone_changes_logits",
    ),
    Bug(
        "draft by argmax, verified with soft probabilities",
        _METHODS,
        "sample_31(token_weights, noise.draft[0][:, place])",
        "tf.argmax(token_weights, axis=-1, output_type=tf.int32)",
        _JOINT_LAW + "[speculative-2]",
    ),
    Bug(
        "draft after top-k, verified with probabilities before it",
        _SPECULATION,
        "laws.append(drawn.law)",
        "laws.append(tf.nn.softmax(logits / request.processing.temperature))",
        _JOINT_LAW + "[speculative-2-top-k]",
    ),
    Bug(
        "token after a rejection drawn from the drafter",
        _VERIFICATION,
        _RESIDUAL,
        "tf.where(drafter_weight[..., tf.newaxis] > 0, drafter, target)",
        _TOKEN_LAW,
    ),
    Bug(
        "token after a rejection reuses the draft's noise",
        _PRNG,
        "(Stream.RESIDUAL, 0)",
        "(Stream.DRAFT, 0)",
        _TESTS + "test_keys.py::test_keys_give_the_law_of_the_target_over_several_blocks[token]",
    ),
    Bug(
        "noise reused in every block",
        _PRNG,
        "start[..., tf.newaxis], indices",
        "0 * start[..., tf.newaxis], indices",
        _WORDS,
    ),
    Bug(
        "noise of a draft keyed by position only",
        _PRNG,
        "start[..., tf.newaxis], indices",
        "start[..., tf.newaxis] + indices, 0",
        _WORDS,
    ),
    Bug(
        "noise of each position shared with the drafter, verified by ratio",
        _VERIFICATION,
        "for bonus, residual in zip(words.bonus, words.residual, strict=True)",
        "for bonus, residual in zip(words.bonus, [at(w, tf.minimum(accepted, w.shape[1] - 1)) for w in words.draft])",
        _JOINT_LAW + "[speculative-2]",
    ),
    Bug(
        "every row advances by the minimum of the batch",
        "models/decoding/block_decoder.py",
        "outcome.accepted[:, tf.newaxis]",
        "tf.zeros_like(outcome.accepted[:, tf.newaxis]) + tf.reduce_min(outcome.accepted)",
        _TESTS + "test_loop.py::test_text_does_not_depend_on_the_other_row_of_the_batch[block]",
    ),
    Bug(
        "processing with the history of the last position only",
        "models/decoding/history.py",
        "tf.pad(added, [[0, 0], [1, 0], [0, 0]])",
        "added[:, -1:] + tf.pad(tf.zeros_like(added), [[0, 0], [1, 0], [0, 0]])",
        _JOINT_LAW + "[block-2-hesitant-automatic-penalties-stop]",
    ),
    Bug(
        "draft length that looks at the current draft",
        _SPECULATION,
        "& (drawn.token >= 0)",
        "& (drawn.token >= 1)",
        _JOINT_LAW + "[block-2]",
    ),
    Bug(
        "drafter goes on from the end of its draft after a rejection",
        "models/decoding/drafters.py",
        "return self.model.select(states, kept)",
        "return states[-1]",
        _JOINT_LAW + "[greedy-block-3]",
    ),
    Bug(
        "drafter that reads along does not read the last drafted token",
        _SPECULATION,
        "states.append(_unless(is_beyond, states[-1], lambda: drafter.step(token, states[-1])[1]))",
        "states.append(states[-1])",
        _TESTS + "test_loop.py::test_a_drafter_equal_to_the_target_is_always_accepted[block]",
    ),
    Bug(
        "stop token inside a block ends the text after the block",
        "models/decoding/loop.py",
        "tf.reduce_sum(tf.cast(before_end & is_decided & (places < limit), tf.int32), axis=1)",
        "tf.reduce_sum(tf.cast(is_decided & (places < limit), tf.int32), axis=1)",
        _JOINT_LAW + "[block-2-hesitant-automatic-penalties-stop]",
    ),
    Bug(
        "tokens after the stop token are lost to the next call",
        "models/decoding/loop.py",
        "Pending(keep(lines[0]), decided - lengths,",
        "Pending(keep(lines[0]), 0 * decided,",
        _TESTS + "test_loop.py::test_a_text_in_parts_equals_the_text_in_one_call[block]",
    ),
    Bug(
        "stop sequence that begins in pending tokens is not found by the next call",
        "models/decoding/loop.py",
        "_Rows(done, pending.count, tail, records, compared)",
        "_Rows(done, pending.count, pending.tail, records, compared)",
        _TESTS + "test_loop.py::test_a_stop_sequence_of_a_pending_and_a_new_token_ends_the_text_there[block]",
    ),
    Bug(
        "evidence for draft lengths is forgotten between calls",
        "models/decoding/loop.py",
        "Progress(state, Pending(",
        "Progress(state._replace(evidence=tf.nest.map_structure(tf.zeros_like, state.evidence)), Pending(",
        _TESTS + "test_loop.py::test_a_text_in_parts_equals_the_text_in_one_call[automatic]",
    ),
    Bug(
        "drafter does not read the last token of a draft shorter than the longest",
        _SPECULATION,
        "place > tf.reduce_max(wanted)",
        "place >= tf.reduce_max(wanted)",
        _TESTS + "test_loop.py::"
        "test_a_drafter_equal_to_the_target_is_always_accepted_also_with_drafts_shorter_than_the_longest[block]",
    ),
    Bug(
        "random words of plain decoding repeat after 64 tokens",
        "models/decoding/numpy_loop.py",
        "len(prompt) + i + np.arange(BLOCK)",
        "len(prompt) + np.arange(BLOCK)",
        _TESTS + "test_numpy_loop.py::test_each_of_many_tokens_has_random_words_of_its_own",
    ),
    Bug(
        "races drawn in parts reuse the requests of the first part",
        "experiments/commands/couple.py",
        "requests[begin : begin + at_once]",
        "requests[: min(at_once, draws - begin)]",
        "tests/experiments/commands/test_couple.py::test_races_that_are_drawn_in_parts_are_those_of_one_call",
    ),
    Bug(
        "rows whose draft lengths vary read the other row's evidence",
        "models/decoding/draft_length.py",
        "return tf.argmax(tf.stack(speeds, axis=1), axis=1, output_type=tf.int32)",
        "return tf.argmax(tf.stack(speeds, axis=1), axis=1, output_type=tf.int32)[::-1]",
        _TESTS + "test_loop.py::test_automatic_draft_lengths_follow_the_evidence_of_earlier_blocks[block]",
    ),
    Bug(
        "bonus token from the wrong row of the target",
        _VERIFICATION,
        "at(target, accepted), drafter_row",
        "at(target, tf.minimum(accepted, drafter.shape[1] - 1)), drafter_row",
        _DRAWS,
    ),
    Bug(
        "residual with the drafter's next row",
        _VERIFICATION,
        "at(drafter, tf.minimum(accepted, ",
        "at(drafter, tf.minimum(accepted + 1, ",
        _DRAWS,
    ),
    Bug("epsilon in the residual", _VERIFICATION, _RESIDUAL, _RESIDUAL + " + 1e-2", _TOKEN_LAW),
    Bug(
        "counts all accepted tokens, not the prefix",
        _VERIFICATION,
        "return _with_ends(survive * reject, ones, ones, lengths)",
        _COUNT_ALL,
        _TOKEN_LAW,
    ),
    Bug(
        "block: stops with probability p",
        _VERIFICATION,
        _SCAN,
        "scan_from_the_end(weight, weight, tf.ones_like(weight), weight, tf.ones_like(weight), lengths)",
        _BLOCK_LAW,
    ),
    Bug(
        "block: stops at the first rejection",
        _VERIFICATION,
        "return _with_ends(stop * passed, target_weight, drafter_weight, lengths)",
        _FIRST_REJECT,
        _BLOCK_LAW,
    ),
    Bug("block: p is not clamped", _VERIFICATION, "tf.exp(walk - _running_maximum(walk))", "tf.exp(walk)", _BLOCK_LAW),
    Bug(
        "block: residual of the token rule",
        _VERIFICATION,
        _SCAN,
        _SCAN.replace(" weight, tf.ones_like(weight), lengths", " tf.ones_like(weight), tf.ones_like(weight), lengths"),
        _BLOCK_LAW,
    ),
    Bug(
        "block: last real token of a short draft treated as an inner one",
        _VERIFICATION,
        "tf.where(index == lengths[:, tf.newaxis], last, stop)",
        "tf.where(index == last.shape[1] - 1, last, stop)",
        _TESTS + "test_verification.py::test_ragged_rows_decide_as_shorter_drafts_do[block]",
    ),
    Bug(
        "accepts tokens that the drafter could not have drawn",
        _VERIFICATION,
        " & tf.equal(tf.cumsum(impossible, axis=1), 0)",
        "",
        _TESTS + "test_verification.py::test_a_token_that_the_drafter_could_not_have_drawn_ends_the_draft[token]",
    ),
    Bug(
        "greedy block: target left as it is",
        _GREEDY,
        "GREEDY_BLOCK = Verifier(greedy_block_rule, initial_carry, modify, advance)",
        "GREEDY_BLOCK = Verifier(greedy_block_rule)",
        _GREEDY_LAW,
    ),
    Bug("greedy block: change ends one position early", _GREEDY, " - used - 1\n", " - used - 2\n", _GREEDY_LAW),
    Bug(
        "greedy block: newest change first",
        _GREEDY,
        "for level in reversed(range(carry.share.shape[1])):",
        "for level in range(carry.share.shape[1]):",
        _GREEDY_LAW,
    ),
    Bug(
        "greedy block: ratio of accepted tokens clamped",
        _GREEDY,
        "tf.exp(tf.minimum(-(log_rho + last), 0.0))",
        "tf.exp(tf.minimum(-(tf.maximum(log_rho, 0.0) + last), 0.0))",
        _GREEDY_LAW,
    ),
    Bug(
        "greedy block: window ends with the draft that was drawn",
        _GREEDY,
        "limits = tf.fill(tf.shape(lengths), count)",
        "limits = lengths",
        _EARLY_ENDS + "[False]",
    ),
    Bug(
        "greedy block: drafter that proposes nothing taken for one that does",
        _GREEDY,
        "tf.where(proposes[..., tf.newaxis], drafter, tf.zeros_like(drafter))",
        "tf.where(proposes[..., tf.newaxis], drafter, target[:, :count])",
        _EARLY_ENDS + "[False]",
    ),
    Bug(
        "tree: weight of a child not clamped",
        _TRAVERSAL,
        "tf.minimum(ratio, 1.0)",
        "ratio",
        _TREE_LAW + "[tree-3-2x1]",
    ),
    Bug(
        "tree: weight after a rejection is the residual's mass",
        _TRAVERSAL,
        "tf.where(rejected > 0, mass / tf.where(rejected > 0, rejected, 1.0), 1.0)",
        "tf.minimum(mass, 1.0)",
        _TREE_LAW + "[tree-4-3]",
    ),
    Bug(
        "tree: certain child left in the residual",
        _TRAVERSAL,
        "rest = tf.where(is_token, 0.0, remaining)",
        "rest = remaining",
        _TREE_LAW + "[tree-4-3]",
    ),
    Bug(
        "tree: distribution of a child without its earlier siblings not normalised",
        "models/decoding/child_drafting.py",
        "    return normalized(base)\n\n\ndef normalized",
        "    return base\n\n\ndef normalized",
        _TREE_LAW + "[distinct-4-3]",
    ),
    Bug(
        "tree: words of the first depth used again at the next ones",
        _TREES,
        "words.draft[0][:, children.start - 1 : children.stop - 1]",
        "words.draft[0][:, : len(children)]",
        _TREE_LOOP_LAW + "[independent-2-top-k-2x2]",
    ),
    Bug(
        "tree: history of siblings counts",
        "models/decoding/history.py",
        "counts[parents[node]] + _one_hot",
        "counts[node - 1] + _one_hot",
        _TREE_LOOP_LAW + "[tree-2-hesitant-penalties-stop-3x2]",
    ),
    Bug(
        "spectr: drafts with another token go on",
        _SPECTR,
        "agree & equal & is_real",
        "agree & is_real",
        _TREE_LAW + "[spectr-3-2x1]",
    ),
    Bug(
        "spectr: number of drafts not counted anew",
        _SPECTR,
        "counts.append(tf.reduce_sum(tf.cast(alive, tf.int32), axis=2))",
        "counts.append(tf.fill(tf.shape(reach), chains))",
        _TREE_LAW + "[spectr-3-2x1]",
    ),
    Bug(
        "spectr: factor below its root",
        "models/decoding/k_seq.py",
        "    of_drafter = rho[:, tf.newaxis]",
        "    rho = tf.maximum(0.9 * rho, 1.0)\n    of_drafter = rho[:, tf.newaxis]",
        _K_SEQ_LAW + "[3-float64-1e-12-1e-09]",
    ),
    *SEVERAL_DRAFTS,
    *REFINEMENT,
    *ALIGNMENT,
    *FAIRNESS,
    *CORRELATED,
)
