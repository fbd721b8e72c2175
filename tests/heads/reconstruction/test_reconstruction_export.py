"""Exports of a true reconstruction, reopened by the libraries that users open them with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from true_scene import true_scene

from pixio_heads.reconstruction.export import Export, export
from pixio_heads.reconstruction.export.cloud import edges, select
from pixio_heads.reconstruction.export.points import linear
from pixio_heads.reconstruction.reconstructed import (
    Reconstructed,
    original_depth,
    original_intrinsics,
    read,
    to_original,
)
from pixio_heads.reconstruction.views.layouts import open_scenes
from pixio_lightning.errors import UserError

ALL = Export(
    formats=("ply", "glb", "colmap", "transforms", "npz", "depth"),
    max_points=None,
    confidence_percentile=0,
    edge_mask=False,
)


@pytest.fixture(scope="module")
def found() -> Reconstructed:
    return true_scene()


@pytest.fixture(scope="module")
def folder(found: Reconstructed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    written = export(found, folder, ALL)
    assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
    return folder


def cloud_of(found: Reconstructed, **keys: object):
    arguments = {"max_points": None, "voxel_size": None, "confidence_percentile": 0}
    return select(found, **arguments | {"edge_mask": False} | keys)


def project(found: Reconstructed, points: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (u, v) of the model's picture, and z."""
    world2cam = np.linalg.inv(found.cam2world[view].astype(float))
    camera = points @ world2cam[:3, :3].T + world2cam[:3, 3]
    pixels = camera @ found.intrinsics[view].astype(float).T
    return pixels[:, :2] / pixels[:, 2:], camera[:, 2]


# --- the cloud --------------------------------------------------------------------------------


def test_points_of_two_views_coincide(found: Reconstructed) -> None:
    cloud = cloud_of(found)
    assert len(cloud.points) == found.mask.sum()
    other = cloud.points[cloud.view == 1]
    pixels, z = project(found, other, 0)
    at = np.round(pixels).astype(int)
    inside = (z > 0) & (at >= 0).all(axis=1) & (at < 64).all(axis=1)
    seen = found.depth[0][at[inside, 1], at[inside, 0]]
    assert inside.mean() > 0.3
    assert np.median(np.abs(seen - z[inside]) / z[inside]) < 0.01


def test_the_number_of_points_is_exact_and_they_are_the_same_ones(found: Reconstructed) -> None:
    cloud, again = cloud_of(found, max_points=1000), cloud_of(found, max_points=1000)
    assert len(cloud.points) == 1000
    assert all(np.array_equal(a, b) for a, b in zip(cloud, again, strict=True))
    columns = np.bincount(cloud.pixel[:, 0] % 4, minlength=4)
    assert columns.min() > 150  # no stripes
    assert np.array_equal(cloud.points, found.points[cloud.view, *cloud.pixel.T[::-1]])
    assert np.array_equal(cloud.colours, found.image[cloud.view, *cloud.pixel.T[::-1]])


def test_a_voxel_keeps_its_surest_point(found: Reconstructed) -> None:
    whole, thin = cloud_of(found), cloud_of(found, voxel_size=0.25)
    cubes = [tuple(cube) for cube in np.floor(thin.points / np.float32(0.25)).astype(int).tolist()]
    best: dict[tuple, float] = {}
    values = found.confidence[whole.view, *whole.pixel.T[::-1]]
    for cube, value in zip(np.floor(whole.points / np.float32(0.25)).astype(int), values):  # noqa: B905
        best[tuple(cube.tolist())] = max(best.get(tuple(cube.tolist()), 0), float(value))
    kept = found.confidence[thin.view, *thin.pixel.T[::-1]]
    assert len(set(cubes)) == len(cubes) == len(best)
    assert dict(zip(cubes, map(float, kept), strict=True)) == best


def test_the_least_confident_are_dropped(found: Reconstructed) -> None:
    cloud = cloud_of(found, confidence_percentile=20)
    kept = found.confidence[cloud.view, *cloud.pixel.T[::-1]]
    assert len(kept) / found.mask.sum() == pytest.approx(0.8, abs=0.01)
    assert kept.min() >= np.percentile(found.confidence[found.mask], 20)
    even = found._replace(confidence=np.ones_like(found.confidence))
    assert len(cloud_of(even, confidence_percentile=20).points) == found.mask.sum()


