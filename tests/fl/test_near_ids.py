import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl import clients
from fl.clients import TokenStore
from fl.near_ids import is_blank, near_equal, normalized
from tests.fl.rows import WORDS, Rows, two_clients

ANNA = ("anna", " anna", "anna ", "an\u200bna", "\ufeffanna", "anna\x00", "an\u00adna", "ａnna")
RENE = (unicodedata.normalize("NFC", "René B"), unicodedata.normalize("NFD", "René B"), "René\u00a0 B", "Ren\u00e9\tB")
SEVEN = ("7", "7.0", "7.00", " 7.0\n", "７")
IGNORED = tuple(
    "\ufe00\ufe0f\U000e0100\U000e01ef\u034f\u115f\u1160\u3164\uffa0\u17b4\u17b5\u180b\u180f\u2065\u2800\ufff8"
)
BLANK = ("", " ", "\t\n", "\x00", "\x7f\x1b", "\u200b\u200d", "\ufeff", "\u00a0\u3000", "\u2060")


@pytest.mark.parametrize("group", [ANNA, RENE, SEVEN])
def test_near_equal_spellings_have_one_normalized_form(group):
    assert {normalized(client_id) for client_id in group} == {normalized(group[0])}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("anna", "Anna"), ("ann a", "anna"), ("7", "70"), ("7", "7.5"), ("1.0.0", "1.0"), ("a.0", "a"), ("7", "-7")),
        *(("7", spelled) for spelled in ("07", "+7", "7.", "\u0667")),
    ],
)
def test_ids_of_two_people_keep_two_forms(one, other):
    assert normalized(one) != normalized(other)


@pytest.mark.parametrize("character", IGNORED)
def test_characters_that_unicode_ignores_by_default_do_not_tell_ids_apart(character):
    assert normalized(f"an{character}na{character}") == "anna"
    assert is_blank(character) and is_blank(f" {character}\t")


@pytest.mark.parametrize("zero", ["0", "-0", "0.0", "-0.0", " -0.00", "\uff0d0"])
def test_zero_has_one_normalized_form_whatever_its_sign(zero):
    assert normalized(zero) == "0"


def test_normalizing_any_one_character_twice_changes_nothing_more():
    forms = {normalized(chr(code)) for code in range(0x30000)}
    assert forms == {normalized(form) for form in forms}


@given(st.text(max_size=8) | st.from_regex(r"\A\s?-?\d{1,2}(\.0{1,2}){0,2}\s?\Z"))
def test_normalizing_twice_changes_nothing_more(client_id):
    assert normalized(normalized(client_id)) == normalized(client_id)


@pytest.mark.parametrize("client_id", BLANK)
def test_an_id_without_anything_to_see_is_blank(client_id):
    assert is_blank(client_id)


@pytest.mark.parametrize("client_id", ["a", ".", "0", " é ", "\x00a", "👩\u200d🚀"])
def test_an_id_with_something_to_see_is_not_blank(client_id):
    assert not is_blank(client_id)


@given(st.sets(st.text("aA \u200b7.0", max_size=4), max_size=12))
def test_near_equal_groups_are_those_of_the_normalized_form(client_ids):
    forms: dict[str, set[str]] = {}
    for client_id in client_ids:
        forms.setdefault(normalized(client_id), set()).add(client_id)
    wanted = sorted(sorted(group) for group in forms.values() if len(group) > 1)
    assert sorted(sorted(group) for group in near_equal(client_ids, client_ids)) == wanted


def spelled() -> Rows:
    pieces = [("anna ", ["one"]), ("7", ["x"]), ("an\u200bna", ["two", "three"]), ("7.0", ["y"]), ("ben ", ["z"])]
    return Rows([*pieces, ("anna ", ["four"])])


def test_a_store_counts_near_equal_ids_and_keeps_them_apart(tmp_path):
    store = TokenStore.build(tmp_path / "s", spelled(), WORDS)
    assert len(store.clients) == 5
    found = store.statistics
    assert (found.near_ids, found.near_groups, found.merged_ids) == (4, 2, False)
    assert found.near_examples == (r"'anna ' = 'an\u200bna'", "'7' = '7.0'")
    assert TokenStore.open(tmp_path / "s").statistics == found


def test_a_store_that_merges_ids_joins_each_group_with_its_text_in_order(tmp_path):
    store = TokenStore.build(tmp_path / "s", spelled(), WORDS, merge_ids="normalize")
    assert store.clients == ("7", "anna", "ben")
    words = [WORDS.decode(store.tokens(client).tolist()) for client in range(3)]
    assert words == ["xy", "onetwothreefour", "z"]
    assert (store.statistics.near_ids, store.statistics.near_groups, store.statistics.merged_ids) == (4, 2, True)
    assert store.statistics.sentences == 7


def test_min_tokens_counts_the_text_of_joined_ids_together(tmp_path):
    apart = TokenStore.build(tmp_path / "apart", spelled(), WORDS, min_tokens=5)
    joined = TokenStore.build(tmp_path / "joined", spelled(), WORDS, min_tokens=5, merge_ids="normalize")
    assert "7" not in apart.clients and "7" in joined.clients


def test_a_store_is_built_anew_when_ids_are_to_be_merged(tmp_path):
    TokenStore.build(tmp_path / "s", spelled(), WORDS)
    source = spelled()
    TokenStore.build(tmp_path / "s", source, WORDS, merge_ids="normalize")
    assert source.read == 1


def test_a_store_is_built_anew_when_the_rules_by_which_ids_are_compared_change(tmp_path, monkeypatch):
    TokenStore.build(tmp_path / "s", spelled(), WORDS)
    source = spelled()
    monkeypatch.setattr(clients, "_READING_RULES", clients._READING_RULES + 1)
    TokenStore.build(tmp_path / "s", source, WORDS)
    assert source.read == 1


def test_an_unknown_way_to_merge_ids_is_refused(tmp_path):
    with pytest.raises(ValueError, match="merge_ids = 'lower': give \"normalize\", or None"):
        TokenStore.build(tmp_path / "s", two_clients(), WORDS, merge_ids="lower")  # type: ignore[arg-type]
