"""Texts for the tests of vocabularies: plain ones, and ones that broke other tokenisers."""

from hypothesis import strategies as st

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "the other brother gathers the feathers, they're there together",
    "Größe, façade, naïve — 日本語 日本 日本語のテキスト 😀😀 😀",
    "tabs\tand\nnew lines  and   runs    of spaces",
    "counting 10 100 1000 10000 and 1000000 aaaa aaaaaaaa aaaaaa",
] * 3

BROKE_OTHERS = [
    "",
    "\u2581",
    "\u2581\u2581 \u2581",
    "\x00",
    "\r\n\n",
    " ",
    "    ",
    "a  b ",
    " lead",
    "👩‍👩‍👧‍👦",
    "<s></s><unk>",
    "\u202e\ufffe",
]

# The letters that the learned merges are made of, and characters that broke other tokenisers.
HARD = st.text(
    st.sampled_from("theorgas  \u2581\x00\n\t'😀é日本語\u0301\ufeff\ufffd\U0010ffff") | st.characters(codec="utf-8"),
    max_size=60,
)
