"""Defines `fedspeak bench pretrained`: an imported model beside Hugging Face transformers on the same GGUF file."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from experiments import extras, options
from experiments.bench.measure import environment
from experiments.bench.processes import watch
from experiments.bench.table import machine
from experiments.markdown import markdown_table
from experiments.memory import resident
from experiments.runs import write_json

_PYTHON = Path(".venv-bench/transformers/bin/python")
_TEXTS, _TOKENS, _GREEDY = 10, 200, 64
_CHARACTERS = slice(4000, 5500)  # after a play's list of persons


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@options.timeout()
@options.output("runs/bench/pretrained")
def pretrained(checkpoint: Path, timeout: int, output: Path) -> None:
    """Compare the logits and the speed of a GGUF file with those of Hugging Face transformers.

    Ten texts of 200 tokens are Shakespeare's. `make bench-peers` installs transformers.
    """
    extras.require("federated")
    extras.require("pretrained")
    if not _PYTHON.is_file():
        raise FileNotFoundError(f"{_PYTHON} does not exist: make bench-peers")
    output.mkdir(parents=True, exist_ok=True)
    texts = _read_texts()
    (output / "texts.json").write_text(json.dumps(texts))
    theirs = _run_peer(checkpoint.resolve(), output.resolve(), timeout)
    found = {"transformers": theirs, **_compare(checkpoint, texts, output / "logits.npz")}
    found["exported"] = _measure_exported(checkpoint, output)
    write_json(output / "pretrained.json", {"machine": machine(), "checkpoint": checkpoint.name, **found})
    text = f"Machine: {machine()}.\n\n{format_table(found)}"
    (output / "pretrained.md").write_text(text)
    click.echo(text)


def format_table(found: dict[str, Any]) -> str:
    """Returns the results as Markdown."""
    engines = {"transformers, float32": found["transformers"]}
    for name in ("float32", "float16", "int8"):
        measured = found["exported"][name]
        engines[f"exported file, {name} ({measured['megabytes']:.0f} MB)"] = measured
    cells = [
        (name, f"{own['tokens_per_second']:.0f}", f"{own['peak_megabytes']:,.0f}") for name, own in engines.items()
    ]
    lines = [
        f"Token ids equal on {found['texts_with_equal_ids']} of {_TEXTS} texts; largest difference of a logit "
        f"{found['largest_difference']:.1e} of the logits' spread; the same {_GREEDY} greedy tokens on "
        f"{found['texts_with_equal_greedy']} of {_TEXTS} texts.",
        "",
        *markdown_table(("one thread", "tokens per second", "peak memory, MB"), cells),
    ]
    return "\n".join(lines) + "\n"


def _read_texts() -> list[str]:
    from fl.sources import shakespeare

    return [file.read_text(encoding="utf-8")[_CHARACTERS] for file in shakespeare.load().files[:_TEXTS]]


def _run_peer(checkpoint: Path, output: Path, timeout: int) -> dict[str, float]:
    command = [str(_PYTHON.absolute()), "-m", "experiments.bench.peers.hugging_face", str(checkpoint)]
    command += [str(output / "texts.json"), str(output / "logits.npz")]
    log = output / "transformers.log"
    outcome = watch(command, folder=output, environment=environment(), log=log, timeout=timeout)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    if outcome.return_code != 0:
        raise click.ClickException(f"transformers failed: {lines[-1].strip()}; see {log}")
    measured: dict[str, float] = json.loads(lines[-1])
    return measured


def _compare(checkpoint: Path, texts: list[str], path: Path) -> dict[str, float]:
    """Compares the imported model with the logits, ids and greedy tokens that the peer wrote."""
    import tensorflow as tf

    from models.pretrained.checkpoint import load

    loaded = load(checkpoint)
    model = loaded.model.fit(_TOKENS + _GREEDY)
    weights = {name: tf.constant(weight) for name, weight in loaded.weights.items()}
    own_ids = np.argsort(loaded.vocabulary.rows(model.vocabulary_size))

    @tf.function
    def step(token: Any, state: Any) -> Any:
        logits, trail = model.extend(weights, token, state)
        return logits[0, 0], model.rewind(trail, tf.ones([1], tf.int32))

    expected = np.load(path)
    equal_ids = equal_greedy = 0
    difference = 0.0
    for number, text in enumerate(texts):
        every = own_ids[expected[f"ids_{number}"]]
        equal_ids += loaded.vocabulary.encode(text) == every.tolist()
        ids = every[np.newaxis, :_TOKENS].astype(np.int32)
        theirs = expected[f"logits_{number}"][:, loaded.vocabulary.rows(model.vocabulary_size)]
        difference = max(difference, float(np.abs(model.forward(weights, ids)[0] - theirs).max() / np.ptp(theirs)))
        logits, state = model.prefill(weights, ids, np.array([ids.shape[1]], np.int32))
        last, drawn = logits[0], []
        for _ in range(_GREEDY):
            drawn.append(int(np.argmax(last)))
            last, state = step(tf.constant([[drawn[-1]]], tf.int32), state)
        equal_greedy += drawn == own_ids[expected[f"greedy_{number}"]].tolist()
    return {
        "texts_with_equal_ids": equal_ids,
        "largest_difference": difference,
        "texts_with_equal_greedy": equal_greedy,
    }


def _measure_exported(checkpoint: Path, output: Path) -> dict[str, dict[str, float]]:
    """Exports the model in each precision, and measures generation in a process of its own."""
    from models.export import export
    from models.pretrained.checkpoint import load
    from models.tflite_file import PRECISIONS

    loaded = load(checkpoint)
    measured = {}
    for precision in PRECISIONS:
        path = output / f"{precision}.tflite"
        export(loaded.model, loaded.weights, loaded.vocabulary, path, precision, _GREEDY, 2 * _GREEDY)
        code = f"from experiments.bench.pretrained import measure_file; measure_file({str(path)!r}, {_GREEDY})"
        result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        measured[precision] = {"megabytes": path.stat().st_size / 1e6, **json.loads(result.stdout.splitlines()[-1])}
        path.unlink()
    return measured


def measure_file(path: str, count: int) -> None:
    """Prints as JSON the tokens per second and the peak memory of generating `count` tokens, on one thread."""
    from models import device
    from models.decoding.choices import Choices

    file, seconds = device.load(path), []
    for _ in range(3):
        tokens = file.draw([1], Choices(max_new_tokens=count, temperature=0.0))
        begin = time.perf_counter()  # the prompt has been read
        list(tokens)
        seconds.append((time.perf_counter() - begin) / count)
    memory = resident("VmHWM")
    print(json.dumps({"tokens_per_second": 1 / min(seconds), "peak_megabytes": memory}))
