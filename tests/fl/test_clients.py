import os
import signal
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl import token_file
from fl.clients import TokenStore, sequences
from fl.sources.base import BadRows
from models.vocabulary import SMALLEST, Vocabulary, learn
from tests.fl.rows import WORDS, Rows, two_clients


def expected(pieces):
    """Returns each client's tokens, computed as the format defines them."""
    tokens: dict[str, list[int]] = {}
    for client, sentences in pieces:
        for sentence in sentences:
            tokens.setdefault(client, [1]).extend([*(3 + byte for byte in sentence.encode()), 2])
    return dict(sorted(tokens.items()))


PIECES = st.lists(
    st.tuples(st.text("abé/", max_size=3), st.lists(st.text("xyzé\x00\n", max_size=5), max_size=3)),
    max_size=12,
).filter(lambda pieces: any(sentences for _, sentences in pieces))


@given(pieces=PIECES)
def test_store_holds_each_clients_tokens_in_order(tmp_path_factory, pieces):
    store = TokenStore.build(tmp_path_factory.mktemp("store") / "s", Rows(pieces), WORDS)
    wanted = expected(pieces)
    assert store.clients == tuple(wanted)
    assert [store.tokens(client).tolist() for client in range(len(wanted))] == list(wanted.values())
    assert store.num_tokens.tolist() == [len(tokens) for tokens in wanted.values()]
    assert [store.index(client) for client in wanted] == list(range(len(wanted)))


@given(pieces=PIECES, min_tokens=st.integers(2, 12))
def test_store_leaves_out_and_counts_clients_below_min_tokens(tmp_path_factory, pieces, min_tokens):
    wanted = expected(pieces)
    kept = {client: tokens for client, tokens in wanted.items() if len(tokens) >= min_tokens}
    path = tmp_path_factory.mktemp("store") / "s"
    if not kept:
        with pytest.raises(
            ValueError, match=f"all {len(wanted)} clients have fewer than min_tokens = {min_tokens} tokens"
        ):
            TokenStore.build(path, Rows(pieces), WORDS, min_tokens=min_tokens)
        return
    store = TokenStore.build(path, Rows(pieces), WORDS, min_tokens=min_tokens)
    assert store.clients == tuple(kept)
    found = store.statistics
    assert found.clients == len(kept)
    assert found.dropped_clients == len(wanted) - len(kept)
    assert found.tokens == sum(map(len, kept.values()))
    assert found.tokens + found.dropped_tokens == sum(map(len, wanted.values()))
    assert found.sentences == sum(tokens.count(2) for tokens in kept.values())


def test_tokens_are_read_only_uint16(tmp_path):
    tokens = TokenStore.build(tmp_path / "s", two_clients(), WORDS).tokens(0)
    assert tokens.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 7


def test_store_of_large_vocabulary_has_int32_tokens(tmp_path):
    pairs = (bytes([left, right]) for left in range(255, -1, -1) for right in range(256))
    words = Vocabulary(WORDS.pieces + tuple(pairs))
    assert words.size > 65_536
    store = TokenStore.build(tmp_path / "s", Rows([("a", ["\x00\x7f"])]), words)
    assert store.tokens(0).dtype == np.int32
    assert store.tokens(0).tolist() == [1, words.size - 129, 2]


@pytest.mark.parametrize("client", [-1, 2])
def test_tokens_refuse_client_outside_store(tmp_path, client):
    with pytest.raises(IndexError, match=f"client {client} is outside"):
        TokenStore.build(tmp_path / "s", two_clients(), WORDS).tokens(client)


def test_index_names_unknown_client(tmp_path):
    with pytest.raises(ValueError, match="no client 'c'"):
        TokenStore.build(tmp_path / "s", two_clients(), WORDS).index("c")


def test_build_with_unchanged_inputs_reuses_store(tmp_path):
    first, second = two_clients(), two_clients()
    built = TokenStore.build(tmp_path / "s", first, WORDS)
    inode = (tmp_path / "s").stat().st_ino
    again = TokenStore.build(tmp_path / "s", second, WORDS)
    assert (first.read, second.read) == (1, 0)
    assert (tmp_path / "s").stat().st_ino == inode
    assert again.digest == built.digest == TokenStore.open(tmp_path / "s").digest


