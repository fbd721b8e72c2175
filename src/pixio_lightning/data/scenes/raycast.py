"""A small ray caster: boxes, ellipsoids and upright cylinders, point lights, one mirror bounce.

The world is z up, in metres. Everything is a `Body`, turned about the vertical, of parts; each is
a convex unit shape stretched by its half extents, so a ray meets it in one interval, found in
closed form. Arrays hold one column per ray:

    N  rays      origin, direction, point, normal `(3, N)`      t, part `(N,)`

A direction need not be a unit vector: `t` counts in its length. With directions of unit depth in
the camera, `t` is z-depth. Geometry is float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np

from pixio_lightning.data.scenes.textures import Array, Material, Shape, Sky, unwrap

_LIFT = 1e-4  # metres above a surface that rays leave it: far above rounding, far below a pixel
_SHININESS = 40.0

Rays = tuple[Array, Array] | Array


class Part(NamedTuple):
    """A unit shape, stretched and moved; `centre` and `half` are `(3,)` in the body's frame."""

    shape: Shape
    centre: Array
    half: Array
    material: Material


@dataclass(frozen=True, eq=False)
class Body:
    """Parts that move together."""

    name: str  # its class
    position: Array  # (3,), origin of its frame in the world
    yaw: float  # rotation about the vertical, radians
    parts: tuple[Part, ...]
    # The ground or a side of a convex room: one slab, endless along two axes, without a shadow.
    encloses: bool = False

    @cached_property
    def bounds(self) -> tuple[Array, Array]:
        """Centre and half extents `(3,)` of the box around all parts, in the body's frame."""
        if len(self.parts) == 1:
            return self.parts[0].centre, self.parts[0].half
        low = np.min([part.centre - part.half for part in self.parts], axis=0)
        high = np.max([part.centre + part.half for part in self.parts], axis=0)
        return (low + high) / 2, (high - low) / 2

    @cached_property
    def stacks(self) -> list[tuple[Shape, np.ndarray, Array, Array]]:
        """Parts by shape: shape, part numbers `(P,)`, centres and half extents `(P, 3, 1)`."""
        centre = np.stack([part.centre for part in self.parts])[:, :, None]
        half = np.stack([part.half for part in self.parts])[:, :, None]
        shapes = np.array([part.shape.value for part in self.parts])
        found = [(shape, np.flatnonzero(shapes == shape.value)) for shape in Shape]
        return [(shape, at, centre[at], half[at]) for shape, at in found if len(at)]

    @cached_property
    def middle(self) -> Array:
        """Centre of the bounds in the world, `(3,)`."""
        return self.position + self.turned(self.bounds[0][:, None], back=True)[:, 0]

    @cached_property
    def corners(self) -> tuple[Array, Array]:
        """Least and greatest coordinates `(3,)` of the bounds in the world."""
        half = self.bounds[1]
        if self.yaw:  # what encloses is endless, and turned by 0
            cos, sin = abs(np.cos(self.yaw)), abs(np.sin(self.yaw))
            half = half * (cos, cos, 1) + half[[1, 0, 2]] * (sin, sin, 0)
        return self.middle - half, self.middle + half

    def turned(self, vectors: Array, *, back: bool = False) -> Array:
        """Rotate world vectors `(3, N)` into the body's frame, or `back` into the world."""
        if self.yaw == 0:
            return vectors
        cos, sin = math.cos(self.yaw), math.sin(self.yaw) * (-1 if back else 1)
        turned = np.empty_like(vectors)
        turned[0] = cos * vectors[0] + sin * vectors[1]
        turned[1] = cos * vectors[1] - sin * vectors[0]
        turned[2] = vectors[2]
        return turned

    def distance(self, points: Array) -> Array:
        """Return how far world points `(3, N)` are from the body's bounds, 0 inside: `(N,)`."""
        half = self.bounds[1]
        outside = np.abs(self.turned(points - self.middle[:, None])) - half[:, None]
        return np.sqrt((np.maximum(outside, 0) ** 2).sum(axis=0))


class Light(NamedTuple):
    """A lamp or the sun: ``colour / (1 + (distance / reach)^2)``, from a cube of `radius`."""

    position: Array
    colour: Array
    reach: float
    radius: float


@dataclass(frozen=True, eq=False)
class World:
    """All that a ray can meet: bodies, lights, ambient light `(3,)`, and the sky outdoors."""

    bodies: Sequence[Body]
    lights: Sequence[Light]
    ambient: Array
    sky: Sky | None = None

    @cached_property
    def parts(self) -> list[tuple[Body, Part]]:
        """Every part with its body; `Hits.part` counts in this list."""
        return [(body, part) for body in self.bodies for part in body.parts]

    @cached_property
    def body_of(self) -> np.ndarray:
        """Body number of each part, and -1 in the last place, for rays that meet nothing."""
        counts = [len(body.parts) for body in self.bodies]
        return np.append(np.repeat(np.arange(len(counts)), counts), -1)


