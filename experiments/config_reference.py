"""Describes a run's configuration in two forms: the page docs/config.md, and a JSON Schema for editors."""

import inspect
import json
from typing import Any

import msgspec

from experiments.config import Config
from experiments.config_file import describe_field, describe_type, fields, sections
from experiments.markdown import markdown_table

_INTRODUCTION = """# A run's configuration

A run is one TOML file with the sections below, for instance

```toml
[data]
source = "jsonl"
path = "messages.jsonl"
public = ["public.txt"]

[privacy]
epsilon = 4.0
clip_norm = 0.5

[run]
rounds = 100
```

`fedspeak train run.toml` runs it. A key that is left out has its default. A key that is unknown or has the wrong type
is an error, and so is a key that belongs to another `data.source`, `cohort.sampler`, `server.optimizer`,
`privacy.mechanism` or kind of clipping than the chosen one; the message names the fix. On the command line, `--set
section.key=value` goes on top of the file, and `--set section.key=none` removes a key. Paths are relative to the
working folder; the copy in the run's folder has them absolute. `fedspeak config schema` prints a JSON Schema, with
which editors complete and check keys.

This page is written by `fedspeak config reference` from the descriptions in `experiments/config.py`,
`experiments/config_model.py` and `experiments/config_privacy.py`.
"""


def markdown() -> str:
    """Returns the page docs/config.md."""
    parts = [_INTRODUCTION]
    for name, section in sections().items():
        parts.append(f"## {name}\n\n{inspect.getdoc(section)}\n")
        defaults, rows = section(), []
        for key, field in fields(section).items():
            default = getattr(defaults, key)
            shown = "" if default is None else f"`{json.dumps(default)}`"
            values = describe_type(field.type).replace("|", "\\|")
            rows.append((f"`{name}.{key}`", shown, values, describe_field(field)))
        parts += [*markdown_table(("Key", "Default", "Value", "Meaning"), rows), ""]
    return "\n".join(parts)


def schema() -> dict[str, Any]:
    """Returns the JSON Schema of a configuration.

    For a key that may be left out, msgspec's schema also allows null. It is removed here, because TOML has no null.
    """
    made = msgspec.json.schema(Config)
    for definition in made["$defs"].values():
        definition["properties"] = {key: _without_null(each) for key, each in definition["properties"].items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a key without null as an allowed or default value; the description is then at its top."""
    rest = {word: each for word, each in schema.items() if word not in ("anyOf", "default")}
    if "anyOf" in schema:
        (typed,) = (each for each in schema["anyOf"] if each != {"type": "null"})
        rest |= typed
    default = schema.get("default")
    if isinstance(default, dict):
        default = {key: value for key, value in default.items() if value is not None}
    return rest if default is None else {**rest, "default": default}
