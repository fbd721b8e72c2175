"""WindowedHead: a dense task that looks at large images through windows."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pixio_lightning import windows
from pixio_lightning.head import Head


class WindowedHead(Head):
    """A head that evaluates images as they are: cut into windows where they are large.

    `forward` predicts for windows and puts them together where `looks_through_windows`.

    Attributes:
        window: Side of the windows in pixels.
        stride: Distance between their origins.
    """

    window: int
    stride: int

    def looks_through_windows(self, size: tuple[int, int]) -> bool:
        """Whether images of a size are cut: in evaluation, if they are large or do not fit."""
        fits = max(size) <= self.window and all(n % self.backbone.stride == 0 for n in size)
        return not self.training and not fits

    def inputs(self, images: Tensor) -> Tensor:
        """Normalise, and cut what is looked at through windows."""
        images = super().inputs(images)
        height, width = images.shape[-2:]
        if not self.looks_through_windows((height, width)):
            return images
        return windows.cut(images, window=self.window, stride=self.stride)

    @property
    def sees(self) -> dict[str, Any]:
        """Return what decides how images are cut."""
        return {"window": self.window, "stride": self.stride}
