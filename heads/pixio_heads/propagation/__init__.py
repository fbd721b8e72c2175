"""Labels of a clip's first frame carried to the others by the likeness of features."""

from pixio_heads.propagation.data import PropagationData
from pixio_heads.propagation.head import Propagation

__all__ = ["Propagation", "PropagationData"]
