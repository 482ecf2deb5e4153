"""Tokenizers built from the fields of a GGUF file encode as llama.cpp, sentencepiece and a slow definition do."""

import io

import pytest
import sentencepiece
from hypothesis import example, given
from hypothesis import strategies as st

from models.pretrained import gguf_file
from models.pretrained.tokenizer import PretrainedVocabulary
from models.pretrained.tokenizer_builders import sentence_piece
from tests.models.pretrained.checkpoints import MERGES, sentence_pieces, tokens, write_gguf
from tests.models.texts import HARD, TEXT
from tests.oracles import sentence_piece as oracle

pytest.importorskip("gguf")

TOKENS, TYPES, SCORES = sentence_pieces()
PLAIN = st.text(st.sampled_from("theandi  aé日x\n\x00😀") | st.characters(codec="utf-8"), max_size=40)


def read(folder, **arguments):
    write_gguf(folder / "model.gguf", **arguments)
    return gguf_file.read(folder / "model.gguf").vocabulary


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return read(tmp_path_factory.mktemp("pieces"), tokenizer="llama")


def test_llama_3_reads_its_begin_token_and_looks_words_up_before_it_merges(tmp_path):
    own = ["xyz", "Ġxyz"]  # no merges give them
    names = [*tokens()[: -len(own)], *own]
    fields = {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": names, "tokenizer.ggml.merges": MERGES[:-2]}
    words = read(tmp_path, fields=fields)
    assert words.reads_begin
    assert words.encode("xyz xyz") == [len(names) - 2, len(names) - 1]


@given(text=PLAIN)
@example("th hea and ana aaaaa the")  # pieces overlap: the score decides
def test_sentencepiece_ids_follow_its_definition(pieces, text):
    assert pieces.encode(text) == oracle.encode(TOKENS, SCORES, text)


def test_sentencepiece_falls_back_to_bytes_and_puts_a_space_before_the_text(pieces):
    assert [TOKENS[token] for token in pieces.encode("the 😀")] == [
        "\u2581the",
        "\u2581",
        *"<0xF0> <0x9F> <0x98> <0x80>".split(),
    ]
    assert [TOKENS[token] for token in pieces.encode("\n")] == ["\u2581", "<0x0A>"]
    assert pieces.encode("") == []
    assert pieces.characters[pieces.encode("the 😀")].sum() == 1 + len("the 😀")


def test_sentencepiece_merges_nothing_into_the_token_of_a_byte():
    names, scores = [*TOKENS, "<", "0", "x", "4", "1", ">", "<0", "<0x", "41", "41>"], [*SCORES, *range(-110, -100)]
    words = PretrainedVocabulary(sentence_piece(names, scores, names[:3], [], True), len(names), (0, 1, 2))
    assert [names[token] for token in words.encode("<0x41>")] == ["\u2581", "<0x", "41>"]
    assert words.encode("<0x41>") == oracle.encode(names, scores, "<0x41>")


def test_sentencepiece_puts_no_space_before_the_text_if_the_file_says_so(tmp_path):
    words = read(tmp_path, tokenizer="llama", fields={"tokenizer.ggml.add_space_prefix": False})
    for text in ("the and", " the", "", "\n"):
        assert words.encode(text) == oracle.encode(TOKENS, SCORES, text, add_space=False)
        assert words.decode(words.encode(text)) == text


def test_sentencepiece_tokens_of_users_are_found_in_plain_text(tmp_path):
    types = [4 if token == "aaaa" else kind for token, kind in zip(TOKENS, TYPES, strict=True)]
    words = read(tmp_path, tokenizer="llama", fields={"tokenizer.ggml.token_type": types})
    assert TOKENS.index("aaaa") in words.encode("theaaaathe")
    # Like llama.cpp, the library begins anew after such a token, with a space.
    assert words.decode(words.encode("theaaaathe")) == "theaaaa the"


@pytest.fixture(scope="module")
def peer():
    """A model that sentencepiece itself has trained, and the vocabulary built from its pieces and scores."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    scores = [processor.get_score(i) for i in range(processor.get_piece_size())]
    return processor, PretrainedVocabulary(sentence_piece(names, scores, names[:3], [], True), len(names), (0, 1, 2))


@given(text=HARD)
def test_sentencepiece_ids_equal_those_of_sentencepiece(peer, text):
    processor, words = peer
    text = text.replace("\x00", "")  # the end of a text for sentencepiece
    assert words.encode(text) == processor.encode(text)
