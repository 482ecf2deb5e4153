import os

import pytest

from fl.sources import folder


@pytest.fixture
def root(tmp_path):
    (tmp_path / "users").mkdir()
    root = tmp_path / "users"
    (root / "ben.txt").write_text("Hello you.\r\n\r\n  How are you?  \n", encoding="utf-8")
    (root / "anna.txt").write_bytes(b"\xef\xbb\xbfOne line, no end")
    return root


def test_a_file_is_a_user_and_a_line_a_sentence(root):
    (root / "notes.md").write_text("not a user")
    (root / "older.txt").mkdir()
    source = folder.load(root)
    assert list(source) == [("anna", ["One line, no end"]), ("ben", ["Hello you.", "How are you?"])]
    assert not source.bad_rows
    assert source.description == "folder users, one text file a user"


def test_shadow_files_and_hidden_ones_are_no_clients(root):
    for name in ("._anna.txt", "._ben.txt", ".txt", ".hidden.txt"):
        (root / name).write_bytes(b"\0\5\x16\7 what another program keeps here\n")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert not source.bad_rows
    assert source.bad_rows.notes == [
        "passed over in the folder: 4 hidden ('._anna.txt', '._ben.txt', '.hidden.txt', …)"
    ]


def test_files_of_another_suffix_and_folders_within_are_said(root):
    (root / "carl.TXT").write_text("mine\n")
    (root / "notes.md").write_text("not a user")
    (root / "older").mkdir()
    (root / "older" / "dora.txt").write_text("mine\n")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    wanted = "passed over in the folder: 1 folders within ('older'), 2 files not named *.txt ('carl.TXT', 'notes.md')"
    assert source.bad_rows.notes == [wanted]
    assert list(source) and source.bad_rows.notes == [wanted]
    before = source.fingerprint()
    (root / "emma.TXT").write_text("mine\n")
    assert source.fingerprint() != before  # a store that was built before would not say so
    for name in ("anna.txt", "ben.txt"):
        (root / name).unlink()
    with pytest.raises(FileNotFoundError, match="no file <user>.txt in this folder .*'carl.TXT'"):
        folder.load(root)


@pytest.mark.parametrize("name", [" .txt", "\u200b.txt", "\x07.txt"])
def test_a_name_that_is_blank_is_recorded(root, name):
    (root / name).write_text("mine\n")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert [row.reason for row in source.bad_rows] == ["the name of the file, the client's id, is blank"]
    with pytest.raises(ValueError, match="is blank"):
        list(folder.load(root, strict=True))


def test_a_user_without_text_is_recorded(root):
    (root / "carl.txt").write_text("\n  \n")
    (root / "dora.txt").write_text("")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert [str(row) for row in source.bad_rows] == [f"{root}/carl.txt: no text", f"{root}/dora.txt: no text"]
    assert source.bad_rows.total == 2


def test_lines_that_are_not_utf8_are_recorded_and_the_others_kept(root):
    (root / "ben.txt").write_bytes(b"good\nba\xffd\ngood again\n")
    (root / "carl.txt").write_bytes(b"\xff\n")
    source = folder.load(root)
    assert dict(source)["ben"] == ["good", "good again"]
    assert "carl" not in dict(source)
    assert [(row.line, row.reason) for row in source.bad_rows] == [
        (2, "not UTF-8 at byte 2 of the line"),
        (1, "not UTF-8 at byte 0 of the line"),
    ]


def test_strict_refuses_the_first_bad_row(root):
    (root / "ben.txt").write_bytes(b"good\nba\xffd\n")
    with pytest.raises(ValueError, match=r"users/ben\.txt:2: not UTF-8 at byte 2"):
        list(folder.load(root, strict=True))


def test_a_file_that_cannot_be_opened_is_recorded(root):
    (root / "carl.txt").symlink_to(root / "nowhere")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert [str(row) for row in source.bad_rows] == [f"{root}/carl.txt: cannot be read: No such file or directory"]
    assert source.fingerprint()


def test_a_pipe_is_recorded_and_not_waited_for(root):
    source = folder.load(root)
    before, fingerprint = dict(source), source.fingerprint()
    os.mkfifo(root / "pipe.txt")
    assert dict(source) == before and source.fingerprint() != fingerprint
    assert f"{root / 'pipe.txt'}: not a file" in map(str, source.bad_rows)


def test_a_name_that_is_not_utf8_is_recorded(root):
    try:
        with open(os.fsencode(root) + b"/\xff.txt", "w") as file:
            file.write("text")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = folder.load(root)
    assert len(list(source)) == 2
    assert "name of the file is not UTF-8" in source.bad_rows[0].reason
    str(source.bad_rows[0]).encode()
    assert source.fingerprint()


def test_bad_rows_are_those_of_the_last_iteration(root):
    (root / "carl.txt").write_text("")
    source = folder.load(root)
    list(source)
    list(source)
    assert (len(source.bad_rows), source.bad_rows.total) == (1, 1)


def test_the_fingerprint_follows_names_and_contents(root):
    source = folder.load(root)
    seen = {source.fingerprint()}
    assert seen == {folder.load(root).fingerprint()}
    (root / "ben.txt").write_text("Hello me!.\n")
    seen.add(source.fingerprint())
    (root / "ben.txt").rename(root / "carl.txt")
    seen.add(source.fingerprint())
    # The end of one file moved to the beginning of the next is another set of users.
    (root / "anna.txt").write_text("ab")
    (root / "carl.txt").write_text("c")
    seen.add(source.fingerprint())
    (root / "anna.txt").write_text("a")
    (root / "carl.txt").write_text("bc")
    seen.add(source.fingerprint())
    assert len(seen) == 5


def test_bad_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder$"):
        folder.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file <user>\.txt in this folder$"):
        folder.load(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotADirectoryError, match="file: not a folder"):
        folder.load(tmp_path / "file")
