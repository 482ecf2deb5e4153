"""`bench decoding` names the fastest mode, goes on where it was, and takes prompts from the texts it is given."""

import json
from typing import Any

import numpy as np
import pytest

from experiments.bench import decoding, decoding_loop, decoding_measurement
from experiments.bench.decoding_loop import Drawn
from experiments.bench.decoding_texts import choose_prompts, read_texts
from experiments.decoding_modes import parse
from experiments.reproduce import tree_efficiency
from models.vocabulary import Vocabulary
from tests.experiments.processes import call
from tests.models.decoding.table_model import TableModel, draw_table

LETTERS = Vocabulary((b"",) * 3 + tuple(bytes([byte]) for byte in range(256)))


def test_speed_is_that_of_tokens_and_seconds_beside_plain_decoding_from_the_same_prompt():
    drawn = [
        [Drawn(2.0, 40, 10, np.array([10, 8]), np.array([8, 7])), Drawn(4.0, 20, 20)],  # 20 tokens a second beside 5
        [Drawn(2.0, 40, 20, np.array([20, 9]), np.array([9, 1])), Drawn(2.0, 20, 20)],  # 20 beside 10
    ]
    found = decoding_measurement.summarise(["one", "other"], drawn)
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
        "others": 0.0,
        **more,
    }


def test_best_modes_are_named_with_the_options_of_export_or_plain_decoding_where_none_is_faster():
    rows = [
        row("spectr:2x2", 0.0, 1.2),
        row("spectr:2x2", 1.0, 1.05, of_optimum=0.97),
        row("tree:2,1", 0.0, 1.5, drafter="e"),
        row("tree:2,1", 1.0, 0.7, drafter="e", others=0.6),
        row("distinct-tree:2", 0.0, 2.0),
        row("distinct-tree:2", 1.0, 2.0),
    ]
    cost = {"int8": {"1": [1, 1, 2], "13": [3, 4, 5], "2": [1, 2, 3]}}
    found = {"cost": cost, "rows": rows, "temperatures": [0.0, 1.0]}
    lines = decoding.format_results(found).splitlines()
    assert lines[2:5] == ["| tokens | 1 | 2 | 13 |", "|---|---|---|---|", "| int8 | 1.00 | 2.00 | 4.00 |"]
    assert lines[-5] == (
        "The best mode for you is, int8 at temperature 0: tree:2,1 with drafter e, 1.50 [1.40, 1.60] times as fast as "
        "plain decoding; the fastest of 2 (fedspeak export --decoding tree --tree 2,1)."
    )
    assert lines[-3] == (
        "The best mode for you is, int8 at temperature 1: plain decoding; the fastest of 2 others, spectr:2x2, has "
        "1.05 [0.95, 1.15] times its speed."
    )
    assert lines[-1] == "NOISY: other processes used up to 0.6 cores during a measurement."
    assert "SpecTr's rule accepts 97.0 to 97.0 % of what the best rule for its drafts accepts." in lines
    assert "The rule of tree accepts 100 % of what the best rule for its drafts accepts, as is proved." in lines
    missing = "The rule of distinct-tree: what it accepts beside the best rule was not computed for distinct-tree:2."
    assert missing in lines and "multi-path" not in "".join(lines)


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
        (["--drafter", "lookup", "--prompts", "1"], "--prompts"),
        (["--drafter", "lookup", "--temperature", "1e-9"], "1e-09: must be 0 (greedy) or from 1e-06 to 100"),
        (["--drafter", "lookup", "--temperature", "nan"], "nan: must be 0 (greedy) or from 1e-06 to 100"),
        (["--drafter", "lookup", "--temperature", "-1"], "-1.0: must be 0 (greedy) or from 1e-06 to 100"),
        (["--drafter", "lookup", "--temperature", "101"], "101.0: must be 0 (greedy) or from 1e-06 to 100"),
    ],
)
def test_bad_options_end_in_one_line(tmp_path, options, message):
    code, out, err = call("bench", "decoding", "nowhere", *options, folder=tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err


ASKED = {"seed": 0, "target": "run"}


def test_results_of_the_same_question_are_taken_up_with_more_drafters(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**ASKED, "drafters": {"a": "1"}, "cost": {"float32": {}}, "rows": [1]}))
    found = decoding._resume(path, ASKED, {"a": "1", "b": "2"})
    assert found["rows"] == [1] and found["drafters"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("asked", "drafters", "what"), [({"seed": 1}, {"a": "1"}, "seed"), ({}, {"a": "2"}, "drafter a")]
)
def test_results_of_another_question_are_refused_and_stay(tmp_path, asked, drafters, what):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({**ASKED, "drafters": {"a": "1"}, "cost": {}, "rows": [1]}))
    with pytest.raises(ValueError, match=f"holds results of another {what}: give another --output, or the options"):
        decoding._resume(path, {**ASKED, **asked}, drafters)
    assert json.loads(path.read_text())["rows"] == [1]


class _Runner:
    """Stands for a loop in the runtime: a block gives three tokens and takes a second, reading the prompt ten."""

    def __call__(self, tokens, max_new, **inputs):
        blocks = -(-int(max_new) // 3)
        self.now += 10 + blocks
        counts = {"reached": [[blocks, blocks]], "accepted": [[blocks, blocks]]}
        return {"decided": [3 * blocks], "calls": [blocks]} | {name: np.array(value) for name, value in counts.items()}

    now = 0.0


def test_time_and_tokens_of_a_draw_are_without_prompt_and_first_block(monkeypatch):
    loop: Any = object.__new__(decoding_loop.Loop)
    runner = _Runner()
    loop._generate, loop._bias, loop._tokens = runner, np.zeros(3), 9
    monkeypatch.setattr(decoding_loop.time, "perf_counter", lambda: runner.now)
    drawn = loop.draw([1, 2], 1.0, 0)
    assert drawn[:3] == (2.0, 6, 2)
    assert drawn.reached.tolist() == drawn.accepted.tolist() == [2, 2]


def test_share_of_the_optimum_is_that_of_the_rule_of_each_decoding_for_its_drafts(monkeypatch):
    found = {"k_seq": 0.3, "multi_path": 0.35, "independent": 0.4, "distinct_tree": 0.3, "distinct": 0.5, "greedy": 0.6}
    asked: list[Any] = []

    def first_level(*arguments):
        asked.append(arguments[-1])
        return [found]

    monkeypatch.setattr(tree_efficiency, "first_level", first_level)
    model: Any = TableModel(draw_table(0, 4))
    measurement = decoding_measurement.Measurement(model, {}, {"text": [[1, 2], [0, 3]]}, (1.0,), 0)
    model.fit = lambda context: model
    for name, share in (("spectr:3x4", 0.75), ("multi-path:3x2", 0.875), ("distinct-tree:3,2", 0.6)):
        assert measurement._of_optimum(None, parse(name), 1.0) == {"of_optimum": pytest.approx(share)}
    assert asked == [[3]] * 3
    del found["distinct_tree"]
    assert measurement._of_optimum(None, parse("distinct-tree:3,2"), 1.0) == {}
    monkeypatch.setattr(tree_efficiency, "first_level", lambda *arguments: [dict.fromkeys(found, 0.0)])
    assert measurement._of_optimum(None, parse("spectr:3x4"), 1.0) == {}
