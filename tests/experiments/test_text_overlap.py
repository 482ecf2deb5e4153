import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import text_overlap
from experiments.text_overlap import describe_overlap, digest_text

WORDS = st.lists(st.text("abcdeé", min_size=1, max_size=3), max_size=30)


def text(seed: int, words: int) -> str:
    """Returns random words; that two of a million passages are equal has a probability below 1e-12."""
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 1 << 20, words))


@given(WORDS, st.data())
def test_digests_depend_neither_on_line_breaks_nor_on_case_and_punctuation(words, draw):
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(words)), max_size=4)))
    parts = [words[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(words)], strict=True)]
    changed = ["  ".join(f"“{word.upper()}”," for word in part) + "\n" for part in parts]
    np.testing.assert_array_equal(digest_text(changed).passages, digest_text([" ".join(words)]).passages)


@given(WORDS)
def test_each_different_run_of_eight_words_has_a_digest_of_its_own(words):
    passages = {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
    digests = digest_text([" ".join(words)]).passages
    assert len(digests) == len(passages)
    assert (digests[1:] > digests[:-1]).all()


def test_digests_do_not_depend_on_how_much_is_digested_at_once(monkeypatch):
    sentences = [text(seed, 5 + seed % 7) for seed in range(60)]
    whole = digest_text(sentences)
    monkeypatch.setattr(text_overlap, "_WORDS_AT_ONCE", 20)
    for own, expected in zip(digest_text(sentences), whole, strict=True):
        np.testing.assert_array_equal(own, expected)


def test_smallest_digests_of_a_long_text_are_kept(monkeypatch):
    whole = digest_text([text(0, 500)]).passages
    monkeypatch.setattr(text_overlap, "_KEPT", 64)
    monkeypatch.setattr(text_overlap, "_WORDS_AT_ONCE", 50)
    np.testing.assert_array_equal(digest_text(text(0, 500).split()).passages, whole[:64])


def test_digests_are_evenly_distributed():
    """Which passages are kept must not depend on the words. Of 16 equal parts, each has n/16 digests: chi-squared with
    15 degrees of freedom is above 60 with probability 2e-7. Without the mixing it is above 1,000."""
    for words in (text(0, 20_000), " ".join(map(str, range(20_000)))):
        counts = np.bincount((digest_text([words]).passages >> np.uint64(60)).astype(int), minlength=16)
        assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 60


def test_text_of_one_client_in_another_text_is_found():
    trained_on = digest_text([text(0, 500), text(1, 47), text(2, 500)])
    strangers = [(f"c{seed}", [text(seed, 1000)]) for seed in range(3, 20)]
    assert describe_overlap(trained_on, strangers) is None
    assert (
        describe_overlap(trained_on, [*strangers, ("ada", [text(1, 47)])])
        == "it holds 100% of the text of client 'ada'"
    )
    # The last words of the text, and nothing of which it is less than half.
    own = " ".join(text(2, 500).split()[-60:])
    assert "'ada'" in str(describe_overlap(trained_on, [*strangers, ("ada", [own, text(30, 40)])]))
    assert describe_overlap(trained_on, [*strangers, ("ada", [own, text(30, 80)])]) is None


def test_quotation_of_fewer_than_forty_passages_is_taken_for_chance():
    trained_on = digest_text([text(0, 1000)])
    words = text(0, 1000).split()
    assert describe_overlap(trained_on, [("ada", words[:46])]) is None
    assert describe_overlap(trained_on, [("ada", words[:47])]) is not None


@pytest.mark.parametrize(("quoted", "overlap"), [(10, None), (60, "it holds 1.1% of their text")])
def test_text_of_many_clients_is_found_though_each_quotes_little(quoted, overlap):
    """Each client has 1000 words, of which one in five quotes so many from the other text."""
    words = text(0, 2000).split()
    clients = [(f"c{i}", [text(i, 1000), *(words[60 * i :][:quoted] if i % 5 == 1 else [])]) for i in range(1, 21)]
    found = describe_overlap(digest_text(words), clients)
    assert found == overlap


def test_text_of_a_client_is_found_where_only_a_part_of_the_digests_is_kept(monkeypatch):
    """One in 20 of 20,000 passages is kept, so about 25 of the client's 493, and more than 3 with a probability above
    1 - 1e-7."""
    monkeypatch.setattr(text_overlap, "_KEPT", 1000)
    trained_on = digest_text([text(0, 500), text(1, 19_500)])
    assert len(trained_on.passages) == 1000
    assert describe_overlap(trained_on, [("ada", [text(0, 500)])]) == "it holds 100% of the text of client 'ada'"
    assert describe_overlap(trained_on, [("bob", [text(2, 20_000)])]) is None


def test_nothing_is_found_in_no_text():
    assert describe_overlap(digest_text([]), [("ada", [text(0, 100)])]) is None
    assert describe_overlap(digest_text([text(0, 100)]), [("ada", [])]) is None
    assert describe_overlap(digest_text([text(0, 100)]), []) is None


def messages(seed: int, count: int, form: str = "w{}") -> list[str]:
    """Returns random lines of 3 to 7 words, in which no eight words stand together."""
    generator = np.random.default_rng(seed)
    return [
        " ".join(form.format(number) for number in generator.integers(1000, 1 << 20, generator.integers(3, 8)))
        for _ in range(count)
    ]


def shuffled(lines: list[str]) -> list[str]:
    return [lines[i] for i in np.random.default_rng(0).permutation(len(lines))]


@pytest.mark.parametrize("arrange", [sorted, shuffled, lambda lines: [f"  {line.upper()} !" for line in sorted(lines)]])
def test_short_lines_of_a_client_are_found_in_any_order(arrange):
    others = [line for seed in range(3, 9) for line in messages(seed, 300)]
    own = messages(1, 30)
    trained_on = digest_text(arrange(others + own))
    strangers = [(f"c{seed}", messages(seed, 1000)) for seed in range(20, 25)]
    assert describe_overlap(trained_on, strangers) is None
    found = describe_overlap(trained_on, [*strangers, ("ada", own)])
    assert found == "it holds 100% of the short lines of client 'ada'"


def test_clients_of_one_short_line_each_are_found_together():
    trained_on = digest_text(sorted(messages(1, 400)))
    clients = [(f"c{i}", [line]) for i, line in enumerate(messages(1, 400)[:40] + messages(2, 600))]
    assert describe_overlap(trained_on, clients) == "it holds 6.2% of their short lines"


def test_number_of_clients_whose_lines_are_joined_at_once_does_not_matter(monkeypatch):
    monkeypatch.setattr(text_overlap, "_CLIENTS_AT_ONCE", 3)
    test_clients_of_one_short_line_each_are_found_together()


def test_common_phrases_are_taken_for_chance():
    """Everybody writes the same ten phrases, which are also in the other text, and hundreds of lines of their own."""
    phrases = messages(0, 10)
    trained_on = digest_text(messages(1, 500) + phrases)
    clients = [(f"c{i}", [*messages(i, 100), *phrases]) for i in range(2, 30)]
    mixed = [(name, [lines[i] for i in np.random.default_rng(0).permutation(110)]) for name, lines in clients]
    assert describe_overlap(trained_on, mixed) is None
    # Clients who write nothing else do not change this.
    assert describe_overlap(trained_on, [*mixed, *((f"d{i}", [phrases[i % 10]]) for i in range(300))]) is None


def test_lines_of_two_words_or_few_letters_are_not_compared():
    lines = [f"word{i} another" for i in range(500)] + [f"a b {i}" for i in range(500)]
    assert not len(digest_text(lines).lines)
    assert len(digest_text(["one two three four", " ".join("word" for _ in range(14))]).lines) == 2
    assert not len(digest_text([" ".join("word" for _ in range(15))]).lines)


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_unicode_form_does_not_count(form):
    lines = [
        "Çà et là, l'été même où l'élève naîtra",
        "한국어 문장은 단어마다 띄어 씁니다",
        "\ufb01ne \uff21bc naïve words",
        "привет, мой друг ёж",
    ]
    changed = [unicodedata.normalize(form, line) for line in lines]
    for own, expected in zip(digest_text(changed), digest_text(lines), strict=True):
        np.testing.assert_array_equal(own, expected)
    assert len(digest_text(lines).lines) == 4


def characters(seed: int, count: int, length: int) -> list[str]:
    """Returns lines of random Chinese characters."""
    generator = np.random.default_rng(seed)
    return ["".join(map(chr, generator.integers(0x4E00, 0x9FA0, length))) for _ in range(count)]


@pytest.mark.parametrize("length", [6, 10, 30])
def test_shuffled_lines_of_a_script_without_spaces_are_found(length):
    own = characters(1, 40, length)
    trained_on = digest_text(shuffled(characters(0, 400, length) + own))
    assert "of client 'ada'" in str(describe_overlap(trained_on, [("ada", [f"{line}。" for line in own])]))
    assert describe_overlap(trained_on, [("bob", characters(2, 400, length))]) is None


def test_text_of_a_script_without_spaces_is_found_however_it_is_wrapped():
    text = "".join(characters(1, 40, 30))
    trained_on = digest_text([text[i : i + 41] for i in range(0, len(text), 41)])
    assert describe_overlap(trained_on, [("ada", characters(1, 40, 30))]) == "it holds 100% of the text of client 'ada'"
    assert len(trained_on.passages) == 1200 - 11


def test_shakespeares_other_plays_are_not_found_in_his_histories():
    from experiments import config_file, data

    source, public, _ = data.sources(config_file.load("demo", ()))
    assert describe_overlap(digest_text(public), source) is None


def test_short_lines_are_found_where_only_a_part_of_the_digests_is_kept(monkeypatch):
    """One in eleven of 5,500 lines is kept, so about 45 of the client's 500, and more than 3 with a probability above
    1 - 1e-15."""
    monkeypatch.setattr(text_overlap, "_KEPT", 500)
    trained_on = digest_text(sorted(messages(0, 5000) + messages(1, 500)))
    assert len(trained_on.lines) == 500
    found = describe_overlap(trained_on, [("ada", messages(1, 500))])
    assert found == "it holds 100% of the short lines of client 'ada'"
    assert describe_overlap(trained_on, [("bob", messages(2, 5000))]) is None
