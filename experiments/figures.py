"""Makes figures and saves them, each as PNG and SVG."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from privacy.files import write_public


def new_figure(columns: int = 1, rows: int = 1, *, share_y: bool = True) -> Any:
    """Returns a figure and its axes: one, or an array of them.

    Args:
      columns: number of panels beside each other.
      rows: number of panels below each other.
      share_y: whether all panels have one vertical scale.
    """
    from matplotlib.figure import Figure  # pyplot would need a window system and keep global state

    figure = Figure(figsize=(6 if columns == 1 else 4.5 * columns, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, sharey=share_y)


def save_figure(figure: Any, path: Path, write: Callable[[Path, bytes], None] = write_public) -> list[Path]:
    """Saves a figure and returns the paths of both files.

    Args:
      figure: figure of `new_figure`.
      path: path of the files, without suffix.
      write: writes one file; the default is for files for publication.
    """
    paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in paths:
        image = io.BytesIO()
        figure.savefig(image, format=file.suffix[1:], dpi=150)
        write(file, image.getvalue())
    return paths
