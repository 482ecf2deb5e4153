"""`fedspeak import` and what follows it: evaluate, export and generate with an imported model."""

import errno
import hashlib
import json
import os
import re
import subprocess
import sys

import pytest

from models import tflite_file, vocabularies
from models.pretrained.tokenizer import PretrainedVocabulary
from tests.disks import read_only
from tests.experiments.processes import call
from tests.models.pretrained.checkpoints import write_folder, write_gguf

pytest.importorskip("gguf")

TEXT = "the and in the other thing, the end and the beginning.\n" * 12
SPEED = re.compile(r"\d+ tokens?(, [\d,]+ tokens/s)?, peak memory [\d,]+ MB \([\w-]+ [\d.]+, 1 thread\)\n")
LIMITS = ("--max-prompt", "20", "--max-new-tokens", "12")


def run(*arguments, folder):
    """Runs a command that must succeed; returns standard output and standard error."""
    code, out, err = call(*arguments, folder=folder)
    assert code == 0, err
    return out, err


def refuse(*arguments, folder):
    """Runs a command that must end with one line; returns this line."""
    code, out, err = call(*arguments, folder=folder)
    assert (code, out) == (2, ""), err
    assert err.startswith("fedspeak: error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint of each format, both imported, and text files."""
    place = tmp_path_factory.mktemp("pretrained")
    write_gguf(place / "Small.Q8.gguf")
    write_folder(place / "Other")
    write_gguf(place / "spm.gguf", tokenizer="llama")
    (place / "text.txt").write_text(TEXT)
    (place / "short.txt").write_text("a")
    (place / "latin.txt").write_bytes(b"caf\xe9")
    for arguments in (["Small.Q8.gguf"], ["Other", "--output", "other"], ["spm.gguf", "--context", "48"]):
        run("import", *arguments, folder=place)
    return place


@pytest.fixture(scope="module")
def exported(place):
    """What `export` of the model from the GGUF file printed; the files are in its folder."""
    return run("export", "small.q8", *LIMITS, folder=place)[0]


def test_import_writes_a_model_folder_named_after_the_file(place, tmp_path):
    out, err = run("import", str(place / "Small.Q8.gguf"), folder=tmp_path)
    assert out == "wrote small.q8: llama, GGUF, 0.0 M weights, 267 tokens, context 64\n" and err == ""
    folder = tmp_path / "small.q8"
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.q8"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "facts.json",
        "model.json",
        "vocabulary.json",
        "weights.npz",
    ]
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["imported"]["file"] == "Small.Q8.gguf" and facts["imported"]["description"] == "llama, GGUF"
    assert facts["imported"]["sha256"] == hashlib.sha256((place / "Small.Q8.gguf").read_bytes()).hexdigest()
    assert facts["vocabulary"] == vocabularies.load(folder / "vocabulary.json").digest


def test_import_of_a_folder_is_named_after_it_and_equals_that_of_the_file(place, tmp_path):
    out, _ = run("import", str(place / "Other"), folder=tmp_path)
    assert out.startswith("wrote other: llama, Hugging Face, ")
    for name in ("weights.npz", "vocabulary.json", "model.json"):
        assert (tmp_path / "other" / name).read_bytes() == (place / "small.q8" / name).read_bytes()


def test_import_with_a_smaller_context_says_so(place):
    assert json.loads((place / "spm" / "model.json").read_text())["context"] == 48
    message = refuse("import", "spm.gguf", "--context", "65", "--output", "wide", folder=place)
    assert "context = 65: spm.gguf was trained for at most 64 tokens" in message
    assert not (place / "wide").exists()


def test_evaluate_reads_text_files(place):
    out, _ = run("evaluate", "small.q8", "--text", "text.txt", folder=place)
    tokens = len(vocabularies.load(place / "small.q8" / "vocabulary.json").encode(TEXT))
    assert out.startswith(f"text.txt: {tokens} tokens in sequences of up to 64, with a 95 % interval over these.")
    row = re.search(r"^\| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| ([\d.]+) \| [\d,.]+ \| [\d.]+%", out, re.M)
    assert row is not None, out
    nats, low, high, bits = row.groups()
    assert float(low) <= float(nats) <= float(high)
    # The logits of made-up weights are no better than chance: ln 267 = 5.6 nats.
    assert float(nats) > 5 and float(bits) == pytest.approx(float(nats) * tokens / len(TEXT) / 0.693147, rel=1e-3)
    both, _ = run("evaluate", "small.q8", "--text", "text.txt", "--text", "text.txt", folder=place)
    assert both.startswith(f"text.txt, text.txt: {2 * tokens:,} tokens") and f"| {nats} [" in both
    assert run("evaluate", "other", "--text", "text.txt", folder=place)[0] == out


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("latin.txt", "latin.txt: not UTF-8 (byte 3): convert it first"),
        ("short.txt", "short.txt: fewer than two tokens of text: give a longer file"),
        ("none.txt", "none.txt: No such file or directory"),
    ],
)
def test_evaluate_refuses_a_text_file_that_cannot_be_evaluated(place, file, message):
    assert message in refuse("evaluate", "small.q8", "--text", file, folder=place)


