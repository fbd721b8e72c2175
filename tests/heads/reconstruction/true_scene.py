"""A rendered scene as the reconstruction that a perfect model would give of it."""

from __future__ import annotations

import numpy as np
import torch

from pixio_heads.reconstruction.geometry import truth_of
from pixio_heads.reconstruction.reconstructed import Reconstructed
from pixio_lightning.data.scenes.render import render_scene


def true_scene(seed: int = 3, *, views: int = 4, size: int = 64) -> Reconstructed:
    """Return a room's views with true geometry; the originals are twice as large, and cropped.

    Pictures of `3 size` x `2.5 size` pixels, of which the model sees the halved centre.
    """
    scene = render_scene(seed, views=views, size=size, places=["studio"])
    batch = {
        name: torch.from_numpy(np.stack([getattr(view, name) for view in scene.views]))[None]
        for name in ("depth", "intrinsics", "cam2world")
    }
    truth = truth_of(batch)
    count, left, top = len(scene.views), size // 4, size // 8
    return Reconstructed(
        names=[f"room{seed}/{i}.jpg" for i in range(count)],
        image=np.stack([view.image for view in scene.views]),
        points=truth.points[0].numpy(),
        depth=truth.depth[0].numpy(),
        confidence=1 + truth.depth[0].numpy(),
        mask=np.stack([view.valid for view in scene.views]),
        intrinsics=batch["intrinsics"][0].float().numpy(),
        cam2world=truth.cam2world[0].numpy(),
        original_size=np.tile(np.array([[5 * size // 2, 3 * size]]), (count, 1)),
        placement=np.tile(np.array([[0.5, 0.5, left, top]], np.float32), (count, 1)),
    )
