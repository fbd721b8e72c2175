"""Rendered clips: paths that meet nothing, exact flow, and the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pixio_lightning.data import RenderedClips, Scenes, exact_flow, render_clip, warped
from pixio_lightning.data.scenes import clips as module
from pixio_lightning.data.scenes.clips import Clip
from pixio_lightning.data.scenes.render import CLEARANCE, stage


@pytest.fixture(scope="module")
def rendered() -> list[Clip]:
    return [render_clip(seed, frames=6, size=48, places=["studio"]) for seed in range(4)]


def test_a_seed_is_a_clip_whatever_its_length(rendered: list[Clip]) -> None:
    """A frame at a time is the same among twice as many, but for its light."""
    again = render_clip(0, frames=6, size=48, places=["studio"])
    assert all(np.array_equal(a, b) for a, b in zip(again, rendered[0], strict=True))
    finer = render_clip(0, frames=12, size=48, places=["studio"])
    assert np.array_equal(finer.bodies[::2], rendered[0].bodies)
    assert np.array_equal(finer.depth[::2], rendered[0].depth)
    assert np.array_equal(finer.image[0], rendered[0].image[0])
    assert np.allclose(rendered[0].time, np.arange(6) / 3)


def test_camera_and_bodies_move_and_image_shows_it(rendered: list[Clip]) -> None:
    for clip in rendered:
        path = np.abs(np.diff(clip.bodies, axis=0)).sum(axis=(0, 2))
        assert 1 <= (path > 0).sum() <= 3
        assert (np.linalg.norm(np.diff(clip.cam2world[:, :3, 3], axis=0), axis=1) > 0).all()
        assert np.abs(clip.image[-1].astype(int) - clip.image[0]).mean() > 4
        # A thing keeps its number: the bodies that are seen are of one class in all frames.
        for number in np.unique(clip.object_id):
            assert len(np.unique(clip.class_id[clip.object_id == number])) == 1


def test_nothing_meets_on_the_way() -> None:
    """Neither body and body or wall, at the times that are checked, nor the camera and anything."""
    moved = 0
    for seed in range(12):
        rng = np.random.Generator(np.random.PCG64(seed))
        _, world, poses, span = stage(rng, ["office"], views=1)
        paths = module._body_paths(world, rng, poses[0], span)
        camera = module._camera_path(world, paths, rng, poses[0], span)
        moved += len(paths)
        for share in module._MEETING_TIMES:
            bodies = module._bodies_at(world, paths, share)
            for i in paths:
                low, high = bodies[i].corners
                for j, other in enumerate(bodies):
                    gap = np.maximum(other.corners[0] - high, low - other.corners[1]).max()
                    assert i == j or gap > -2 * module._TOUCH
            where = camera.at(poses[0], share).position[:, None]
            assert min(body.distance(where)[0] for body in bodies) > CLEARANCE - 1e-9
    assert moved > 12


def test_exact_warp_beats_copy_and_occlusion_is_what_it_misses(rendered: list[Clip]) -> None:
    errors = []  # single pairs of fine stripes may be worse: the seen ones alias
    for clip in rendered:
        for start, end in ((2, 0), (5, 0), (1, 4)):
            flow, seen = exact_flow(clip, start, end)
            wanted = clip.image[start].astype(float)
            copy = ((wanted - clip.image[end]) ** 2).mean(axis=0)
            warp = ((wanted - warped(clip.image[end], flow)) ** 2).mean(axis=0)
            errors.append([copy.mean(), warp.mean(), warp[seen].mean(), warp[~seen].mean()])
            assert 0.2 < seen.mean() < 1
    copy, warp, there, missed = np.mean(errors, axis=0)
    assert warp < 0.6 * copy and there < 0.5 * missed


def test_flow_within_a_frame_is_zero_and_there_and_back_cancels(rendered: list[Clip]) -> None:
    clip = rendered[1]
    flow, seen = exact_flow(clip, 3, 3)
    assert np.abs(flow).max() < 1e-9 and seen.all()
    there, seen = exact_flow(clip, 0, 5)
    back, _ = exact_flow(clip, 5, 0)
    row, column = np.nonzero(seen)
    x, y = (np.rint(there[row, column, i] + at) for i, at in ((0, column), (1, row)))
    left = there[row, column] + back[y.astype(int), x.astype(int)]
    # Rounding to a pixel is half a pixel off, and more where a surface is seen at a slant.
    assert np.median(np.abs(left)) < 0.5 and np.quantile(np.abs(left), 0.9) < 1.5


def test_sky_moves_by_the_rotation_alone() -> None:
    clip = render_clip(3, frames=3, size=48, places=["park"])
    flow, seen = exact_flow(clip, 0, 2)
    sky = ~clip.valid[0]
    assert sky.any() and seen[sky].mean() > 0.5
    still = clip._replace(cam2world=np.repeat(clip.cam2world[:1], 3, axis=0))
    assert np.abs(exact_flow(still, 0, 2)[0][sky]).max() < 1e-9
    assert np.abs(flow[sky]).min() > 0


def test_a_warp_by_whole_pixels_is_a_shift() -> None:
    image = np.random.default_rng(0).integers(0, 255, (3, 5, 7), dtype=np.uint8)
    flow = np.zeros((5, 7, 2))
    assert np.array_equal(warped(image, flow), image)
    flow[..., 0], flow[..., 1] = 2, -1
    assert np.array_equal(warped(image, flow)[:, 1:, :5], image[:, :4, 2:])


def test_store_returns_what_was_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    wanted = Scenes(train=2, held_out=2, views=3, size=16, places=("studio",))
    held = RenderedClips("val", wanted, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["clips-v1-val-2x3-16px-2s-studio"]
    clip = render_clip(1 << 40 | 1, frames=3, size=16, places=["studio"])
    assert len(held) == 2 and held.name(1) == "val/000001" and held.room_type(1) == "studio"
    loaded = held.load(1)
    for name in Clip._fields:
        assert np.array_equal(getattr(loaded, name), getattr(clip, name)), name
        assert getattr(loaded, name).dtype == getattr(clip, name).dtype, name
    images = RenderedClips("val", wanted, 2.0, geometry=False)
    assert images.times(1) == clip.time.tolist() and images.encoded(1, 2) == held.encoded(1, 2)
    assert "depth" not in images.columns
    assert held.digest() != RenderedClips("train", wanted, 2.0).digest()