def test_an_edge_is_where_depth_and_normal_jump() -> None:
    v, u = np.mgrid[:32, :32].astype(np.float32)
    ray = np.stack([(u - 15.5) / 30, (v - 15.5) / 30, np.ones_like(u)], axis=-1)
    mask = np.ones((32, 32), bool)
    step = np.where(u < 16, 2.0, 3.0).astype(np.float32)
    found = edges(ray * step[..., None], step, mask)
    assert found[:, 15:17].all() and not found[:, :14].any() and not found[:, 18:].any()
    # A floor seen at a grazing angle: depth changes by more than 3 % from row to row.
    floor = np.where(v > 17, 1 / np.maximum(ray[..., 1], 1e-3), 1).astype(np.float32)
    ground = v > 17
    rows = floor[18:, 0]
    assert (rows[:-1] / rows[1:] > 1.03).any()
    assert not edges(ray * floor[..., None], floor, ground)[20:-1].any()


def test_nothing_is_left_of_a_sky(found: Reconstructed, tmp_path: Path) -> None:
    sky = found._replace(mask=np.zeros_like(found.mask))
    export(sky, tmp_path, ALL)
    assert b"element vertex 0\n" in (tmp_path / "points.ply").read_bytes()
    assert list(trimesh.load(tmp_path / "scene.glb").geometry) == [
        f"camera {i} {name}" for i, name in enumerate(found.names)
    ]
    assert not np.load(tmp_path / "depth/room3/0.npy", allow_pickle=False).any()


# --- point clouds -----------------------------------------------------------------------------


def test_ply(found: Reconstructed, folder: Path) -> None:
    data = (folder / "points.ply").read_bytes()
    header = data[: data.index(b"end_header")].decode()
    assert "camera-to-world in OpenCV axes" in header
    cloud = trimesh.load(folder / "points.ply")
    assert np.array_equal(cloud.vertices.astype(np.float32), found.points[found.mask])
    assert np.array_equal(cloud.colors[:, :3], found.image[found.mask])


def test_glb_is_upright_and_shows_the_cameras(found: Reconstructed, folder: Path) -> None:
    scene = trimesh.load(folder / "scene.glb")
    assert "camera-to-world in OpenCV axes" in scene.metadata["camera_convention"]
    cloud, transform = scene.geometry["points"], scene.graph["points"][0]
    points = trimesh.transform_points(cloud.vertices, transform)
    expected = found.points[found.mask] * [1, -1, -1]
    assert np.allclose(points, expected, atol=1e-5)
    assert np.array_equal(cloud.colors[:, :3], linear(found.image[found.mask]))
    assert list(linear(np.array([0, 128, 255], np.uint8))) == [0, 55, 255]
    for view, name in enumerate(found.names):
        camera = scene.geometry[f"camera {view} {name}"]
        distance = np.linalg.norm(camera.vertices - found.cam2world[view, :3, 3], axis=1)
        assert distance.min() < 1e-5
        away = camera.vertices[distance > 1e-4].astype(np.float32)
        pixels, z = project(found, away, view)
        corners = {(-0.5, -0.5), (-0.5, 63.5), (63.5, -0.5), (63.5, 63.5)}
        assert {tuple(p) for p in np.round(pixels, 2).tolist()} == corners and (z > 0).all()


