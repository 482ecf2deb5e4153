"""Trees of drafted tokens: topology, shapes as text, and models that read them compiled by XLA and in TFLite."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from models.language_model import LanguageModel
from models.recurrent_lm import RecurrentLanguageModel
from models.token_tree import MAX_NODES, TokenTree, format_shape, parse_shape
from models.transformer.decoder import TransformerLanguageModel
from tests.models.language_models import make_tokens, make_weights
from tests.models.tree_tests import TREE
from tests.tolerance import condition, rounding

V = 11
MODELS: dict[str, LanguageModel] = {
    "transformer": TransformerLanguageModel(V, 8, 1, 4, 12, context=20, key_value_heads=2, positions="learned"),
    "recurrent": RecurrentLanguageModel("si-cifg", V, 8, 12, output_bias=True),
}


@st.composite
def trees(draw):
    parents = [-1]
    for node in range(1, draw(st.integers(1, 16))):
        parents.append(draw(st.integers(max(parents[-1], 0), node - 1)))
    return TokenTree(tuple(parents))


def walk(tree, node):
    """Returns the path from the root to a node."""
    return [] if node < 0 else [*walk(tree, tree.parents[node]), node]


@given(trees())
@settings(max_examples=50, deadline=None)
def test_ancestors_depths_and_paths_are_those_of_a_walk_to_the_root(tree):
    for node in range(len(tree)):
        path = walk(tree, node)
        assert np.flatnonzero(tree.ancestors[node]).tolist() == path
        assert tree.depths[node] == len(path) - 1
        assert tree.paths[node].tolist() == path + [node] * (len(tree.levels) - len(path))
    assert tree.paths.dtype == tree.depths.dtype == np.int32


@given(trees())
@settings(max_examples=50, deadline=None)
def test_levels_and_children_list_every_node_once_in_order(tree):
    assert [node for level in tree.levels for node in level] == list(range(len(tree)))
    for depth, level in enumerate(tree.levels):
        assert {int(tree.depths[node]) for node in level} == {depth}
    assert [child for children in tree.children for child in children] == list(range(1, len(tree)))
    for node, children in enumerate(tree.children):
        assert all(tree.parents[child] == node for child in children)


@given(trees())
@settings(max_examples=50, deadline=None)
def test_post_order_puts_children_in_drafting_order_before_their_parent(tree):
    # Behind every node on a path, a parent's own place comes last.
    expected = sorted(range(len(tree)), key=lambda node: [*walk(tree, node), len(tree)])
    assert list(tree.post_order) == expected


@given(st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_from_shape_gives_each_node_of_a_level_its_number_of_children(shape):
    tree = TokenTree.from_shape(shape)
    assert len(tree.levels) == len(shape) + 1
    for level, children in zip(tree.levels, [*shape, 0], strict=True):
        assert {len(tree.children[node]) for node in level} == {children}
    assert parse_shape(format_shape(shape)) == tuple(shape)


def test_chains_are_shapes_with_one_child_after_the_root():
    assert TokenTree.chain(3) == TokenTree((-1, 0, 1, 2)) == TokenTree.from_shape((1, 1, 1))
    assert TokenTree.chains(2, 3) == TokenTree.from_shape((2, 1, 1))
    assert len(TokenTree.chain(63)) == MAX_NODES
    assert TokenTree.chain(3).is_chain and TokenTree((-1,)).is_chain
    assert not TokenTree.chains(2, 1).is_chain


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", "tree = ' ': is empty; give the number of children by depth, for example 3,1,1,1"),
        ("3,one", "tree = '3,one': must be integers separated by commas, for example 3,1,1,1"),
        ("3,", "tree = '3,': must be integers separated by commas, for example 3,1,1,1"),
        ("3,0", "tree = '3,0': 0 must be an integer >= 1, for example 3,1,1,1"),
        ("63,1", "tree = '63,1': has 127 nodes with the root, more than 64; give fewer children"),
        *(
            (text, f"tree = '{text}': must be integers separated by commas, for example 3,1,1,1")
            for text in ("1_0", "+2", "-2", "３,1", "2²", "1.0")
        ),
        ("9" * 40, f"tree = '{'9' * 40}': has 1000000 or more nodes with the root, more than 64; give fewer children"),
        ("9" * 5000, f"tree = '{'9' * 40}…': must be integers separated by commas, for example 3,1,1,1"),
        ("x," * 900, f"tree = '{'x,' * 20}…': must be integers separated by commas, for example 3,1,1,1"),
        ("2," * 60 + "0", f"tree = '{'2,' * 20}…': 0 must be an integer >= 1, for example 3,1,1,1"),
    ],
)
def test_parse_shape_refuses_what_is_no_shape_of_a_small_tree(text, message):
    with pytest.raises(ValueError) as error:
        parse_shape(text)
    assert str(error.value) == message


def test_parse_shape_takes_spaces_between_entries():
    assert parse_shape(" 3, 1,1 ") == (3, 1, 1)


@pytest.mark.parametrize(
    ("parents", "is_even", "are_separate_chains"),
    [
        ((-1,), True, False),
        ((-1, 0, 1), True, True),
        ((-1, 0, 0, 1, 2), True, True),
        ((-1, 0, 0, 1, 1, 2, 2), True, False),
        ((-1, 0, 1, 1), True, False),
        ((-1, 0, 0, 1), False, False),
        ((-1, 0, 0, 1, 1, 2), False, False),
    ],
)
def test_even_trees_and_separate_chains_are_told_from_others(parents, is_even, are_separate_chains):
    tree = TokenTree(parents)
    assert (tree.is_even, tree.are_separate_chains) == (is_even, are_separate_chains)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TokenTree.from_shape(()), r"tree = \(\): is empty"),
        (lambda: TokenTree.from_shape((2, True)), r"tree = \(2, True\): True must be an integer >= 1"),
        (lambda: TokenTree.from_shape((8, 8)), r"tree = \(8, 8\): has 73 nodes with the root, more than 64"),
        (lambda: TokenTree.chain(0), "length = 0: must be an integer from 1 to 63"),
        (lambda: TokenTree.chains(2.0, 1), "num_drafts = 2.0: must be an integer from 1 to 63"),  # type: ignore[arg-type]
        (lambda: TokenTree.chains(8, 8), "has 65 nodes with the root, more than 64"),
        (lambda: TokenTree.from_shape(3), "tree = 3: must be the numbers of children by depth"),  # type: ignore[arg-type]
        (lambda: TokenTree.from_shape([1] * 900), r"tree = \[1, .*…: has 901 nodes with the root, more than 64"),
        (lambda: TokenTree((-1, 0.0, 0.5)), r"parents = \(-1, 0.0, 0.5\): must be integers"),  # type: ignore[arg-type]
        (lambda: TokenTree((-1, False)), r"parents = \(-1, False\): must be integers"),
        (lambda: TokenTree(()), r"parents = \(\): must be -1, then"),
        (lambda: TokenTree((-1, 1)), "must be -1, then the number of an earlier node for each node"),
        (lambda: TokenTree((-1, 0, 0, 2, 1)), "must not decrease; number the nodes level by level"),
        (lambda: TokenTree((-1, *[0] * 64)), "parents: 65 nodes are more than 64"),
    ],
)
def test_trees_of_other_forms_are_refused(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


KEPT = (0, 4, 6, 7)


@pytest.fixture(params=list(MODELS), scope="module")
def reading(request):
    """Returns weights as variables, a function that reads a tree, keeps a path and reads one more token, its inputs,
    the logits that it gives in eager mode for each of `KEPT`, and their rounding."""
    model = MODELS[request.param]
    # Half as large: a recurrence with larger weights amplifies rounding without a bound.
    weights = {name: 0.5 * weight for name, weight in make_weights(model, dtype=np.float32).items()}
    module = tf.Module()
    module.held = {name: tf.Variable(weight) for name, weight in weights.items()}
    generator = np.random.default_rng(5)
    values = tf.nest.map_structure(lambda part: generator.normal(size=part.shape), model.initial_state(1))

    def read(tokens, kept, more, length, weights=module.held):
        state = tf.nest.map_structure(
            lambda part, value: length if part.dtype == tf.int32 else tf.constant(value, tf.float32),
            model.initial_state(1),
            values,
        )
        logits, trail = model.extend(weights, tokens, state, TREE)
        after, _ = model.extend(weights, more, model.rewind(trail, kept, TREE))
        return tf.concat([logits, after], axis=1)

    length = np.array([3], np.int32)
    inputs = {"tokens": make_tokens(1, len(TREE)), "more": make_tokens(1, 1, seed=2), "length": length}
    expected = [read(**inputs, kept=np.array([kept], np.int32)) for kept in KEPT]

    def deepest(changed):
        return [read(**inputs, kept=np.array([KEPT[-1]], np.int32), weights=changed)]

    # Both models do fewer than 250 operations for a token, of which the longest path and the one after it have 5.
    return module, read, inputs, expected, rounding(5 * 250, condition(deepest, weights))


@pytest.mark.numerical
def test_xla_reads_a_tree_as_eager_mode_does(reading):
    _, read, inputs, expected, within = reading
    compiled = tf.function(read, jit_compile=True, autograph=False)
    for kept, logits in zip(KEPT, expected, strict=True):
        found = compiled(**{name: tf.constant(value) for name, value in inputs.items()}, kept=tf.constant([kept]))
        np.testing.assert_allclose(found, logits, rtol=0, atol=within)


@pytest.fixture(scope="module")
def runner(reading):
    """Returns the function as a signature in TFLite, converted with builtin ops alone."""
    module, read, inputs, *_ = reading
    specs = {name: tf.TensorSpec(value.shape, tf.int32, name) for name, value in inputs.items()}
    signature = tf.function(lambda tokens, kept, more, length: read(tokens, kept, more, length), autograph=False)
    graph = signature.get_concrete_function(**specs, kept=tf.TensorSpec([1], tf.int32, "kept"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([graph], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return tf.lite.Interpreter(model_content=converter.convert()).get_signature_runner()


@pytest.mark.numerical
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tflite_reads_a_tree_with_builtin_ops_as_eager_mode_does(reading, runner):
    _, _, inputs, expected, within = reading
    for kept, logits in zip(KEPT, expected, strict=True):
        (found,) = runner(**inputs, kept=np.array([kept], np.int32)).values()
        np.testing.assert_allclose(found, logits, rtol=0, atol=within)


@pytest.mark.parametrize("reading", ["transformer"], indirect=True)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tflite_gives_nan_logits_for_a_tree_that_does_not_fit_in_the_cache(reading, runner):
    _, _, inputs, *_ = reading
    for length, is_too_long in ((20 - len(TREE), False), (21 - len(TREE), True)):
        (logits,) = runner(**{**inputs, "length": np.array([length], np.int32)}, kept=np.array([7], np.int32)).values()
        np.testing.assert_array_equal(np.isnan(logits[:, : len(TREE)]), is_too_long)
