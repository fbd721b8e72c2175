"""metrics.csv in the run folder, as one uninterrupted table."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from pixio_lightning.run_folder import Metrics


class MetricsLog(Logger):
    """Log to `metrics.csv`; a resumed run continues the table where it left off.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._rewound = False

    @cached_property
    def metrics(self) -> Metrics:
        """The table; read when it is first needed, as --fresh moves it aside before."""
        return Metrics(self.folder / "metrics.csv")

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget what was logged after a step, which a run goes on from.

        Its own row is kept: it may hold what was logged before the checkpoint.
        """
        self.metrics.rewind(step)
        self._rewound = True

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add the metrics to the row of a step."""
        step = step or 0
        if not self._rewound:
            self.rewind(step)
        self.metrics.add(step, {k: float(v) for k, v in metrics.items() if k != "epoch"})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Keep nothing: config.yaml has them all."""
