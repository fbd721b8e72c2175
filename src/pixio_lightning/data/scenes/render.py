"""Embedded synthetic scenes: rooms and open places, rendered with exact geometry.

`render_scene(seed)` furnishes a place, puts overlapping cameras in it and renders them. The world
is z up with the floor at z = 0, in metres. Cameras are OpenCV (x right, y down, z forward) with
pixel centres at integer coordinates. Depth, normals and labels belong to the ray through the
pixel's centre; only colour is supersampled, at edges. One seed gives the same bytes wherever
numpy's elementary functions round alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data.scenes import raycast
from pixio_lightning.data.scenes.raycast import Hits, Light, Pose, World
from pixio_lightning.data.scenes.textures import Array
from pixio_lightning.data.scenes.worlds import (
    PLACES,
    Glance,
    Rng,
    build_world,
    is_open,
    known_places,
)
from pixio_lightning.errors import UserError

# Names of `View.class_id`, in order.
SCENE_CLASSES: tuple[str, ...] = (
    *("sky", "floor", "wall", "ceiling", "ground", "box", "sphere", "cylinder"),
    *("table", "shelf", "bed", "lamp", "picture", "mirror", "building", "tree"),
)
MAX_DEPTH = 80.0  # metres; what is farther counts as invalid, as in KITTI
CLEARANCE = 0.5  # metres from a camera to the nearest surface


class View(NamedTuple):
    """One camera's image and geometry, ``H = W = size``; a mirror's depth is its surface's."""

    image: NDArray[np.uint8]  # (H, W, 3), sRGB
    depth: NDArray[np.float32]  # (H, W), z-depth in metres, 0 where invalid
    valid: NDArray[np.bool_]  # (H, W), false for the sky and beyond MAX_DEPTH
    object_id: NDArray[np.int16]  # (H, W), a number per object of the scene, 0 for the sky
    class_id: NDArray[np.uint8]  # (H, W), index into SCENE_CLASSES
    normal: NDArray[np.float32]  # (H, W, 3), unit, in the camera's frame, facing it; sky 0
    intrinsics: Array  # (3, 3), pixels, no skew
    cam2world: Array  # (4, 4)
    camera_height: float  # metres above the floor
    camera_pitch: float  # degrees of the optical axis above the horizon; negative looks down


class Scene(NamedTuple):
    """Views of one place, and what is true of all of them."""

    views: list[View]  # cameras that look at a shared region
    outdoor: bool  # whether it has a sky
    room_type: str  # a key of PLACES


_PROBE = 8  # rays along a side of the coarse image that judges a camera before it is used


class Probe(NamedTuple):
    """A camera and what it sees at low resolution, one entry per ray."""

    pose: Pose
    point: Array
    depth: Array
    body: np.ndarray


def probe(world: World, poses: list[Pose], span: float) -> list[Probe]:
    """Look through each camera at low resolution; `span` is the image's width at depth 1."""
    grid = ((np.arange(_PROBE) + 0.5) / _PROBE - 0.5) * span
    x, y = np.tile(grid, _PROBE), np.repeat(grid, _PROBE)
    origin, direction = np.concatenate([raycast.camera_rays(pose, x, y) for pose in poses], axis=2)
    t, index = raycast.nearest_hit(world, origin, direction)
    t = np.minimum(t, MAX_DEPTH)
    shape = (len(poses), _PROBE * _PROBE)
    point = (origin + t * direction).reshape(3, *shape)
    body, t = world.body_of[index].reshape(shape), t.reshape(shape)
    return [Probe(pose, point[:, i], t[i], body[i]) for i, pose in enumerate(poses)]


def _shared(a: Probe, b: Probe, span: float) -> float:
    """Return the share of what camera `a` sees that camera `b` sees too."""
    right, down, z = (b.pose.rotation.T[:, :, None] * (a.point - b.pose.position[:, None])).sum(1)
    ahead = np.maximum(z, 0.1)
    column, row = (np.floor((s / ahead / span + 0.5) * _PROBE).astype(int) for s in (right, down))
    inside = (z > 0.1) & (column >= 0) & (column < _PROBE) & (row >= 0) & (row < _PROBE)
    inside &= a.depth < MAX_DEPTH
    other = b.depth[np.where(inside, row * _PROBE + column, 0)]
    return float(np.mean(inside & (np.abs(other - z) < 0.2 + 0.1 * z)))


