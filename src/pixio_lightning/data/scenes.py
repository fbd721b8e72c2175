"""Embedded synthetic scenes: rooms and open places, rendered with exact geometry.

`render_scene(seed)` furnishes a place, puts overlapping cameras in it and renders them. The world
is z up with the floor at z = 0, in metres. Cameras are OpenCV (x right, y down, z forward) with
pixel centres at integer coordinates. Depth, normals and labels belong to the ray through the
pixel's centre; only colour is supersampled, at edges. One seed gives the same bytes wherever
numpy's elementary functions round alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.data import raycast
from pixio_lightning.data.raycast import Body, Hits, Light, Part, Pose, World
from pixio_lightning.data.textures import Array, Material, Shape, Sky, random_material
from pixio_lightning.errors import UserError

Rng = np.random.Generator
Range = tuple[float, float]

# Names of `View.class_id`, in order.
CLASSES: tuple[str, ...] = (
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
    class_id: NDArray[np.uint8]  # (H, W), index into CLASSES
    normal: NDArray[np.float32]  # (H, W, 3), unit, in the camera's frame, facing it; sky 0
    intrinsics: Array  # (3, 3), pixels, no skew
    cam2world: Array  # (4, 4)
    camera_height: float  # metres above the floor
    camera_pitch: float  # degrees of the optical axis above the horizon; negative looks down


class Scene(NamedTuple):
    """Views of one place, and what is true of all of them."""

    views: list[View]  # cameras that look at a shared region
    outdoor: bool  # whether it has a sky
    lights: int  # number of lamps; outdoors 1, the sun
    room_type: str  # a key of PLACES
    objects: tuple[str, ...]  # names of the classes the views show, in the order of CLASSES


class Place(NamedTuple):
    """A kind of place: extents in metres, the size of its things, and how many of each."""

    width: Range
    length: Range
    height: Range
    scale: float
    contents: str


# What stands along the walls comes first: it needs the room most.
PLACES: dict[str, Place] = {
    "bedroom": Place(
        *((3.0, 4.5), (3.4, 5.0), (2.4, 2.8), 0.8),
        "bed 1-1 shelf 0-2 mirror 0-1 picture 1-2 table 0-1 box 0-2 sphere 0-1 cylinder 0-1",
    ),
    "office": Place(
        *((4.0, 7.0), (4.5, 7.0), (2.5, 3.0), 0.8),
        "shelf 1-2 mirror 0-1 picture 1-2 table 1-3 box 1-2 sphere 0-1 cylinder 0-2",
    ),
    "corridor": Place(
        *((1.9, 2.6), (8.0, 13.0), (2.4, 3.0), 0.6),
        "shelf 0-1 mirror 0-1 picture 2-5 box 1-2 sphere 0-1 cylinder 1-2",
    ),
    "warehouse": Place(
        *((7.0, 11.0), (8.0, 13.0), (4.0, 5.5), 1.4),
        "shelf 3-4 box 5-10 table 0-2 cylinder 2-4",
    ),
    "gallery": Place(
        *((5.0, 8.0), (5.5, 9.0), (3.0, 4.2), 1.1),
        "mirror 0-2 picture 3-6 sphere 1-3 cylinder 1-3 box 1-3",
    ),
    "street": Place(
        *((9.0, 13.0), (60.0, 60.0), (0.0, 0.0), 2.0),
        "building 6-9 box 1-4 tree 1-4 cylinder 1-3 sphere 0-1",
    ),
    "plaza": Place(
        *((34.0, 50.0), (34.0, 50.0), (0.0, 0.0), 2.5),
        "building 3-4 sphere 2-4 cylinder 2-4 box 2-4 tree 0-2",
    ),
    "park": Place(
        *((24.0, 36.0), (24.0, 36.0), (0.0, 0.0), 1.5),
        "building 0-2 tree 5-8 sphere 1-3 box 1-3 cylinder 1-2",
    ),
}


def _part(shape: Shape, centre: tuple, half: tuple, material: Material) -> Part:
    return Part(shape, np.array(centre, dtype=float), np.array(half, dtype=float), material)


def _parts(rng: Rng, name: str, scale: float) -> list[Part]:
    """Build one thing standing on z = 0 (around it, on a wall), its back towards -y."""
    box, sphere, cylinder = Shape
    main, other = random_material(rng), random_material(rng)
    if name in ("box", "sphere", "cylinder"):
        x, y, z = rng.uniform(0.15, 0.45, 3) * scale
        halves = {"box": (x, y, z), "sphere": (x, x, x), "cylinder": (0.7 * x, 0.7 * x, 1.5 * z)}
        return [_part(Shape(name), (0, 0, halves[name][2]), halves[name], main)]
    if name == "table":
        (x, y, z), leg = rng.uniform((0.4, 0.3, 0.6), (0.9, 0.5, 0.8)), rng.uniform(0.02, 0.05)
        corners = [(i * (x - leg), j * (y - leg)) for i in (-1, 1) for j in (-1, 1)]
        legs = [_part(box, (*at, z / 2 - 0.02), (leg, leg, z / 2 - 0.02), other) for at in corners]
        return [_part(box, (0, 0, z - 0.02), (x, y, 0.02), main), *legs]
    if name == "shelf":
        x, y, z = rng.uniform((0.4, 0.15, 0.6), (0.8, 0.2, 1.2)) * (scale, 1, scale)
        boards = int(rng.integers(2, 5))
        pitch = (2 * z - 0.03) / boards
        parts = [_part(box, (i * x, 0, z), (0.02, y, z), main) for i in (-1, 1)]
        parts += [_part(box, (0, 0.01 - y, z), (x, 0.01, z), other)]
        for i in range(boards + 1):
            parts += [_part(box, (0, 0, 0.015 + i * pitch), (x, y - 0.01, 0.015), main)]
        for i in range(boards):
            wide, tall = rng.uniform(0.3, 0.9) * (x - 0.03), rng.uniform(0.2, 0.42) * pitch
            at = (rng.uniform(-1, 1) * (x - 0.03 - wide), 0.02, 0.03 + i * pitch + tall)
            parts += [_part(box, at, (wide, 0.7 * y, tall), random_material(rng))]
        return parts
    if name == "bed":
        x, y, z = rng.uniform((0.45, 0.95, 0.2), (0.9, 1.05, 0.3))
        linen = random_material(rng, "stripes", saturation=(0, 0.2), value=(0.6, 0.9))
        return [
            _part(box, (0, 0, z / 2), (x, y, z / 2), other),
            _part(box, (0, 0.02, z + 0.1), (0.97 * x, 0.97 * y, 0.1), main),
            _part(box, (0, -y, z + 0.2), (x, 0.04, z + 0.2), other),
            _part(sphere, (0, 0.35 - y, z + 0.24), (0.7 * x, 0.2, 0.1), linen),
        ]
    if name in ("picture", "mirror"):
        x, z = rng.uniform(0.25, 0.6, 2) * max(scale, 0.8)
        pane = random_material(rng, "noise stripes checker")
        if name == "mirror":
            x, z, pane = 1.3 * x, 1.3 * z, Material(np.full((2, 3), 0.6), mirror=True)
        frame = _part(box, (0, 0, 0), (x, 0.015, z), main)
        return [frame, _part(box, (0, 0.01, 0), (x - 0.04, 0.01, z - 0.04), pane)]
    if name == "building":
        x, y, z = rng.uniform((2.5, 2.5, 2), (5, 5, 8))
        walls = random_material(rng, "windows windows bricks", plain=0.5, saturation=(0, 0.6))
        roof = _part(box, (0, 0, 2 * z + 0.15), (x + 0.2, y + 0.2, 0.15), other)
        return [_part(box, (0, 0, z), (x, y, z), walls), roof]
    assert name == "tree", name
    trunk, r, z = rng.uniform((0.7, 0.8, 0.9), (1.5, 2.2, 2.2))
    bark = random_material(rng, "noise", hue=(0.3, 0.8), value=(0.15, 0.4))
    leaves = random_material(rng, "noise", hue=(1, 2.4), saturation=(0.3, 0.8), value=(0.2, 0.6))
    crown = _part(sphere, (0, 0, 2 * trunk + 0.8 * z), (r, r, z), leaves)
    return [_part(cylinder, (0, 0, trunk), (0.1 * r, 0.1 * r, trunk), bark), crown]


def _put(rng: Rng, name: str, place: Place, size: Array, bodies: list[Body]) -> None:
    """Add one thing where there is room for it; a crowded place goes without."""
    parts = tuple(_parts(rng, name, place.scale))
    indoor = size[2] > 0
    tops = [body for body in bodies if body.name == "table" and indoor]
    for _ in range(12):
        yaw, position = rng.uniform(-np.pi, np.pi), np.zeros(3)
        centre, half = Body(name, position, yaw, parts).bounds
        position[:2] = rng.uniform(-0.5, 0.5, 2) * (size[:2] - 2 * np.hypot(half[0], half[1]))
        on_wall = name in ("picture", "mirror")
        if on_wall or name in ("shelf", "bed") or (name == "building" and size[1] > 3 * size[0]):
            # A wall's inward normal is the body's +y; a street has the two long walls only.
            side = int(rng.integers(4)) if indoor else 2 * int(rng.integers(2))
            yaw = (side - 1) * np.pi / 2
            axis, sign = side % 2, 1 - side // 2 * 2
            back = centre[1] - half[1] if indoor else half[1]
            position[axis] = -sign * (size[axis] / 2 + back - 0.005 * indoor)
            position[1 - axis] = rng.uniform(-1, 1) * max(size[1 - axis] / 2 - half[0], 0)
            position[2] = rng.uniform(1.2, max(size[2] - half[2] - 0.3, 1.3)) if on_wall else 0
        elif tops and max(half) < 0.35 and rng.random() < 0.6:
            top = tops[int(rng.integers(len(tops)))]
            position[:2] = top.position[:2] + rng.uniform(-0.2, 0.2, 2)
            position[2] = top.corners[1][2] + 1e-3
        body = Body(name, position, yaw, parts)
        low, high = body.corners
        if not any(np.all((low < o.corners[1]) & (o.corners[0] < high)) for o in bodies):
            bodies.append(body)
            return


def _side(name: str, axis: int, start: float, end: float, material: Material) -> Body:
    """Return a slab between two coordinates of one axis, endless along the others."""
    centre, half = np.zeros(3), np.full(3, np.inf)
    centre[axis], half[axis] = (start + end) / 2, (end - start) / 2
    return Body(name, np.zeros(3), 0.0, (Part(Shape.BOX, centre, half, material),), encloses=True)


def _room(rng: Rng, size: Array) -> tuple[list[Body], list[Light], Array]:
    """Return the walls, the lamps at the ceiling (seen and shining) and the ambient light."""
    walls = random_material(
        rng, "stripes bricks noise wood", plain=0.7, saturation=(0, 0.5), value=(0.4, 0.9)
    )
    accent = random_material(rng, "stripes bricks tiles noise") if rng.random() < 0.5 else walls
    floor = random_material(rng, "tiles tiles checker wood noise", plain=0.4, saturation=(0, 0.6))
    ceiling = random_material(rng, "tiles noise", saturation=(0, 0.15), value=(0.6, 0.9))
    x, y, z = size / (2, 2, 1)
    bodies = [_side("floor", 2, -1, 0, floor), _side("ceiling", 2, z, z + 1, ceiling)]
    bodies += [_side("wall", 0, -x - 1, -x, accent), _side("wall", 0, x, x + 1, walls)]
    bodies += [_side("wall", 1, -y - 1, -y, walls), _side("wall", 1, y, y + 1, walls)]
    lights = []
    glowing = Material(np.ones((2, 3)), glow=2.0)
    for _ in range(int(rng.integers(1, 4))):
        at = np.append(rng.uniform(-0.35, 0.35, 2) * size[:2], size[2])
        lamp = _part(Shape.CYLINDER, (0, 0, -0.03), (0.15, 0.15, 0.03), glowing)
        bodies.append(Body("lamp", at, 0.0, (lamp,)))
        colour = rng.uniform((1, 0.8, 0.6), (1, 1, 1)) * rng.uniform(0.5, 1.5)
        reach = rng.uniform(0.3, 0.6) * size.mean()
        lights.append(Light(at - [0, 0, 0.3], colour, reach, rng.uniform(0.01, 0.08)))
    total = np.sum([light.colour for light in lights], axis=0)
    return bodies, lights, rng.uniform(0.05, 0.2) * total


def _outside(rng: Rng) -> tuple[list[Body], list[Light], Array, Sky]:
    """Return the ground, the sun, the ambient light and the sky."""
    ground = random_material(
        rng, "noise tiles bricks", plain=0.3, hue=(0.3, 2.2), saturation=(0, 0.5)
    )
    bodies = [_side("ground", 2, -1, 0, ground)]
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(20, 65))
    flat = np.cos(elevation)
    toward = np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
    sun = Light(1000 * toward, rng.uniform((1, 0.85, 0.6), (1.2, 1, 0.9)), np.inf, 8.0)
    horizon = rng.uniform((0.7, 0.75, 0.8), (0.95, 0.95, 1))
    zenith = horizon * rng.uniform((0.2, 0.4, 0.75), (0.5, 0.7, 1))
    sky = Sky(zenith, horizon, rng.uniform(0, 1), rng.uniform(0, 200), rng.uniform(200, 600))
    return bodies, [sun], rng.uniform(0.1, 0.25) * (zenith + horizon), sky


def build_world(rng: Rng, room_type: str) -> tuple[World, Array, Array]:
    """Furnish a place of the given type; return it and the corners `(3,)` cameras keep within."""
    place = PLACES[room_type]
    size = rng.uniform(*np.transpose([place.width, place.length, place.height]))
    shell, lights, ambient, sky = (*_room(rng, size), None) if size[2] > 0 else _outside(rng)
    things: list[Body] = []
    words = place.contents.split()
    for name, span in zip(words[::2], words[1::2], strict=True):
        least, most = map(int, span.split("-"))
        for _ in range(int(rng.integers(least, most + 1))):
            _put(rng, name, place, size, things)
    half = size / 2 if sky is None else np.minimum(0.4 * size, 12)
    low = np.array([-half[0], -half[1], 0.8 if sky is None else 1.2])
    high = np.array([half[0], half[1], min(size[2] - 0.6, 2.6) if sky is None else 3.5])
    return World([*shell, *things], lights, ambient, sky), low, high


_PROBE = 8  # rays along a side of the coarse image that judges a camera before it is used


class _Probe(NamedTuple):
    """A camera and what it sees at low resolution, one entry per ray."""

    pose: Pose
    point: Array
    depth: Array
    body: np.ndarray


def _probe(world: World, poses: list[Pose], span: float) -> list[_Probe]:
    """Look through each camera at low resolution; `span` is the image's width at depth 1."""
    grid = ((np.arange(_PROBE) + 0.5) / _PROBE - 0.5) * span
    x, y = np.tile(grid, _PROBE), np.repeat(grid, _PROBE)
    origin, direction = np.concatenate([raycast.camera_rays(pose, x, y) for pose in poses], axis=2)
    t, index = raycast.nearest_hit(world, origin, direction)
    t = np.minimum(t, MAX_DEPTH)
    shape = (len(poses), _PROBE * _PROBE)
    point = (origin + t * direction).reshape(3, *shape)
    body, t = world.body_of[index].reshape(shape), t.reshape(shape)
    return [_Probe(pose, point[:, i], t[i], body[i]) for i, pose in enumerate(poses)]


