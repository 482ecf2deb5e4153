import json
import pickle
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from models import vocabulary
from models.vocabulary import BOS, EOS, PAD, Vocabulary
from tests.models.texts import BROKE_OTHERS, HARD, TEXT
from tests.oracles import bpe

BYTES = vocabulary.learn([], vocabulary.SMALLEST)


@pytest.fixture(scope="module")
def words():
    return vocabulary.learn(TEXT, 340)


@given(text=HARD)
def test_decode_returns_the_encoded_text(words, text):
    ids = words.encode(text)
    assert words.decode(ids) == text
    assert all(3 <= token < words.size for token in ids)


@pytest.mark.parametrize("text", BROKE_OTHERS)
def test_decode_returns_texts_that_broke_other_tokenisers(words, text):
    assert words.decode(words.encode(text)) == text


@given(text=HARD)
def test_encode_follows_the_definition(words, text):
    assert words.encode(text) == bpe.encode(words.pieces, text)


# A space stands only at the start of a piece: sentencepiece learns no other pieces, and `encode` cuts before spaces.
PIECE = st.builds(str.__add__, st.sampled_from(["", "", " "]), st.text("abc", min_size=2, max_size=4))


@settings(max_examples=400)
@given(
    pieces=st.lists(PIECE, unique=True, min_size=4, max_size=16),
    text=st.text("abc ", min_size=3, max_size=40),
)
def test_encode_follows_the_definition_for_random_pieces(pieces, text):
    # Overlapping pieces make many heap entries stale: a pair often loses one of its sides before its turn comes.
    words = Vocabulary(BYTES.pieces + tuple(piece.encode() for piece in pieces))
    assert words.encode(text) == bpe.encode(words.pieces, text)


@pytest.fixture(scope="module")
def peer(words):
    model = vocabulary.train_sentencepiece(TEXT, words.size - vocabulary.SMALLEST)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@given(text=HARD)
def test_encode_equals_sentencepiece_on_the_printable_stand_ins(words, peer, text):
    theirs = [piece.replace("\u2581", " ") for piece in peer.encode_as_pieces(vocabulary.to_printable(text.encode()))]
    assert [vocabulary.to_printable(words.pieces[token]) for token in words.encode(text)] == theirs


def test_ids_are_specials_then_bytes_then_merges(words):
    assert (PAD, BOS, EOS) == (0, 1, 2)
    assert words.size == len(words.pieces) == 340
    assert words.pieces[:3] == (b"", b"", b"")
    assert words.pieces[3:259] == tuple(bytes([byte]) for byte in range(256))
    # "th" and "he" are the most frequent pairs of the text, so each " the" becomes one token.
    assert len(words.encode(" the the")) == 2


def test_learn_gives_equal_vocabularies_for_equal_text(words):
    again = vocabulary.learn(iter(TEXT), 340)
    assert again == words
    assert again.digest == words.digest
    assert vocabulary.learn(TEXT, 339).digest != words.digest


def test_decode_gives_no_text_for_special_ids(words):
    assert words.decode([BOS, *words.encode("the end"), EOS, PAD, PAD]) == "the end"


def test_decode_replaces_half_a_character(words):
    assert words.decode([3 + 0xF0, 3 + 0x9F]) == "\ufffd"
    assert words.decode_bytes([3 + 0xF0, 3 + 0x9F]) == b"\xf0\x9f"


@pytest.mark.parametrize("token", [-1, 340])
def test_decode_refuses_an_id_outside_the_vocabulary(words, token):
    with pytest.raises(ValueError, match=f"{token} is outside the vocabulary: its ids are 0 to 339"):
        words.decode([token])


@given(text=HARD)
def test_characters_of_ids_sum_to_the_length_of_the_text(words, text):
    assert words.characters.dtype == np.int32
    assert words.characters[words.encode(text)].sum() == len(text)
    assert words.characters[[PAD, BOS, EOS]].tolist() == [0, 0, 1]


def test_encode_refuses_a_lone_surrogate_in_one_line(words):
    with pytest.raises(
        ValueError,
        match=r"lone surrogate '\\ud800' at index 2, made of a byte that is not UTF-8: give the text in UTF-8$",
    ):
        words.encode("ab\ud800")


@pytest.mark.parametrize(
    "line",
    ["e" * 1_000_000, "the" * 333_333, "é" * 500_000, " " * 1_000_000],
    ids=["one letter", "one word", "accents", "spaces"],
)
def test_a_huge_line_encodes_with_few_look_ups(counting, line):
    words, look_ups = counting
    assert words.decode(words.encode(line)) == line
    # One for each byte, and two for each merge, of which there are fewer than bytes: a quadratic encoder takes 10^12.
    assert len(look_ups) <= 3 * len(line.encode())


