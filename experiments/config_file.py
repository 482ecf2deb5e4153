"""Reads a run's configuration from TOML and writes it back; words every error with the key, its value and the fix."""

import difflib
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import tomli_w
from msgspec import inspect

from experiments.config import Config
from experiments.config_fields import INTEGERS, LARGEST, SMALLEST, as_toml, as_toml_key

CONFIGS = Path(__file__).parent / "configs"
# Maps keys and sections of earlier versions to their present names.
_RENAMED_SECTIONS = {"warm_start": "pretraining"}
_RENAMED = {
    "cohort.rate": "cohort.sampling_probability",
    "privacy.clip": "privacy.clip_norm",
    "privacy.count_stddev": "privacy.clip_count_stddev",
    "run.users_at_once": "run.clients_at_once",
}


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads a config file, or a shipped one by its name (`demo`), with `section.key=value` overrides on top.

    `section.key=none` removes a key.

    Raises:
      FileNotFoundError, ValueError: one line that names the key, the value and the fix.
    """
    file = Path(path)
    if not file.is_file() and (CONFIGS / f"{path}.toml").exists():
        file = CONFIGS / f"{path}.toml"
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        shipped = ", ".join(sorted(config.stem for config in CONFIGS.glob("*.toml")))
        raise FileNotFoundError(f"config {path} does not exist: give a TOML file, or one of {shipped}") from None
    except UnicodeDecodeError:
        raise ValueError(f"config {file} is not UTF-8 text: save it as UTF-8") from None
    return parse(text, str(file), overrides)


def parse(text: str, name: str, overrides: Sequence[str] = ()) -> Config:
    """Parses TOML text; `name` stands in the messages. Raises ValueError as `load` does."""
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or Python's own for an integer of more than 4,300 digits
        raise ValueError(f"config {name} is not TOML: {error}") from None
    for override in overrides:
        _apply(override, tree, name)
    try:
        return msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ValueError):  # from a section's own __post_init__
            raise ValueError(f"config {name}: {error.__cause__}") from None
        raise ValueError(f"config {name}: {_explain(str(error), tree)}") from None


def dump(config: Config) -> str:
    """Returns the config as TOML with every key that is set; `parse` reads it back."""
    tree = {
        name: {key: value for key, value in msgspec.structs.asdict(section).items() if value is not None}
        for name, section in msgspec.structs.asdict(config).items()
    }
    return tomli_w.dumps(tree)


def describe_type(annotation: inspect.Type) -> str:
    """Returns what a value of this type must be, in words: "an integer, at least 1"."""
    match annotation:
        case inspect.Metadata(type=inner):
            return describe_type(inner)
        case inspect.UnionType(types=members):
            (member,) = (member for member in members if not isinstance(member, inspect.NoneType))
            return describe_type(member)
        case inspect.LiteralType(values=values):
            return f"one of {', '.join(map(as_toml, values))}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "a string in quotes"
        case inspect.VarTupleType():
            return 'a list of strings, as in ["a", "b"]'
        case inspect.FloatType(ge=ge, le=le) if (ge, le) == (SMALLEST, LARGEST):
            return f"a positive number, {SMALLEST:g} to {LARGEST:g}"
        case inspect.IntType() | inspect.FloatType():
            kind = "an integer" if isinstance(annotation, inspect.IntType) else "a finite number"
            limits = [("at least", annotation.ge), ("above", annotation.gt)]
            limits += [("at most", annotation.le), ("below", annotation.lt)]
            words = [f"{word} {_number(n)}" for word, n in limits if n is not None and n not in INTEGERS]
            return ", ".join([kind, " and ".join(words)] if words else [kind])
    raise TypeError(f"no words for {annotation}")


def describe_field(field: inspect.Field) -> str:
    """Returns the description of a field."""
    members = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
    (schema,) = (member.extra_json_schema for member in members if isinstance(member, inspect.Metadata))
    assert schema is not None
    return str(schema["description"])


def sections() -> dict[str, type[msgspec.Struct]]:
    """Returns the struct of each section, by name in the order of the file."""
    return {
        name: field.type.cls for name, field in fields(Config).items() if isinstance(field.type, inspect.StructType)
    }


def fields(section: type[msgspec.Struct]) -> dict[str, inspect.Field]:
    """Returns the fields of a section (or of `Config`) by name, with type, range and default."""
    described = inspect.type_info(section)
    assert isinstance(described, inspect.StructType)
    return {field.name: field for field in described.fields}


def _apply(override: str, tree: dict[str, Any], name: str) -> None:
    """Applies one `--set` to the tree that was read from the file."""
    printable = override.encode(errors="backslashreplace").decode()
    if printable != override:  # bytes that are not UTF-8 arrive from the command line as lone surrogates
        raise ValueError(f"--set {printable}: not UTF-8 text")
    section, _, rest = override.partition(".")
    key, equals, value = rest.partition("=")
    if not (section and key and equals):
        raise ValueError(f"--set {override}: write section.key=value")
    table = tree.setdefault(section.strip(), {})
    if not isinstance(table, dict):
        raise ValueError(f"config {name}: {section} is a section, not a value: write [{section}]")
    if value.strip() == "none":
        if section.strip() in sections() and key.strip() not in fields(sections()[section.strip()]):
            raise ValueError(f"config {name}: {_explain_unknown_key(section.strip(), key.strip())}")
        table.pop(key.strip(), None)
    else:
        table[key.strip()] = _toml_value(value)


def _toml_value(text: str) -> Any:
    """Reads a value as TOML does; a bare word is a string, so that --set model.preset=tiny needs no quotes."""
    try:
        read = tomllib.loads(f"value = {text}")
    except ValueError:  # as in `parse`
        return text
    return read["value"] if len(read) == 1 else text


def _explain(message: str, tree: dict[str, Any]) -> str:
    """Rewords a validation error of msgspec, which ends with the path of the value: "… - at `$.run.rounds`"."""
    path = re.search(r" - at `\$\.(.+?)(?:\[\d+\]|\[\.\.\.\])?`$", message)
    keys = path[1].split(".") if path else []
    if unknown := re.match(r"Object contains unknown field `(.*?)`(?: - at|$)", message, re.DOTALL):
        if not keys:
            if new := _RENAMED_SECTIONS.get(unknown[1]):
                return f"section [{unknown[1]}] is now [{new}]: rename the section"
            return f"unknown section [{unknown[1]}]{_nearest(unknown[1], sections())}"
        return _explain_unknown_key(keys[0], unknown[1])
    if len(keys) < 2:
        return f"{keys[0]} is a section, not a value: write [{keys[0]}]"
    section, key = keys
    value, wanted = tree[section][key], fields(sections()[section])[key].type
    return f"{section}.{key} = {as_toml(value)}: must be {describe_type(wanted)}{_suggest(value, wanted)}"


def _explain_unknown_key(section: str, key: str) -> str:
    if new := _RENAMED.get(f"{section}.{key}"):
        return f"{section}.{key} is now {new}: rename the key"
    return f"unknown key {section}.{as_toml_key(key)}{_nearest(key, fields(sections()[section]))}"


def _suggest(value: Any, wanted: inspect.Type) -> str:
    """Returns the end of a message that names the nearest allowed value; "" if no values are listed or none is near."""
    match wanted:
        case inspect.Metadata(type=inner):
            return _suggest(value, inner)
        case inspect.UnionType(types=members):
            return "".join(_suggest(value, member) for member in members)
        case inspect.LiteralType(values=values) if isinstance(value, str):
            close = difflib.get_close_matches(value, [str(each) for each in values], n=1, cutoff=0.6)
            return f"; did you mean {as_toml(close[0])}?" if close else ""
    return ""


def _number(limit: int | float) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
