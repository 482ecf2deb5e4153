import importlib
import json
import re
import sys
from typing import Any

import numpy as np
import pytest

from experiments.cli import main
from models import device, device_costs
from models.decoding.acceptance import Acceptance
from models.decoding.choices import Choices, Costs
from models.decoding.lookup_drafter import LookupDrafter
from models.device_blocks import BlockDraw
from models.export import export
from models.vocabulary import EOS
from tests.models import exported

MODEL = exported.model()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands") / "model.tflite"
    export(MODEL, exported.weights(MODEL), exported.vocabulary(), path, max_prompt=8, max_new_tokens=16)
    return path


@pytest.fixture(scope="module")
def drafting(tmp_path_factory):
    """A file whose draft lengths are chosen at run time."""
    path = tmp_path_factory.mktemp("drafting") / "model.tflite"
    export(
        MODEL,
        exported.weights(MODEL),
        exported.vocabulary(),
        path,
        max_prompt=8,
        max_new_tokens=16,
        decodings=("block", "autoregressive"),
        drafter=LookupDrafter(MODEL.vocabulary_size, 24),
        draft_length=2,
        automatic=True,
    )
    return path


def run(capfd, *arguments):
    """Runs the command line; returns exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capfd.readouterr()
    return caught.value.code, captured.out, captured.err


def test_generate_prints_prompt_and_continuation_that_depend_on_the_seed(path, capfd):
    code, out, err = run(capfd, "generate", path, "--prompt", "the", "--max-new-tokens", 10, "--count", 2, "--seed", 3)
    assert code == 0 and re.fullmatch(r"\d+ tokens, [\d,]+ tokens/s, peak memory [\d,]+ MB \(.*, 1 thread\)\n", err)
    assert out.endswith("\n") and out.startswith("the") and "\nthe" in out
    assert run(capfd, "generate", path, "--prompt", "the", "--max-new-tokens", 10, "--count", 2, "--seed", 3)[1] == out
    assert run(capfd, "generate", path, "--prompt", "the", "--max-new-tokens", 10, "--count", 2, "--seed", 4)[1] != out
    assert run(capfd, "generate", path)[0] == 0


def test_generate_numbers_the_requests_of_count_from_0(path, capfd):
    code, out, _ = run(capfd, "generate", path, "--prompt", "the", "--max-new-tokens", 10, "--count", 3, "--seed", 3)
    loaded = device.load(path)
    expected = ["".join(loaded.stream("the", max_new_tokens=10, seed=3, request=request)) for request in range(3)]
    assert code == 0 and out == "".join(f"the{text}\n" for text in expected)
    assert len(set(expected)) == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--top-p", 0.2),
        ("--min-p", 0.5),
        ("--repetition-penalty", 50),
        ("--presence-penalty", 50),
        ("--frequency-penalty", 50),
    ],
)
def test_generate_passes_each_option_to_the_model(path, capfd, option, value):
    fixed = ("generate", path, "--prompt", "the the", "--max-new-tokens", 16, "--temperature", 2)
    plain, changed = run(capfd, *fixed), run(capfd, *fixed, option, value)
    assert plain[0] == changed[0] == 0
    options: Any = {"temperature": 2.0, option[2:].replace("-", "_"): float(value)}
    expected = "".join(device.load(path).stream("the the", max_new_tokens=16, **options))
    assert changed[1] == f"the the{expected}\n" != plain[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "nan"], "value for --temperature: nan: must be 0 (greedy) or a number from 1e-06 to 1e+06"),
        (["--temperature", "-1"], "value for --temperature: -1.0: must be 0 (greedy)"),
        (["--top-k", "-1"], "value for --top-k: -1: must be an integer from 0 to 2^31 - 1"),
        (["--top-p", "0"], "value for --top-p: 0.0: must be a number above 0 and at most 1"),
        (["--top-p", "nan"], "value for --top-p: nan: must be a number above 0 and at most 1"),
        (["--min-p", "1"], "value for --min-p: 1.0: must be a number from 0 (off) to below 1"),
        (["--repetition-penalty", "0"], "value for --repetition-penalty: 0.0: must be a number from 0.01 to 100"),
        (["--presence-penalty", "nan"], "value for --presence-penalty: nan: must be a number from -100 to 100"),
        (["--frequency-penalty", "101"], "value for --frequency-penalty: 101.0: must be a number from -100 to 100"),
        (["--max-new-tokens", "0"], "value for --max-new-tokens: 0: must be an integer from 1 to 2^31 - 1"),
        (["--seed", "-1"], "value for --seed: -1: must be an integer from 0 to 2^64 - 1"),
        (
            ["--prompt", "\udcff"],
            "prompt: text holds the lone surrogate '\\udcff' at index 0, made of a byte that is not UTF-8: give",
        ),
    ],
)
def test_generate_refuses_bad_options_in_one_line(path, capfd, options, message):
    code, out, err = run(capfd, "generate", path, *options)
    assert (code, out) == (2, "")
    assert message in err and err.count("\n") == 1


def test_generate_refuses_files_that_are_not_exported_models_in_one_line(tmp_path, capfd):
    (tmp_path / "text.tflite").write_text("hello")
    for name, message in (
        ("text.tflite", "not a TFLite file"),
        ("none.tflite", "No such file"),
        ("", "Is a directory"),
    ):
        code, out, err = run(capfd, "generate", tmp_path / name)
        assert (code, out) == (2, "")
        assert message in err and err.count("\n") == 1


def test_costs_are_measured_written_and_used(drafting, tmp_path, capfd):
    costs = tmp_path / "costs.json"
    code, out, _ = run(capfd, "costs", drafting, "--output", costs)
    assert code == 0 and re.fullmatch(
        r"wrote \S+ \(block, .*, 1 thread\)\nIn times of one plain token: a block without a draft takes [\d.]+, "
        r"with one drafted token [\d.]+, with 2 [\d.]+\.\n.*\n",
        out,
    )
    assert json.loads(costs.read_text())["decoding"] == "block"
    device_costs.save(Costs(1.0, 1.0, 0.0), device.load(drafting), "block", costs)
    fixed = ("generate", drafting, "--prompt", "the the", "--max-new-tokens", 16)
    code, out, err = run(capfd, *fixed, "--costs", costs)
    assert code == 0 and re.search(r"^[\d.]+( \[.*\])? tokens per target call over \d+ calls", err, re.MULTILINE)
    text = "".join(
        device.load(drafting).stream("the the", max_new_tokens=16, decoding="block", costs=Costs(1.0, 1.0, 0.0))
    )
    assert out == f"the the{text}\n"
    report = tmp_path / "report.json"
    code, _, err = run(capfd, *fixed, "--costs", costs, "--count", 2, "--report", report)
    draws = device.load(drafting).draws(
        device.load(drafting).encode("the the"),
        [Choices(16, request=request, stop=EOS) for request in range(2)],
        costs=Costs(1.0, 1.0, 0.0),
    )
    for draw in draws:
        list(draw)
    parts = [draw.acceptance for draw in draws if isinstance(draw, BlockDraw)]
    content = {"requests": [one.to_dict() for one in parts], "total": Acceptance.total(parts).to_dict()}
    assert code == 0 and json.loads(report.read_text()) == content and len(parts) == 2
    code, plain, err = run(capfd, *fixed, "--decoding", "autoregressive")
    assert code == 0 and "target call" not in err and plain != out


def test_costs_measures_and_saves_the_decoding_that_is_asked_for(drafting, tmp_path, capfd, monkeypatch):
    measured: list[str] = []

    def measure(_, name):
        measured.append(name)
        return Costs(1.2, 1.4, 0.1)

    monkeypatch.setattr(device_costs, "measure", measure)
    costs = tmp_path / "costs.json"
    code, out, _ = run(capfd, "costs", drafting, "--decoding", "invariant", "--output", costs)
    assert code == 0 and measured == ["invariant"] and "(invariant, " in out
    assert device_costs.read(costs, device.load(drafting), "invariant") == Costs(1.2, 1.4, 0.1)


def test_bad_decodings_and_costs_are_refused_in_one_line(path, drafting, tmp_path, capfd):
    other = tmp_path / "other.json"
    device_costs.save(Costs(1.1, 1.1, 0.1), device.load(drafting), "block", other)
    content = json.loads(other.read_text())
    bad = {
        "text": "not JSON",
        "nan": json.dumps({**content, "verify": float("nan")}),
        "negative": json.dumps({**content, "draft": -1}),
        "list": "[]",
        "other": json.dumps({**content, "flatbuffer_sha256": "0"}),
        "decoding": json.dumps({**content, "decoding": "invariant"}),
        "huge": json.dumps({**content, "verify": 10**400}),
        "deep": "[" * 10_000,
    }
    messages: list[Any] = []
    for name, text in bad.items():
        (tmp_path / name).write_text(text)
        messages.append((("generate", drafting, "--costs", tmp_path / name), f"{tmp_path / name}: "))
    messages += [
        (("generate", drafting), "chooses draft lengths by measured costs: give --costs FILE from fedspeak costs"),
        (("generate", drafting, "--costs", tmp_path / "missing"), "missing: No such file"),
        (("generate", path, "--costs", other), "other.json: measured with another model file"),
        (("generate", path, "--decoding", "block"), "decoding = 'block': .* was exported for autoregressive; choose"),
        (("generate", path, "--decoding", "blocks"), "'blocks' is not one of"),
        (("costs", path), "its draft length is fixed; export it with draft_length auto"),
        (("costs", tmp_path / "text"), "not a TFLite file"),
        (("costs", ""), "Is a directory"),
        (("costs", "."), "Is a directory"),
        (("costs", drafting, "--output", tmp_path), "is a folder: give the name of a file"),
        (("costs", drafting, "--output", tmp_path / "no" / "x.json"), "no/x.json could not be written .*: make its fo"),
        (("generate", path, "--report", tmp_path / "no" / "x.json"), "no/x.json could not be written"),
        (("generate", path, "--report", tmp_path / "x.json"), "--report has no use with decoding autoregressive"),
    ]
    for arguments, message in messages:
        code, out, err = run(capfd, *arguments)
        assert code == 2 and out == "" and re.search(message, err), (arguments, err)
        assert err.count("\n") == 1 or "Usage" in err


def test_generate_ends_before_a_stop_text(path, capfd):
    fixed = ("generate", path, "--prompt", "the", "--max-new-tokens", 16, "--temperature", 2)
    whole = run(capfd, *fixed)[1]
    stop = whole[6:9]
    code, out, _ = run(capfd, *fixed, "--stop", stop, "--stop", "never comes")
    assert code == 0 and out == "the" + whole[3:].split(stop)[0] + "\n"
    code, out, err = run(capfd, *fixed, "--stop", "")
    assert code == 2 and out == "" and "--stop" in err and "must not be empty" in err


@pytest.fixture
def own_rewards(tmp_path, monkeypatch):
    """A module of rewards in the working folder: of prompt and text, of few values, and one that fails later."""
    (tmp_path / "own_rewards.py").write_text(
        "from hashlib import sha256\n"
        "calls = 0\n"
        "def of_prompt(prompt, text):\n"
        "    return int(sha256(f'{prompt}|{text}'.encode()).hexdigest()[:8], 16)\n"
        "def zero(prompt, text):\n"
        "    return 0\n"
        "def fails(prompt, text):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return calls if calls <= 8 else 1 / 0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("own_rewards", None)


def _best_of(path, tmp_path, capfd, *options):
    report = tmp_path / "report.json"
    draws = ("--prompt", "the", "--max-new-tokens", 8, "--seed", 4, "--best-of", 4, "--report", report)
    code, out, err = run(capfd, "generate", path, *draws, *options)
    return code, out, err, json.loads(report.read_text()) if report.exists() else None


def test_best_of_writes_the_text_with_the_largest_reward(path, tmp_path, capfd):
    code, out, err, report = _best_of(path, tmp_path, capfd, "--reward", "length", "--count", "3")
    assert code == 0, err
    total, texts = report["total"], report["texts"]
    assert out == "".join(f"the{row['text']}\n" for row in texts)
    for row in texts:
        assert row["reward"] == max(row["rewards"]) == row["rewards"][row["selected"]]
        assert row["expected_rewards"][0] == pytest.approx(np.mean(row["rewards"]))
        assert row["expected_rewards"][3] == row["reward"]
        assert 0 <= row["kl"] <= total["kl_bound"] == pytest.approx(np.log(4) - 3 / 4)
    assert total["kl"] == pytest.approx(np.mean([row["kl"] for row in texts]))
    assert all(row["kl_bound"] == total["kl_bound"] for row in texts)
    assert total["kl_interval"] is None and "too few for an interval" in err
    assert "best of 4 by length" in err and "one after another; export with --best-of" in err


def test_best_of_selects_among_the_texts_of_requests_of_its_own(path, tmp_path, capfd, own_rewards):
    """The second of two texts is chosen among requests 4 to 7: no text is drawn for both."""
    code, out, err, report = _best_of(path, tmp_path, capfd, "--reward", "own_rewards:of_prompt", "--count", "2")
    assert code == 0, err
    of_prompt = importlib.import_module("own_rewards").of_prompt

    loaded = device.load(path)
    prompt = loaded.encode("the")
    for number, row in enumerate(report["texts"]):
        choices = Choices(8, seed=4, request=4 * number, stop=EOS)
        drawn = loaded.draw_samples(prompt, choices, 4)
        texts = ["".join(device.decode_stream(loaded.vocabulary, one["tokens"].tolist())) for one in drawn]
        assert row["rewards"] == [of_prompt("the", text) for text in texts]
        assert row["text"] == texts[row["selected"]] and f"the{row['text']}\n" in out


def test_tied_texts_are_chosen_by_the_seed_and_the_line_says_so(path, tmp_path, capfd, own_rewards):
    """With one reward for all, 12 of 12 selections are ties; 12 equal choices have a chance of 4e-7."""
    options = "--reward", "own_rewards:zero", "--count", "12"
    code, _, err, report = _best_of(path, tmp_path, capfd, *options)
    assert code == 0, err
    chosen = [row["selected"] for row in report["texts"]]
    assert len(set(chosen)) > 1
    assert all(row["tied"] == row["distinct"] for row in report["texts"])
    tied = sum(row["distinct"] > 1 for row in report["texts"])
    assert report["total"]["tied"] == tied > 0
    assert f"since for {tied} of 12 selections several texts had the best reward" in err
    for seed in (5, 6, 7):
        other = _best_of(path, tmp_path, capfd, *options, "--seed", seed)[3]
        if [row["selected"] for row in other["texts"]] != chosen:
            return
    raise AssertionError("no seed changes the choice among tied texts")


def test_an_interval_is_that_of_the_estimates(path, tmp_path, capfd):
    options = "--reward", "log-likelihood", "--count", "32", "--max-new-tokens", "2"
    code, _, err, report = _best_of(path, tmp_path, capfd, *options)
    assert code == 0, err
    kls, total = [row["kl"] for row in report["texts"]], report["total"]
    half = 1.959964 * np.std(kls, ddof=1) / np.sqrt(32)
    expected = max(0.0, np.mean(kls) - half), min(total["kl_bound"], np.mean(kls) + half)
    assert total["kl_interval"] == pytest.approx(expected)
    assert f"[{expected[0]:.3f}, {expected[1]:.3f}]" in err


def test_texts_selected_before_a_reward_fails_are_written(path, tmp_path, capfd, own_rewards):
    code, out, err, report = _best_of(path, tmp_path, capfd, "--reward", "own_rewards:fails", "--count", "5")
    assert (code, len(out.splitlines()), report) == (2, 2, None)
    assert "reward = 'own_rewards:fails': raised ZeroDivisionError" in err and err.count("\n") == 1


def test_best_of_takes_probabilities_of_the_processed_distribution(path, tmp_path, capfd):
    """With top-k = 1 every text has probability 1, whatever the model's own softmax says: nothing is selected."""
    code, _, err, report = _best_of(path, tmp_path, capfd, "--reward", "log-likelihood", "--top-k", "1")
    assert code == 0, err
    (row,) = report["texts"]
    assert (row["distinct"], row["kl"]) == (1, 0.0)
    assert row["log_probability"] == pytest.approx(0, abs=1e-5)
    assert row["reward"] < -1e-3  # the softmax itself is not certain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--best-of", "4"], "--best-of and --reward belong together"),
        (["--reward", "length"], "--best-of and --reward belong together"),
        (["--best-of", "1", "--reward", "length"], "--best-of"),
        (["--best-of", "4", "--reward", "length", "--stop", "a"], "--stop does not go with --best-of"),
        (["--best-of", "4", "--reward", "beauty"], "reward = 'beauty': must be log-likelihood"),
        (["--best-of", "4", "--reward", "nowhere.keras"], "does not exist"),
        (
            ["--best-of", "4", "--reward", "math:sqrt", "--max-new-tokens", "8"],
            "reward = 'math:sqrt': raised TypeError",
        ),
        (["--best-of", "4", "--reward", "length", "--max-new-tokens", "99"], "was exported for 16"),
    ],
)
def test_bad_options_of_best_of_are_refused_in_one_line(path, capfd, options, message):
    code, out, err = run(capfd, "generate", path, "--prompt", "the", *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert message in err