@pytest.mark.parametrize(
    ("source", "words", "min_tokens"),
    [
        (Rows([("b", ["one", "two"]), ("a", ["thre!"]), ("b", ["four"])]), WORDS, 2),
        (two_clients(), learn(["two two"], SMALLEST + 1), 2),
        (two_clients(), WORDS, 8),
        (Rows(two_clients().pieces, name="another"), WORDS, 2),
    ],
    ids=["text", "vocabulary", "option", "source"],
)
def test_build_with_changed_inputs_rebuilds_store(tmp_path, source, words, min_tokens):
    old = TokenStore.build(tmp_path / "s", two_clients(), WORDS)
    before = old.tokens(0).tolist()
    new = TokenStore.build(tmp_path / "s", source, words, min_tokens=min_tokens)
    assert source.read == 1
    assert new.digest != old.digest
    # A reader that had opened the old store still reads the old tokens.
    assert old.tokens(0).tolist() == before


def test_digest_is_independent_of_store_path(tmp_path):
    left = TokenStore.build(tmp_path / "left" / "s", two_clients(), WORDS)
    right = TokenStore.build(tmp_path / "right" / "another", two_clients(), WORDS)
    assert left.digest == right.digest


def test_store_with_bad_rows_is_not_reused_for_strict_source(tmp_path):
    source = Rows(two_clients().pieces, [("file", 3, "broken")])
    TokenStore.build(tmp_path / "s", source, WORDS)
    source.bad_rows = BadRows(strict=True)
    with pytest.raises(ValueError, match="^file:3: broken$"):
        TokenStore.build(tmp_path / "s", source, WORDS)
    good = two_clients()
    good.bad_rows = BadRows(strict=True)
    TokenStore.build(tmp_path / "s", good, WORDS)
    TokenStore.build(tmp_path / "s", good, WORDS)
    # The good source has the same fingerprint as the other: it is read once, to replace the other's store.
    assert good.read == 1


def test_statistics_count_bad_rows_and_keep_first_twenty(tmp_path):
    bad = [("file", number, "broken") for number in range(1, 51)]
    store = TokenStore.build(tmp_path / "s", Rows(two_clients().pieces, bad), WORDS)
    assert store.statistics.bad_rows == 50
    assert len(store.statistics.examples) == 20
    assert store.statistics.examples[0] == "file:1: broken"
    assert TokenStore.open(tmp_path / "s").statistics == store.statistics


def test_build_refuses_source_without_text_and_names_bad_row(tmp_path):
    with pytest.raises(ValueError, match=r"no client with text \(1 bad row, the first: file:3: broken\)$"):
        TokenStore.build(tmp_path / "s", Rows([("a", [])], [("file", 3, "broken")]), WORDS)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("min_tokens", [1, -1, float("nan")])
def test_build_refuses_min_tokens_below_two(tmp_path, min_tokens):
    with pytest.raises(ValueError, match=f"min_tokens = {min_tokens}: must be at least 2"):
        TokenStore.build(tmp_path / "s", two_clients(), WORDS, min_tokens=min_tokens)


def test_open_names_missing_store(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"s: no token store here; build it first$"):
        TokenStore.open(tmp_path / "s")


def test_failing_source_leaves_only_old_store(tmp_path):
    old = TokenStore.build(tmp_path / "s", two_clients(), WORDS)

    class Failing(Rows):
        def __iter__(self):
            yield "a", ["text"]
            raise ValueError("file:7: broken")

    with pytest.raises(ValueError, match="file:7: broken"):
        TokenStore.build(tmp_path / "s", Failing([("c", ["new"])]), WORDS)
    assert TokenStore.open(tmp_path / "s").digest == old.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


PREAMBLE = f"""
import os, sys, time
sys.path[:0] = [{str(Path(__file__).parents[2])!r}, {str(Path(__file__).parent)!r}]
from test_clients import *
path = {{path!r}}
"""


def run(code, path):
    program = PREAMBLE.format(path=str(path)) + code
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_full_disk_leaves_only_old_store(tmp_path):
    old = TokenStore.build(tmp_path / "s", two_clients(), WORDS)
    # With a limit on the size of files, the write fails as it does on a full disk.
    process = run(
        """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    TokenStore.build(path, Rows([("a", ["x" * 1_000_000])]), WORDS)
except OSError as error:
    print(error)
""",
        tmp_path / "s",
    )
    output, errors = process.communicate(timeout=300)
    assert output == f"[Errno 27] File too large (writing the token store): {str(tmp_path / 's')!r}\n", errors
    assert TokenStore.open(tmp_path / "s").digest == old.digest
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_concurrent_builders_of_one_store_build_once(tmp_path):
    code = """
class Slow(Rows):
    def __iter__(self):
        for piece in super().__iter__():
            time.sleep(0.2)
            yield piece
source = Slow([("a", ["one"]), ("b", ["two"]), ("c", ["three"])])
print(TokenStore.build(path, source, WORDS).digest, source.read)
"""
    processes = [run(code, tmp_path / "s") for _ in range(3)]
    outputs = [process.communicate(timeout=300) for process in processes]
    found = [output.split() for output, _ in outputs]
    assert len({digest for digest, _ in found}) == 1, outputs
    assert sorted(read for _, read in found) == ["0", "0", "1"]
    assert TokenStore.open(tmp_path / "s").digest == found[0][0]


