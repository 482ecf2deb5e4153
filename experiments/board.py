"""Writes a run's metrics for TensorBoard."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from privacy import files


class Board:
    """Writes TensorBoard events, as a context manager; only the operator can enter its folder.

    Where the disk is full or read-only, TensorFlow's errors become an OSError whose message is one line.

    Args:
      folder: folder of the event files; it is made if it does not exist.

    Raises:
      OSError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path) -> None:
        import tensorflow as tf

        self.folder = folder
        try:
            files.make_private_folder(folder)
            files.close_all_to_others(folder)  # earlier versions of fedspeak left it readable for other accounts
        except OSError as error:
            raise files.not_written(folder, error) from None
        with self._one_line_errors():
            self._writer = tf.summary.create_file_writer(str(folder))
        files.close_all_to_others(folder)  # with the event file that TensorFlow has just created

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with self._one_line_errors():
                self._writer.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the scalars of one step.

        Args:
          step: number of the round.
          values: scalars by the name under which TensorBoard shows them.

        Raises:
          OSError: the event file cannot be written.
        """
        import tensorflow as tf

        with self._one_line_errors(), self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        import tensorflow as tf

        try:
            yield
        except (tf.errors.OpError, OSError) as error:
            reason = str(error.message if isinstance(error, tf.errors.OpError) else error).splitlines()[0]
            raise OSError(
                f"{self.folder} could not be written ({reason}): free disk space or give yourself the right to write, "
                "then resume the run"
            ) from None