class Hits(NamedTuple):
    """Nearest intersections: `t` (inf where none), `part` (-1 where none), unit `normal`."""

    t: Array
    part: np.ndarray
    normal: Array


class Bundle(NamedTuple):
    """Consecutive rays, from number `first` on, whose lines pass an apex within a margin."""

    first: int
    apex: Array  # (3,)
    unit: Array  # (3, N), directions away from the apex
    margin: float  # metres

    def toward(self, body: Body) -> np.ndarray:
        """Return the numbers of the rays that may meet the sphere around a body's bounds."""
        x, y, z = body.middle - self.apex
        reach = math.hypot(*body.bounds[1]) + self.margin
        # The lines that touch a sphere of radius r at distance d have cosine sqrt(1 - r^2 / d^2).
        touching = math.sqrt(max(x * x + y * y + z * z - reach * reach, 0.0)) - 1e-9
        along = x * self.unit[0] + y * self.unit[1] + z * self.unit[2]
        return np.flatnonzero(along >= (touching if touching > 0 else -np.inf)) + self.first


def _slab(origin: Array, direction: Array) -> tuple[Array, Array]:
    # A zero component would give 0 * inf; any number this small acts as a parallel ray.
    inverse = 1 / np.where(direction == 0, 1e-30, direction)
    middle, half = -origin * inverse, np.abs(inverse)
    # Over so few rows, this takes a fraction of the time of `max` and `min`.
    enter = reduce(np.maximum, np.moveaxis(middle - half, -2, 0))
    return enter, reduce(np.minimum, np.moveaxis(middle + half, -2, 0))


def _round(origin: Array, direction: Array) -> tuple[Array, Array]:
    a = np.maximum((direction * direction).sum(axis=-2), 1e-30)
    b = (origin * direction).sum(axis=-2)
    root = b * b - a * ((origin * origin).sum(axis=-2) - 1)
    half = np.sqrt(np.maximum(root, 0))
    return np.where(root < 0, np.inf, (-b - half) / a), (-b + half) / a


def interval(shape: Shape, origin: Array, direction: Array) -> tuple[Array, Array]:
    """Return where rays `(..., 3, N)` enter and leave a unit shape; a miss has enter > leave."""
    if shape is not Shape.CYLINDER:
        return (_slab if shape is Shape.BOX else _round)(origin, direction)
    enter, leave = _round(origin[..., :2, :], direction[..., :2, :])
    top, bottom = _slab(origin[..., 2:, :], direction[..., 2:, :])
    return np.maximum(enter, top), np.minimum(leave, bottom)


def _hits(
    body: Body, origin: Array, direction: Array, limit: Array, bundles: Sequence[Bundle]
) -> Iterator[tuple[np.ndarray, np.ndarray, Array]]:
    """Yield (part numbers, rays, t) of hits with 0 < t < limit; `limit` may shrink meanwhile."""
    if body.encloses:
        part = body.parts[0]
        axis = int(part.half.argmin())
        half, start = part.half[axis], origin[axis] - part.centre[axis]
        enter, leave = _slab(start[None] / half, direction[axis][None] / half)
        rays = np.flatnonzero((enter <= leave) & (enter > 0) & (enter < limit))
        yield np.zeros(len(rays), dtype=int), rays, enter[rays]
        return
    near = [bundle.toward(body) for bundle in bundles] or [np.arange(origin.shape[1])]
    rays = np.concatenate(near)
    if not len(rays):
        return
    origin = body.turned(origin[:, rays] - body.position[:, None])
    direction = body.turned(direction[:, rays])
    if len(body.parts) > 1:
        centre, half = (bound[:, None] for bound in body.bounds)
        enter, leave = _slab((origin - centre) / half, direction / half)
        within = np.flatnonzero((enter <= leave) & (leave > 0) & (enter < limit[rays]))
        rays, origin, direction = rays[within], origin[:, within], direction[:, within]
    for shape, numbers, centre, half in body.stacks if len(rays) else []:
        enter, leave = interval(shape, (origin - centre) / half, direction / half)
        enter = np.where((enter <= leave) & (enter > 0), enter, np.inf)
        t = enter.min(axis=0)
        met = np.flatnonzero(t < limit[rays])
        yield numbers[enter[:, met].argmin(axis=0)], rays[met], t[met]


