import os
from pathlib import Path

import pytest

from fl.clients import TokenStore
from tests.fl.rows import WORDS, Rows, two_clients


class Million:
    """A vocabulary that encodes every sentence as a million tokens."""

    size, digest, start = 300, "million", 1

    def encode(self, text):
        return [5] * 1_000_000


def test_reading_tokens_leaves_them_on_disk(tmp_path):
    store = TokenStore.build(tmp_path / "s", Rows([(str(number), ["text"]) for number in range(30)]), Million())
    before = resident()
    for client in range(30):
        assert len(store.tokens(client)) == 1_000_002
    assert resident() - before < 15e6  # of 60 MB


def test_store_closes_its_file_when_destroyed(tmp_path):
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    TokenStore.build(tmp_path / "s", two_clients(), WORDS).tokens(0)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def resident() -> int:
    """Returns the bytes of the process in memory, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_every_changed_byte_and_truncation_is_refused(tmp_path):
    path = tmp_path / "s"
    digest = TokenStore.build(path, two_clients(), WORDS).digest
    whole = path.read_bytes()
    damaged = [whole[:cut] for cut in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 128]) + whole[at + 1 :] for at in range(len(whole) - 48, len(whole))]
    damaged += [whole[:70] + whole[71:], whole[:70] + b"\0" + whole[70:]]
    damaged += [whole + b"\0", b"", b"fedspeak tokens 1\n", b"another file"]
    at_reading = 0
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"not a token store|is damaged") as caught:
            store = TokenStore.open(path)
            at_reading += 1
            store.tokens(0)
            store.tokens(1)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert at_reading == 2 * (7 + 14)  # only a changed byte of the tokens is found at reading, all others at opening
    path.write_bytes(whole[:-1])
    source = two_clients()
    assert TokenStore.build(path, source, WORDS).digest == digest
    assert source.read == 1
    assert path.read_bytes() == whole


def test_damage_after_opening_is_refused_by_every_read_of_that_block(tmp_path):
    path = tmp_path / "s"
    # At two bytes per token, client 0 fills the first block, client 1 reaches into the third, client 2 lies in it.
    store = TokenStore.build(
        path, Rows([(name, ["x" * size]) for name, size in zip("abc", (2046, 3000, 9), strict=True)]), WORDS
    )
    whole = bytearray(path.read_bytes())
    for at, noticed in ((64 + 4095, "a"), (64 + 4096, "b"), (64 + 8192, "bc"), (64 + 10_120, "bc")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        for client, name in enumerate("abc"):
            if name in noticed:
                with pytest.raises(ValueError, match="s: the token store is damaged .* delete it to build it anew$"):
                    store.tokens(client)
            else:
                store.tokens(client)
