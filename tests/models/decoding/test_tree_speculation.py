"""Texts that are drafted as trees: batches, parts, penalties, log-probabilities and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.block_decoder import Request
from models.decoding.choices import Choices, Processing
from models.decoding.draft_options import DraftOptions
from models.decoding.drafters import ModelDrafter
from models.decoding.generator import Generator
from models.decoding.multi_path import MultiPath
from models.decoding.spectr import SpecTr
from models.decoding.traversal import Traversal
from models.decoding.tree_speculation import TreeSpeculation, _rank
from models.recurrent_lm import RecurrentLanguageModel
from models.token_tree import TokenTree
from models.transformer.decoder import TransformerLanguageModel
from tests.models.decoding.runs import Hesitant
from tests.models.decoding.table_model import TableModel, draw_table

SIZE = 23
PROMPTS = [[3, 1, 4], [5], [2, 2]]
OPTIONS: dict[str, Any] = {"temperature": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "top_p": 0.95}
FAMILIES: dict[str, Any] = {
    "recurrent": RecurrentLanguageModel("si-cifg", SIZE, embedding=6, units=8),
    "transformer": TransformerLanguageModel(SIZE, embedding=8, blocks=2, heads=2, feed_forward=8, context=64),
}
SLOW = [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (("spectr", "recurrent"), ("tree", "transformer"), ("spectr", "transformer"))
]


def draw_models(family):
    """Returns a model, its weights and a drafter that is often right."""
    model, generator = FAMILIES[family], np.random.default_rng(1)
    weights = {name: 2 * value for name, value in model.init(0).items()}
    near = {
        name: (value + 0.2 * value.std() * generator.standard_normal(value.shape)).astype(np.float32)
        for name, value in weights.items()
    }
    return model, weights, ModelDrafter(model.fit(48), near)


def log_probs_of(model, weights, prompt, tokens):
    """Returns the log-probability of each token under the model's softmax."""
    read = tf.constant([[*prompt, *tokens[:-1]]])
    logits, _ = model.extend(weights, read, model.initial_state(1))
    rows = tf.nn.log_softmax(logits)[0, len(prompt) - 1 :].numpy()
    return rows[np.arange(len(tokens)), tokens]


@pytest.mark.parametrize(("decoding", "family"), [("tree", "recurrent"), *SLOW])
def test_a_text_is_the_same_in_any_order_of_the_batch_and_in_parts(decoding, family):
    model, weights, drafter = draw_models(family)
    sizes: dict[str, Any] = {"draft_length": 2, "num_drafts": 3} if decoding == "spectr" else {"tree": (2, 2)}
    generator = Generator(model, weights, decoding, drafter, max_prompt=3, max_new_tokens=24, **sizes)
    whole = generator(PROMPTS, Choices(24, seed=5, **OPTIONS))
    assert whole.total.block_efficiency > 1.3
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(
            whole.unprocessed_log_probs[row], log_probs_of(model, weights, prompt, whole.tokens[row]), atol=1e-4
        )
    turned = generator(PROMPTS[::-1], Choices(24, seed=5, **OPTIONS), requests=[2, 1, 0])
    assert turned.tokens[::-1] == whole.tokens
    for one, other in zip(turned.acceptance[::-1], whole.acceptance, strict=True):
        assert replace(one, by_k_seq=0.0, by_best=0.0) == replace(other, by_k_seq=0.0, by_best=0.0)
        assert one.of_optimum == pytest.approx(other.of_optimum, rel=1e-5)
    parts = [generator(PROMPTS, Choices(7, seed=5, **OPTIONS))]
    for most in (1, 16):
        parts.append(generator.resume(parts[-1], Choices(most)))
    joined = [sum((part.tokens[row] for part in parts), []) for row in range(3)]
    assert joined == whole.tokens


