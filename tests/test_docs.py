"""The docs name only what exists: public names, configuration keys, commands."""

import ast
import re
import tomllib
from pathlib import Path

import click
import pytest

from experiments import config, config_file, config_reference
from experiments.cli import cli

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOTTED = re.compile(r"`((?:fl|privacy|models|experiments)(?:\.\w+)+)`")


def defined(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """The names that a module or class body binds, with what binds them."""
    names: dict[str, ast.stmt] = {}
    for node in body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                names[node.name] = node
            case ast.Assign(targets=targets):
                names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names[name] = node
            case ast.Import() | ast.ImportFrom():
                names |= {alias.asname or alias.name: node for alias in node.names}
    return names


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module of ours or a name in one, by the source: nothing is imported."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:depth])
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not file.is_file():
            continue
        body = ast.parse(file.read_text()).body
        if depth == len(parts):
            return True
        # A package may load its public names lazily: then they are the keys of its table.
        lazy = re.findall(r'^    "(\w+)": "[\w.]+",$', file.read_text(), re.MULTILINE)
        name, *below = parts[depth:]
        names = defined(body)
        if not below:
            return name in names or name in lazy
        owner = names.get(name)
        return isinstance(owner, ast.ClassDef) and len(below) == 1 and below[0] in defined(owner.body)
    return False


def defaults() -> dict[str, object]:
    """`section.key` → default, of every key of a configuration."""
    tree = tomllib.loads(config_file.dump(config.Config()))
    return {
        f"{name}.{key}": tree[name].get(key)
        for name, section in config_file.sections().items()
        for key in config_file.fields(section)
    }


def test_every_dotted_name_exists():
    named = {(page.name, name) for page in PAGES for name in DOTTED.findall(page.read_text())}
    assert len(named) > 30
    assert sorted((page, name) for page, name in named if not exists(name) and name not in defaults()) == []


@pytest.mark.parametrize("name", ["privacy.plan.PrivacyPlan", "privacy.plan.PrivacyPlan.dp_event", "models.preset"])
def test_a_name_that_exists_is_found(name: str):
    assert exists(name)


@pytest.mark.parametrize(
    "name", ["privacy.nowhere", "privacy.plan.Plan", "privacy.plan.PrivacyPlan.record", "models.x"]
)
def test_a_name_that_does_not_exist_is_not(name: str):
    assert not exists(name)


def test_the_config_page_is_the_one_that_the_descriptions_give():
    assert (ROOT / "docs" / "config.md").read_text() == config_reference.markdown()


def test_the_config_page_lists_every_key_and_its_default():
    rows = re.findall(r"^\| `([\w.]+)` \| (?:`([^`]*)`)? ?\|", config_reference.markdown(), re.MULTILINE)
    listed = {key: tomllib.loads(f"value = {value}")["value"] if value else None for key, value in rows}
    assert listed == defaults()


def commands() -> list[tuple[str, list[str], list[str]]]:
    """Page, words and options of every command line in the docs: ("guide.md", ["train"], ["--resume"])."""
    found = []
    for page in PAGES:
        code = re.findall(r"```sh\n.*?```|`[^`\n]+`", page.read_text(), re.DOTALL)
        for line in re.findall(r"^`?fedspeak ([^`\n#]+)", "\n".join(code), re.MULTILINE):
            words = re.match(r"(?:[a-z]+(?:-[a-z]+)*(?: |$))*", line)
            assert words
            found.append((page.name, words[0].split(), re.findall(r"--[a-z-]+", line)))
    return found


def test_every_command_and_option_exists():
    context = click.Context(cli)
    assert len(commands()) > 10
    for page, words, options in commands():
        command: click.Command = cli
        for word in words:
            if not isinstance(command, click.Group):
                break  # its arguments
            below = command.get_command(context, word)
            assert below, f"{page}: fedspeak {' '.join(words)}"
            command = below
        known = {name for parameter in command.get_params(context) for name in parameter.opts} | {"--help"}
        assert set(options) <= known, f"{page}: fedspeak {' '.join(words)}"


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z0-9-]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= named <= targets


def test_links_outside_the_docs_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (ROOT / target).exists(), f"{page.name}: {target}"
