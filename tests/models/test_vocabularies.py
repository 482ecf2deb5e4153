"""What every kind of vocabulary offers, and how the kind is told from the file."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from experiments import config_file, data
from fl.clients import TokenStore
from models import device, vocabularies, vocabulary
from models.export import export
from models.parity import check_parity
from models.pretrained import tokenizer_builders
from models.pretrained.tokenizer import PretrainedVocabulary
from models.recurrent_lm import RecurrentLanguageModel
from models.vocabularies import AnyVocabulary
from models.vocabulary import BOS, EOS, PAD
from tests.fl.rows import Rows
from tests.models.pretrained.checkpoints import MERGES, SPECIAL, sentence_pieces, tokens
from tests.models.texts import HARD, TEXT

pytest.importorskip("tokenizers")


def byte_level() -> PretrainedVocabulary:
    content = tokenizer_builders.byte_level(tokens(), MERGES, SPECIAL, [], "smollm", "test")
    return PretrainedVocabulary.arrange(content, len(tokens()), 1, 2, [0], False, None, "test")


def sentence_piece() -> PretrainedVocabulary:
    names, _, scores = sentence_pieces()
    content = tokenizer_builders.sentence_piece(names, scores, names[:3], [], True)
    return PretrainedVocabulary.arrange(content, len(names), 1, 2, [0], True, None, "test")


def without_begin() -> PretrainedVocabulary:
    content = tokenizer_builders.byte_level(tokens(), MERGES, SPECIAL, [], "smollm", "test")
    return PretrainedVocabulary.arrange(content, len(tokens()), None, 2, [0, 1], False, None, "test")


KINDS: dict[str, AnyVocabulary] = {
    "learned": vocabulary.learn(TEXT, 300),
    "byte-level": byte_level(),
    "sentencepiece": sentence_piece(),
    "without begin": without_begin(),
}
each_kind = pytest.mark.parametrize("words", [pytest.param(words, id=name) for name, words in KINDS.items()])


@each_kind
def test_ids_0_to_2_are_special_and_all_others_have_pieces(words):
    assert len(words.pieces) == words.size
    assert [token for token, piece in enumerate(words.pieces) if piece == b""] == [PAD, BOS, EOS]
    assert words.characters.dtype == np.int32 and words.characters.shape == (words.size,)
    assert words.characters[[PAD, BOS, EOS]].tolist() == [0, 0, 1]


@each_kind
@given(text=HARD)
def test_text_is_encoded_without_special_ids_and_decoded_again(words, text):
    ids = words.encode(text)
    assert all(type(token) is int and 3 <= token < words.size for token in ids)
    assert words.decode_bytes(ids) == b"".join(words.pieces[token] for token in ids)
    text = text.replace("\u2581", " ") if words is KINDS["sentencepiece"] else text
    assert words.decode(ids) == text
    assert words.decode_bytes(ids).decode() in (text, f" {text}")
    assert words.characters[ids].sum() == len(words.decode_bytes(ids).decode())


@each_kind
def test_prompts_and_documents_hold_the_text_and_are_never_empty(words):
    for text in ("", "the other"):
        prompt, document = words.prompt(text), words.document(text)
        assert prompt and document[0] == words.start
        assert words.start == (EOS if words is KINDS["without begin"] else BOS)
        assert words.decode(prompt) == words.decode(document) == text


@each_kind
def test_chat_is_refused_without_template(words):
    with pytest.raises(ValueError, match="the model has no chat template: use a prompt instead$"):
        words.chat("the")


@each_kind
def test_decode_replaces_half_a_character_and_gives_no_text_for_special_ids(words):
    half = words.pieces.index(b"\xc3")
    assert words.decode([BOS, half, EOS, PAD]) == "\ufffd"


@each_kind
def test_decode_refuses_an_id_outside_the_vocabulary(words):
    for token in (-1, words.size):
        for decode in (words.decode, words.decode_bytes):
            with pytest.raises(
                ValueError, match=f"{token} is outside the vocabulary: its ids are 0 to {words.size - 1}"
            ):
                decode([token])


@each_kind
def test_encode_refuses_a_lone_surrogate_in_one_line(words):
    for encode in (words.encode, words.prompt, words.document):
        with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at index 2.*give the text in UTF-8$") as caught:
            encode("ab\ud800")
        assert "\n" not in str(caught.value)


@each_kind
def test_load_gives_the_saved_vocabulary_of_its_kind(words, tmp_path):
    path = tmp_path / "vocabulary.json"
    words.save(path)
    for again in (vocabularies.load(path), vocabularies.from_json(words.to_json())):
        assert type(again) is type(words)
        assert again == words
        assert (again.digest, again.to_json()) == (words.digest, words.to_json())
    assert path.read_text() == f"{words.to_json()}\n"


def test_digests_of_all_kinds_differ():
    assert len({words.digest for words in KINDS.values()}) == len(KINDS)


@each_kind
def test_load_refuses_a_file_cut_short_in_one_line_that_names_it(words, tmp_path):
    path = tmp_path / "vocabulary.json"
    content = words.to_json().encode()
    lost = {key: value for key, value in json.loads(content).items() if key != "format"}
    for damaged in (b"", content[:-1], content[: len(content) // 2], b"\xff" + content, json.dumps(lost).encode()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: not a vocabulary") as caught:
            vocabularies.load(path)
        assert "\n" not in str(caught.value)


@each_kind
def test_save_leaves_the_old_file_if_the_disk_is_full(words, tmp_path, monkeypatch):
    path = tmp_path / "vocabulary.json"
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        words.save(path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["vocabulary.json"]


def test_a_missing_tokenizers_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match="tokenizers"):
        vocabularies.from_json(KINDS["byte-level"].to_json())


@each_kind
def test_models_are_trained_compared_and_evaluated_on_texts_that_begin_with_the_same_token(words, tmp_path):
    """A client's tokens, and the public text, are those of `document`, which the evaluation reads."""
    store = TokenStore.build(tmp_path / "store", Rows([("a", ["the other"])]), words, min_tokens=2)
    assert store.tokens(0).tolist() == [words.start, *words.encode("the other"), EOS]
    rows = data._public_sequences(config_file.load("demo", ()), ["the other"], words)
    assert rows[0][: len(store.tokens(0))].tolist() == store.tokens(0).tolist()
    assert words.document("the other")[0] == words.prompt("")[0] == words.start