def test_evaluate_of_an_imported_model_needs_text(place):
    assert "small.q8 holds no run, and so no test clients: give text files with --text" in refuse(
        "evaluate", "small.q8", folder=place
    )


def test_export_writes_files_of_all_precisions_that_pass_the_comparison(place, exported):
    rows = re.findall(r"^ *(float32|float16|int8) .* equal .*/50 .* ok *$", exported, re.M)
    assert rows == ["float32", "float16", "int8"]
    for name in ("model.tflite", "model-float16.tflite", "model-int8.tflite"):
        assert f"wrote small.q8/{name}" in exported and (place / "small.q8" / name).stat().st_size > 50_000


def test_generate_continues_a_prompt_and_prints_the_speed(place, exported):
    arguments = ("--prompt", "the and", "--max-new-tokens", "6", "--temperature", "0")
    out, err = run("generate", "small.q8/model.tflite", *arguments, folder=place)
    assert out.startswith("the and") and len(out) > len("the and\n") and out.endswith("\n")
    assert SPEED.fullmatch(err)
    assert run("generate", "small.q8/model.tflite", "--max-new-tokens", "1", folder=place)[1].startswith("1 token, ")
    assert run("generate", "small.q8/model-int8.tflite", *arguments, folder=place)[0].startswith("the and")


def test_generate_answers_a_chat_message_without_repeating_it(place, exported):
    arguments = ("--chat", "the", "--max-new-tokens", "8", "--temperature", "0", "--count", "2")
    out, err = run("generate", "small.q8/model.tflite", *arguments, folder=place)
    assert SPEED.fullmatch(err)
    assert out.count("\n") >= 2
    # Greedy answers are equal; the template around the message ("assistant" too) is read and not printed.
    assert out[: len(out) // 2] == out[len(out) // 2 :] and "assistant" not in out


@pytest.mark.slow
def test_heads_on_an_imported_model_draft_its_own_greedy_text(place, exported):
    (place / "public.txt").write_text(TEXT * 10)
    sections = ('[data]\npublic = ["public.txt"]', "[clients]\nsequence_length = 8", "[model]\nprediction_heads = 3")
    (place / "heads.toml").write_text("\n".join([*sections, "[pretraining]\nepochs = 1", ""]))
    out, _ = run("pretrain", "heads.toml", "--heads-on", "small.q8", "--output", "heads", folder=place)
    assert "Prediction heads on held-out public text" in out and "\n| 3 | " in out
    run("export", "heads", "--precision", "float32", "--decoding", "blockwise", *LIMITS, folder=place)
    arguments = ("--prompt", "the and", "--max-new-tokens", "12", "--temperature", "0")
    plain, _ = run("generate", "small.q8/model.tflite", *arguments, folder=place)
    own, _ = run("generate", "heads/model.tflite", *arguments, folder=place)
    assert own == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "the", "--chat", "the"], "--prompt and --chat are both given: drop one"),
        (["--chat", "the <|im_end|>"], "chat: the message holds the special token '<|im_end|>': remove it"),
        (["--chat", "the and the"], "prompt: 23 tokens and max_new_tokens = 64 exceed the 32 tokens that small"),
    ],
)
def test_generate_refuses_what_the_model_cannot_read(place, exported, options, message):
    assert message in refuse("generate", "small.q8/model.tflite", *options, folder=place)