def place_cameras(
    world: World, rng: Rng, *, views: int, low: Array, high: Array, span: float
) -> list[Pose]:
    """Choose cameras that look at a shared, eventful region, `CLEARANCE` from every surface."""

    def clear(positions: Array) -> Array:
        distance = np.min([body.distance(positions) for body in world.bodies], axis=0)
        return positions[:, distance > CLEARANCE + 1e-3]

    def aim(position: Array, target: Array) -> Pose:
        return raycast.look_at(position, target, roll=rng.normal(0, np.radians(2)))

    things = [i for i, b in enumerate(world.bodies) if not b.encloses and b.name != "lamp"]
    starts = np.empty((3, 0))
    while not starts.size:
        starts = clear(rng.uniform(low[:, None], high[:, None], (3, 256)))[:, :10]
    targets = [np.mean(world.bodies[int(rng.choice(things))].corners, axis=0) for _ in starts.T]
    probes = probe(world, [aim(*pair) for pair in zip(starts.T, targets, strict=True)], span)
    # Many different things are good, close-ups that fill more than a fifth of the image are not.
    full = [min(float(np.isin(probe.body, things).mean()), 0.5) for probe in probes]
    near = [max(float(np.mean(probe.depth < 1.0)) - 0.2, 0) for probe in probes]
    kinds = [np.unique(probe.body).size for probe in probes]
    best = int(np.argmax(np.array(kinds) + 8 * np.array(full) - 8 * np.array(near)))
    first, reach = probes[best], float(np.clip(np.median(probes[best].depth), 1, 12))
    n = 8 + 6 * views
    moves = rng.standard_normal((3, n)) * reach * rng.uniform(0.05, 0.4, n) * [[1], [1], [0.4]]
    around = clear(np.clip(starts[:, best, None] + moves, low[:, None], high[:, None]))
    jitter = 0.1 * reach * rng.standard_normal(around.shape)
    poses = [aim(*pair) for pair in zip(around.T, targets[best] + jitter.T, strict=True)]
    others = probe(world, [*poses, first.pose], span)
    overlap = [min(_shared(first, other, span), _shared(other, first, span)) for other in others]
    # Stable: those that share enough keep their random order, the rest follow from the best.
    order = np.argsort(-np.minimum(overlap, 0.45), kind="stable")
    return [first.pose, *(others[order[i % len(order)]].pose for i in range(views - 1))]


def glancing_cameras(rng: Rng, glance: Glance, *, views: int) -> list[Pose]:
    """Put cameras side by side, facing the middle of a room, each turned a little of its own."""
    around, up = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(*glance.elevation))
    away = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
    middle = np.array([0.0, 0.0, 0.5])
    right = np.array([np.sin(around), -np.cos(around), 0.0])
    start = middle + rng.uniform(*glance.distance) * away
    yaw = np.radians(rng.uniform(*glance.yaw)) * rng.choice((-1, 1))
    shift = rng.uniform(*glance.baseline) * rng.choice((-1, 1))
    offset = np.radians(rng.uniform(-8, 8))
    poses = []
    for share in np.linspace(-0.5, 0.5, views):
        # Noise along the line of sight and upwards; along `right` it would blur the baseline.
        position = start + shift * share * right + rng.uniform(-0.05, 0.05, 3)
        turned, pitch = offset + share * yaw, np.radians(rng.uniform(-2, 2))
        cos, sin = np.cos(turned), np.sin(turned)
        forward = np.array([-cos * away[0] + sin * away[1], -sin * away[0] - cos * away[1], 0.0])
        forward[2] = np.tan(pitch - up) * np.hypot(forward[0], forward[1])
        roll = np.radians(rng.uniform(-1.5, 1.5))
        poses.append(raycast.look_at(position, position + forward, roll=roll))
    return poses


