"""Imported tokenizers give the checkpoint's own ids, with those of padding, begin and end moved to 0, 1 and 2."""

import json
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.pretrained import gguf_file, hugging_face
from models.pretrained.tokenizer import PretrainedVocabulary
from models.vocabulary import BOS, EOS, PAD
from tests.models.pretrained.checkpoints import (
    MERGES,
    SPECIAL,
    sentence_pieces,
    tokens,
    write_folder,
    write_gguf,
)
from tests.models.texts import BROKE_OTHERS, HARD, TEXT

pytest.importorskip("gguf")

PIECES = sentence_pieces()[0]
KINDS = ("llama", "qwen2", "sentencepiece")
HOSTILE = {
    "internals": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    "changed messages": ("{{ messages.append(1) }}", "unsafe"),
    "syntax": ("{% for %}", "Expected an expression"),
    "undefined": ("{{ nothing.at.all }}", "'nothing' is undefined"),
    "refusal": ("{{ raise_exception('roles\nmust alternate') }}", "roles must alternate"),
    "huge loop": ("{% for i in range(10000000) %}x{% endfor %}", "Range too big"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
}


def read(folder, **arguments):
    write_gguf(folder / "model.gguf", **arguments)
    return gguf_file.read(folder / "model.gguf").vocabulary


def make_vocabulary(kind, folder):
    if kind == "sentencepiece":
        return read(folder, tokenizer="llama")
    return read(folder, architecture=kind)


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    return {kind: make_vocabulary(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def words(vocabularies):
    return vocabularies["llama"]


@pytest.fixture(scope="module")
def swapped(vocabularies):
    """The vocabulary whose special tokens have the last ids of the checkpoint, followed by unused ones."""
    return vocabularies["qwen2"]


@pytest.fixture(scope="module")
def pieces(vocabularies):
    return vocabularies["sentencepiece"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("llama", [SPECIAL[0], SPECIAL[1], SPECIAL[2]]),
        ("qwen2", [None, SPECIAL[0], SPECIAL[2]]),  # padding is a row of the embedding without a token
        ("sentencepiece", ["<unk>", "<s>", "</s>"]),
    ],
)
def test_ids_0_1_and_2_are_padding_begin_and_end(vocabularies, kind, expected):
    words = vocabularies[kind]
    names = PIECES if kind == "sentencepiece" else tokens(kind == "llama")
    own = words.rows(words.size)[[PAD, BOS, EOS]].tolist()
    assert [names[token] if token < len(names) else None for token in own] == expected
    assert words.pieces[:3] == (b"", b"", b"")
    assert words.start == BOS
    assert words.size == len(names) + (5 if kind == "qwen2" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_move_each_row_to_the_id_of_its_token(vocabularies, kind):
    words = vocabularies[kind]
    rows = words.rows(words.size + 4)
    assert sorted(rows) == list(range(words.size + 4))
    assert rows[words.size :].tolist() == list(range(words.size, words.size + 4))
    names = PIECES if kind == "sentencepiece" else tokens(kind == "llama")
    for text in ("the", "and", "é", "\n", "in 12"):
        for token in words.encode(text):
            name = names[rows[token]]
            if kind == "sentencepiece" and not name.startswith("<0x"):
                assert words.pieces[token] == name.replace("\u2581", " ").encode()
            elif name in "andthe":
                assert words.pieces[token] == name.encode()


@given(ids=st.permutations(range(6)).map(lambda order: tuple(order[:3])))
def test_any_three_ids_can_be_those_of_padding_begin_and_end(words, ids):
    moved = PretrainedVocabulary(words.tokenizer, words.size, ids)
    rows = moved.rows(words.size)
    assert tuple(rows[:3]) == ids
    assert sorted(rows) == list(range(words.size))
    # Only the three and the tokens that had their places have moved.
    assert {i for i, row in enumerate(rows) if i != row} <= {0, 1, 2, *ids}


@given(text=HARD)
def test_decode_returns_the_encoded_text(vocabularies, text):
    for kind in ("llama", "qwen2"):
        words = vocabularies[kind]
        ids = words.encode(text)
        assert words.decode(ids) == text
        assert all(type(token) is int and 3 <= token < words.size for token in ids)
        assert words.characters[ids].sum() == len(text)


@given(text=HARD)
def test_decode_returns_the_encoded_text_of_sentencepiece(pieces, text):
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text.replace("\u2581", " ")  # which stands for a space in all its pieces
    assert pieces.decode_bytes(ids) == ((" " if text else "") + text).replace("\u2581", " ").encode()
    assert all(3 <= token < pieces.size for token in ids)


@pytest.mark.parametrize("text", [*TEXT[:5], *BROKE_OTHERS, "".join(SPECIAL), "".join(PIECES[:5])])
def test_decode_returns_texts_that_broke_other_tokenisers(vocabularies, text):
    for kind, words in vocabularies.items():
        expected = text.replace("\u2581", " ") if kind == "sentencepiece" else text
        assert words.decode(words.encode(text)) == expected


def make_reference():
    """Builds the byte-level tokenizer of the library from the tokens, with the library's own rule of GPT-2."""
    import tokenizers

    vocabulary = {token: i for i, token in enumerate(tokens(special_first=False))}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in MERGES)]
    encoder = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    split = tokenizers.pre_tokenizers
    encoder.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    return encoder


@pytest.fixture(scope="module")
def last(tmp_path_factory):
    """The vocabulary of a checkpoint with GPT-2's rule whose special tokens come last: 263 and so on."""
    fields = {"tokenizer.ggml.pre": "smollm"}
    return read(tmp_path_factory.mktemp("last"), architecture="qwen2", fields=fields), make_reference()


@given(text=HARD)
def test_encode_gives_the_ids_of_the_tokenizers_library_with_three_swapped(last, text):
    words, reference = last
    first = len(tokens()) - 3
    swap = {0: first + 3, first + 3: 0, 1: first, first: 1, 2: first + 2, first + 2: 2}
    assert words.encode(text) == [swap.get(token, token) for token in reference.encode(text).ids]


@pytest.mark.parametrize("text", [*TEXT[:5], *BROKE_OTHERS])
def test_encode_gives_the_ids_of_the_tokenizers_library_on_the_unicode_corpus(last, text):
    words, reference = last
    assert words.rows(words.size)[words.encode(text)].tolist() == reference.encode(text).ids


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_looks_like_a_special_token_is_encoded_as_text(vocabularies, kind):
    words = vocabularies[kind]
    special = PIECES[:3] if kind == "sentencepiece" else SPECIAL
    for token in special:
        for text in (token, f"the {token} and", f"{token}{token}\n"):
            ids = words.encode(text)
            assert not {PAD, BOS, EOS} & set(ids)
            assert words.decode(ids) == text
            assert all(words.pieces[token] for token in ids)
            assert not {PAD, BOS, EOS} & {*words.prompt(text)[1 if words.reads_begin else 0 :]}


def test_chat_gives_the_ids_of_the_template_rendered_by_hand(words, swapped):
    for message in ("the and", "", "  two\n lines ", "é😀", "{{ messages }}"):
        # <|im_start|> is the begin token of the first, and the last but one of the tokens of the second.
        for vocabulary, begin in ((words, BOS), (swapped, len(tokens()) - 2)):
            user, assistant = vocabulary.encode(f"user\n{message}"), vocabulary.encode("assistant\n")
            expected = [begin, *user, EOS, *vocabulary.encode("\n"), begin, *assistant]
            assert vocabulary.chat(message) == expected


@pytest.mark.parametrize("token", SPECIAL)
def test_chat_refuses_a_message_with_a_special_token(words, token):
    with pytest.raises(ValueError, match=re.escape(f"the message holds the special token {token!r}: remove it")):
        words.chat(f"the {token} and")


def with_template(words, template):
    return PretrainedVocabulary(words.tokenizer, words.size, words.ids, words.start, words.reads_begin, template)


def test_chat_refuses_a_vocabulary_without_template(pieces):
    with pytest.raises(ValueError, match="the model has no chat template: use a prompt instead"):
        pieces.chat("the")


@pytest.mark.parametrize("name", HOSTILE)
def test_chat_refuses_a_template_that_fails_in_one_line(words, name):
    template, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=f"the model's chat template cannot be rendered: .*{reason}") as caught:
        with_template(words, template).chat("the")
    assert "\n" not in str(caught.value)


