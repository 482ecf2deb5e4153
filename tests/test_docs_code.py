"""Runs every Python block of the docs as it stands, and parses every command line and configuration."""

import contextlib
import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from experiments import config_file
from experiments.cli import cli
from models.export import export
from tests.models import exported
from tests.test_docs import PAGES, ROOT, exists


class Block(NamedTuple):
    page: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> dict[str, list[Block]]:
    """Returns the fenced blocks of all pages by language, also those that are indented in a list."""
    found: dict[str, list[Block]] = {}
    for page in PAGES:
        text = page.read_text()
        for match in re.finditer(r"^( *)```([^\n]*)\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            line = text[: match.start()].count("\n") + 2
            block = Block(str(page.relative_to(ROOT)), line, textwrap.dedent(match[3]))
            found.setdefault(match[2].strip(), []).append(block)
    return found


BLOCKS = blocks()
PYTHON, SHELL, CONSOLE, TOML, TEXT = (BLOCKS.get(name, []) for name in ("python", "sh", "console", "toml", "text"))


def inline() -> list[Block]:
    """Returns what stands in single backticks outside the blocks, each in one line."""
    found = []
    for page in PAGES:
        text = re.sub(
            r"^( *)```.*?^\1```$", lambda match: "\n" * match[0].count("\n"), page.read_text(), flags=re.M | re.S
        )
        for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(str(page.relative_to(ROOT)), line, " ".join(match[1].split())))
    return found


@pytest.fixture(scope="session")
def model_file(tmp_path_factory) -> Path:
    """The exported model that docs/export.md reads."""
    path = tmp_path_factory.mktemp("docs") / "model.tflite"
    model = exported.model()
    export(model, exported.weights(model), exported.vocabulary(), path)
    return path


def test_the_docs_have_blocks():
    assert len(PYTHON) > 12 and len(SHELL) > 10 and CONSOLE and len(TOML) > 3


def test_every_block_has_a_language_that_a_test_reads():
    assert BLOCKS.keys() == {"python", "sh", "console", "toml", "text"}
    assert [str(block) for block in TEXT if re.search(r"^(\$ )?fedspeak ", block.code, re.MULTILINE)] == []


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_a_python_block_runs_as_it_stands(block: Block, tmp_path, monkeypatch, request):
    if "model.tflite" in block.code:
        (tmp_path / "model.tflite").symlink_to(request.getfixturevalue("model_file"))
    monkeypatch.chdir(tmp_path)
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})


def command_lines() -> list[tuple[str, list[str]]]:
    """Returns place and arguments of every `fedspeak` command in a block."""
    found = []
    for language, block in [("sh", block) for block in SHELL] + [("console", block) for block in CONSOLE]:
        for line in block.code.replace("\\\n", " ").splitlines():
            is_command = language == "sh" or line.startswith("$ ")  # other lines of a console are output
            if is_command and (match := re.search(r"\bfedspeak ([^#;]*)", line)):
                found.append((str(block), shlex.split(match[1])))
    return found


def commands_with_options() -> list[tuple[str, list[str]]]:
    """Returns place and arguments of every `fedspeak` command with options that stands in a sentence."""
    commands = [(str(span), span.code) for span in inline() if span.code.startswith("fedspeak ")]
    return [(place, shlex.split(code)[1:]) for place, code in commands if re.match(r"fedspeak [a-z].* --", code)]


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


def parse_mention(arguments: list[str]) -> None:
    """Parses a command in a sentence, which may leave out required arguments and the value of its last option."""
    with contextlib.suppress(click.MissingParameter):
        try:
            parse(arguments)
        except click.BadOptionUsage as error:
            if error.option_name != arguments[-1]:
                raise


@pytest.mark.parametrize(
    "place, arguments",
    commands_with_options(),
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else value,
)
def test_a_command_in_a_sentence_has_the_options_that_it_is_shown_with(place: str, arguments: list[str]):
    parse_mention(arguments)


@pytest.mark.parametrize("block", TOML, ids=str)
def test_a_configuration_of_the_docs_is_valid(block: Block):
    config_file.parse(block.code, str(block))


def test_keys_of_a_configuration_in_sentences_exist_and_have_possible_values():
    """`run.shards` and `data.strict = true`; which keys go together is known only where a block shows them all."""
    pattern = rf"({'|'.join(config_file.sections())})\.(\w+)( = .+)?"
    known = {name: config_file.fields(section) for name, section in config_file.sections().items()}
    spans = [(span, match) for span in inline() if (match := re.fullmatch(pattern, span.code))]
    assert len(spans) > 90
    for span, match in spans:
        section, key, value = match.groups()
        if key in ("json", "jsonl", "tflite") or (section == "privacy" and exists(f"privacy.{key}")):
            continue  # a file, or a module
        assert key in known[section], f"{span}: {span.code}"
        if value is not None:
            try:
                config_file.parse("", str(span), [span.code.replace(" = ", "=")])
            except ValueError as error:
                assert ": must be " not in str(error), str(error)


def test_a_command_or_configuration_that_is_wrong_is_found():
    for arguments in (["train", "--worker", "a:1"], ["bench", "simulation", "--case", "lstmm"], ["priv", "--help"]):
        with pytest.raises(click.UsageError):
            parse_mention(arguments)
    parse_mention(["train", "--workers"])
    parse_mention(["privacy", "epsilon", "--rounds", "3"])


def test_a_command_that_does_not_exist_does_not_parse():
    with pytest.raises(click.UsageError):
        parse(["train", "demo", "--no-such-option"])
    with pytest.raises(click.UsageError):
        parse(["no-such-command"])
