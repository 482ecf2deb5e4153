"""Text ends before a stop string, however it comes in pieces, and nothing of the string is given out before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text_stream import stop_before

PIECES = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=8)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS)
def test_text_ends_before_the_stop_string_that_ends_first_however_it_is_divided(pieces, stops):
    text = "".join(pieces)
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    expected = text[: min(found)[1]] if found else text
    assert "".join(stop_before(pieces, stops)) == "".join(stop_before(text, stops)) == expected


@pytest.mark.parametrize("pieces", [["abcd"], ["abc", "d"], ["a", "b", "c", "d"]])
def test_of_overlapping_stop_strings_the_one_that_ends_first_counts(pieces):
    assert "".join(stop_before(pieces, ["bcd", "c"])) == "ab"
    assert "".join(stop_before(pieces, ["c", "bc"])) == "a"


def test_pieces_come_as_soon_as_they_cannot_begin_a_stop_string():
    given_out = stop_before(iter(["one ", "two\n", "\nthree"]), ["\n\n"])
    assert list(given_out) == ["one ", "two"]
    assert list(stop_before(["a\n", "b"], ["\n\n"])) == ["a", "\nb"]
    assert list(stop_before(["ab"], [])) == ["ab"]


def test_drawing_ends_with_the_stop_string():
    drawn = []

    def draw():
        for piece in "abcdef":
            drawn.append(piece)
            yield piece

    assert "".join(stop_before(draw(), ["cd"])) == "ab"
    assert drawn == list("abcd")


def test_an_empty_stop_string_is_refused_before_the_first_piece():
    with pytest.raises(ValueError, match="stop_texts = .'x', ''.: must not hold an empty string; drop it"):
        stop_before([], ["x", ""])
