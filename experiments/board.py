"""A run's values by round for TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from privacy import files


class Board:
    """Writes scalars, within `with`, into a folder that only the operator can enter.

    Whatever TensorFlow raises on a disk that is full or read-only comes as an OSError in one line.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self.folder = folder
        try:
            files.make_private_folder(folder)
            files.close_all_to_others(folder)  # an earlier version left it open
        except OSError as error:
            raise files.not_written(folder, error) from None
        with self._in_one_line():
            self._writer = tf.summary.create_file_writer(str(folder))
        files.close_all_to_others(folder)  # what TensorFlow has made since

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with self._in_one_line():
                self._writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step by name."""
        import tensorflow as tf

        with self._in_one_line(), self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    @contextmanager
    def _in_one_line(self) -> Iterator[None]:
        import tensorflow as tf

        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            reason = str(error.message if isinstance(error, tf.errors.OpError) else error).splitlines()[0]
            raise OSError(
                f"{self.folder} could not be written ({reason}): make room or give rights, then resume"
            ) from None
