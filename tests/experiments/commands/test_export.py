import re
import shutil
from typing import Any

import pytest

from experiments.cli import main
from models import device
from models.export import export
from tests.models import exported

MODEL = exported.model()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("commands") / "model.tflite"
    export(MODEL, exported.weights(MODEL), exported.vocabulary(), path, max_prompt=8, max_new_tokens=16)
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


def test_export_refuses_a_missing_run_in_one_line(tmp_path, capfd):
    code, _, err = run(capfd, "export", tmp_path / "none")
    assert code == 2 and "does not exist" in err and err.count("\n") == 1


def test_export_writes_all_precisions_and_prints_the_comparison(tmp_path, capfd, monkeypatch):
    weights = exported.weights(MODEL)
    monkeypatch.setattr("experiments.runs.load_trained", lambda run: (MODEL, weights, exported.vocabulary()))
    code, out, err = run(capfd, "export", tmp_path)
    assert code == 0
    notes = [f"converting the model with {precision} weights …" for precision in ("float32", "float16", "int8")]
    assert [line for line in err.splitlines() if "ing " in line] == [
        *notes,
        "comparing 3 files with the trained model …",
    ]
    names = {"model.tflite", "model-float16.tflite", "model-int8.tflite"}
    assert {file.name for file in tmp_path.iterdir()} == names
    for word in ("float32", "float16", "int8", "equal", "50/50", "MB", "ok", *names):
        assert word in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--precision", "float32"], {"float32": "run/model.tflite"}),
        (["--precision", "int8"], {"int8": "run/model-int8.tflite"}),
        (["--precision", "int8", "--output", "small.tflite"], {"int8": "small.tflite"}),
        (
            ["--output", "a/b.tflite"],
            {"float32": "a/b.tflite", "float16": "a/b-float16.tflite", "int8": "a/b-int8.tflite"},
        ),
    ],
)
def test_export_names_files_after_precision_and_output(capfd, monkeypatch, options, expected):
    exports = []
    monkeypatch.setattr("experiments.runs.load_trained", lambda run: (None, None, None))
    monkeypatch.setattr(
        "experiments.commands.export.export_and_check", lambda *values, **limits: exports.append(values[-1])
    )
    assert run(capfd, "export", "run", *options)[0] == 0
    assert [{precision: str(path) for precision, path in paths.items()} for paths in exports] == [expected]


def test_export_fails_if_a_file_differs_from_the_model(path, tmp_path, capfd, monkeypatch):
    other = exported.weights(MODEL, seed=1)
    monkeypatch.setattr("experiments.runs.load_trained", lambda run: (MODEL, other, exported.vocabulary()))
    monkeypatch.setattr("models.export.export", lambda *arguments, **limits: shutil.copy(path, arguments[3]))
    output = tmp_path / "model.tflite"
    code, out, err = run(capfd, "export", "run", "--precision", "float32", "--output", output)
    assert output.exists() and f"{output}: failed" in err and f"wrote {output}\n" in out
    assert code == 2 and "FAILED" in out and "failed the comparison with the trained model" in err


@pytest.mark.parametrize("stopped", ["models.parity.check_parity", "models.export.export"])
def test_interrupted_export_leaves_the_files_that_were_there_before(path, tmp_path, capfd, monkeypatch, stopped):
    def interrupt(*arguments, **limits):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.runs.load_trained", lambda run: (None, None, None))
    monkeypatch.setattr("models.export.export", lambda *arguments, **limits: shutil.copy(path, arguments[3]))
    monkeypatch.setattr(stopped, interrupt)
    (tmp_path / "model.tflite").write_text("before")
    assert run(capfd, "export", tmp_path)[0] == 130
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"model.tflite": "before"}


def test_export_names_the_output_that_it_cannot_write(tmp_path, capfd, monkeypatch):
    def fail(*arguments, **limits):
        raise OSError(28, "No space left on device", str(arguments[3]))

    monkeypatch.setattr("experiments.runs.load_trained", lambda run: (None, None, None))
    monkeypatch.setattr("models.export.export", fail)
    code, _, err = run(capfd, "export", "run", "--precision", "float32", "--output", tmp_path / "model.tflite")
    assert code == 2 and f"{tmp_path}/model.tflite" in err and ".draft" not in err
    code, _, err = run(capfd, "export", "run", "--precision", "float32", "--output", tmp_path)
    assert code == 2 and str(tmp_path) in err and "Is a directory" in err