def test_chat_gives_the_template_the_begin_and_end_tokens(words, tmp_path):
    template = "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}{% for i in [1, 2] %}{% break %}{% endfor %}"
    assert with_template(words, template).chat("the") == [BOS, *words.encode("the"), EOS]
    fields = {"tokenizer.ggml.bos_token_id": None, "tokenizer.chat_template": template}
    assert read(tmp_path, fields=fields).chat("the") == [EOS, *words.encode("the"), EOS]


@pytest.mark.parametrize("call", ["encode", "prompt", "document", "chat"])
def test_lone_surrogates_are_refused_in_one_line(words, call):
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at index 2, made of a byte that is not UTF-8"):
        getattr(words, call)("ab\ud800")


def test_prompt_and_document_begin_as_the_checkpoint_says(words, pieces, tmp_path):
    assert (words.reads_begin, pieces.reads_begin) == (False, True)
    assert words.prompt("the") == words.encode("the")
    assert words.prompt("") == [BOS]
    assert pieces.prompt("the") == [BOS, *pieces.encode("the")]
    assert pieces.prompt("") == [BOS]
    for vocabulary in (words, pieces):
        assert vocabulary.document("the\nand") == [BOS, *vocabulary.encode("the\nand")]
    assert read(tmp_path, fields={"tokenizer.ggml.add_bos_token": True}).prompt("the") == [BOS, *words.encode("the")]