def nearest_hit(
    world: World, origin: Array, direction: Array, *, bundles: Sequence[Bundle] = ()
) -> tuple[Array, np.ndarray]:
    """Return t and part `(N,)` of the first surface met; `bundles` of the rays save time."""
    t = np.full(origin.shape[1], np.inf)
    index = np.full(origin.shape[1], -1)
    before = 0
    for body in world.bodies:
        for numbers, rays, enter in _hits(body, origin, direction, t, bundles):
            t[rays], index[rays] = enter, before + numbers
        before += len(body.parts)
    return t, index


def occluded(world: World, origin: Array, target: Array, *, bundle: Bundle) -> np.ndarray:
    """Return whether something stands between points `(3, N)` and their targets: bool `(N,)`."""
    limit = np.ones(origin.shape[1])
    for body in world.bodies:
        if not body.encloses:
            for _, rays, _ in _hits(body, origin, target - origin, limit, [bundle]):
                limit[rays] = 0
    return limit == 0


class _Surface(NamedTuple):
    """What the rays that meet something see there: vectors `(3, N)`, numbers `(N,)`."""

    point: Array
    view: Array
    normal: Array
    albedo: Array
    specular: Array
    glow: Array
    mirror: np.ndarray


def _surface(world: World, index: np.ndarray, point: Array, ray: Array, pixel: Array) -> _Surface:
    """Look up the parts met; `pixel (N,)` is a pixel's side at the points, metres."""
    view = -ray / np.sqrt((ray * ray).sum(axis=0))
    normal, albedo = np.zeros((2, *point.shape))
    specular, glow = np.zeros((2, len(index)))
    surface = _Surface(point, view, normal, albedo, specular, glow, np.zeros(len(index), bool))
    order = np.argsort(index, kind="stable")
    for rays in np.split(order, np.flatnonzero(np.diff(index[order])) + 1) if len(order) else []:
        body, part = world.parts[index[rays[0]]]
        local = body.turned(point[:, rays] - body.position[:, None]) - part.centre[:, None]
        toward = body.turned(ray[:, rays])
        local_normal, u, v, *grow = unwrap(part.shape, part.half, local, toward)
        surface.normal[:, rays] = body.turned(local_normal, back=True)
        surface.albedo[:, rays] = part.material.albedo(u, v, *(pixel[rays] * np.stack(grow)))
        surface.specular[rays], surface.glow[rays] = part.material.specular, part.material.glow
        surface.mirror[rays] = part.material.mirror
    return surface


def _shade(world: World, surface: _Surface, rng: np.random.Generator) -> Array:
    """Return radiance `(3, N)`: Lambert and Blinn-Phong with shadows.

    Every ray sees its own random point of a light, which softens the shadows' edges.
    """
    point, view, normal, albedo, specular, glow, _ = surface
    irradiance = world.ambient[:, None] * (0.7 + 0.3 * normal[2])
    highlight = np.zeros_like(point)
    start = point + _LIFT * normal
    for light in world.lights:
        offset = light.radius * rng.uniform(-1, 1, point.shape)
        ray = light.position[:, None] + offset - point
        cosine = (ray * normal).sum(axis=0)
        lit = np.flatnonzero(cosine > 0)
        ray, away = ray[:, lit], start[:, lit] - light.position[:, None]
        unit = away / np.sqrt((away * away).sum(axis=0))
        bundle = Bundle(0, light.position, unit, 2 * light.radius)
        seen = ~occluded(world, start[:, lit], start[:, lit] + ray, bundle=bundle)
        lit, ray = lit[seen], ray[:, seen]
        square = (ray * ray).sum(axis=0)
        ray /= np.sqrt(square)
        strength = light.colour[:, None] / (1 + square / light.reach**2)
        irradiance[:, lit] += strength * (ray * normal[:, lit]).sum(axis=0)
        shiny = np.flatnonzero(specular[lit])
        middle = ray[:, shiny] + view[:, lit[shiny]]
        middle /= np.sqrt((middle * middle).sum(axis=0))
        lobe = np.maximum((middle * normal[:, lit[shiny]]).sum(axis=0), 0) ** _SHININESS
        highlight[:, lit[shiny]] += strength[:, shiny] * specular[lit[shiny]] * lobe
    return albedo * (irradiance + glow) + highlight


