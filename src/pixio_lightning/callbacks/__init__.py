"""What watches a run: bar, summary, pictures, checkpoints, pre-emption, online probe."""

from pixio_lightning.callbacks.checkpoints import Checkpoints
from pixio_lightning.callbacks.metrics_log import MetricsLog
from pixio_lightning.callbacks.online_probe import OnlineProbe
from pixio_lightning.callbacks.pictures import Pictures
from pixio_lightning.callbacks.preemption import Preemption
from pixio_lightning.callbacks.progress import Progress
from pixio_lightning.callbacks.run_card import RunCard

__all__ = [
    "Checkpoints",
    "MetricsLog",
    "OnlineProbe",
    "Pictures",
    "Preemption",
    "Progress",
    "RunCard",
]