def develop(
    world: World, pose: Pose, shot: tuple[Array, Hits], *, exposure: float, focal: float, rng: Rng
) -> View:
    """Develop the image, with noise, and gather the geometry of the pixel centres."""
    radiance, hits = shot
    size = math.isqrt(len(hits.t))
    display = (1 - np.exp(-exposure * radiance)) ** (1 / 1.8)
    # Below one level of 255: normalised per patch, noise on a plain wall would be all there is.
    display += rng.uniform(0.0005, 0.003) * rng.standard_normal(display.shape)
    image = np.clip(255 * display + 0.5, 0, 255).astype(np.uint8)
    body, valid = world.body_of[hits.part], hits.t <= MAX_DEPTH
    names = np.array(
        [SCENE_CLASSES.index(name) for name in (*(b.name for b in world.bodies), "sky")]
    )
    normal = (pose.rotation.T[:, :, None] * hits.normal).sum(axis=1)
    cam2world = np.eye(4)
    cam2world[:3, :3], cam2world[:3, 3] = pose
    centre = (size - 1) / 2
    return View(
        image=np.ascontiguousarray(image.T).reshape(size, size, 3),
        depth=np.where(valid, hits.t, 0).astype(np.float32).reshape(size, size),
        valid=valid.reshape(size, size),
        object_id=(body + 1).astype(np.int16).reshape(size, size),
        class_id=names[body].astype(np.uint8).reshape(size, size),
        normal=np.ascontiguousarray(normal.T, dtype=np.float32).reshape(size, size, 3),
        intrinsics=np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1.0]]),
        cam2world=cam2world,
        camera_height=float(pose.position[2]),
        camera_pitch=float(np.degrees(np.arcsin(pose.rotation[2, 2]))),
    )


def furnished(rng: Rng, places: Sequence[str] | None) -> tuple[str, World, Array, Array]:
    """Choose and furnish a place.

    Returns:
        The kind of place, what stands in it, and the corners `(3,)` that cameras keep within.

    Raises:
        UserError: There is no such place.
    """
    kinds = list(known_places(places))
    if places is None:
        outdoor = bool(rng.random() < 0.25)
        kinds = [name for name in kinds if is_open(PLACES[name]) == outdoor]
    room_type = kinds[int(rng.integers(len(kinds)))]
    return room_type, *build_world(rng, room_type)


def stage(
    rng: Rng, places: Sequence[str] | None, *, views: int
) -> tuple[str, World, list[Pose], float]:
    """Choose and furnish a place, and put cameras in it.

    Returns:
        The kind of place, what stands in it, the cameras, and the width of an image at depth 1.

    Raises:
        UserError: There is no such place.
    """
    room_type, world, low, high = furnished(rng, places)
    glance = PLACES[room_type].glance
    if glance is None:
        span = float(2 * np.tan(np.radians(rng.uniform(50, 85)) / 2))
        poses = place_cameras(world, rng, views=views, low=low, high=high, span=span)
    else:
        span = 1 / glance.focal
        poses = glancing_cameras(rng, glance, views=views)
    return room_type, world, poses, span


def lights_of(seed: int, places: Sequence[str] | None = None) -> tuple[list[Light], Array]:
    """Return the lights of the scene of a seed, and its ambient light `(3,)`; nothing is rendered.

    Args:
        seed: As of `render_scene`, and so are the places.
        places: Kinds of place to draw from.
    """
    _, world, _, _ = furnished(np.random.Generator(np.random.PCG64(seed)), places)
    return list(world.lights), world.ambient


def render_scene(
    seed: int, *, views: int = 4, size: int = 128, places: Sequence[str] | None = None
) -> Scene:
    """Build and render the scene of a seed.

    Args:
        seed: What the scene depends on, with the other arguments.
        views: Number of cameras; the others overlap with the first.
        size: Pixels along a side.
        places: Kinds of place to draw from, keys of `PLACES`; None draws from all where cameras
            roam, a room three times in four.

    Raises:
        UserError: A number is too small, or there is no such place.
    """
    if views < 1 or size < 8:
        raise UserError(f"a scene of {views} views of {size} px: expected views >= 1, size >= 8")
    rng = np.random.Generator(np.random.PCG64(seed))
    room_type, world, poses, span = stage(rng, places, views=views)
    focal = size / span
    radiance, hits = raycast.photograph(world, poses, size=size, focal=focal, rng=rng)
    # One exposure for the scene, as from one camera, give or take what an automatic one does.
    exposure = rng.uniform(0.25, 0.6) / np.minimum(radiance, 4).mean()
    rendered = []
    for i, pose in enumerate(poses):
        own = slice(i * size * size, (i + 1) * size * size)
        shot = radiance[:, own], Hits(hits.t[own], hits.part[own], hits.normal[:, own])
        own_exposure = exposure * rng.uniform(0.85, 1.15)
        rendered.append(develop(world, pose, shot, exposure=own_exposure, focal=focal, rng=rng))
    return Scene(rendered, is_open(PLACES[room_type]), room_type)
