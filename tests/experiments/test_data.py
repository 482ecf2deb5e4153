import json
import os
import re
import shutil
from typing import Any

import msgspec
import numpy as np
import pytest

from experiments import assembly, config_reference, data
from experiments.config import TEXT_COLUMN, USER_COLUMN, Config
from experiments.config_file import parse
from experiments.config_model import VocabularyConfig
from fl.sources.table import Table


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    words = "to be or not that is the question whether it nobler in mind".split()
    rows = [
        {"user": f"u{i}", "text": " ".join(generator.choice(words, 6))} for i in range(30) for _ in range(3 + i % 7)
    ]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "public.txt").write_text("\n".join(" ".join(generator.choice(words, 6)) for _ in range(50)))
    text = 'source = "jsonl"\npath = "users.jsonl"\npublic = ["public.txt"]\nmin_tokens = 4\nheld_out = 0.3\n'
    return parse(f"[data]\n{text}[vocabulary]\nsize = 270\n[clients]\nsequence_length = 5\n", "test")


def targets(rows: np.ndarray) -> list[int]:
    """Returns the predicted tokens in order, without padding."""
    return [int(token) for token in rows[:, 1:].ravel() if token]


def test_training_and_held_out_targets_partition_the_clients_tokens(config, tmp_path):
    prepared = data.prepare(config, tmp_path / "vocabulary.json")
    held = 0
    for client in prepared.splits.train:
        tokens = prepared.store.tokens(prepared.store.index(client))
        training, held_out = targets(prepared.training(client)), targets(prepared.held_out(client))
        assert training + held_out == tokens[1:].tolist()
        assert len(held_out) <= 0.3 * (len(tokens) - 1)
        held += len(held_out)
    assert held > 50
    for client in (*prepared.splits.validation, *prepared.splits.test):
        tokens = prepared.store.tokens(prepared.store.index(client))
        assert targets(prepared.whole(client)) == tokens[1:].tolist()


def test_vocabulary_is_learned_from_public_text_only_and_kept_by_the_run(config, tmp_path):
    path = tmp_path / "vocabulary.json"
    first = data.prepare(config, path).vocabulary
    (tmp_path / "users.jsonl").write_text(
        "".join(json.dumps({"user": f"v{i}", "text": "zz " * 9}) + "\n" for i in range(30))
    )
    assert data.prepare(config, None).vocabulary == first
    (tmp_path / "public.txt").write_text("other words entirely\n" * 60)
    assert data.prepare(config, path).vocabulary == first  # a run keeps its own


def test_clients_data_never_take_the_vocabulary_of_another_model(config, tmp_path):
    other = msgspec.structs.replace(config, vocabulary=VocabularyConfig(of=str(tmp_path)))
    with pytest.raises(ValueError, match="^vocabulary.of = '.*' is for fedspeak pretrain: remove it, or begin from"):
        data.prepare(other, None)


