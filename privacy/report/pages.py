"""Renders reports from templates that share one page style, and writes them in three formats."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from privacy.accounting.guarantee import format_epsilon

_PAGE = pathlib.Path(__file__).parent / "templates"


def make_environment(templates: pathlib.Path, *, html: bool) -> Any:
    """Returns a Jinja environment of the templates in a folder, which may extend `page.html.jinja`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, _PAGE]),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "eps": format_infinite_epsilon,
        "num": _format_number,
        "md": _escape_markdown,
        "delta": _format_delta,
        "count": lambda value: f"{value:,.10g}",
    }
    return environment


def render_markdown(environment: Any, template: str, data: Mapping[str, Any]) -> str:
    """Returns a rendered template without repeated blank lines."""
    text = environment.get_template(template).render(data)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def write_formats(
    folder: str | pathlib.Path, stem: str, write: Callable[[pathlib.Path, bytes], None], **texts: str
) -> list[pathlib.Path]:
    """Writes each text to `stem` with its format as suffix, into a folder that is made, and returns the paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{stem}.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write(path, text.encode())
    return paths


def format_infinite_epsilon(value: float | None) -> str:
    """Returns ε as text; None stands for infinity."""
    return "∞" if value is None else format_epsilon(value)


def _format_delta(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} · 10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"


def _format_number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


def _escape_markdown(value: object) -> str:
    """Returns `value` as one line of text, escaped so that Markdown shows it literally."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(value).split()))
