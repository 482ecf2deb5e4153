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


def test_folder_gives_one_client_per_file_and_one_sentence_per_line(root):
    (root / "notes.md").write_text("not a user")
    (root / "older.txt").mkdir()
    source = folder.load(root)
    assert list(source) == [("anna", ["One line, no end"]), ("ben", ["Hello you.", "How are you?"])]
    assert not source.bad_rows
    assert source.description == "folder users, one text file per client"


def test_folder_passes_over_hidden_files_with_a_note(root):
    for name in ("._anna.txt", "._ben.txt", ".txt", ".hidden.txt"):
        (root / name).write_bytes(b"\0\5\x16\7 what another program keeps here\n")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert not source.bad_rows
    assert source.bad_rows.notes == [
        "passed over in the folder: 4 hidden ('._anna.txt', '._ben.txt', '.hidden.txt', …)"
    ]


def test_folder_notes_files_of_other_suffix_and_sub_folders(root):
    (root / "carl.TXT").write_text("mine\n")
    (root / "notes.md").write_text("not a user")
    (root / "older").mkdir()
    (root / "older" / "dora.txt").write_text("mine\n")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    wanted = "passed over in the folder: 1 folder within ('older'), 2 files not named *.txt ('carl.TXT', 'notes.md')"
    assert source.bad_rows.notes == [wanted]
    assert list(source) and source.bad_rows.notes == [wanted]
    before = source.fingerprint()
    # A store that was built before must not be used again: it lacks the note on emma.TXT.
    (root / "emma.TXT").write_text("mine\n")
    assert source.fingerprint() != before
    for name in ("anna.txt", "ben.txt"):
        (root / name).unlink()
    with pytest.raises(FileNotFoundError, match="no file <client>.txt in this folder .*'carl.TXT'") as caught:
        folder.load(root)
    assert str(caught.value).endswith(f": files *.txt are in {root / 'older'}: give that folder")


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_folder_reads_a_file_with_several_names_as_one_client_and_says_so(root, link):
    before = folder.load(root).fingerprint()
    link(root / "ben.txt", root / "a.txt" if link is os.symlink else root / "benny.txt")
    link(root / "ben.txt", root / "zoe.txt")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"] and not source.bad_rows
    names = "'a.txt', 'zoe.txt'" if link is os.symlink else "'benny.txt', 'zoe.txt'"
    note = f"passed over in the folder: 2 links to files that are read under another name ({names})"
    assert source.bad_rows.notes == [note]
    assert source.fingerprint() != before


def test_folder_reads_links_to_a_file_elsewhere_as_one_client(root, tmp_path):
    (tmp_path / "carl.txt").write_text("mine\n")
    for name in ("a.txt", "karl.txt"):
        (root / name).symlink_to(tmp_path / "carl.txt")
    source = folder.load(root)
    assert [client for client, _ in source] == ["a", "anna", "ben"]
    assert "1 link to files that are read under another name ('karl.txt')" in source.bad_rows.notes[0]


@pytest.mark.parametrize("name", [" .txt", "\u200b.txt", "\x07.txt"])
def test_folder_records_blank_file_name_as_bad_row(root, name):
    (root / name).write_text("mine\n")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert [row.reason for row in source.bad_rows] == ["the name of the file, the client's id, is blank"]
    with pytest.raises(ValueError, match="is blank"):
        list(folder.load(root, strict=True))


def test_folder_records_file_without_text_as_bad_row(root):
    (root / "carl.txt").write_text("\n  \n")
    (root / "dora.txt").write_text("")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert [str(row) for row in source.bad_rows] == [
        f"{root}/carl.txt: the file has no text",
        f"{root}/dora.txt: the file has no text",
    ]
    assert source.bad_rows.total == 2


def test_folder_records_lines_that_are_not_utf8_and_keeps_others(root):
    (root / "ben.txt").write_bytes(b"good\nba\xffd\ngood again\n")
    (root / "carl.txt").write_bytes(b"\xff\n")
    source = folder.load(root)
    assert dict(source)["ben"] == ["good", "good again"]
    assert "carl" not in dict(source)
    assert [(row.line, row.reason) for row in source.bad_rows] == [
        (2, "not UTF-8 at byte 2 of the line"),
        (1, "not UTF-8 at byte 0 of the line"),
    ]


def test_strict_folder_refuses_first_bad_row(root):
    (root / "ben.txt").write_bytes(b"good\nba\xffd\n")
    with pytest.raises(ValueError, match=r"users/ben\.txt:2: not UTF-8 at byte 2"):
        list(folder.load(root, strict=True))


def test_folder_records_file_that_cannot_be_opened(root):
    (root / "carl.txt").symlink_to(root / "nowhere")
    source = folder.load(root)
    assert [client for client, _ in source] == ["anna", "ben"]
    assert [str(row) for row in source.bad_rows] == [f"{root}/carl.txt: cannot be read: No such file or directory"]
    assert source.fingerprint()


def test_folder_records_pipe_without_reading_it(root):
    source = folder.load(root)
    before, fingerprint = dict(source), source.fingerprint()
    os.mkfifo(root / "pipe.txt")
    assert dict(source) == before and source.fingerprint() != fingerprint
    assert f"{root / 'pipe.txt'}: not a regular file" in map(str, source.bad_rows)


def test_folder_records_file_name_that_is_not_utf8(root):
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


def test_folder_forgets_bad_rows_of_earlier_iterations(root):
    (root / "carl.txt").write_text("")
    source = folder.load(root)
    list(source)
    list(source)
    assert (len(source.bad_rows), source.bad_rows.total) == (1, 1)


def test_folder_fingerprint_changes_with_names_and_contents(root):
    source = folder.load(root)
    seen = {source.fingerprint()}
    assert seen == {folder.load(root).fingerprint()}
    (root / "ben.txt").write_text("Hello me!.\n")
    seen.add(source.fingerprint())
    (root / "ben.txt").rename(root / "carl.txt")
    seen.add(source.fingerprint())
    # Moving the end of one file to the beginning of the next changes both clients' text.
    (root / "anna.txt").write_text("ab")
    (root / "carl.txt").write_text("c")
    seen.add(source.fingerprint())
    (root / "anna.txt").write_text("a")
    (root / "carl.txt").write_text("bc")
    seen.add(source.fingerprint())
    assert len(seen) == 5


def test_missing_or_unusable_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder$"):
        folder.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no file <client>\.txt in this folder$"):
        folder.load(tmp_path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(NotADirectoryError, match="file: not a folder: give a folder with one file <client>.txt"):
        folder.load(tmp_path / "file")