def test_public_text_inside_clients_folder_is_refused(config, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a\n")
    wrong = msgspec.structs.replace(config.data, source="folder", path="texts", public=("texts/a.txt",))
    with pytest.raises(ValueError, match="which is clients' text"):
        data.sources(msgspec.structs.replace(config, data=wrong))


@pytest.mark.parametrize("place", [shutil.copy, os.link, os.symlink])
@pytest.mark.parametrize("source", ["jsonl", "folder"])
def test_copy_or_link_of_clients_text_is_refused_as_public(config, tmp_path, place, source):
    theirs = "users.jsonl"
    if source == "folder":
        (tmp_path / "texts" / "deep").mkdir(parents=True)
        theirs = "texts/deep/a.txt"
        (tmp_path / theirs).write_text("mine alone\n")
    place(tmp_path / theirs, tmp_path / "copy.txt")
    wrong = msgspec.structs.replace(config.data, source=source, path=theirs.partition("/")[0], public=("copy.txt",))
    with pytest.raises(ValueError, match="copy.txt, which is clients' text"):
        data.sources(msgspec.structs.replace(config, data=wrong))


def test_token_stores_are_closed_to_other_accounts(config, tmp_path):
    data.prepare(config, None)
    assert data.STORES.stat().st_mode & 0o777 == 0o700


def with_data(config: Config, **changes: Any) -> Config:
    return msgspec.structs.replace(config, data=msgspec.structs.replace(config.data, **changes))


def spell_again(tmp_path, ids: dict[str, str]) -> None:
    """Changes every other row of some clients to another spelling of their id."""
    rows = [json.loads(line) for line in (tmp_path / "users.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        if number % 2 and row["user"] in ids:
            row["user"] = ids[row["user"]]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_near_equal_ids_give_one_warning_or_are_joined(config, tmp_path):
    assert "warning" not in data.describe(data.prepare(config, None))
    before = data.prepare(config, None).store.clients
    spell_again(tmp_path, {"u6": "u6 ", "u13": "u1\u200b3", "u20": "ｕ20"})
    lines = data.describe(data.prepare(config, None)).splitlines()
    [line] = [line for line in lines if line.startswith("warning*")]
    assert "6 client ids form 3 groups" in line and r"'u6' = 'u6 '; 'u13' = 'u1\u200b3'; " in line
    assert "ε holds per id, so not per person" in line and 'set data.merge_ids = "normalize"' in line
    joined = data.prepare(with_data(config, merge_ids="normalize"), None)
    assert joined.store.clients == before
    [line] = [line for line in data.describe(joined).splitlines() if "near-equal" in line]
    assert line.startswith("joined*: 6 near-equal client ids into 3 clients (data.merge_ids), for example 'u6'")


def test_describe_names_files_that_a_folder_source_skips(config, tmp_path):
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"u{number}.txt").write_text("to be or not\n" * 3)
        (tmp_path / "texts" / f"._u{number}.txt").write_text("another program's file, in lines of words\n")
    (tmp_path / "texts" / "v.TXT").write_text("to be\n")
    prepared = data.prepare(with_data(config, source="folder", path="texts"), None)
    assert len(prepared.store.clients) == 30
    [line] = [line for line in data.describe(prepared).splitlines() if line.startswith("note*")]
    assert "30 hidden ('._u0.txt'" in line and "1 file not named *.txt ('v.TXT')" in line


def test_parquet_source_gives_same_data_as_json_lines(config, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [json.loads(line) for line in (tmp_path / "users.jsonl").read_text().splitlines()]
    (tmp_path / "parts").mkdir()
    for number, part in enumerate((rows[:50], rows[50:])):
        path = tmp_path / "parts" / f"train-{number:05d}-of-00002.parquet"
        parquet.write_table(pa.Table.from_pylist([{"text": row["text"], "who": row["user"]} for row in part]), path)
    changes = {"source": "parquet", "path": "parts", "user_column": "who"}
    from_parquet, from_jsonl = data.prepare(with_data(config, **changes), None), data.prepare(config, None)
    assert from_parquet.store.clients == from_jsonl.store.clients
    for client in range(len(from_jsonl.store.clients)):
        assert from_parquet.store.tokens(client).tolist() == from_jsonl.store.tokens(client).tolist()


def lose_rows(tmp_path, kept: int) -> None:
    """Leaves `kept` rows readable; the others get numbers with a fraction as ids, which are refused."""
    rows = [json.loads(line) for line in (tmp_path / "users.jsonl").read_text().splitlines()]
    rows[kept:] = [{**row, "user": number + 0.5} for number, row in enumerate(rows[kept:])]
    (tmp_path / "users.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_error_on_empty_set_names_rows_and_clients_left_out(config, tmp_path):
    lose_rows(tmp_path, 3)
    with (tmp_path / "users.jsonl").open("a") as file:
        file.write('\n{"user": "short", "text": ""}\n{"user": "short", "text": "a"}\n')
    with pytest.raises(
        ValueError, match="leave none of the 1 clients in the [a-z]+ set: .*, or give more clients"
    ) as caught:
        data.prepare(config, None)
    message = str(caught.value)
    assert re.search(
        r"\(173 bad rows, the first: .*users.jsonl:4: column 'user' is 0\.5, neither a string nor an integer: write "
        "ids as strings; 1 clients below",
        message,
    )
    assert "\n" not in message


def test_error_on_empty_set_names_unclosed_quote_in_csv(config, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "users.jsonl").read_text().splitlines()]
    lines = [f"{row['user']},{row['text']}" for row in rows]
    lines[4] = lines[4].replace(",", ',"')
    (tmp_path / "users.csv").write_text("user,text\n" + "\n".join(lines) + "\n")
    with pytest.raises(
        ValueError, match=r"\(171 bad rows, the first: .*users.csv:6: .*look for a quote that is not closed"
    ):
        data.prepare(with_data(config, source="csv", path="users.csv"), None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cohort.sampler=fixed-size", "cohort.size=900"], "cohort size 900 is larger than the population"),
        (["cohort.sampler=cyclic", "cohort.cohorts=900"], "cyclic cohorts 900 are more than the population"),
        (
            ["cohort.sampling_probability=0.001"],
            "cohort.sampling_probability gives 0.0.. clients per round on average: raise it",
        ),
    ],
)
def test_error_on_too_few_clients_for_cohort_names_rows_left_out(config, tmp_path, settings, message):
    lose_rows(tmp_path, 150)
    prepared = data.prepare(config, None)
    with pytest.raises(ValueError, match=rf"{message}.* \(\d+ bad rows, the first: .*users.jsonl:151: ") as caught:
        assembly.check_clients(parse("", "test", settings), prepared)
    assert "\n" not in str(caught.value)


def test_absolute_makes_data_paths_absolute(config, tmp_path):
    kept = data.absolute(config).data
    assert kept.path == str(tmp_path / "users.jsonl") and kept.public == (str(tmp_path / "public.txt"),)


def test_default_columns_are_those_of_the_configuration(config, monkeypatch):
    default, _, _ = data.sources(config)
    assert isinstance(default, Table)
    assert (default.user_column, default.text_column) == (USER_COLUMN, TEXT_COLUMN)
    descriptions = config_reference.markdown()
    for column in (USER_COLUMN, TEXT_COLUMN):
        assert f'Default: "{column}".' in descriptions
    monkeypatch.setattr(data, "USER_COLUMN", "who")
    monkeypatch.setattr(data, "TEXT_COLUMN", "what")
    changed, _, _ = data.sources(config)
    assert isinstance(changed, Table)
    assert (changed.user_column, changed.text_column) == ("who", "what")


def test_choose_clients_returns_same_subset_every_time():
    clients = [f"c{i}" for i in range(50)]
    some = data.choose_clients(clients, 7)
    assert len(set(some)) == 7 and set(some) <= set(clients) and some == data.choose_clients(clients, 7)
    assert data.choose_clients(clients, 50) == clients
