"""Every layout of posed images, written from rendered scenes and read back to the same cameras."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scene_folders
from PIL import Image
from scene_folders import rendered

from pixio_heads.reconstruction.views import covisibility
from pixio_heads.reconstruction.views.frames import FileScene, posed_frame
from pixio_heads.reconstruction.views.framing import centred, framed
from pixio_heads.reconstruction.views.layouts import open_scenes, split_scenes
from pixio_lightning.data.decode import BadImage
from pixio_lightning.data.scenes.render import View
from pixio_lightning.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))


def opened(root: Path, source: str = "folder", scale: float | None = None) -> list[FileScene]:
    return open_scenes(root, source, scale=scale, max_megapixels=64)


# How each is written, read, and how far its depth may be off: in metres, and as a share.
LAYOUTS: dict[str, tuple[Callable[..., Any], str, float]] = {
    "nerfstudio": (scene_folders.nerfstudio, "folder", 5.1e-4),
    "colmap": (scene_folders.colmap, "folder", 0.0),
    "wai": (scene_folders.wai, "wai", 0.0),
    "blendedmvs": (scene_folders.blendedmvs, "blendedmvs", 0.0),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_poses_intrinsics_and_depth_come_back(layout: str, tmp_path: Path) -> None:
    write, source, tolerance = LAYOUTS[layout]
    views = rendered()
    write(tmp_path / "room", views)
    (scene,) = opened(tmp_path, source)
    assert scene.name == "room" and len(scene) == 3
    assert scene.metric == (source == "wai")
    for i, view in enumerate(views):
        shot = scene.load(i)
        assert np.allclose(shot.cam2world, view.cam2world, rtol=0, atol=1e-6)
        assert np.allclose(shot.intrinsics, view.intrinsics, rtol=0, atol=1e-6)
        assert np.allclose(shot.depth, view.depth, rtol=0, atol=tolerance + 1e-6)
        if layout != "blendedmvs":  # JPEG
            assert np.array_equal(shot.image, view.image)
    # So a scene's covisibility is that of the renderer's own arrays.
    own = covisibility.rows(
        [v.depth for v in views], [v.intrinsics for v in views], [v.cam2world for v in views]
    )
    assert np.allclose(scene.scores(), list(own), atol=2 / 48**2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_depth_of_one_view_lands_on_the_depth_of_another(layout: str, tmp_path: Path) -> None:
    write, source, tolerance = LAYOUTS[layout]
    write(tmp_path / "room", rendered(8))
    (scene,) = opened(tmp_path, source)
    a, b = scene.load(0), scene.load(1)
    rows, columns = np.nonzero(a.depth > 0)
    pixels = np.stack([columns, rows, np.ones_like(rows)])
    points = np.linalg.inv(a.intrinsics) @ pixels * a.depth[rows, columns]
    pose = np.linalg.inv(b.cam2world) @ a.cam2world
    points = pose[:3, :3] @ points + pose[:3, 3:]
    u, v, z = b.intrinsics @ points
    column, row = np.round(u / z).astype(int), np.round(v / z).astype(int)
    inside = (z > 0.1) & (column >= 0) & (column < 48) & (row >= 0) & (row < 48)
    error = np.abs(b.depth[row[inside], column[inside]] - z[inside]) / z[inside]
    # The rest is hidden, or lies at an edge.
    assert inside.sum() > 500 and np.median(error) < 0.01 and (error < 0.05).mean() > 0.7


def test_a_world_in_opencv_axes_is_believed(tmp_path: Path) -> None:
    views = rendered()
    content = scene_folders.nerfstudio(tmp_path / "a", views)
    for frame, view in zip(content["frames"], views, strict=True):
        frame["transform_matrix"] = view.cam2world.tolist()
    content["camera_convention"] = "opencv"
    (tmp_path / "a/transforms.json").write_text(json.dumps(content))
    (scene,) = opened(tmp_path)
    assert np.allclose(scene.load(2).cam2world, views[2].cam2world)


def test_one_camera_for_all_frames_and_one_focal_length(tmp_path: Path) -> None:
    views = rendered()
    content = scene_folders.nerfstudio(tmp_path / "a", views)
    for frame in content["frames"]:
        shared = {key: frame.pop(key) for key in ("fl_x", "cx", "cy")}
        del frame["fl_y"]
    (tmp_path / "a/transforms.json").write_text(json.dumps(content | shared))
    (scene,) = opened(tmp_path)
    assert np.allclose(scene.load(1).intrinsics, views[1].intrinsics)


def test_a_folder_that_is_a_scene_and_a_folder_of_scenes(tmp_path: Path) -> None:
    scene_folders.nerfstudio(tmp_path / "b", rendered(1))
    scene_folders.colmap(tmp_path / "a", rendered(2))
    (tmp_path / "notes").mkdir()
    assert [scene.name for scene in opened(tmp_path)] == ["a", "b"]
    assert [scene.name for scene in opened(tmp_path / "b")] == ["b"]
    with pytest.raises(UserError, match="holds no scene; expected scene_meta.json"):
        opened(tmp_path, "wai")


def binary(root: Path) -> Path:
    """Turn a model of text into a binary one, by COLMAP itself; return its folder."""
    pycolmap = pytest.importorskip("pycolmap")
    folder = root / "sparse/0"
    (folder / "points3D.txt").write_text("")
    model = pycolmap.Reconstruction(str(folder))
    for file in folder.iterdir():
        file.unlink()
    model.write_binary(str(folder))
    return folder


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_colmap_s_text_and_binary_are_read_the_same(model: str, tmp_path: Path) -> None:
    rest = {"SIMPLE_RADIAL": "0", "OPENCV": "0 0 0 0"}.get(model, "")
    scene_folders.colmap(tmp_path / "a", rendered(), model=model, rest=rest)
    (text,) = opened(tmp_path)
    names = {file.name for file in binary(tmp_path / "a").iterdir()}
    assert {"cameras.bin", "images.bin"} <= names and "cameras.txt" not in names
    (other,) = opened(tmp_path)
    assert len(text) == len(other) > 1
    for i in range(len(text)):
        for one, two in zip(text.load(i), other.load(i), strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-12)


def test_a_binary_model_that_is_damaged(tmp_path: Path) -> None:
    scene_folders.colmap(tmp_path / "a", rendered())
    folder = binary(tmp_path / "a")
    for name in ("cameras.bin", "images.bin"):
        whole = (folder / name).read_bytes()
        cuts = [whole[:n] for n in range(0, len(whole), 3)]
        many = (1 << 60).to_bytes(8, "little")
        places = [0] if name == "cameras.bin" else [0, whole.index(b".png\0") + 5]
        for content in [*cuts, *(whole[:n] + many + whole[n + 8 :] for n in places)]:
            (folder / name).write_bytes(content)
            with pytest.raises(UserError, match=f"{name}.* is damaged, or not COLMAP's"):
                opened(tmp_path / "a")
        (folder / name).write_bytes(whole)
    table = (folder / "cameras.bin").read_bytes()
    (folder / "cameras.bin").write_bytes(table[:12] + (5).to_bytes(4, "little") + table[16:])
    with pytest.raises(UserError, match="cameras.bin', camera 1: .*undistort"):
        opened(tmp_path / "a")
    (folder / "cameras.bin").write_bytes(table[:8] + (99).to_bytes(4, "little") + table[12:])
    with pytest.raises(UserError, match="image 1: camera '1' is not in cameras.bin"):
        opened(tmp_path / "a")
    (folder / "images.bin").unlink()
    with pytest.raises(UserError, match="images.bin' cannot be read: No such file"):
        opened(tmp_path / "a")


def test_negative_depth_and_depth_of_another_size(tmp_path: Path) -> None:
    views = rendered()
    scene_folders.nerfstudio(tmp_path / "a", views)
    scene_folders.save_millimetres(tmp_path / "a/depth/001.png", views[1].depth[::2, ::2])
    content = json.loads((tmp_path / "a/transforms.json").read_text())
    sky = views[0].depth.copy()
    sky[:4] = -1
    scene_folders.save_npy(tmp_path / "a/depth/000.npy", sky)
    content["frames"][0]["depth_file_path"] = "depth/000.npy"
    (tmp_path / "a/transforms.json").write_text(json.dumps(content))
    (scene,) = opened(tmp_path)
    assert (scene.load(0).depth[:4] == -1).all()
    small = framed(scene.load(1), (48, 48))
    assert small.depth.shape == (48, 48)
    assert np.allclose(small.depth[::2, ::2], views[1].depth[::2, ::2], atol=6e-4)
    # Half of the pixels count half as often: nothing else changes.
    assert scene.scores()[1, 1] == 1 and scene.scores()[1, 0] > 0


def test_integer_depth_counts_in_the_scale(tmp_path: Path) -> None:
    views = rendered()
    scene_folders.nerfstudio(tmp_path / "a", views)
    (scene,) = opened(tmp_path, scale=2e-3)
    assert np.allclose(scene.load(0).depth, 2 * views[0].depth, atol=2e-3)


def test_the_unit_that_a_file_says_counts(tmp_path: Path) -> None:
    """Of integers and of floats, as Nerfstudio has it; a key that contradicts is refused."""
    views = rendered()
    content = scene_folders.nerfstudio(tmp_path / "a", views, depth_unit_scale_factor=5e-3)
    scene_folders.save_npy(tmp_path / "a/depth/000.npy", views[0].depth)
    content["frames"][0]["depth_file_path"] = "depth/000.npy"
    (tmp_path / "a/transforms.json").write_text(json.dumps(content))
    (scene,) = opened(tmp_path)
    assert np.allclose(scene.load(0).depth, 5e-3 * views[0].depth)
    assert np.allclose(scene.load(1).depth, 5 * views[1].depth, atol=5e-3)
    with pytest.raises(UserError, match="depth_unit_scale_factor 0.005, but data.depth_scale is 1"):
        opened(tmp_path, scale=1.0)


def test_images_without_lines_of_points_are_refused(tmp_path: Path) -> None:
    """Half of them would be taken for the points of the others."""
    scene_folders.colmap(tmp_path / "a", rendered())
    path = tmp_path / "a/sparse/0/images.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if line.endswith((".png", "list"))) + "\n")
    with pytest.raises(
        UserError, match="images.txt', line 3: expected the points of the image abo"
    ):
        opened(tmp_path)


def test_a_camera_may_be_a_field_of_view(tmp_path: Path) -> None:
    content = scene_folders.nerfstudio(tmp_path / "a", rendered(), camera_angle_x=np.pi / 2)
    for frame in content["frames"]:
        for key in ("fl_x", "fl_y", "cx", "cy"):
            del frame[key]
    (tmp_path / "a/transforms.json").write_text(json.dumps(content))
    (scene,) = opened(tmp_path)
    expected = [[24, 0, 23.5], [0, 24, 23.5], [0, 0, 1]]
    assert np.allclose(scene.load(0).intrinsics, expected)


@pytest.mark.parametrize("model", ["SIMPLE_PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_colmap_s_models_without_distortion(model: str, tmp_path: Path) -> None:
    views = rendered()
    rest = {"SIMPLE_PINHOLE": "", "SIMPLE_RADIAL": "0", "OPENCV": "0 0 0.0 0"}[model]
    scene_folders.colmap(tmp_path / "a", views, model=model, rest=rest)
    (scene,) = opened(tmp_path)
    assert np.allclose(scene.load(0).intrinsics, views[0].intrinsics)


@pytest.mark.parametrize(
    ("model", "rest"), [("SIMPLE_RADIAL", "0.01"), ("OPENCV", "0 0 0 1e-3"), ("FISHEYE", "0 0")]
)
def test_distorted_images_are_refused(model: str, rest: str, tmp_path: Path) -> None:
    scene_folders.colmap(tmp_path / "a", rendered(), model=model, rest=rest)
    with pytest.raises(UserError, match=f"cameras.txt', line 2: the camera is {model} .*undistort"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k1": 0.1}, "frame 0: the camera is OPENCV with distortion.*undistort them first"),
        ({"camera_model": "OPENCV_FISHEYE"}, "the camera is OPENCV_FISHEYE"),
        ({"is_fisheye": True}, "the camera is a fisheye with distortion.*undistort"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor is 0; expected metres"),
        ({"camera_convention": "maya"}, "camera_convention 'maya'; expected opengl or opencv"),
        ({"frames": {}}, "has no list of frames"),
        ({"frames": [3]}, "frame 0: "),
        ({"frames": [{"file_path": "a.png"}]}, "frame 0 has no 'fl_x'; expected file_path"),
        ({"w": "wide"}, "frame 0: invalid literal"),
    ],
)
def test_mistakes_in_transforms(changes: dict, message: str, tmp_path: Path) -> None:
    scene_folders.nerfstudio(tmp_path / "a", rendered(), **changes)
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_poses_that_are_none(tmp_path: Path) -> None:
    views = rendered()
    poses = {
        "scaled": np.diag([2.0, 2, 2, 1]),
        "mirrored": np.diag([-1.0, 1, 1, 1]),
        "short": np.eye(3),
        "nan": np.full((4, 4), np.nan),
    }
    for name, pose in poses.items():
        content = scene_folders.nerfstudio(tmp_path / name, views)
        content["frames"][1]["transform_matrix"] = pose.tolist()
        (tmp_path / name / "transforms.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"frame 1: the pose of 'images/001.png' is not a rota"):
            opened(tmp_path / name)


@pytest.mark.parametrize("matrix", [np.diag([1.0, 1, 0]), np.eye(4), np.ones((3, 3))])
def test_intrinsics_that_are_none(matrix: np.ndarray, tmp_path: Path) -> None:
    files = tmp_path / "a.png", None
    with pytest.raises(UserError, match="cams.json: the camera of 'a.png' is no 3x3 matrix"):
        posed_frame("cams.json", "a.png", files, matrix, np.eye(4), None)


def test_files_of_cameras_that_are_damaged(tmp_path: Path) -> None:
    scene_folders.nerfstudio(tmp_path / "a", rendered())
    (tmp_path / "a/transforms.json").write_text('{"frames": [')
    with pytest.raises(UserError, match="is not valid JSON"):
        opened(tmp_path)
    scene_folders.colmap(tmp_path / "b", rendered())
    (tmp_path / "b/sparse/0/images.txt").write_text("1 0 0 0\n\n")
    with pytest.raises(UserError, match="images.txt', line 1: expected IMAGE_ID QW"):
        opened(tmp_path / "b")
    (tmp_path / "b/sparse/0/images.txt").write_text("1 1 0 0 0 0 0 0 77 a.png\n\n")
    with pytest.raises(UserError, match="line 1: camera '77' is not in cameras.txt"):
        opened(tmp_path / "b")
    (tmp_path / "b/sparse/0/cameras.txt").write_text("1 PINHOLE 48\n")
    with pytest.raises(UserError, match="expected CAMERA_ID MODEL WIDTH HEIGHT PARAMS"):
        opened(tmp_path / "b")
    scene_folders.blendedmvs(tmp_path / "c/d", rendered())
    (tmp_path / "c/d/cams/00000001_cam.txt").write_text("extrinsic\n1 2 3\n")
    with pytest.raises(UserError, match="00000001_cam.txt': expected 'extrinsic'"):
        opened(tmp_path / "c", "blendedmvs")


def test_a_matrix_that_comes_with_the_data_is_used_and_checked(tmp_path: Path) -> None:
    given = np.arange(9, dtype=np.float32).reshape(3, 3)
    scene_folders.wai(tmp_path / "a", rendered(), scores=given)
    (scene,) = opened(tmp_path, "wai")
    assert np.array_equal(scene.scores(), given)
    assert not (tmp_path / "cache").exists()
    scene_folders.wai(tmp_path / "b", rendered(), scores=given[:2, :2])
    with pytest.raises(UserError, match=r"has the shape \(2, 2\); expected \(3, 3\)"):
        opened(tmp_path, "wai")
    np.save(tmp_path / "b/covisibility/v0/pairwise_covisibility--2x2.npy", [{}], allow_pickle=True)
    with pytest.raises(UserError, match="is not an npy array of numbers"):
        opened(tmp_path, "wai")


def test_scale_type_says_whether_lengths_are_metres(tmp_path: Path) -> None:
    scene_folders.wai(tmp_path / "a", rendered(), scale_type="arbitrary")
    assert not opened(tmp_path, "wai")[0].metric


def test_a_scene_without_any_depth_is_refused(tmp_path: Path) -> None:
    content = scene_folders.nerfstudio(tmp_path / "a", rendered())
    for frame in content["frames"]:
        del frame["depth_file_path"]
    (tmp_path / "a/transforms.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has 3 frames and no depth"):
        opened(tmp_path)


def damage_image(root: Path, views: list[View]) -> None:
    path = root / "images/001.png"
    path.write_bytes(path.read_bytes()[:300])


def damage_depth(root: Path, views: list[View]) -> None:
    path = root / "depth/001.png"
    path.write_bytes(path.read_bytes()[:100])


def remove_image(root: Path, views: list[View]) -> None:
    (root / "images/001.png").unlink()


def remove_depth(root: Path, views: list[View]) -> None:
    (root / "depth/001.png").unlink()


def shrink_image(root: Path, views: list[View]) -> None:
    Image.fromarray(views[1].image[:40]).save(root / "images/001.png")


def stretch_depth(root: Path, views: list[View]) -> None:
    scene_folders.save_millimetres(root / "depth/001.png", views[1].depth[:30])


def flatten_depth(root: Path, views: list[View]) -> None:
    Image.fromarray(views[1].image[..., 0]).save(root / "depth/001.png")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_image, "truncated"),
        (damage_depth, "depth cannot be read"),
        (remove_image, r"cannot be read \(No such file or directory\)"),
        (remove_depth, r"cannot be read \(No such file or directory\)"),
        (shrink_image, "48x40 pixels, but its camera is for 48x48"),
        (stretch_depth, "depth of 48x30 for an image of 48x48"),
        (flatten_depth, "8-bit depth"),
    ],
)
def test_a_frame_that_cannot_be_used_is_named(damage: Any, reason: str, tmp_path: Path) -> None:
    views = rendered()
    scene_folders.nerfstudio(tmp_path / "room", views)
    damage(tmp_path / "room", views)
    (scene,) = opened(tmp_path)
    with pytest.raises(BadImage, match=reason) as found:
        scene.load(1)
    assert found.value.name == "room/images/001.png"
    scene.load(0)
    # Whatever is wrong with it, the scores of the others are there.
    others = scene.scores()[np.ix_([0, 2], [0, 2])]
    assert np.isfinite(others).all() and others[0, 1] > 0
    if damage in (damage_depth, remove_depth, flatten_depth):
        assert np.isnan(scene.scores()[1]).all()


def test_scores_are_computed_anew_when_depth_changes(tmp_path: Path) -> None:
    views = rendered()
    scene_folders.nerfstudio(tmp_path / "a", views)
    first = np.array(opened(tmp_path)[0].scores())
    scene_folders.save_millimetres(tmp_path / "a/depth/001.png", views[1].depth / 3)
    assert not np.allclose(opened(tmp_path)[0].scores(), first)


def test_scenes_are_held_out_and_of_a_single_one_its_last_frames(tmp_path: Path) -> None:
    for i in range(12):
        scene_folders.nerfstudio(tmp_path / f"many/{i:02d}", rendered(1))
    scenes = opened(tmp_path / "many")
    train, val = split_scenes(scenes, share=0.25, views=(2, 2))
    names = {scene.name for scene in train} | {scene.name for scene in val}
    assert (len(train), len(val), len(names)) == (9, 3, 12)
    assert split_scenes(scenes, share=1.0, views=(2, 2)) == ([], scenes)
    scene_folders.nerfstudio(tmp_path / "one", rendered(1, views=6))
    (whole,) = opened(tmp_path / "one")
    for views in ((2, 2), (3, 2), (2, 3)):  # whatever is asked for, the same are held out
        (start,), (end,) = split_scenes([whole], share=0.1, views=views)
        assert (len(start), len(end)) == (3, 3)
    assert np.array_equal(end.load(2).image, whole.load(5).image)
    assert np.array_equal(end.scores(), whole.scores()[3:, 3:])
    # Of scores that come with the data, those of its frames.
    given = np.random.default_rng(0).random((6, 6))
    scene_folders.wai(tmp_path / "given", rendered(1, views=6), scores=given)
    parts = split_scenes(opened(tmp_path / "given", "wai"), share=0.1, views=(2, 2))
    (start,), (end,) = parts
    assert np.allclose(start.scores(), given[:3, :3]) and np.allclose(end.scores(), given[3:, 3:])
    for views in ((4, 2), (2, 4)):
        with pytest.raises(UserError, match="3 to train on and 3 held out are too few for data"):
            split_scenes([whole], share=0.1, views=views)


@pytest.mark.parametrize(
    ("size", "centre", "aspect", "box"),
    [
        ((48, 64), (31.5, 23.5), 4 / 3, (0, 0, 64, 48)),
        ((48, 64), (31.5, 23.5), 1.0, (8, 0, 48, 48)),
        ((48, 64), (29.5, 23.5), 4 / 3, (0, 2, 60, 45)),
        ((48, 64), (31.5, 13.5), 2.0, (4, 0, 56, 28)),
    ],
)
def test_the_crop_lies_around_the_principal_point(
    size: tuple[int, int], centre: tuple[float, float], aspect: float, box: tuple[int, ...]
) -> None:
    assert centred(size, centre, aspect) == box


def test_a_principal_point_outside_of_the_image_is_bad() -> None:
    with pytest.raises(BadImage, match="principal point outside the image"):
        centred((48, 64), (70.0, 20.0), 1.0)


@pytest.mark.parametrize("size", [(32, 32), (16, 48), (48, 32), (96, 96)])
def test_a_resized_view_shows_the_same_geometry(size: tuple[int, int], tmp_path: Path) -> None:
    """Every depth of it belongs to the ray of its own pixel, within the nearest one."""
    views = rendered(8)
    scene_folders.nerfstudio(tmp_path / "a", views)
    shot = opened(tmp_path)[0].load(0)
    small = framed(shot, size)
    assert small.image.shape == (*size, 3) and small.depth.shape == size
    for row, column in [(0, 0), (size[0] // 2, size[1] // 3), (size[0] - 1, size[1] - 1)]:
        ray = np.linalg.inv(small.intrinsics) @ [column, row, 1]
        u, v, _ = shot.intrinsics @ ray
        near = [
            shot.depth[int(np.clip(y, 0, 47)), int(np.clip(x, 0, 47))]
            for x in (np.floor(u), np.ceil(u))
            for y in (np.floor(v), np.ceil(v))
        ]
        assert small.depth[row, column] in near
    # An edge to edge crop keeps the angle of view along the side that fills it.
    span = size[1] / small.intrinsics[0, 0], size[0] / small.intrinsics[1, 1]
    assert max(span) == pytest.approx(48 / shot.intrinsics[0, 0])
    # Of three pixels in a row the middle one is the nearest.
    assert np.array_equal(framed(shot, (16, 16)).depth, shot.depth[1::3, 1::3])
    same = framed(shot, (48, 48))
    assert np.array_equal(same.image, shot.image) and np.allclose(same.intrinsics, shot.intrinsics)


@pytest.mark.parametrize("pose", ["0 0 0 0 1 2 3", "1 0 0 0 1e300 1e300 1e300"])
def test_a_pose_of_colmap_s_that_has_no_inverse_in_floats_is_one_line(
    pose: str, tmp_path: Path
) -> None:
    """No rotation, which is refused; or a far one, of which numpy's inverse fails."""
    scene_folders.colmap(tmp_path / "a", rendered(2))
    table = tmp_path / "a/sparse/0/images.txt"
    lines = table.read_text().splitlines()
    number, *_, camera, name = lines[1].split()
    table.write_text("\n".join([lines[0], f"{number} {pose} {camera} {name}", *lines[2:]]) + "\n")
    if pose.startswith("0"):
        with pytest.raises(UserError, match="is not a rotation"):
            open_scenes(tmp_path, "folder", max_megapixels=64.0)
    else:
        assert open_scenes(tmp_path, "folder", max_megapixels=64.0)