def _shared(a: _Probe, b: _Probe, span: float) -> float:
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
    probes = _probe(world, [aim(*pair) for pair in zip(starts.T, targets, strict=True)], span)
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
    others = _probe(world, [*poses, first.pose], span)
    overlap = [min(_shared(first, other, span), _shared(other, first, span)) for other in others]
    # Stable: those that share enough keep their random order, the rest follow from the best.
    order = np.argsort(-np.minimum(overlap, 0.45), kind="stable")
    return [first.pose, *(others[order[i % len(order)]].pose for i in range(views - 1))]


def _view(
    world: World, pose: Pose, shot: tuple[Array, Hits], *, exposure: float, focal: float, rng: Rng
) -> View:
    """Develop the image, with noise, and gather the geometry of the pixel centres."""
    radiance, hits = shot
    size = math.isqrt(len(hits.t))
    display = (1 - np.exp(-exposure * rng.uniform(0.85, 1.15) * radiance)) ** (1 / 1.8)
    # Below one level of 255: normalised per patch, noise on a plain wall would be all there is.
    display += rng.uniform(0.0005, 0.003) * rng.standard_normal(display.shape)
    image = np.clip(255 * display + 0.5, 0, 255).astype(np.uint8)
    body, valid = world.body_of[hits.part], hits.t <= MAX_DEPTH
    names = np.array([CLASSES.index(name) for name in (*(b.name for b in world.bodies), "sky")])
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


