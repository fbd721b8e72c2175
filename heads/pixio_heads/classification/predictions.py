"""predictions.csv: a line for each image, or for each class that an image is of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from pixio_lightning.files import add_rows


def table_of(folder: Path, rank: int) -> Path:
    """Return the table of a process; all but the first have one of their own."""
    return folder / (f"predictions-{rank}.csv" if rank else "predictions.csv")


def add(
    path: Path, names: Iterable[str], shares: Tensor, *, classes: Sequence[str], several: bool
) -> None:
    """Add lines of an image's name, a class and its probability.

    Args:
        path: The table, which is begun where there is none.
        names: Of the images.
        shares: `(B, C)`, probabilities.
        classes: Names of the classes.
        several: Whether an image has a line for each class likelier than not, at least one;
            otherwise it has one, of the likeliest.
    """
    rows = []
    for name, row in zip(names, shares.cpu(), strict=True):
        likely = (row > 0.5).nonzero().flatten().tolist() if several else []
        for index in likely or [int(row.argmax())]:
            rows.append([name, classes[index], f"{float(row[index]):.4f}"])
    add_rows(path, ["name", "label", "probability"], rows)
