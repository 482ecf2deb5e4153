from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from models.decoding.drafters import ModelDrafter
from models.decoding.shared_vocabulary import SharedVocabularyDrafter
from models.pretrained.tokenizer import PretrainedVocabulary
from models.pretrained.tokenizer_builders import byte_level, sentence_piece
from models.recurrent_lm import RecurrentLanguageModel
from models.transformer.decoder import TransformerLanguageModel
from models.vocabulary import BOS, EOS, FIRST_BYTE, Vocabulary
from tests.models.decoding.drafter_tests import SLOW_BATCHES, DrafterTests
from tests.models.pretrained import checkpoints

pytest.importorskip("tokenizers")
BYTES = (b"",) * 3 + tuple(bytes([byte]) for byte in range(256))


def vocabulary(*merged):
    return Vocabulary(BYTES + tuple(text.encode() if isinstance(text, str) else text for text in merged))


TARGET = vocabulary("th", "the", " the", "an", "and", " a", " and", "re", "there", " there", "é")
SMALL = vocabulary("th", "the", " the", "an", "and", "in", "ing")


def imported(*more, reads_begin=False, begin=1):
    """A byte-level vocabulary of the kind of GPT-2's, with special tokens of its own ids, and more pieces.

    If the begin token is 2, it is the end token.
    """
    characters = checkpoints.byte_characters()
    tokens = checkpoints.tokens() + ["".join(characters[byte] for byte in piece.encode()) for piece in more]
    tokenizer = byte_level(tokens, checkpoints.MERGES, checkpoints.SPECIAL, [], "smollm", "test")
    return PretrainedVocabulary.arrange(tokenizer, len(tokens), begin, 2, [0, 1], reads_begin, None, "test")


def make_drafter(target, own, cell=True, **options):
    model: Any = RecurrentLanguageModel("si-cifg", own.size, embedding=6, units=8)
    if not cell:
        model = TransformerLanguageModel(own.size, embedding=8, blocks=1, heads=2, feed_forward=8, context=64)
    weights = {name: 3 * weight for name, weight in model.init(0).items()}
    return SharedVocabularyDrafter(ModelDrafter(model, weights), target, own, **options)


class TestSharedVocabulary(DrafterTests):
    size = TARGET.size
    within = 1e-3

    @pytest.fixture(params=SLOW_BATCHES)
    def batch(self, request):
        return request.param

    @pytest.fixture(params=["recurrent", pytest.param("transformer", marks=pytest.mark.slow)])
    def drafter(self, request):
        return make_drafter(TARGET, SMALL, request.param == "recurrent")

    def tokens(self, *shape, seed=0):
        """Half of the tokens are pieces, some of which the drafter lacks."""
        rng = np.random.default_rng(seed)
        pieces = rng.integers(FIRST_BYTE + 256, self.size, shape)
        return np.where(rng.random(shape) < 0.5, pieces, rng.integers(1, self.size, shape)).astype(np.int32)


def logits_after(drafter, ids):
    state = drafter.prefill(tf.constant([ids[:-1]], tf.int32), tf.constant([len(ids) - 1]), drafter.initial_state(1))
    return drafter.step(tf.constant(ids[-1:], tf.int32), state)[0][0].numpy()


def meanings(words):
    """Returns what each id stands for; None for nothing. Lines end with the end token in the library's vocabularies."""
    pieces: list[Any] = [piece or None for piece in words.pieces]
    if isinstance(words, Vocabulary):
        pieces[FIRST_BYTE + ord("\n")] = None
    pieces[EOS] = b"\n" if isinstance(words, Vocabulary) else "end"
    return pieces


def check(drafter, target, own, ids, read):
    """Asserts that the logits after the target's `ids` are those of the drafter's model after `read`, where shared."""
    found, model = logits_after(drafter, ids), logits_after(drafter.drafter, read)
    own_ids = {piece: token for token, piece in enumerate(meanings(own)) if piece}
    target_ids = {piece: token for token, piece in enumerate(meanings(target)) if piece}
    for token, piece in enumerate(meanings(target)):
        if piece in own_ids and target_ids[piece] == token:
            np.testing.assert_allclose(found[token], model[own_ids[piece]], atol=1e-4)
        else:
            assert found[token] == -np.inf


@pytest.mark.parametrize("max_pieces", [8, 2, 1])
def test_tokens_that_the_drafter_lacks_are_read_as_its_own_pieces(max_pieces):
    ids = [BOS, *TARGET.encode("the there and"), EOS, TARGET.encode(" there")[0]]
    assert len(ids) == 6
    drafter = make_drafter(TARGET, SMALL, max_pieces=max_pieces)
    parts = [[BOS], SMALL.encode("the"), SMALL.encode(" there"), SMALL.encode(" and"), [EOS], SMALL.encode(" there")]
    assert [len(part) for part in parts] == [1, 1, 3, 2, 1, 3]
    check(drafter, TARGET, SMALL, ids, [i for part in parts for i in part[-max_pieces:]])


def test_a_prompt_longer_than_a_part_is_read_whole():
    text = "the there and, there and the other; " * 4
    ids = TARGET.prompt(text)
    drafter = make_drafter(TARGET, SMALL)
    check(drafter, TARGET, SMALL, ids, [BOS, *[i for token in ids[1:] for i in SMALL.encode(TARGET.decode([token]))]])