def cast(
    world: World,
    rays: Rays,
    *,
    cameras: Sequence[int],
    pixel: float,
    rng: np.random.Generator,
    behind: Array | float = 0.0,
) -> tuple[Array, Hits]:
    """Follow rays, from outside every body; return linear radiance `(3, N)` and the hits.

    Args:
        world: What they can meet.
        rays: Origins and directions, both `(3, N)`.
        cameras: How many rays start at the first camera, the next, and so on; empty for rays
            from mirrors, for which further mirrors look plain.
        pixel: Side of a pixel at ``t = 1``, metres; sets how fine a texture may be.
        rng: Where light samples come from.
        behind: The `t (N,)` that led to a mirror.
    """
    origin, direction = rays
    unit = direction / np.sqrt((direction * direction).sum(axis=0))
    spans = [(sum(cameras[:i]), n) for i, n in enumerate(cameras) if n]
    bundles = [Bundle(i, origin[:, i], unit[:, i : i + n], 0.0) for i, n in spans]
    t, index = nearest_hit(world, origin, direction, bundles=bundles)
    met = np.flatnonzero(index >= 0)
    ray, length = direction[:, met], t[met]
    extent = pixel * (t + behind)[met]
    surface = _surface(world, index[met], origin[:, met] + length * ray, ray, extent)
    seen = _shade(world, surface, rng)
    at = np.flatnonzero(surface.mirror)
    if cameras and len(at):
        normal = surface.normal[:, at]
        start, away = surface.point[:, at] + _LIFT * normal, ray[:, at]
        away = away - 2 * (away * normal).sum(axis=0) * normal
        mirrored = cast(world, (start, away), cameras=(), pixel=pixel, rng=rng, behind=length[at])
        seen[:, at] = 0.85 * mirrored[0]
    radiance, normals = np.zeros_like(direction), np.zeros_like(direction)
    if world.sky is not None:
        clear = np.exp(-length * np.sqrt((ray * ray).sum(axis=0)) / world.sky.haze)
        seen = seen * clear + world.sky.horizon[:, None] * (1 - clear)
        missed = np.flatnonzero(index < 0)
        radiance[:, missed] = world.sky.radiance(direction[:, missed])
    radiance[:, met], normals[:, met] = seen, surface.normal
    return radiance, Hits(t, index, normals)


class Pose(NamedTuple):
    """A camera: `rotation (3, 3)` has its right, down and forward axes as columns."""

    rotation: Array
    position: Array


def look_at(position: Array, target: Array, *, roll: float) -> Pose:
    """Point a camera at a target, both `(3,)`, then turn it by `roll` radians about its axis."""
    forward = (target - position) / np.sqrt(((target - position) ** 2).sum())
    right = np.array([forward[1], -forward[0], 0.0]) / np.hypot(forward[0], forward[1])
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    axes = [cos * right + sin * down, cos * down - sin * right, forward]
    return Pose(np.stack(axes, axis=1), position)


def camera_rays(pose: Pose, x: Array, y: Array) -> Rays:
    """Return origin and direction `(3, N)` of the rays through ``(x, y, 1)`` in the camera."""
    right, down, forward = pose.rotation.T[:, :, None]
    direction = right * x + down * y + forward
    return np.repeat(pose.position[:, None], len(x), axis=1), direction


def photograph(
    world: World, poses: Sequence[Pose], *, size: int, focal: float, rng: np.random.Generator
) -> tuple[Array, Hits]:
    """Cast a ray through every pixel centre, and four more where neighbours differ in surface.

    `focal` is in pixels; the principal point is the centre of the image. Returns the linear
    radiance `(3, V * H * W)` and the hits of the centre rays, whose `t` is z-depth.
    """
    line = (np.arange(size) - (size - 1) / 2) / focal
    x, y = np.tile(line, size), np.repeat(line, size)
    rays = np.concatenate([camera_rays(pose, x, y) for pose in poses], axis=2)
    shape = (len(poses), size, size)
    counts = [size * size] * len(poses)
    radiance, hits = cast(world, rays, cameras=counts, pixel=1 / focal, rng=rng)
    index, normal = hits.part.reshape(shape), hits.normal.reshape(3, *shape)
    edge = np.zeros(shape, dtype=bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[..., 1:], np.s_[..., :-1])):
        bend = ((normal[:, *a] * normal[:, *b]).sum(axis=0) < 0.9) & (index[a] >= 0)
        step = bend | (index[a] != index[b])
        edge[a] |= step
        edge[b] |= step
    dx, dy = np.array([[-1, 1, -1, 1], [-1, -1, 1, 1]])[:, None] * 0.25 / focal
    finer, counts = [], [4 * int(own.sum()) for own in edge]
    for pose, own in zip(poses, edge, strict=True):
        at = np.flatnonzero(own)[:, None]
        finer.append(camera_rays(pose, (x[at] + dx).ravel(), (y[at] + dy).ravel()))
    rays = np.concatenate(finer, axis=2)
    colour, _ = cast(world, rays, cameras=counts, pixel=0.5 / focal, rng=rng)
    radiance[:, edge.ravel()] = np.minimum(colour, 4).reshape(3, -1, 4).mean(axis=2)
    return radiance, hits