@pytest.mark.parametrize(
    ("fields", "start", "reads_begin"),
    [
        ({"tokenizer.ggml.bos_token_id": 2}, EOS, False),  # GPT-2 has one token for both
        ({"tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.add_bos_token": True}, EOS, True),
        ({"tokenizer.ggml.bos_token_id": None}, EOS, False),
        ({"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True}, EOS, False),
    ],
)
def test_texts_begin_with_the_end_token_if_there_is_no_other(fields, start, reads_begin, tmp_path):
    words = read(tmp_path, fields={**fields, "tokenizer.chat_template": None})
    assert words.ids == (0, 1, 2)  # the two other special tokens are unused
    assert (words.start, words.reads_begin) == (start, reads_begin)
    assert words.prompt("") == [EOS]
    assert words.prompt("the") == [EOS] * reads_begin + words.encode("the")
    assert words.document("the") == [EOS, *words.encode("the")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer.ggml.bos_token_id": 0}, "no token is unused and could become the padding"),
        ({"tokenizer.ggml.bos_token_id": 2}, "no token is unused and could become the padding"),
        ({"tokenizer.ggml.bos_token_id": 9999}, "the begin token has the id 9999, but there are 267 ids: damaged"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "the end token has the id 9999, but there are 267 ids: damaged"),
        ({"tokenizer.ggml.eos_token_id": None}, "the field tokenizer.ggml.eos_token_id is missing"),
        ({"tokenizer.ggml.merges": None}, "the field tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["t h", "th"]}, "a merge of the tokenizer is not a pair of pieces"),
        ({"tokenizer.ggml.merges": ["t h", "x q"]}, "the merge 'x' 'q' names no tokens: the file is damaged"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "267 tokens, but 2 types of tokens: the file is damaged"),
        ({"tokenizer.ggml.tokens": [*tokens(), "more"]}, "268 tokens, but the embedding has 267 rows"),
        ({"tokenizer.ggml.pre": "viking"}, "the pre-tokeniser 'viking' is unknown; the known ones: gpt-2, llama-bpe"),
        ({"tokenizer.ggml.pre": None}, "the pre-tokeniser '' is unknown"),
        ({"tokenizer.ggml.model": "bert"}, "a tokenizer of kind 'bert' cannot be imported; those that can: gpt2"),
        ({"tokenizer.ggml.model": "llama"}, "the field tokenizer.ggml.scores is missing"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0]}, "267 tokens, but 1 scores"),
    ],
)
def test_gguf_tokenizer_that_cannot_be_imported_is_refused_in_one_line(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, fields=fields)
    assert "model.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(decoder=None), "neither byte-level nor one with byte fallback"),
        (lambda content: content["model"].update(type="Unheard"), "tokenizer.json: the tokenizer cannot be imported"),
        (lambda content: content["model"].update(vocab=[["the", 0.0]]), "not the file of a BPE tokenizer"),
        (lambda content: content["added_tokens"].append({"id": 900, "content": "<x>"}), "has the id 900, but the"),
    ],
)
def test_hugging_face_tokenizer_that_cannot_be_imported_is_refused_in_one_line(change, message, tmp_path):
    write_folder(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        hugging_face.read(tmp_path / "model")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_an_equal_vocabulary_of_the_same_digest(vocabularies, kind):
    words = vocabularies[kind]
    again = PretrainedVocabulary.from_json(words.to_json())
    assert again == words
    assert (again.to_json(), again.digest) == (words.to_json(), words.digest)
    assert "\n" not in words.to_json()
    text = "the and 😀</s><|im_end|>"
    assert again.encode(text) == words.encode(text)


def test_digest_is_that_of_the_content(words, swapped, tmp_path):
    assert read(tmp_path).digest == words.digest
    others = [with_template(words, "x"), PretrainedVocabulary(words.tokenizer, words.size + 1, words.ids), swapped]
    assert words.digest not in {other.digest for other in others}


def test_both_file_formats_give_equal_vocabularies(words, tmp_path):
    write_folder(tmp_path / "model")
    assert hugging_face.read(tmp_path / "model").vocabulary == words


def test_vocabulary_can_be_pickled_after_use(vocabularies):
    for words in vocabularies.values():
        words.encode("the")
        again = pickle.loads(pickle.dumps(words))
        assert again == words and again.encode("the other") == words.encode("the other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "another format"),
        ({"ids": [0, 1]}, "not enough values"),
        ({"ids": [0, 1, 1]}, r"ids = \[0, 1, 1\]: must be three different integers from 0 to 266"),
        ({"ids": [0, 1, 267]}, "must be three different integers from 0 to 266"),
        ({"ids": None}, "not iterable"),
        ({"size": 100}, "the tokenizer has ids beyond the 100 of the model"),
        ({"size": "x"}, "not a vocabulary of an imported model"),
        ({"start": 0}, "start = 0: must be 1 or 2"),
        ({"more": 1}, "unexpected keyword argument 'more'"),
        ({"tokenizer": {}}, "not a vocabulary of an imported model"),
        ({"tokenizer": {"model": {"type": "BPE"}}}, "not a vocabulary of an imported model"),
    ],
)
def test_damaged_json_is_refused_in_one_line(words, change, message):
    content = {**json.loads(words.to_json()), **change}
    with pytest.raises(ValueError, match=message) as caught:
        PretrainedVocabulary.from_json(json.dumps(content))
    assert str(caught.value).startswith("not a vocabulary of an imported model") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "[" * 100_000])
def test_text_that_is_no_json_object_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="not a vocabulary of an imported model") as caught:
        PretrainedVocabulary.from_json(text)
    assert "\n" not in str(caught.value)