def test_greedy_tree_at_temperature_zero_is_the_likeliest_text_with_few_calls():
    model, weights, drafter = draw_models("recurrent")
    generator = Generator(model, weights, "tree", drafter, tree=(3,), max_prompt=3, max_new_tokens=24)
    found = generator([PROMPTS[0]], Choices(24, temperature=0.0))
    text = list(PROMPTS[0])
    for _ in range(24):
        logits, _ = model.extend(weights, tf.constant([text]), model.initial_state(1))
        text.append(int(tf.argmax(logits[0, -1])))
    assert found.tokens[0] == text[3:]
    assert found.acceptance[0].calls < 20


def test_all_children_of_one_level_are_accepted_where_they_are_the_whole_vocabulary():
    model: Any = RecurrentLanguageModel("si-cifg", 4, embedding=3, units=3)
    drafter = ModelDrafter(model, model.init(1))
    generator = Generator(model, model.init(0), "tree", drafter, tree=(4,), max_prompt=2, max_new_tokens=12)
    assert generator([[1]], Choices(12)).acceptance[0].acceptance_rate == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": ()}, "^tree = .*: is empty; give the number of children by depth"),
        ({"tree": (2, 0)}, "^tree = .2, 0.: 0 must be an integer >= 1"),
        ({"tree": (70,)}, "^tree = .70,.: has 71 nodes with the root, more than 64; give fewer children"),
        ({"tree": 3}, "^tree = 3: must be the numbers of children by depth, for example .3, 1, 1, 1.$"),
        ({"tree": None}, "^tree = None: must be the numbers of children by depth"),
        ({"tree": "31"}, "^tree = '31': '3' must be an integer >= 1"),
        ({"num_drafts": 0}, "^num_drafts = 0: must be an integer >= 1"),
        ({"num_drafts": 2.5}, "^num_drafts = 2.5: must be an integer >= 1"),
    ],
)
def test_sizes_out_of_range_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        DraftOptions(2, **options)


def test_decodings_refuse_sizes_that_do_not_fit_them():
    model, weights, drafter = draw_models("recurrent")
    cases: tuple[tuple[str, dict[str, Any], str], ...] = (
        ("spectr", {"draft_length": 0}, "^draft_length = 0: must be an integer >= 1 for decoding 'spectr'$"),
        ("spectr", {"draft_length": 20, "num_drafts": 4}, "^num_drafts = 4: drafts of 20 tokens are 80 tokens"),
        ("tree", {"automatic": True}, "^draft_length = 'auto': decoding 'tree' drafts trees of one shape"),
        ("tree", {"tree": (30,)}, "^tree: a node has 30 children, more than the 23 tokens of the vocabulary"),
    )
    for decoding, sizes, message in cases:
        with pytest.raises(ValueError, match=message):
            Generator(model, weights, decoding, drafter, **sizes)


@pytest.mark.parametrize(
    ("rule", "tree", "message"),
    [
        (SpecTr(), TokenTree.from_shape((1, 2)), "^tree: must be separate chains for SpecTr, in which only the root"),
        (MultiPath(), TokenTree.from_shape((2, 2)), "^tree: must be separate chains for MultiPath, in which only"),
        (SpecTr(), TokenTree((-1, 0, 0, 1)), "^tree: nodes at one depth have different numbers of children"),
        (Traversal(), TokenTree((-1, 0, 0, 1, 1, 2)), "^tree: nodes at one depth have different numbers of children"),
        (Traversal(), TokenTree((-1,)), "^tree: has no node but the root, so that nothing is drafted"),
    ],
)
def test_trees_that_do_not_fit_the_rule_are_refused_in_one_line(rule, tree, message):
    model, weights, drafter = draw_models("recurrent")
    with pytest.raises(ValueError, match=message) as error:
        TreeSpeculation(model, weights, rule, drafter, tree)
    assert "\n" not in str(error.value)


