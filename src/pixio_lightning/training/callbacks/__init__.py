"""Lightning callbacks: threads, bar, summary, pictures, checkpoints, pre-emption, online probe."""

from pixio_lightning.training.callbacks.checkpoints import Checkpoints
from pixio_lightning.training.callbacks.csv_logger import MetricsLog
from pixio_lightning.training.callbacks.evaluation_log import EvaluationLog
from pixio_lightning.training.callbacks.feature_cache import FeatureCache
from pixio_lightning.training.callbacks.online_probe import OnlineProbe
from pixio_lightning.training.callbacks.panels import Pictures
from pixio_lightning.training.callbacks.preemption import Preemption
from pixio_lightning.training.callbacks.profile import Profile
from pixio_lightning.training.callbacks.progress import Progress
from pixio_lightning.training.callbacks.run_summary import RunCard
from pixio_lightning.training.callbacks.threads import Threads

__all__ = [
    "Checkpoints",
    "EvaluationLog",
    "FeatureCache",
    "MetricsLog",
    "OnlineProbe",
    "Pictures",
    "Preemption",
    "Profile",
    "Progress",
    "RunCard",
    "Threads",
]