# --- cameras ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spaces", [pytest.param(False, marks=pytest.mark.slow), True])
def test_colmap_reads_the_same_cameras_and_points(
    spaces: bool, found: Reconstructed, tmp_path: Path
) -> None:
    pycolmap = pytest.importorskip("pycolmap")
    names = [f"my room/{i} (copy).jpg" for i in range(4)] if spaces else found.names
    export(found._replace(names=names), tmp_path, replace(ALL, formats=("colmap",)))
    kinds = {path.suffix for path in (tmp_path / "sparse/0").iterdir()}
    assert kinds == {".bin" if spaces else ".txt"}
    model = pycolmap.Reconstruction(str(tmp_path / "sparse/0"))
    assert sorted(model.images) == [1, 2, 3, 4]
    assert len(model.points3D) == found.mask.sum()
    for view, name in enumerate(names):
        image = model.images[view + 1]
        assert image.name == name
        world2cam = np.linalg.inv(found.cam2world[view].astype(float))
        assert np.allclose(image.cam_from_world().matrix(), world2cam[:3], atol=1e-6)
        camera = model.cameras[image.camera_id]
        assert (camera.model.name, camera.width, camera.height) == ("PINHOLE", 192, 160)
        expected = original_intrinsics(found)[view] + [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]
        assert np.allclose(camera.calibration_matrix(), expected)
        own = [p for p in image.points2D if p.has_point3D()]
        assert len(own) == found.mask[view].sum()
        xyz = np.array([model.points3D[p.point3D_id].xyz for p in own])
        colours = np.array([model.points3D[p.point3D_id].color for p in own])
        projected = camera.img_from_cam(image.cam_from_world() * xyz)
        assert np.abs(projected - [p.xy for p in own]).max() < 1e-2
        assert np.array_equal(colours, found.image[view][found.mask[view]])
    last = model.points3D[len(model.points3D)]
    (element,) = last.track.elements
    assert (element.image_id, element.point2D_idx) == (4, found.mask[3].sum() - 1)
    assert last.error < 1e-2


@pytest.mark.parametrize("first", ["a b.jpg", "ab.jpg"])
def test_no_model_of_an_earlier_export_is_left_in_the_other_form(
    first: str, found: Reconstructed, tmp_path: Path
) -> None:
    """COLMAP would read the binary one of other pictures."""
    (tmp_path / "sparse/0").mkdir(parents=True)
    (tmp_path / "sparse/0/notes.txt").write_text("mine")
    for name in (first, "ab.jpg" if " " in first else "a b.jpg"):
        names = [name, *found.names[1:]]
        export(found._replace(names=names), tmp_path, Export(formats=("colmap",)))
        kind = ".bin" if " " in name else ".txt"
        model = {f"{part}{kind}" for part in ("cameras", "images", "points3D")}
        assert {path.name for path in (tmp_path / "sparse/0").iterdir()} == model | {"notes.txt"}


def test_every_colmap_text_says_its_convention(folder: Path) -> None:
    for path in (folder / "sparse/0").iterdir():
        assert "world-to-camera in OpenCV axes" in path.read_text().splitlines()[0]


def test_a_quaternion_has_no_negative_w(found: Reconstructed, tmp_path: Path) -> None:
    epoch = np.diag([-1, -1, 1, 1.0])
    turned = found._replace(cam2world=(found.cam2world @ epoch).astype(np.float32))
    export(turned, tmp_path, Export(formats=("colmap",), max_points=10))
    lines = (tmp_path / "sparse/0/images.txt").read_text().splitlines()
    poses = [line.split() for line in lines if line.endswith(".jpg")]
    assert len(poses) == 4 and all(float(words[1]) >= 0 for words in poses)


def test_transforms_give_the_same_cameras(found: Reconstructed, folder: Path) -> None:
    document = json.loads((folder / "transforms.json").read_text())
    assert document["camera_convention"] == "opengl" and "OpenGL axes" in document["comment"]
    assert (folder / document["ply_file_path"]).is_file()
    for view, frame in enumerate(document["frames"]):
        assert frame["file_path"] == found.names[view]
        assert (frame["w"], frame["h"]) == (192, 160)
        pose = np.array(frame["transform_matrix"])
        # OpenGL: the camera looks along its -z, and its y is up.
        assert np.allclose(-pose[:3, 2], found.cam2world[view, :3, 2])
        assert np.allclose(-pose[:3, 1], found.cam2world[view, :3, 1])
        assert np.allclose(pose[:, [0, 3]], found.cam2world[view][:, [0, 3]])
        expected = original_intrinsics(found)[view]
        assert [frame["fl_x"], frame["fl_y"]] == pytest.approx([expected[0, 0], expected[1, 1]])
        assert [frame["cx"], frame["cy"]] == pytest.approx(list(expected[:2, 2] + 0.5))
        assert (folder / frame["depth_file_path"]).is_file()