def test_nothing_is_drafted_after_a_node_that_was_not_drafted():
    """The drafter proposes nothing after token 1, but would after the 0 in the place of a token that it lacks."""
    model, tree, rows = TableModel(draw_table(0, 4)), TokenTree.from_shape((2, 1, 1)), 200
    drafter = Hesitant(model, tf.constant(model.table), tf.constant([False, True, False, False]))
    target: Any = model
    own = TreeSpeculation(target, {}, Traversal("independent"), drafter, tree, penalties=False)
    asked = Request(tf.constant([1, 2]), tf.range(rows), Processing())
    state = own.begin(tf.constant([1, 3] * (rows // 2)), own.initial_state(rows))
    words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
    draft = own.draft(state, asked, words)
    tokens, is_real = (part.numpy() for part in draft.drafts[:2])
    assert is_real[:, 0].all()
    for node, parent in enumerate(tree.parents[1:], 1):
        np.testing.assert_array_equal(is_real[:, node], is_real[:, parent] & (tokens[:, parent] != 1))
    depths = np.max(np.where(is_real, tree.depths, 0), axis=1)
    assert set(depths) == {0, 1, 2, 3}
    block, _ = own.verify(state, draft, asked, tf.ones([rows], tf.bool))
    np.testing.assert_array_equal(block.drafted, depths)


def test_a_tree_without_room_in_the_context_is_refused():
    model, weights, _ = draw_models("transformer")
    drafter = ModelDrafter(model, weights)
    with pytest.raises(ValueError, match="max_new_tokens = 50 and 16 drafted tokens of two blocks do not fit"):
        Generator(model, weights, "tree", drafter, max_prompt=4, max_new_tokens=50)


@pytest.mark.parametrize("rule", [Traversal(), SpecTr()], ids=lambda rule: type(rule).__name__)
def test_host_may_mask_tokens_at_every_node(rule):
    model, weights, drafter = draw_models("recurrent")
    tree = TokenTree.from_shape((2, 1))
    own = TreeSpeculation(model, weights, rule, drafter, tree, penalties=False)
    asked = Request(tf.constant([1, 2]), tf.range(40), Processing())
    state = own.begin(tf.fill([40], 3), own.initial_state(40))
    words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
    draft = own.draft(state, asked, words)
    allowed = tf.broadcast_to(tf.range(SIZE) % 2 == 0, [40, len(tree), SIZE])
    block, _ = own.verify(state, draft, asked, tf.ones([40], tf.bool), allowed)
    assert np.all(block.tokens.numpy() % 2 == 0) and np.any(block.count.numpy() > 1)


def test_spectr_s_blocks_hold_the_distributions_of_their_first_token():
    model, tree, rows = TableModel(draw_table(0, 4)), TokenTree.chains(2, 2), 6
    other: Any = TableModel(draw_table(1, 4))
    drafter = ModelDrafter(other, {})
    target: Any = model
    last = tf.range(rows) % 4
    for rule in (SpecTr(), Traversal()):
        own = TreeSpeculation(target, {}, rule, drafter, tree, penalties=False)
        asked = Request(tf.constant([1, 2]), tf.range(rows), Processing())
        state = own.begin(last, own.initial_state(rows))
        words = tf.nest.map_structure(lambda part: part[:, 0], own.words(asked, state.position, 1))
        block, _ = own.block(state, asked, words, tf.ones([rows], tf.bool))
        if rule.drafting != "independent":
            assert block.first == ()
            continue
        for found, own_model in zip(block.first, (target, other), strict=True):
            logits, _ = own_model.extend({}, last[:, tf.newaxis], own_model.initial_state(rows))
            np.testing.assert_allclose(found, tf.nn.softmax(logits[:, 0]), atol=1e-6)


def test_certain_children_are_the_likeliest_tokens_of_a_drafter_that_leaves_tokens_out():
    """A drafter says with -inf that it never proposes a token."""
    logits = tf.constant([[-np.inf, 0.0, -np.inf, 2.0, 1.0, -np.inf]])
    processed = tf.where(tf.math.is_finite(logits), logits - 2, -1e4)
    assert tf.math.top_k(_rank(processed, logits), 3).indices.numpy().tolist() == [[3, 4, 1]]
    greedy = tf.constant([[-3e38, -3e38, -3e38, 0.0, -3e38, -3e38]])  # processing at temperature 0 leaves one
    assert tf.math.top_k(_rank(greedy, logits), 3).indices.numpy().tolist() == [[3, 4, 1]]
