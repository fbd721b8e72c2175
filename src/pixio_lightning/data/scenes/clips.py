"""Rendered clips: a camera that drifts through a place in which a few things move.

`render_clip(seed)` furnishes a place as `render_scene` does, gives the camera and some bodies a
path, and renders frames of one exposure. What a pixel shows is known in every frame, so that
`exact_flow` follows from the poses alone: where it was or will be, and whether it is seen there.

Shapes: V frames, N bodies, H = W = size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.scenes import raycast
from pixio_lightning.data.scenes.raycast import Body, Pose, World
from pixio_lightning.data.scenes.render import CLEARANCE, View, develop, probe, stage
from pixio_lightning.data.scenes.textures import Array
from pixio_lightning.data.scenes.worlds import Rng
from pixio_lightning.errors import UserError

# They hang, stand rooted, or fill their corner.
_FIXED = {"lamp", "picture", "mirror", "building", "tree", "shelf", "bed"}
_TRIES = 12  # paths of a body that are drawn before it stays where it is
_MEETING_TIMES = np.linspace(0, 1, 5)  # shares of a clip at which bodies must not meet
_CLEAR_TIMES = np.linspace(0, 1, 33)  # and those at which the camera keeps its distance
_TOUCH = 1e-3  # metres that bounds may lie in each other: what stands on a floor touches it


class Clip(NamedTuple):
    """Frames of one moving camera, and all that is true of them."""

    image: NDArray[np.uint8]  # (V, 3, H, W), sRGB
    depth: NDArray[np.float32]  # (V, H, W), z-depth in metres, 0 where invalid
    valid: NDArray[np.bool_]  # (V, H, W), false for the sky and beyond MAX_DEPTH
    object_id: NDArray[np.int16]  # (V, H, W), the same number for a body in all frames, 0 sky
    class_id: NDArray[np.uint8]  # (V, H, W), index into SCENE_CLASSES
    intrinsics: Array  # (3, 3), pixels
    cam2world: Array  # (V, 4, 4)
    time: Array  # (V,), seconds
    # (V, N, 4): x, y, z and yaw in radians of the body with object_id n + 1
    bodies: Array

    @classmethod
    def of(cls, frames: Sequence[View], time: Array, bodies: Array) -> Clip:
        """Stack frames that share their intrinsics."""
        images = np.stack([frame.image for frame in frames]).transpose(0, 3, 1, 2)
        return cls(
            image=np.ascontiguousarray(images),
            depth=np.stack([frame.depth for frame in frames]),
            valid=np.stack([frame.valid for frame in frames]),
            object_id=np.stack([frame.object_id for frame in frames]),
            class_id=np.stack([frame.class_id for frame in frames]),
            intrinsics=frames[0].intrinsics,
            cam2world=np.stack([frame.cam2world for frame in frames]),
            time=time,
            bodies=bodies,
        )


class RenderedFrames(NamedTuple):
    """What `render_frames` returns: the frames as views, with their times and bodies."""

    frames: list[View]
    time: Array  # (V,), seconds
    bodies: Array  # (V, N, 4), see `Clip`
    room_type: str


class _BodyPath(NamedTuple):
    """Straight over the ground, turning and maybe hopping; 0 at the start of the clip."""

    shift: Array  # (3,), metres over the clip
    turn: float  # radians over the clip
    hop: float  # metres
    hops: int

    def at(self, body: Body, share: float) -> Body:
        """Return the body after a share of the clip."""
        up = np.array([0, 0, self.hop * abs(np.sin(np.pi * self.hops * share))])
        position = body.position + share * self.shift + up
        return replace(body, position=position, yaw=body.yaw + share * self.turn)


class _CameraPath(NamedTuple):
    """A constant velocity and one slow sine, turning about the vertical and the own right axis."""

    shift: Array  # (3,), metres over the clip
    sway: Array  # (3,), metres
    cycles: float  # of the sine in a clip
    phase: float
    yaw: float  # radians over the clip
    pitch: float

    def at(self, pose: Pose, share: float) -> Pose:
        """Return the camera after a share of the clip."""
        swing = np.sin(2 * np.pi * self.cycles * share + self.phase) - np.sin(self.phase)
        about_up, about_right = _rotation_z(share * self.yaw), _rotation_x(share * self.pitch)
        return Pose(
            about_up @ pose.rotation @ about_right,
            pose.position + share * self.shift + swing * self.sway,
        )

    def halved(self) -> _CameraPath:
        return self._replace(shift=self.shift / 2, sway=self.sway / 2)


def _rotation_z(angle: float) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def _rotation_x(angle: float) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _meet(body: Body, other: Body) -> bool:
    low, high = body.corners
    below, above = other.corners
    return bool(np.all((low + _TOUCH < above) & (below + _TOUCH < high)))


def _movable(world: World, pose: Pose, span: float) -> list[int]:
    """Return the bodies that could move: on the ground, bearing nothing; those in sight first."""
    bodies = world.bodies
    free = []
    for i, body in enumerate(bodies):
        if body.encloses or body.name in _FIXED or abs(body.corners[0][2]) > 0.02:
            continue
        lifted = replace(body, position=body.position + [0, 0, 0.02])
        if not any(_meet(lifted, other) for j, other in enumerate(bodies) if j != i):
            free.append(i)

    def in_sight(i: int) -> bool:
        right, down, ahead = pose.rotation.T @ (bodies[i].middle - pose.position)
        return bool(ahead > 0 and max(abs(right), abs(down)) < 0.5 * span * ahead)

    return sorted(free, key=lambda i: not in_sight(i))


def _body_paths(world: World, rng: Rng, pose: Pose, span: float) -> dict[int, _BodyPath]:
    """Let one to three bodies move so that none meets another, nor the camera at its start."""
    paths: dict[int, _BodyPath] = {}
    wanted = int(rng.integers(1, 4))
    for i in _movable(world, pose, span):
        if len(paths) == wanted:
            break
        for _ in range(_TRIES):
            angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 1.2)
            shift = length * np.array([np.cos(angle), np.sin(angle), 0])
            hop = rng.uniform(0.1, 0.4) if rng.random() < 0.5 else 0.0
            path = _BodyPath(shift, rng.normal(0, 0.8), hop, int(rng.integers(1, 3)))
            if _is_free(world, {**paths, i: path}, i, pose):
                paths[i] = path
                break
    return paths


def _is_free(world: World, paths: dict[int, _BodyPath], i: int, pose: Pose) -> bool:
    camera = pose.position[:, None]
    for share in _CLEAR_TIMES:
        own = paths[i].at(world.bodies[i], share)
        if own.distance(camera)[0] < CLEARANCE:
            return False
    for share in _MEETING_TIMES:
        bodies = _bodies_at(world, paths, share)
        if any(_meet(bodies[i], other) for j, other in enumerate(bodies) if j != i):
            return False
    return True


def _bodies_at(world: World, paths: dict[int, _BodyPath], share: float) -> list[Body]:
    return [paths[i].at(body, share) if i in paths else body for i, body in enumerate(world.bodies)]


def _camera_path(
    world: World, paths: dict[int, _BodyPath], rng: Rng, pose: Pose, span: float
) -> _CameraPath:
    """Draw a path of the camera, with its motion halved until it keeps its distance."""
    ahead = float(np.clip(np.median(probe(world, [pose], span)[0].depth), 1, 12))
    axes = ahead * np.array([1, 1, 0.3])
    path = _CameraPath(
        shift=0.10 * axes * rng.standard_normal(3),
        sway=0.03 * axes * rng.standard_normal(3),
        cycles=rng.uniform(0.5, 1),
        phase=rng.uniform(0, 2 * np.pi),
        yaw=rng.normal(0, np.radians(10)),
        pitch=rng.normal(0, np.radians(3)),
    )
    for _ in range(8):
        if _is_clear(world, paths, path, pose):
            return path
        path = path.halved()
    return path._replace(shift=np.zeros(3), sway=np.zeros(3))


def _is_clear(world: World, paths: dict[int, _BodyPath], path: _CameraPath, pose: Pose) -> bool:
    where = np.stack([path.at(pose, share).position for share in _CLEAR_TIMES], axis=1)
    for i, body in enumerate(world.bodies):
        if i not in paths:
            if body.distance(where).min() < CLEARANCE:
                return False
            continue
        for at, share in enumerate(_CLEAR_TIMES):
            if paths[i].at(body, share).distance(where[:, at, None])[0] < CLEARANCE:
                return False
    return True


def render_frames(
    seed: int,
    *,
    frames: int = 10,
    size: int = 64,
    places: Sequence[str] | None = None,
    seconds: float = 2.0,
) -> RenderedFrames:
    """Build, move and render the clip of a seed.

    The paths are over the whole clip, whatever its length; frame i stands at the time
    ``i * seconds / frames`` and has light samples and noise of its own.

    Args:
        seed: What the clip depends on, with the other arguments.
        frames: How many there are, evenly spaced.
        size: Pixels along a side.
        places: Kinds of place to draw from, see `render_scene`; None for all.
        seconds: Duration.

    Raises:
        UserError: A number is too small, or there is no such place.
    """
    if frames < 1 or size < 8 or not seconds > 0:
        raise UserError(
            f"a clip of {frames} frames of {size} px in {seconds:g} s: expected frames >= 1, "
            "size >= 8, seconds > 0"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    room_type, world, poses, span = stage(rng, places, views=1)
    paths = _body_paths(world, rng, poses[0], span)
    camera = _camera_path(world, paths, rng, poses[0], span)
    brightness, focal = rng.uniform(0.25, 0.6), size / span
    exposure, views, bodies = 0.0, [], []
    for i in range(frames):
        now = World(_bodies_at(world, paths, i / frames), world.lights, world.ambient, world.sky)
        pose = camera.at(poses[0], i / frames)
        own = np.random.Generator(np.random.PCG64([seed, i]))
        shot = raycast.photograph(now, [pose], size=size, focal=focal, rng=own)
        # That of the first frame: an automatic one would change all pixels where one thing moves.
        exposure = exposure or brightness / np.minimum(shot[0], 4).mean()
        views.append(develop(now, pose, shot, exposure=exposure, focal=focal, rng=own))
        bodies.append([[*body.position, body.yaw] for body in now.bodies])
    return RenderedFrames(views, np.arange(frames) * seconds / frames, np.array(bodies), room_type)


def render_clip(
    seed: int,
    *,
    frames: int = 10,
    size: int = 64,
    places: Sequence[str] | None = None,
    seconds: float = 2.0,
) -> Clip:
    """Return `render_frames` as one clip."""
    made = render_frames(seed, frames=frames, size=size, places=places, seconds=seconds)
    return Clip.of(made.frames, made.time, made.bodies)


def exact_flow(clip: Clip, start: int, end: int) -> tuple[Array, NDArray[np.bool_]]:
    """Return where each pixel of one frame is in another, and whether it is seen there.

    A point of a body moves with it: ``X' = R' R^-1 (X - p) + p'``; the sky, and what is beyond
    MAX_DEPTH, is taken for infinitely far. A mirror moves as its surface does, not what it shows.

    Args:
        clip: With depth, object_id, bodies and cameras.
        start: The frame of the pixels.
        end: The frame to look for them in.

    Returns:
        Flow float64 `(H, W, 2)`, pixels to the right and down, and bool `(H, W)`: seen, that is
        inside of the image and not behind anything.
    """
    depth, ids = clip.depth[start].astype(np.float64), clip.object_id[start]
    height, width = depth.shape
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    rays = (
        np.linalg.inv(clip.intrinsics) @ np.stack([column, row, np.ones_like(row)], -1)[..., None]
    )
    far = ~clip.valid[start]
    pose, other = clip.cam2world[start], clip.cam2world[end]
    direction = (pose[:3, :3] @ rays)[..., 0]
    point = pose[:3, 3] + direction * depth[..., None]
    before, after = clip.bodies[start][ids - 1], clip.bodies[end][ids - 1]
    turn = after[..., 3] - before[..., 3]
    x, y, z = np.moveaxis(point - before[..., :3], -1, 0)
    cos, sin = np.cos(turn), np.sin(turn)
    moved = np.stack([cos * x - sin * y, sin * x + cos * y, z], -1) + after[..., :3]
    toward = np.where(far[..., None], direction, moved - other[:3, 3])
    u, v, ahead = np.moveaxis(toward @ other[:3, :3] @ clip.intrinsics.T, -1, 0)
    safe = np.where(ahead > 1e-6, ahead, 1e-6)
    flow = np.stack([u / safe - column, v / safe - row], -1)
    x, y = np.rint(flow[..., 0] + column), np.rint(flow[..., 1] + row)
    inside = (ahead > 1e-6) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = (np.where(inside, at, 0).astype(int) for at in (x, y))
    # Depth changes within the pixel that is looked at, the more so on what is seen at a slant.
    near = np.abs(clip.depth[end][y, x] - ahead) < 0.02 + 0.05 * ahead
    same = clip.object_id[end][y, x] == ids
    seen = np.where(far, ~clip.valid[end][y, x], near & same)
    return flow, inside & seen


def warped(image: NDArray[np.uint8], flow: Array) -> NDArray[np.uint8]:
    """Return what an image shows at the ends of a flow, with the nearest pixel outside of it.

    Args:
        image: uint8 `(3, H, W)`.
        flow: From the pixels of the result into the image, `(H, W, 2)`.

    Returns:
        uint8 `(3, H, W)`, bilinear.
    """
    height, width = image.shape[1:]
    column, row = np.meshgrid(np.arange(width), np.arange(height))
    x = np.clip(column + flow[..., 0], 0, width - 1)
    y = np.clip(row + flow[..., 1], 0, height - 1)
    left = np.minimum(x.astype(int), max(width - 2, 0))
    top = np.minimum(y.astype(int), max(height - 2, 0))
    right, down = x - left, y - top
    upper = image[:, top, left] * (1 - right) + image[:, top, left + 1] * right
    lower = image[:, top + 1, left] * (1 - right) + image[:, top + 1, left + 1] * right
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)