@pytest.mark.parametrize("form", ["transforms", "colmap"])
def test_an_export_beside_its_pictures_is_a_scene_to_train_on(
    form: str, found: Reconstructed, tmp_path: Path
) -> None:
    for name in found.names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((160, 192, 3), np.uint8)).save(tmp_path / name)
    export(found, tmp_path, replace(ALL, formats=(form, "depth")))
    (scene,) = open_scenes(tmp_path, "folder", max_megapixels=64)
    assert [frame.name for frame in scene.frames] == found.names
    for view, frame in enumerate(scene.frames):
        assert frame.size == (160, 192)
        assert np.allclose(frame.cam2world, found.cam2world[view], atol=1e-6)
        assert np.allclose(frame.intrinsics, original_intrinsics(found)[view], atol=1e-6)
        assert np.array_equal(scene.load(view).depth, original_depth(found, view))


def test_transforms_elsewhere_name_the_pictures_where_they_are(
    found: Reconstructed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in found.names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((160, 192, 3), np.uint8)).save(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    files = [Path("photos") / name for name in found.names]
    export(found, tmp_path / "out", replace(ALL, formats=("transforms", "depth")), pictures=files)
    (tmp_path / "out").rename(tmp_path / "moved")
    (scene,) = open_scenes(tmp_path / "moved", "folder", max_megapixels=64)
    assert all(scene.load(view).image.shape == (160, 192, 3) for view in range(len(scene)))


# --- arrays -----------------------------------------------------------------------------------


def test_a_foreign_npz_unpacks_to_no_more_than_it_may(tmp_path: Path) -> None:
    zeros = dict.fromkeys(Reconstructed._fields, np.zeros(1, np.float32))
    zeros["points"] = np.zeros(25_000_000, np.float32)
    np.savez_compressed(tmp_path / "r.npz", **zeros)
    with pytest.raises(UserError, match="unpacks to 100,00.* refused"):
        read(tmp_path / "r.npz")


@pytest.mark.parametrize("name", ["points", "mask", "cam2world", "placement"])
def test_arrays_of_an_npz_belong_together(
    name: str, found: Reconstructed, folder: Path, tmp_path: Path
) -> None:
    with np.load(folder / "reconstruction.npz", allow_pickle=False) as arrays:
        content = dict(arrays)
    content[name] = content[name][..., :-1]
    np.savez(tmp_path / "r.npz", **content)
    with pytest.raises(UserError, match=f"is no reconstruction: {name} of .* has the shape"):
        read(tmp_path / "r.npz")


def test_npz_reads_back(found: Reconstructed, folder: Path) -> None:
    again = read(folder / "reconstruction.npz")
    for name, before, after in zip(found._fields, found, again, strict=True):
        assert np.array_equal(before, after), name
    with np.load(folder / "reconstruction.npz", allow_pickle=False) as arrays:
        assert "camera-to-world in OpenCV axes" in str(arrays["camera_convention"])
        assert np.allclose(arrays["original_intrinsics"], original_intrinsics(found))


def test_no_other_file_is_taken_for_a_reconstruction(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", depth=np.ones(3))
    pickled = {"names": np.array([{}], dtype=object)}
    np.savez(tmp_path / "pickled.npz", allow_pickle=True, **pickled)
    for path in ("other.npz", "pickled.npz"):
        with pytest.raises(UserError, match="is no reconstruction"):
            read(tmp_path / path)
    with pytest.raises(UserError, match="is no reconstruction"):
        read(folder / "points.ply")
    with pytest.raises(UserError, match="is not a file"):
        read(tmp_path / "none.npz")


def test_intrinsics_of_the_original_see_the_original_pixel(found: Reconstructed) -> None:
    cloud = cloud_of(found, max_points=100)
    world2cam = np.linalg.inv(found.cam2world.astype(float))[cloud.view]
    camera = np.einsum("nij,nj->ni", world2cam[:, :3, :3], cloud.points) + world2cam[:, :3, 3]
    pixels = np.einsum("nij,nj->ni", original_intrinsics(found)[cloud.view], camera)
    seen = pixels[:, :2] / pixels[:, 2:]
    # Pixel (u, v) is the mean of 2x2 pixels of the original, beyond the 16 and 8 cut off.
    assert np.allclose(seen, 2 * (cloud.pixel + [16, 8]) + 0.5, atol=1e-3)
    assert np.allclose(seen, to_original(found.placement[cloud.view], cloud.pixel), atol=1e-3)


def test_depth_of_the_original(found: Reconstructed, folder: Path) -> None:
    depth = np.load(folder / "depth/room3/0.npy", allow_pickle=False)
    assert depth.shape == (160, 192) and depth.dtype == np.float32
    seen = np.zeros_like(depth, bool)
    seen[16:144, 32:160] = True
    assert not depth[~seen].any()
    inner = depth[16:144, 32:160].reshape(64, 2, 64, 2).transpose(0, 2, 1, 3).reshape(64, 64, 4)
    assert np.array_equal((inner > 0).all(-1), found.mask[0])
    smallest, greatest = inner.min(axis=-1), inner.max(axis=-1)
    assert (np.abs(inner.mean(axis=-1) / found.depth[0] - 1) < 0.03).all()
    assert np.median(greatest / smallest) > 1.001  # interpolated, not repeated
    table = json.loads((folder / "intrinsics.json").read_text())
    assert np.allclose(table[found.names[0]], original_intrinsics(found)[0])


def test_a_plane_stays_a_plane_and_no_depth_lies_between_two_objects(found: Reconstructed) -> None:
    v, u = np.mgrid[:64, :64]
    plane = (1 / (0.2 + 0.001 * u + 0.002 * v)).astype(np.float32)
    step = np.where(u < 30, plane, 2 * plane).astype(np.float32)
    for truth in (plane, step):
        depth = original_depth(found._replace(depth=truth[None], mask=truth[None] > 0), 0)
        rows, columns = np.nonzero(depth)
        x, y = (columns + 0.5) / 2 - 0.5 - 16, (rows + 0.5) / 2 - 0.5 - 8
        exact = 1 / (0.2 + 0.001 * x.clip(0, 63) + 0.002 * y.clip(0, 63))
        ratio = depth[rows, columns] / exact
        near = np.minimum(np.abs(ratio - 1), np.abs(ratio / 2 - 1))
        beside_edge = (np.abs(x - 29.5) < 1) & (truth is step)
        assert near[~beside_edge].max() < 1e-5
        assert near.max() < 0.01


# --- how it is written ------------------------------------------------------------------------


def test_an_export_changes_nothing_it_is_given(found: Reconstructed, tmp_path: Path) -> None:
    mine = Reconstructed(list(found.names), *(array.copy() for array in found[1:]))
    for array in mine[1:]:
        array.setflags(write=False)
    export(mine, tmp_path, Export(formats=ALL.formats, voxel_size=0.1))
    for name, before, after in zip(found._fields, found, mine, strict=True):
        assert np.array_equal(before, after), name


def test_two_exports_are_the_same_bytes(found: Reconstructed, tmp_path: Path) -> None:
    for run in ("a", "b"):
        export(found, tmp_path / run, Export(max_points=500))
    files = [p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()]
    assert len(files) == 7
    for file in files:
        if file.suffix != ".npz":  # a zip, which holds the time
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_pictures_of_one_stem_keep_their_depth_apart(found: Reconstructed, tmp_path: Path) -> None:
    names = ["a/x.jpg", "a/x.png", "a/y.png", "b/x.jpg"]
    export(found._replace(names=names), tmp_path, Export(formats=("depth",)))
    depths = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.npy"))
    assert depths == ["depth/a/x.jpg.npy", "depth/a/x.png.npy", "depth/a/y.npy", "depth/b/x.npy"]


def test_a_name_need_not_be_utf8(found: Reconstructed, tmp_path: Path) -> None:
    names = [b"\xff\xe9.jpg".decode(errors="surrogateescape"), *found.names[1:]]
    export(found._replace(names=names), tmp_path, ALL)
    assert b"\xff\xe9.jpg\n" in (tmp_path / "sparse/0/images.txt").read_bytes()
    assert read(tmp_path / "reconstruction.npz").names == names


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"formats": ("plu",)}, "did you mean 'ply'"),
        ({"max_points": 0}, "max_points is 0"),
        ({"voxel_size": -1.0}, "voxel_size is -1"),
        ({"confidence_percentile": 100.0}, "confidence_percentile is 100"),
    ],
)
def test_an_option_without_meaning_is_refused(keys: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        Export(**keys)
