"""Covisibility against cameras whose overlap is known, and its matrices on disk."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from scene_folders import rendered

from pixio_heads.reconstruction.views import covisibility as c
from pixio_heads.reconstruction.views.score_file import ScoreFile


def camera(side: int = 40, focal: float = 40.0) -> np.ndarray:
    centre = (side - 1) / 2
    return np.array([[focal, 0, centre], [0, focal, centre], [0, 0, 1.0]])


def shifted(x: float, y: float = 0.0) -> np.ndarray:
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


def wall(distance: float, side: int = 40) -> np.ndarray:
    return np.full((side, side), distance, np.float32)


def pairwise(*views: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack(list(c.rows(*views)))


def near_of(scores: np.ndarray, *, threshold: float) -> np.ndarray:
    near = c.Neighbours(scores, threshold=threshold)
    return np.stack([near[view] for view in range(len(near))])


def test_the_overlap_of_two_cameras_before_a_wall_is_the_shared_share() -> None:
    # At 4 m a pixel is 0.1 m wide: one metre to the side are 10 of 40 columns.
    scores = pairwise([wall(4), wall(4)], [camera()] * 2, [np.eye(4), shifted(1.0)])
    assert scores.dtype == np.float32
    assert np.allclose(scores, [[1, 0.75], [0.75, 1]])
    for x, y in ((3, 0), (-3, 0), (0, 3), (0, -3)):
        scores = pairwise([wall(4), wall(4)], [camera()] * 2, [np.eye(4), shifted(x, y)])
        assert np.allclose(scores, [[1, 0.25], [0.25, 1]])


def test_pixels_without_depth_count_as_not_seen() -> None:
    holes = wall(4)
    holes[:10], holes[10, :3] = 0, (np.nan, np.inf, -1)
    scores = pairwise([holes, wall(4)], [camera()] * 2, [np.eye(4)] * 2)
    share = (30 * 40 - 3) / 1600
    assert np.allclose(scores, [[share, share], [share, 1]])


def test_what_another_surface_hides_is_not_seen() -> None:
    behind = pairwise([wall(4), wall(2)], [camera()] * 2, [np.eye(4)] * 2)
    assert np.allclose(behind, np.eye(2))
    slack = 0.1 + 0.005 * 4 + 0.1 * np.log(2)
    for gap, seen in ((slack - 0.01, 1), (slack + 0.01, 0)):
        scores = pairwise([wall(4), wall(4 - gap)], [camera()] * 2, [np.eye(4)] * 2)
        assert scores[0, 1] == seen


def test_a_camera_sees_nothing_behind_or_within_4_centimetres_of_it() -> None:
    back = np.diag([-1.0, 1, -1, 1])
    scores = pairwise([wall(4), wall(4)], [camera()] * 2, [np.eye(4), back])
    assert np.allclose(scores, np.eye(2))
    for depth, seen in ((0.05, 1), (0.03, 0)):
        near = pairwise([wall(depth), wall(depth)], [camera()] * 2, [np.eye(4)] * 2)
        assert near[0, 1] == seen


def test_the_rule_by_hand_on_a_rendered_scene() -> None:
    views = rendered(5, views=3)
    found = pairwise(
        [v.depth for v in views], [v.intrinsics for v in views], [v.cam2world for v in views]
    )
    for a, first in enumerate(views):
        for b, second in enumerate(views):
            pose = np.linalg.inv(second.cam2world) @ first.cam2world
            seen = 0
            for row, column in np.argwhere(first.valid):
                ray = np.linalg.inv(first.intrinsics) @ [column, row, 1]
                point = pose[:3, :3] @ (ray * first.depth[row, column]) + pose[:3, 3]
                if point[2] <= 0.04:
                    continue
                u, v, _ = np.floor(second.intrinsics @ point / point[2] + 0.5).astype(int)
                if not (0 <= u < 48 and 0 <= v < 48) or not second.valid[v, u]:
                    continue
                slack = 0.1 + 0.005 * point[2] + 0.1 * np.log(2)
                seen += abs(point[2] - second.depth[v, u]) < slack
            # A point may round to either of two pixels.
            assert found[a, b] == pytest.approx(seen / 48**2, abs=3 / 48**2)
    assert found[0, 0] == 1 and 0.05 < found[0, 1] < 1


def test_shrinking_keeps_what_a_pixel_shows() -> None:
    depth = np.arange(300 * 448, dtype=np.float32).reshape(300, 448)
    matrix = camera(300)
    small, own = c.shrunk(depth, matrix)
    assert small.shape == (150, 224)
    # The direction of the new pixel lies between those of the old ones that it stands for.
    new = np.linalg.inv(own) @ [10, 7, 1]
    old = [np.linalg.inv(matrix) @ [x, y, 1] for x in (20, 21) for y in (14, 15)]
    assert np.allclose(new, np.mean(old, axis=0)) and small[7, 10] == depth[15, 21]
    same, unchanged = c.shrunk(depth[:10, :20], matrix)
    assert np.array_equal(same, depth[:10, :20]) and np.allclose(unchanged, matrix)


def test_neighbours_see_enough_of_what_a_view_shows_at_all() -> None:
    scores = np.array([[0.5, 0.1, 0.3], [0.1, 1, 0], [0.1, 0, 1]])
    # Row 0: 0.1 and 0.2 of 0.5; row 2: 0.2 of 1.
    near = near_of(scores, threshold=0.25)
    assert near.tolist() == [[False, False, True], [False] * 3, [False] * 3]
    near = near_of(scores, threshold=0.15)
    assert near.tolist() == [[False, True, True], [False] * 3, [True, False, False]]


def test_a_view_without_depth_has_no_neighbour_and_a_broken_one_is_only_a_start() -> None:
    scores = np.ones((4, 4), np.float32)
    scores[0] = scores[:, 0] = 0
    scores[3] = scores[:, 3] = np.nan
    near = near_of(scores, threshold=0.25)
    assert near[:, 3].tolist() == [False] * 4 and near[3].tolist() == [True, True, True, False]
    assert not near[0].any() and near[1].tolist() == [False, False, True, False]


def plain(depths: list, matrices: list, poses: list) -> np.ndarray:
    """The rule with nothing skipped, in float64."""
    found = np.zeros((len(depths), len(depths)))
    for a, depth in enumerate(depths):
        row, column = np.nonzero(np.isfinite(depth) & (depth > 0))
        rays = np.linalg.inv(matrices[a]) @ np.stack([column, row, np.ones_like(row)])
        points = rays * depth[row, column]
        for b, other in enumerate(depths):
            pose = np.linalg.inv(poses[b]) @ poses[a]
            x, y, z = matrices[b] @ (pose[:3, :3] @ points + pose[:3, 3:])
            ahead = z > 0.04
            u, v = (np.floor(k[ahead] / z[ahead] + 0.5) for k in (x, y))
            z = z[ahead]
            inside = (u >= 0) & (u < other.shape[1]) & (v >= 0) & (v < other.shape[0])
            u, v, z = u[inside].astype(int), v[inside].astype(int), z[inside]
            there = other[v, u]
            near = np.abs(z - there) < 0.1 + 0.005 * z + 0.1 * np.log(2)
            found[a, b] = (near & np.isfinite(there) & (there > 0)).sum() / depth.size
    return found


def test_what_is_skipped_would_not_have_been_seen() -> None:
    """Cameras that look anywhere in a row of rooms, through whose walls nothing is seen."""
    rng = np.random.default_rng(0)
    depths, matrices, poses = [], [], []
    for i in range(24):
        height, width = (35, 50) if i % 2 else (48, 33)
        matrix = np.array([[30.0, 0, width / 2], [0, 30, height / 2], [0, 0, 1]])
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        turn *= np.sign(np.linalg.det(turn))
        place, size = rng.uniform(0.2, 2.8, 3), 3.0
        row, column = np.indices((height, width)).reshape(2, -1)
        rays = turn @ np.linalg.inv(matrix) @ np.stack([column, row, np.ones_like(row)])
        walls = np.where(rays > 0, size - place[:, None], -place[:, None]) / rays
        depth = walls.min(0).reshape(height, width).astype(np.float32)
        depth[rng.random(depth.shape) < 0.1] = (np.nan, 0, -1)[i % 3]
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = turn, place + [i // 8 * size, 0, 0]
        depths.append(depth if i != 5 else np.zeros_like(depth))
        matrices.append(matrix)
        poses.append(pose)
    found, expected = pairwise(depths, matrices, poses), plain(depths, matrices, poses)
    # A point may round to either of two pixels.
    assert np.abs(found - expected).max() < 3 / depths[0].size
    assert 0.1 < (expected > 0).mean() < 0.5 and not found[5].any() and not found[:, 5].any()
    rest = list(c.rows(depths, matrices, poses, start=20))
    assert np.array_equal(np.stack(rest), found[20:])


def test_scores_that_were_begun_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path))
    matrix = np.arange(16, dtype=np.float32).reshape(4, 4)
    made: list[int] = []

    def rows(start: int, last: int = 4) -> Iterator[np.ndarray]:
        for i in range(start, last):
            made.append(i)
            yield matrix[i]
        if last < 4:
            raise KeyboardInterrupt

    def file(last: int = 4, facts: str = "a") -> ScoreFile:
        return ScoreFile([facts], 4, lambda start: rows(start, last))

    assert file().missing == 4
    with pytest.raises(KeyboardInterrupt):
        file(2).complete()
    assert file().missing == 2 and not file().path.exists()
    with file().partial.open("ab") as cut:  # as a kill leaves it, within a row
        cut.write(b"\1\2\3\4\5")
    ticks: list[None] = []
    file().complete(lambda: ticks.append(None))
    assert made == [0, 1, 2, 3] and len(ticks) == 2 and file().missing == 0
    assert np.array_equal(file().read(), matrix) and file().read().dtype == np.float32
    assert made == [0, 1, 2, 3]
    assert np.array_equal(file(facts="b").read(), matrix) and len(made) == 8
    left = sorted(path.suffix for path in (tmp_path / "covisibility").iterdir())
    assert left == [".lock", ".lock", ".npy", ".npy"]

    def no_locks(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with pytest.raises(KeyboardInterrupt):
        file(2, "c").complete()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    begun = file(facts="c").partial.read_bytes()  # by another process, for all one can tell
    assert np.array_equal(file(facts="c").read(), matrix)
    assert file(facts="c").partial.read_bytes() == begun