def render_scene(
    seed: int, *, views: int = 4, size: int = 128, outdoor: bool | None = None
) -> Scene:
    """Build and render the scene of a seed.

    Args:
        seed: What the scene depends on, with the other arguments.
        views: Number of cameras; the others overlap with the first.
        size: Pixels along a side.
        outdoor: Open place or room; None draws a room three times in four.
    """
    if views < 1 or size < 8:
        raise UserError(f"a scene of {views} views of {size} px: expected views >= 1, size >= 8")
    rng = np.random.Generator(np.random.PCG64(seed))
    outdoor = bool(rng.random() < 0.25) if outdoor is None else outdoor
    kinds = [name for name, place in PLACES.items() if (place.height[1] == 0) == outdoor]
    room_type = kinds[int(rng.integers(len(kinds)))]
    world, low, high = build_world(rng, room_type)
    span = 2 * np.tan(np.radians(rng.uniform(50, 85)) / 2)
    focal = size / span
    poses = place_cameras(world, rng, views=views, low=low, high=high, span=span)
    radiance, hits = raycast.photograph(world, poses, size=size, focal=focal, rng=rng)
    # One exposure for the scene, as from one camera, give or take what an automatic one does.
    exposure = rng.uniform(0.25, 0.6) / np.minimum(radiance, 4).mean()
    rendered = []
    for i, pose in enumerate(poses):
        own = slice(i * size * size, (i + 1) * size * size)
        shot = radiance[:, own], Hits(hits.t[own], hits.part[own], hits.normal[:, own])
        rendered.append(_view(world, pose, shot, exposure=exposure, focal=focal, rng=rng))
    seen = np.unique(np.stack([view.class_id for view in rendered]))
    return Scene(rendered, outdoor, len(world.lights), room_type, tuple(CLASSES[i] for i in seen))