def test_drafter_that_needs_a_begin_token_gets_one():
    """The imported target's prompts begin without one; the small model's always begin with one."""
    target = imported()
    ids = target.prompt("the the the")
    drafter = make_drafter(target, SMALL)
    check(drafter, target, SMALL, ids, [BOS, *SMALL.encode("the the the")])


@pytest.mark.parametrize("reads_begin", [False, True])
def test_begin_of_a_text_is_read_as_the_drafters(reads_begin):
    own = imported(reads_begin=reads_begin)
    ids = TARGET.prompt("the the the")
    check(make_drafter(TARGET, own), TARGET, own, ids, [own.start, *own.encode("the the the")])


def test_deployed_drafter_holds_its_weights_in_variables_and_drafts_the_same():
    drafter, held = make_drafter(TARGET, SMALL), []

    def hold(array):
        held.append(tf.Variable(array))
        return held[-1]

    deployed = drafter.deploy(8, hold, is_int8=False)
    tokens = tf.constant([FIRST_BYTE + 258])
    logits, _ = drafter.step(tokens, drafter.initial_state(1))
    assert len(held) == len(drafter.drafter.weights)
    np.testing.assert_array_equal(deployed.step(tokens, deployed.initial_state(1))[0], logits)
    held[0].assign(held[0] + 1)
    assert np.any(deployed.step(tokens, deployed.initial_state(1))[0] != logits)


@pytest.mark.parametrize("cell", [True, False])
def test_equal_vocabularies_give_the_models_logits_bit_for_bit(cell):
    drafter = make_drafter(TARGET, Vocabulary(TARGET.pieces), cell)
    assert drafter.overlap == 1 and drafter.coverage("the other") == 1
    ids = TARGET.prompt("the other there")
    np.testing.assert_array_equal(logits_after(drafter, ids), logits_after(drafter.drafter, ids))


def test_end_of_a_line_is_a_line_break_in_other_vocabularies():
    other = imported("the\n")
    line_break, both = other.pieces.index(b"\n"), other.pieces.index(b"the\n")
    the, its = SMALL.encode("the"), other.encode("the")
    check(make_drafter(other, SMALL), other, SMALL, [*its, line_break, *its, both], [BOS, *the, EOS, *the, *the, EOS])
    read = [other.start, *its, line_break, *its]
    check(make_drafter(SMALL, other), SMALL, other, [BOS, *the, EOS, *the], read)


@pytest.mark.parametrize("begin", [1, 2])
def test_end_token_of_two_imported_vocabularies_is_shared_also_if_texts_begin_with_it(begin):
    one, other = imported(begin=begin), imported("the\n")
    assert (one.start == EOS) == (begin == 2)
    ids = one.encode("the in")
    check(make_drafter(one, other), one, other, [*ids, EOS], [*other.encode("the in"), EOS])


def test_sentencepiece_vocabulary_reads_parts_of_words_without_a_space():
    """Its tokenizer puts a space before every text; a part of a word must not get one."""
    names, _, scores = checkpoints.sentence_pieces()
    tokenizer = sentence_piece(names, scores, names[:3], [], add_space=True)
    own = PretrainedVocabulary.arrange(tokenizer, len(names), 1, 2, [0], True, None, "test")
    target = vocabulary("then", "thein", " the", "é", "é".encode()[:1] + b"x")
    drafter = make_drafter(target, own)
    ids = [BOS, 3 + 256, 3 + 257, 3 + 260]
    place = own.pieces.index
    e_acute = [place(bytes([byte])) for byte in "é".encode()]
    read = [own.start, place(b"the"), _last(own, b"n"), place(b"the"), place(b"in"), e_acute[0], place(b"x")]
    check(drafter, target, own, ids, read)


def _last(own, piece):
    """Returns the id of a letter's own piece, which follows that of its byte."""
    found = [i for i, other in enumerate(own.pieces) if other == piece]
    assert len(found) == 2
    return found[-1]


def test_coverage_is_the_share_of_tokens_that_can_be_drafted():
    drafter = make_drafter(TARGET, SMALL)
    assert TARGET.encode("the there and") == [260, 268, 265]
    assert drafter.coverage("the there and") == pytest.approx(1 / 3)
    assert np.isnan(drafter.coverage(""))


def test_vocabularies_with_little_in_common_are_refused():
    foreign = vocabulary(*(f"ж{letter}" for letter in "абвгдежзик"), "th")
    drafter = make_drafter(TARGET, foreign, least_overlap=0.05)
    assert drafter.overlap == pytest.approx(1 / 11)
    with pytest.raises(ValueError, match=r"has 9.1% of the smaller vocabulary in common.*least_overlap = 0.1: .*use a"):
        make_drafter(TARGET, foreign)


def test_a_vocabulary_of_single_bytes_may_draft():
    assert make_drafter(TARGET, vocabulary()).overlap == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least_overlap": float("nan")}, "least_overlap = nan: must be a number from 0 to 1"),
        ({"least_overlap": 1.1}, "least_overlap = 1.1: must be"),
        ({"least_overlap": "x"}, "least_overlap = 'x': must be"),
        ({"least_overlap": True}, "least_overlap = True: must be"),
        ({"max_pieces": 0}, "max_pieces = 0: must be an integer >= 1"),
        ({"max_pieces": 2.0}, "max_pieces = 2.0: must be an integer >= 1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_drafter(TARGET, SMALL, **options)
