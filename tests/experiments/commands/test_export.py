import inspect
import shutil
from typing import Any

import pytest

from experiments.cli import main
from experiments.commands.export import export_and_check
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
def test_export_names_files_after_precision_and_output(tmp_path, capfd, monkeypatch, options, expected):
    exports = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
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
    assert code == 2 and f"{tmp_path} is a folder" in err
    code, _, err = run(capfd, "export", "run", "--output", tmp_path / "no" / "x")
    assert code == 2 and "no/x could not be written (No such file or directory): make its folder" in err


TREE = ["--drafter", "lookup", "--decoding", "tree"]
SPECTR = ["--drafter", "lookup", "--decoding", "spectr"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoding", "block"], "--decoding block needs a drafter: give --drafter"),
        (
            ["--drafter", "lookup", "--decoding", "autoregressive"],
            "--drafter has no use with --decoding autoregressive",
        ),
        (["--draft-length", "0"], "'0' must be an integer from 1 to 32, auto or auto:N"),
        (["--draft-length", "auto:"], "'auto:' must be an integer from 1 to 32, auto or auto:N"),
        (["--draft-length", "2.5"], "'2.5' must be an integer from 1 to 32, auto or auto:N"),
        (["--draft-length", "9" * 5000], f"'{'9' * 40}…' must be an integer from 1 to 32"),
        (
            ["--drafter", "lookup", "--decoding", "greedy-block", "--draft-length", "auto:3"],
            "--draft-length auto:3 does not go with --decoding greedy-block, whose drafts have one size",
        ),
        (["--max-prompt", str(10**12)], "'--max-prompt': 1000000000000 is not in the range 1<=x<=65536"),
        (["--max-new-tokens", "65537"], "'--max-new-tokens': 65537 is not in the range 1<=x<=65536"),
        (["--draft-length", "6"], "--draft-length has no use without --drafter"),
        ([*TREE, "--tree", "3,x"], "tree = '3,x': must be integers separated by commas"),
        ([*TREE, "--tree", "8,8"], "tree = '8,8': has 73 nodes with the root, more than 64; give fewer children"),
        ([*TREE, "--tree", "0"], "tree = '0': 0 must be an integer >= 1"),
        ([*TREE, "--num-drafts", "2"], "--num-drafts has no use without --decoding spectr: drop it"),
        ([*TREE, "--draft-length", "3"], "--draft-length has no use with --decoding tree alone"),
        ([*SPECTR, "--tree", "2,1"], "--tree has no use without --decoding tree: drop it, or name the decoding"),
        ([*SPECTR, "--num-drafts", "0"], "0 is not in the range 1<=x<=63"),
        ([*SPECTR, "--num-drafts", "16"], "num_drafts = 16: drafts of 4 tokens are 64 tokens, more than 63; lower"),
        ([*SPECTR, "--draft-length", "auto"], "--draft-length auto does not go with --decoding spectr"),
        (["--drafter", "lookup", "--decoding", "block", "--decoding", "block"], "--decoding block is given twice"),
    ],
)
def test_export_refuses_decodings_and_drafters_that_do_not_fit_in_one_line(tmp_path, capfd, options, message):
    code, out, err = run(capfd, "export", tmp_path, *options)
    assert code == 2 and out == "" and message in err


def test_export_passes_drafter_and_decodings_on(path, tmp_path, capfd, monkeypatch):
    exports: list[Any] = []
    loaded = device.load(path)
    trained = MODEL, exported.weights(MODEL), loaded.vocabulary
    monkeypatch.setattr("experiments.runs.load_trained", lambda run: trained)
    called: list[Any] = [export_and_check, export]
    signatures = [inspect.signature(function) for function in called]

    def keep(*values, **options):
        signatures[0].bind(*values, **options)
        signatures[1].bind(*values[:3], tmp_path, "float32", **options)
        exports.append(options)

    monkeypatch.setattr("experiments.commands.export.export_and_check", keep)
    folder = str(tmp_path)
    assert run(capfd, "export", folder, "--drafter", "lookup")[0] == 0
    assert (
        run(capfd, "export", folder, "--drafter", "self", "--decoding", "invariant", "--draft-length", "auto:6")[0] == 0
    )
    assert run(capfd, "export", folder)[0] == 0
    block, invariant, plain = exports
    assert block["decodings"] == ("block",) and block["draft_length"] == 4 and not block["automatic"]
    assert type(block["drafter"]).__name__ == "LookupDrafter" and block["drafter"].context == 64 + 128 + 4
    assert invariant["decodings"] == ("invariant",) and invariant["draft_length"] == 6 and invariant["automatic"]
    assert plain["decodings"] == ("autoregressive",) and "drafter" not in plain


def test_export_names_a_drafter_that_does_not_exist(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(
        "experiments.runs.load_trained", lambda run: (MODEL, exported.weights(MODEL), exported.vocabulary())
    )
    code, _, err = run(capfd, "export", tmp_path, "--drafter", "ngram:nowhere.npz")
    assert code == 2 and "drafter = 'ngram:nowhere.npz': nowhere.npz does not exist" in err