def test_work_grows_as_n_log_n_on_one_long_word(counting):
    words, look_ups = counting

    def work(size):
        look_ups.clear()
        words._encode_chunk("".join(random.Random(0).choices("theorgas", k=size)).encode())
        return len(look_ups)

    # Each may cost the logarithm of the heap's size. Linear: 8 times; n squared: 64 times.
    assert work(20_000) <= 3 * 20_000 and work(160_000) < 10 * work(20_000)
    assert max(look_ups) <= 2 * max(map(len, words.pieces))


@pytest.fixture
def counting(words):
    """The vocabulary, and the length of each piece that it looked up while it encoded."""
    look_ups: list[int] = []

    class Ranks(dict):
        def get(self, piece):
            look_ups.append(len(piece))
            return super().get(piece)

    counted = Vocabulary(words.pieces)
    counted.__dict__["_ranks"] = Ranks(words._ranks)  # where the cached property keeps it
    return counted, look_ups


def test_learn_accepts_words_longer_than_sentencepiece_does():
    words = vocabulary.learn(["xy" * 100_000, "日本" * 50_000, "xyxy"], 264)
    assert b"xy" in words.pieces


@given(text=HARD)
def test_load_returns_the_saved_vocabulary(words, tmp_path_factory, text):
    path = tmp_path_factory.mktemp("vocabulary") / "words.json"
    words.save(path)
    loaded = Vocabulary.load(path)
    assert loaded == words
    assert loaded.digest == words.digest
    assert loaded.encode(text) == words.encode(text)


def test_vocabulary_can_be_pickled_after_use(words):
    words.encode("the")
    assert pickle.loads(pickle.dumps(words)).encode("the other") == words.encode("the other")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[]", "no field 'format'"),
        (b'{"format": "another"}', "no field 'format'"),
        (b'{"format": "fedspeak vocabulary 1"}', "'merged' is not a list of strings"),
        (b'{"format": "fedspeak vocabulary 1", "merged": [3]}', "'merged' is not a list of strings"),
        ('{"format": "fedspeak vocabulary 1", "merged": ["日本"]}'.encode(), "'日' in 'merged' represents no byte"),
        (b'{"format": "fedspeak vocabulary 1", "merged": ["a"]}', "fewer than two bytes"),
        (b'{"format": "fedspeak vocabulary 1", "merged": ["ab", "ab"]}', "twice"),
    ],
)
def test_load_refuses_a_wrong_file_in_one_line(tmp_path, content, reason):
    path = tmp_path / "words.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="words.json"):
        Vocabulary.load(tmp_path / "words.json")


def test_save_leaves_the_old_file_if_it_fails(words, tmp_path, monkeypatch):
    path = tmp_path / "words.json"
    words.save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(vocabulary.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        vocabulary.learn(TEXT, 300).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["words.json"]


def test_learn_of_size_259_gives_single_bytes_without_text():
    assert vocabulary.learn([], 259).encode("é") == [3 + 0xC3, 3 + 0xA9]


@pytest.mark.parametrize(
    ("sentences", "size", "reason"),
    [
        (TEXT, 258, "size = 258: must be at least 259"),
        (TEXT, 262.0, "size = 262.0: must be an integer of at least 259"),
        ("a text", 300, "give a list of sentences"),
        ([], 300, "no text"),
        (["", ""], 300, "no text"),
        (["abc"], 300, r"size = 300: the text yields at most \d+: lower it, or use more text"),
        (["a\udc80"], 300, "lone surrogate"),
    ],
)
def test_learn_refuses_bad_arguments_in_one_line(sentences, size, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        vocabulary.learn(sentences, size)
    assert "\n" not in str(caught.value)


def test_learn_accepts_the_largest_size_that_its_error_names():
    with pytest.raises(ValueError, match="the text yields at most") as caught:
        vocabulary.learn(TEXT[:2], 5000)
    (largest,) = map(int, re.findall(r"at most (\d+)", str(caught.value)))
    assert vocabulary.learn(TEXT[:2], largest).size == largest


def test_learn_passes_on_an_error_raised_by_the_sentences():
    def broken():
        yield "abc"
        raise FileNotFoundError("no such play")

    with pytest.raises(FileNotFoundError, match="no such play"):
        vocabulary.learn(broken(), 300)


def test_json_is_the_same_after_a_round_trip(words):
    assert json.loads(words.to_json())["format"] == "fedspeak vocabulary 1"
    assert Vocabulary.from_json(words.to_json()).to_json() == words.to_json()


def test_encode_loads_neither_tensorflow_nor_sentencepiece(words, tmp_path):
    words.save(tmp_path / "words.json")
    code = (
        "import sys; from models.vocabulary import Vocabulary;"
        f"Vocabulary.load({str(tmp_path / 'words.json')!r}).encode('the');"
        "print(sorted({'tensorflow', 'keras', 'sentencepiece'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