@each_kind
def test_parity_check_begins_prompts_as_texts_begin(words, tmp_path, monkeypatch):
    model = RecurrentLanguageModel(cell="si-cifg", vocabulary_size=words.size, embedding=4, units=4)
    weights = model.init(0)
    export(model, weights, words, tmp_path / "model.tflite", max_prompt=2, max_new_tokens=2)
    begun = set()
    draw = device.DeviceModel.draw_in_graph

    def record(file, prompt, choices, **options):
        begun.add(prompt[0])
        return draw(file, prompt, choices, **options)

    monkeypatch.setattr(device.DeviceModel, "draw_in_graph", record)
    check_parity(model, weights, [tmp_path / "model.tflite"], sequences=2)
    assert begun == {words.start}


@pytest.mark.parametrize("kind", ["byte-level", "sentencepiece", "without begin"])
def test_json_of_an_imported_vocabulary_gives_its_ids_as_the_page_on_export_says(kind):
    from tokenizers import Tokenizer

    words = KINDS[kind]
    content = json.loads(words.to_json())
    page = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text()
    assert content["format"] in page and all(f"`{key}`" in page for key in content)
    order = list(range(content["size"]))
    for position, token in enumerate(content["ids"]):
        place = order.index(token)
        order[position], order[place] = order[place], order[position]
    tokenizer = Tokenizer.from_str(json.dumps(content["tokenizer"]))
    tokenizer.encode_special_tokens = True
    text = "the other <|im_end|> é"
    ids = [order.index(token) for token in tokenizer.encode(text, add_special_tokens=False).ids]
    assert ids == words.encode(text)
    assert tokenizer.decode([order[token] for token in ids]) == text
    assert words.prompt("a") == [content["start"]] * content["reads_begin"] + words.encode("a")
    assert words.prompt("") == [content["start"]]