def test_concurrent_builders_of_different_stores_do_not_mix(tmp_path):
    code = """
for turn in range(8):
    text = f"{os.getpid()} {turn} " + "x" * 20_000
    store = TokenStore.build(path, Rows([(str(turn), [text])]), WORDS)
    assert WORDS.decode(TokenStore.open(path).tokens(0).tolist()).endswith("x")
print("ok")
"""
    processes = [run(code, tmp_path / "s") for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert output == "ok\n", errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_build_removes_files_of_killed_builder(tmp_path):
    process = run(
        """
class Endless(Rows):
    def __iter__(self):
        yield "a", ["one"]
        print("started", flush=True)
        time.sleep(600)
TokenStore.build(path, Endless([]), WORDS)
""",
        tmp_path / "s",
    )
    assert process.stdout.readline() == "started\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    assert len(list(tmp_path.iterdir())) == 2  # the lock file and the half-built store
    TokenStore.build(tmp_path / "s", two_clients(), WORDS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]


def test_build_encodes_each_piece_once_in_bounded_memory(tmp_path, monkeypatch):
    class Many(Rows):
        def fingerprint(self):
            return "many"

        def __iter__(self):
            return ((f"user {number % 5000}", ["a b c d"]) for number in range(30_000))

    encoded: Counter[str] = Counter()
    encode = Vocabulary.encode

    def counted(self, text):
        encoded[text] += 1
        return encode(self, text)

    monkeypatch.setattr(Vocabulary, "encode", counted)
    tracemalloc.start()
    try:
        store = TokenStore.build(tmp_path / "s", Many([]), WORDS)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000  # 5000 ids, 50 bytes a piece, buffers
    finally:
        tracemalloc.stop()
    assert encoded == {"a b c d": 30_000}
    assert len(store.clients) == 5000
    assert set(store.num_tokens) == {1 + 6 * 8}


@given(
    tokens=st.lists(st.integers(1, 60_000), max_size=60),
    length=st.integers(1, 12),
    limit=st.none() | st.integers(0, 8),
)
def test_sequences_hold_each_target_once(tokens, length, limit):
    rows = sequences(np.array(tokens, np.uint16), length, limit)
    assert rows.dtype == np.int32
    assert rows.shape[1] == length + 1
    targets = [token for row in rows for token in row[1:] if token != 0]
    wanted = tokens[1:] if limit is None else tokens[1:][: limit * length]
    assert targets == wanted
    assert len(rows) == -(-len(wanted) // length)
    # Each row but the first begins with the last target of the one before, its context.
    assert rows[1:, 0].tolist() == rows[:-1, -1].tolist()
    # Only the last row ends with padding.
    assert not (rows[:-1] == 0).any()


def test_sequences_equal_example_by_hand():
    tokens = np.array([1, 5, 6, 2, 7, 2], np.uint16)
    assert sequences(tokens, 2).tolist() == [[1, 5, 6], [6, 2, 7], [7, 2, 0]]
    assert sequences(tokens, 2, limit=1).tolist() == [[1, 5, 6]]
    assert sequences(tokens[:1], 2).shape == (0, 3)


def test_sequences_do_not_share_memory_with_tokens():
    tokens = np.arange(1, 9, dtype=np.uint16)
    rows = sequences(tokens, 4)
    rows[:] = 0
    assert tokens.tolist() == list(range(1, 9))


@pytest.mark.parametrize(
    ("length", "limit", "reason"), [(0, None, "length = 0"), (float("nan"), None, "nan"), (3, -1, "limit = -1")]
)
def test_sequences_refuse_length_and_limit_out_of_range(length, limit, reason):
    with pytest.raises(ValueError, match=reason):
        sequences(np.array([1, 2]), length, limit)


def test_importing_store_and_sources_loads_no_tensorflow():
    modules = "fl.clients, fl.splits, fl.sources.sqlite, fl.sources.client_data, fl.sources.shakespeare"
    code = f"import sys, {modules}; print('tensorflow' in sys.modules)"
    root = Path(token_file.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout == "False\n"
