"""`bench decoding` names the fastest mode, goes on where it was, and takes prompts from the texts it is given."""

import json

import numpy as np
import pytest

from experiments.bench import decoding
from experiments.bench.decoding_loop import Drawn
from experiments.bench.decoding_texts import choose_prompts, read_texts
from models.vocabulary import Vocabulary
from tests.experiments.processes import call

LETTERS = Vocabulary((b"",) * 3 + tuple(bytes([byte]) for byte in range(256)))


def test_speed_is_that_of_tokens_and_seconds_beside_plain_decoding_from_the_same_prompt():
    drawn = [
        [Drawn(2.0, 40, 10, np.array([10, 8]), np.array([8, 7])), Drawn(4.0, 20, 20)],  # 20 tokens a second beside 5
        [Drawn(2.0, 40, 20, np.array([20, 9]), np.array([9, 1])), Drawn(2.0, 20, 20)],  # 20 beside 10
    ]
    found = decoding.summarise(["one", "other"], drawn)
    assert found["speed"]["estimate"] == pytest.approx((8 + 4) / 4)
    assert (found["speed"]["low"], found["speed"]["high"]) == (2, 4)
    assert found["tokens"]["estimate"] == pytest.approx(80 / 30)
    assert found["by_text"] == {"one": 4, "other": 2}
    assert found["milliseconds"] == pytest.approx(1000 * 4 / 30)
    assert found["per_second"] == pytest.approx(20)
    assert (found["reached"], found["accepted"]) == ([30, 17], [17, 8])


def row(mode, temperature, speed, drafter="d", **more):
    interval = {"estimate": speed, "low": speed - 0.1, "high": speed + 0.1}
    return {
        "mode": mode,
        "temperature": temperature,
        "drafter": drafter,
        "precision": "int8",
        "speed": interval,
        "tokens": interval,
        "milliseconds": 2.0,
        **more,
    }


def test_best_modes_are_named_with_the_options_of_export_or_plain_decoding_where_none_is_faster():
    rows = [
        row("spectr:2x2", 0.0, 1.2),
        row("spectr:2x2", 1.0, 0.9, of_optimum=0.97),
        row("tree:2,1", 0.0, 1.5, drafter="e"),
        row("tree:2,1", 1.0, 0.7, drafter="e"),
    ]
    cost = {"int8": {"1": [1, 1, 2], "13": [3, 4, 5], "2": [1, 2, 3]}}
    found = {"cost": cost, "rows": rows, "temperatures": [0.0, 1.0]}
    lines = decoding.format_results(found).splitlines()
    assert lines[2:5] == ["| tokens | 1 | 2 | 13 |", "|---|---|---|---|", "| int8 | 1.00 | 2.00 | 4.00 |"]
    assert lines[-3] == (
        "The best mode for you is, int8 at temperature 0: tree:2,1 with drafter e (fedspeak export --decoding tree "
        "--tree 2,1), 1.50 [1.40, 1.60] times plain."
    )
    assert lines[-1].endswith("plain decoding: spectr:2x2 comes next with 0.90 [0.80, 1.00] times its speed.")
    assert "SpecTr's rule accepts 97.0 to 97.0 % of what the best rule for its drafts accepts." in lines


def test_prompts_are_from_random_lines_of_each_text():
    texts = {"a": "one line\n" * 40, "b": "\n".join(map(str, range(1000, 1400)))}
    prompts = choose_prompts(texts, LETTERS, 12, 3, seed=1)
    assert [len(rows) for rows in prompts.values()] == [3, 3]
    assert all(len(prompt) == 12 and prompt[0] == LETTERS.start for rows in prompts.values() for prompt in rows)
    assert choose_prompts(texts, LETTERS, 12, 3, seed=1) == prompts != choose_prompts(texts, LETTERS, 12, 3, seed=2)
    with pytest.raises(ValueError, match="^--text c: fewer than 12 tokens: give a longer text$"):
        choose_prompts({"c": "short"}, LETTERS, 12, 3, seed=1)


def test_four_texts_of_different_kinds_are_there_without_files(tmp_path):
    texts = read_texts(())
    assert list(texts) == ["Macbeth", "Twelfth Night", "Python's manual", "Python source"]
    assert all(len(text) > 50_000 for text in texts.values())
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text("the king")
    with pytest.raises(ValueError, match="^--text: two files have the same name: rename one$"):
        read_texts([tmp_path / "one" / "same.txt", tmp_path / "other" / "same.txt"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drafter", "lookup", "--mode", "beam:2"], "mode 'beam:2': must be DECODING:SIZES"),
        (["--drafter", "lookup", "--drafter", "lookup"], "--drafter: two drafters have the same name"),
        (["--drafter", "lookup"], "does not exist"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, options, message):
    code, out, err = call("bench", "decoding", "nowhere", *options, folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


def test_results_of_other_options_are_kept(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"seed": 0, "target": "run", "cost": {"float32": {}}, "rows": [1]}))
    assert decoding._resume(path, {"seed": 0, "target": "run"})["rows"] == [1]
    with pytest.raises(ValueError, match="holds a benchmark with seed = 0, not 1: give another --output"):
        decoding._resume(path, {"seed": 1, "target": "run"})
    np.testing.assert_equal(json.loads(path.read_text())["rows"], [1])