def test_chat_with_a_model_without_template_is_refused(place, exported):
    facts, _ = tflite_file.read(place / "small.q8" / "model.tflite")
    content = (place / "small.q8" / "model.tflite").read_bytes()[: facts.flatbuffer_bytes]
    words = vocabularies.load(place / "small.q8" / "vocabulary.json")
    without = PretrainedVocabulary.from_json(json.dumps({**json.loads(words.to_json()), "chat_template": None}))
    tflite_file.write(place / "plain.tflite", content, without, facts)
    assert "chat: the model has no chat template: use a prompt instead" in refuse(
        "generate", "plain.tflite", "--chat", "the", folder=place
    )
    assert run("generate", "plain.tflite", "--prompt", "the", "--max-new-tokens", "3", folder=place)[0].startswith(
        "the"
    )


@pytest.fixture
def broken(tmp_path):
    """A folder with checkpoints that cannot be imported."""
    write_gguf(tmp_path / "model.gguf")
    content = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: len(content) * 2 // 3])
    (tmp_path / "text.gguf").write_text("no model")
    write_gguf(tmp_path / "gemma.gguf", architecture="gemma")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.gguf"], "none.gguf does not exist: give a GGUF file or a folder"),
        (["cut.gguf"], "cut.gguf: cut short or damaged"),
        (["text.gguf"], "text.gguf: not a GGUF file: give a .gguf file, or a folder with config.json"),
        (["gemma.gguf"], "gemma.gguf: architecture 'gemma' cannot be imported; those that can: llama, qwen2"),
        (["empty", "--output", "new"], "empty/config.json: No such file or directory"),
        (["model.gguf", "--output", "empty"], "empty exists: choose another --output, or delete it"),
        (["model.gguf", "--output", "none/new"], "none is not a folder: create it first"),
        (["model.gguf", "--context", "0"], "Invalid value for '--context'"),
    ],
)
def test_import_that_fails_is_one_line_and_writes_nothing(broken, arguments, message):
    before = sorted(broken.rglob("*"))
    assert message in refuse("import", *arguments, folder=broken)
    assert sorted(broken.rglob("*")) == before


def test_import_refuses_its_arguments_before_tensorflow_is_loaded(broken):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'gguf', 'keras', 'tensorflow'} & set(sys.modules))))\n"
        "from experiments.cli import main\nmain(sys.argv[1:])"
    )
    for arguments in (["none.gguf"], ["model.gguf", "--output", "empty"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "import", *arguments],
            cwd=broken,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr


def test_import_into_a_folder_that_cannot_be_written_is_one_line(broken):
    with read_only(broken / "empty"):
        assert "empty could not be written" in refuse("import", "model.gguf", "--output", "empty/new", folder=broken)
    assert not any((broken / "empty").iterdir())


@pytest.mark.parametrize("writes", [0, 2, 4, 6])
def test_import_on_a_full_disk_is_one_line_and_leaves_nothing(broken, monkeypatch, writes):
    before, calls, real = sorted(broken.rglob("*")), [], os.fsync

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    assert "new could not be written (No space left on device): make room on its disk, then import again" in refuse(
        "import", "model.gguf", "--output", "new", folder=broken
    )
    assert sorted(broken.rglob("*")) == before


@pytest.mark.parametrize("module", ["gguf", "safetensors", "tokenizers"])
def test_import_names_the_missing_extra(broken, monkeypatch, module):
    from experiments import extras

    real = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == module else real(name))
    assert (
        f"{module} is not installed; it belongs to the extra 'pretrained': pip install 'fedspeak[pretrained]'"
        in refuse("import", "model.gguf", folder=broken)
    )


def test_generate_without_the_tokenizers_package_names_the_extra(place, exported, monkeypatch):
    class Hide:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "tokenizers":
                raise ModuleNotFoundError("No module named 'tokenizers'", name=name)

    monkeypatch.delitem(sys.modules, "tokenizers")
    monkeypatch.setattr(sys, "meta_path", [Hide, *sys.meta_path])
    assert (
        "tokenizers is not installed; it belongs to the extra 'pretrained': pip install 'fedspeak[pretrained]'"
        in refuse("generate", "small.q8/model.tflite", "--prompt", "the", folder=place)
    )


def test_import_deletes_the_draft_of_one_that_was_killed(place, tmp_path):
    killed = "import os, signal; from experiments import imported\n"
    killed += "imported.save_weights = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    killed += "from experiments.cli import main; main()"
    arguments = ["import", str(place / "Small.Q8.gguf"), "--output", "model"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", killed, *arguments], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert process.returncode == -9, process.stderr.decode()
    assert [entry.suffix for entry in tmp_path.iterdir()] == [".draft"]
    run(*arguments, folder=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
