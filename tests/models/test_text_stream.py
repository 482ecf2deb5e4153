"""Text ends before a stop string, however it comes in pieces, and nothing of the string is given out before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text_stream import stop_before

PIECES = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=8)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


@given(PIECES, STOPS)
def test_text_ends_before_the_first_stop_string(pieces, stops):
    text = "".join(pieces)
    places = [text.find(stop) for stop in stops if stop in text]
    # Strings that begin at one place end together; the text before the earliest one stays.
    assert "".join(stop_before(pieces, stops)) == text[: min(places, default=len(text))]


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
