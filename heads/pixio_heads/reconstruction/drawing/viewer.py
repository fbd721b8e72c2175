"""A reconstruction in the browser: points, cameras and their pictures.

python -m pixio_heads.reconstruction.drawing.viewer FILE.npz [--port 8080]
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pixio_heads.reconstruction.drawing.frusta import frustum_length, view_colour
from pixio_heads.reconstruction.export import Export
from pixio_heads.reconstruction.export.cloud import select
from pixio_heads.reconstruction.geometry import quaternion_of
from pixio_heads.reconstruction.reconstructed import Reconstructed, read
from pixio_lightning.errors import UserError

_HOST = "127.0.0.1"  # pictures may be private: nobody else on the network sees them


def show(found: Reconstructed, *, port: int, title: str, options: Export = Export()) -> Any:  # noqa: B008
    """Start a server that shows a reconstruction, and return it; its `stop` ends it.

    Args:
        found: The reconstruction.
        port: Where to listen on 127.0.0.1; the next free one if it is taken.
        title: Shown above the controls.
        options: Which points to show.

    Raises:
        UserError: viser is missing.
    """
    try:
        import viser
    except ImportError:
        raise UserError("the viewer needs viser: pip install 'pixio-lightning[viewer]'") from None
    with redirect_stdout(io.StringIO()):  # a box around the address, whatever it is asked
        server = viser.ViserServer(host=_HOST, port=port, label=title, verbose=False)
    server.scene.set_up_direction("-y")
    cloud = select(
        found,
        max_points=options.max_points,
        voxel_size=options.voxel_size,
        confidence_percentile=options.confidence_percentile,
        edge_mask=options.edge_mask,
    )
    length = frustum_length(cloud.points, found.cam2world)
    points = server.scene.add_point_cloud(
        "/points",
        cloud.points,
        cloud.colours,
        point_size=length / 15,
        point_shading="flat",
        precision="float32",
    )
    _add_cameras(server, found, length)
    _add_controls(server, points, f"{title}: {len(found.names)} views, {len(cloud.points)} points")

    @server.on_client_connect
    def look(client: Any) -> None:
        """Start a little behind and above the first camera."""
        middle = np.median(cloud.points, axis=0) if len(cloud.points) else np.array([0, 0, 1.0])
        client.camera.up_direction = (0.0, -1.0, 0.0)
        client.camera.position = (0.0, -2 * length, -6 * length)
        client.camera.look_at = tuple(float(x) for x in middle)

    return server


def _add_cameras(server: Any, found: Reconstructed, length: float) -> None:
    height, width = found.depth.shape[1:]
    for view, pose in enumerate(found.cam2world.astype(np.float64)):
        frustum = server.scene.add_camera_frustum(
            f"/cameras/{view}",
            fov=float(2 * np.arctan(height / 2 / found.intrinsics[view, 1, 1])),
            aspect=width / height,
            scale=length,
            thickness=0.01,
            color=tuple(int(x) for x in view_colour(view, len(found.names))),
            image=found.image[view],
            wxyz=tuple(quaternion_of(torch.from_numpy(pose)).tolist()),
            position=tuple(pose[:3, 3].tolist()),
        )

        @frustum.on_click
        def go_there(event: Any, pose: np.ndarray = pose) -> None:
            """Look through a camera that is clicked on."""
            event.client.camera.position = pose[:3, 3]
            event.client.camera.look_at = pose[:3, 3] + pose[:3, 2]
            event.client.camera.up_direction = -pose[:3, 1]


def _add_controls(server: Any, points: Any, text: str) -> None:
    server.gui.add_markdown(text)
    size = points.point_size
    slider = server.gui.add_slider("point size", min=0.2, max=5.0, step=0.1, initial_value=1.0)

    @slider.on_update
    def resize(_: Any) -> None:
        points.point_size = size * slider.value


def main(words: list[str] | None = None) -> int:
    """Show a file until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pixio_heads.reconstruction.drawing.viewer",
        description="Show a reconstruction.",
    )
    parser.add_argument("file", type=Path, help="reconstruction.npz of an export")
    parser.add_argument("--port", type=int, default=8080, help="port on 127.0.0.1")
    options = parser.parse_args(words)
    try:
        server = show(read(options.file), port=options.port, title=options.file.parent.name)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"open http://{_HOST}:{server.get_port()} in a browser; Ctrl-C ends", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        server.stop()
        return 0


if __name__ == "__main__":
    sys.exit(main())
