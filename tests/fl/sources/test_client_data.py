"""Compares how client data, SQLite files and examples are read with how TFF and TensorFlow read them."""

import collections

import numpy as np
import pytest

from fl.clients import TokenStore
from fl.sources import client_data, sqlite
from fl.sources.example_proto import bytes_feature
from models.vocabulary import SMALLEST, learn


@pytest.fixture(scope="module")
def tff():
    return pytest.importorskip("tensorflow_federated")


@pytest.fixture
def plays(tff):
    return tff.simulation.datasets.shakespeare.get_synthetic()


def test_client_data_source_reads_every_tff_client(plays):
    source = client_data.load(plays, "snippets", name="plays")
    found = dict(source)
    assert sorted(found) == sorted(plays.client_ids)
    assert found["THE_TAMING_OF_THE_SHREW_CUPID"] == ["Hail to thee, worthy Timon, and to all"]
    assert found["MUCH_ADO_ABOUT_NOTHING_EMILIA"][1] == "But now, my lord."
    assert not source.bad_rows
    assert source.description == "plays, text in feature 'snippets'"
    assert source.fingerprint() == client_data.load(plays, "snippets").fingerprint()


def test_sqlite_source_reads_same_sentences_as_tff(tff, plays, tmp_path):
    path = tmp_path / "plays.sqlite"
    tff.simulation.datasets.save_to_sql_client_data(
        plays.client_ids, plays.create_tf_dataset_for_client, str(path), allow_overwrite=False
    )
    theirs = tff.simulation.datasets.load_and_parse_sql_client_data(str(path), plays.element_type_structure)
    wanted = dict(client_data.load(theirs, "snippets"))
    found: dict[str, list[str]] = collections.defaultdict(list)
    for client, sentences in sqlite.load(path, "snippets"):
        found[client] += sentences
    assert found == wanted
    words = learn([], SMALLEST)
    ours = TokenStore.build(tmp_path / "ours", sqlite.load(path, "snippets"), words)
    same = TokenStore.build(tmp_path / "same", client_data.load(theirs, "snippets"), words)
    assert ours.clients == same.clients
    assert all((ours.tokens(client) == same.tokens(client)).all() for client in range(len(ours.clients)))


def test_bytes_feature_equals_values_that_tensorflow_serialised(tff):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    for _ in range(200):
        texts = [rng.bytes(int(size)) for size in rng.integers(0, 400, rng.integers(0, 5))]
        example = tf.train.Example()
        for name in rng.permutation(["aaa", "text", "zzz", "numbers", "floats"]):
            feature = example.features.feature[name]
            if name == "numbers":
                feature.int64_list.value.extend(rng.integers(-(2**62), 2**62, 5).tolist())
            elif name == "floats":
                feature.float_list.value.extend(rng.normal(size=3).tolist())
            else:
                feature.bytes_list.value.extend(texts if name == "text" else [name.encode()])
        assert bytes_feature(example.SerializeToString(), "text") == texts


class Fake:
    """Client data that holds given examples, so that the test needs no TensorFlow."""

    def __init__(self, examples):
        self.examples = examples
        self.client_ids = list(examples)

    def create_tf_dataset_for_client(self, client_id):
        examples = self.examples[client_id]

        class Dataset:
            def as_numpy_iterator(self):
                return iter(examples)

        return Dataset()


def test_client_data_source_reads_strings_and_arrays_of_strings():
    assert list(client_data.load(Fake({"a": [b"one", b"two"]}), None)) == [("a", ["one", "two"])]
    array = np.array([b"one", b"", b"two"], object)
    assert list(client_data.load(Fake({"a": [{"t": array}]}), "t")) == [("a", ["one", "two"])]


def test_client_data_source_records_bad_examples_and_strict_refuses_first():
    clients = Fake(
        {
            "a": [{"t": b"fine"}, {"t": b"\xff"}, {"u": b"x"}, {"t": np.int64(3)}, {"t": b" "}, b"bare"],
            "b": [],
            "c": [{"t": b""}],
        }
    )
    source = client_data.load(clients, "t")
    assert list(source) == [("a", ["fine"])]
    assert [str(row) for row in source.bad_rows] == [
        "a:2: not UTF-8",
        "a:3: no feature 't'; the example has 'u'",
        "a:4: the text is not a string",
        "a:5: the text is empty",
        "a:6: no feature 't'; the example has no features",
        "b: the client has no examples",
        "c:1: the text is empty",
    ]
    with pytest.raises(ValueError, match="^a:2: not UTF-8$"):
        list(client_data.load(clients, "t", strict=True))


def test_client_data_source_writes_integer_ids_as_text():
    clients = Fake({7: [b"one"], np.int64(8): [b"two"]})
    source = client_data.load(clients, None)
    assert list(source) == [("7", ["one"]), ("8", ["two"])]
    assert source.fingerprint() == client_data.load(Fake({"7": [b"one"], "8": [b"two"]}), None).fingerprint()


def test_client_data_source_records_blank_and_non_text_ids():
    clients = Fake(
        {" ": [b"a"], "\u200b": [b"b"], "\ud800": [b"c"], None: [b"d"], 7.5: [b"e"], b"f": [b"f"], "g": [b"g"]}
    )
    source = client_data.load(clients, None)
    assert list(source) == [("g", ["g"])]
    assert [row.file for row in source.bad_rows] == ["' '", r"'\u200b'", r"'\ud800'", "None", "7.5", "b'f'"]
    assert {row.reason for row in source.bad_rows} == {"the client id is blank, or neither Unicode text nor an integer"}


def test_client_data_source_reads_repeated_id_once():
    clients = Fake({"a": [b"one"], "b": [b"two"]})
    clients.client_ids = ["a", "b", "a", "a"]
    source = client_data.load(clients, None)
    assert list(source) == [("a", ["one"]), ("b", ["two"])]
    assert source.bad_rows.notes == ["client_ids repeats 2 ids: each client is read once"]


def test_client_data_without_clients_is_refused():
    with pytest.raises(ValueError, match="nobody: client_ids is empty, give client data with at least one client"):
        client_data.load(Fake({}), "t", name="nobody")


def test_client_data_fingerprint_changes_with_text():
    prints = {
        client_data.load(Fake(examples), None).fingerprint()
        for examples in (
            {"a": [b"bc"]},
            {"ab": [b"c"]},
            {"a": [b"b", b"c"]},
            {"a": [b"bd"]},
            {"a": [b"bc"], "d": [b"e"]},
        )
    }
    assert len(prints) == 5
