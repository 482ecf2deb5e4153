"""A fake peer for the tests of the benchmarks, whose interpreter is a script of the test."""

from pathlib import Path

from experiments.bench.measure import Peer


class Fake(Peer):
    """A peer whose interpreter is `script`."""

    script: Path

    @property
    def python(self):
        return self.script

    @classmethod
    def write(cls, folder: Path, text: str) -> None:
        """Writes the script into a folder and makes it executable."""
        cls.script = folder / "fake"
        cls.script.write_text(text)
        cls.script.chmod(0o755)
