"""Runs every Python block of the docs as it stands, and parses every command line."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from experiments.cli import cli
from models.export import export
from tests.models import exported
from tests.test_docs import PAGES, ROOT


class Block(NamedTuple):
    page: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 2
            found.append(Block(str(page.relative_to(ROOT)), line, match[1]))
    return found


PYTHON, SHELL = blocks("python"), blocks("sh")


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """The exported model that docs/export.md reads."""
    path = tmp_path_factory.mktemp("docs") / "model.tflite"
    model = exported.model()
    export(model, exported.weights(model), exported.vocabulary(), path)
    return path


def test_the_docs_have_blocks():
    assert len(PYTHON) > 12 and len(SHELL) > 10


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_runs_as_it_stands(block: Block, tmp_path, monkeypatch, request):
    if "model.tflite" in block.code:
        (tmp_path / "model.tflite").symlink_to(request.getfixturevalue("model_file"))
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})


def command_lines() -> list[tuple[str, list[str]]]:
    """Page and arguments of every `fedspeak` command in a shell block."""
    found = []
    for block in SHELL:
        for line in block.code.splitlines():
            if match := re.search(r"\bfedspeak ([^#;]*)", line):
                found.append((str(block), shlex.split(match[1])))
    return found


def parse(arguments: list[str]) -> click.Context:
    """Parses a command line as click does, down to the command that it names, without running it."""
    context = cli.make_context("fedspeak", list(arguments), resilient_parsing=False)
    command: click.Command = cli
    rest = list(arguments)
    while isinstance(command, click.Group):
        name, below, rest = command.resolve_command(context, rest)
        assert below is not None and name is not None
        command = below
        if rest in (["--help"], ["-h"]):
            return context
        context = command.make_context(name, list(rest), parent=context)
    return context


@pytest.mark.parametrize(
    "place, arguments", command_lines(), ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else value
)
def test_a_command_of_the_docs_parses(place: str, arguments: list[str]):
    parse(arguments)


def test_a_command_that_does_not_exist_does_not_parse():
    with pytest.raises(click.UsageError):
        parse(["train", "demo", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["no-such-command"])
