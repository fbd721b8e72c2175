"""The page through its real server: every tab, hostile uploads, and what it must not do."""

from __future__ import annotations

import http.client
import io
import ipaddress
import shlex
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import app_runs
import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from pixio_lightning import load
from pixio_lightning.cli.app.page import predict_line
from pixio_lightning.cli.app.video_tab import read_pairs
from pixio_lightning.cli.main import main
from pixio_lightning.data import video_writer
from pixio_lightning.errors import UserError

PATIENT = {"timeout": 120}  # seconds, beside other tests


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Client]:
    """Return what opened the page once: closing it takes a second."""
    opened = Client(address, verbose=False, httpx_kwargs=PATIENT)
    yield opened
    opened.close()


@pytest.fixture
def client(browser: Client) -> Client:
    """Return a new user of the page, with a session of their own."""
    browser.reset_session()
    return browser


def pixels(shown: Any) -> np.ndarray:
    path = shown["path"] if isinstance(shown, dict) else shown
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- tabs ---------------------------------------------------------------------------------------


def test_blocks_that_are_hidden_are_reconstructed(client: Client, photographs: Path) -> None:
    client.predict(handle_file(photographs / "gradient.png"), api_name="/reconstruct_open")
    hidden, *_ = client.predict(0.5, 2, 0, api_name="/reconstruct")
    named = {int(n) for part in hidden.split(", ") for n in _range(part)}
    assert len(named) == 2 and named < {0, 1, 2, 3}  # half of 2 x 2 blocks
    hidden, masked, made, truth, losses, text = client.predict(
        2, "0", api_name="/reconstruct_hidden"
    )
    images = [pixels(one) for one in (masked, made, truth)]
    half = len(images[0]) // 2
    for image in images[:2]:
        assert (image[:half, half:] == images[2][:half, half:]).all()  # what is visible
    assert (images[0][:half, :half] == images[0][0, 0]).all()
    assert (images[1][:half, :half] != images[2][:half, :half]).any()
    assert "Loss under this mask" in text and "keep probability 0.00" in text  # 64 pixels high
    assert (pixels(losses)[half:, half:] == 128).all()


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [("4", "there is no block 4"), ("one", "no block"), ("", "at least one"), ("0-3", "visible")],
)
def test_what_is_no_block_is_told(client: Client, photographs: Path, text: str, says: str) -> None:
    client.predict(handle_file(photographs / "red.png"), api_name="/reconstruct_open")
    with pytest.raises(AppError, match=says):
        client.predict(2, text, api_name="/reconstruct_hidden")


def test_features_find_a_picture_in_its_folder(client: Client, photographs: Path) -> None:
    first, second = (handle_file(photographs / f"{n}.png") for n in ("green", "gradient"))
    encoder = client.view_api(return_format="dict", print_info=False)
    about = encoder["named_endpoints"]["/features_look"]["parameters"]
    name = about[0]["parameter_default"]
    client.predict(name, 1, first, second, api_name="/features_look")
    *shown, text = client.predict(0.0, 1.0, api_name="/features")
    assert len(shown) == 6 and all(shown)
    assert "Patch 0, 3 of 4 x 4" in text and "cosine between the two pictures" in text
    found, among = client.predict(name, "mean of all", api_name="/neighbours")
    assert among == "Among 3 pictures of the folder"
    assert [item["caption"].split(":")[0] for item in found][0] == "green.png"
    assert found[0]["caption"].endswith("1.000") and len(found) == 3


def test_a_map_is_what_predict_writes(client: Client, runs: Path, photographs: Path) -> None:
    path = photographs / "gradient.png"
    note, archive, picture, slider, text, panel = client.predict(
        handle_file(path), api_name="/depth"
    )
    expected = load(runs / "depth").predict(path)[0]
    archive = archive["value"] if isinstance(archive, dict) else archive
    with zipfile.ZipFile(archive) as files:
        assert sorted(files.namelist()) == ["gradient.png", "gradient_colour.png"]
        with Image.open(io.BytesIO(files.read("gradient.png"))) as stored:
            metres = np.asarray(stored) * float(stored.info["metres_per_unit"])
    assert metres.shape == (64, 96)
    assert float(np.median(metres)) == pytest.approx(float(expected.median()), abs=0.01)
    assert f"median {np.median(metres):.3g} m" in text
    assert pixels(slider[0]).shape == pixels(slider[1]).shape == pixels(picture).shape


def test_classes_have_names_and_scores(client: Client, photographs: Path) -> None:
    path = photographs / "red.png"
    *_, text, panel = client.predict(handle_file(path), api_name="/segmentation")
    assert "%" in text and text.split()[0].isalpha()
    *_, scores, table = client.predict(handle_file(path), api_name="/classification")
    found = scores["confidences"]
    assert scores["label"] == found[0]["label"] and found[0]["label"] in table
    assert found[0]["confidence"] == pytest.approx(float(table.strip().split(",")[-1]), abs=1e-3)


def test_views_become_a_scene(client: Client, photographs: Path) -> None:
    given = [handle_file(photographs / f"{name}.png") for name in ("red", "green", "gradient")]
    note, scene, pictures, files = client.predict(given, 2, api_name="/reconstruction")
    assert Path(scene).read_bytes()[:4] == b"glTF"
    names = {Path(file).name for file in files}
    assert {"scene.glb", "points.ply", "transforms.json", "reconstruction.zip"} <= names
    with np.load(next(file for file in files if file.endswith(".npz"))) as arrays:
        assert len(arrays["depth"]) == 2  # views at most
    with pytest.raises(AppError, match="one picture is given"):
        client.predict(given[:1], 2, api_name="/reconstruction")


def test_a_future_is_predicted_of_a_video(client: Client, runs: Path) -> None:
    video = runs / "depth-that-acted/episodes/val-0000002/0-success.mp4"
    past, visible, made, truth, pairs, text = client.predict(
        {"video": handle_file(video)}["video"], 0.5, api_name="/video"
    )
    assert pixels(past).mean() < pixels(truth).mean()  # it grows lighter
    assert "seconds ahead: 0.50" in text


def test_the_model_is_told_the_times_of_frames_that_are_chosen_as_in_training(
    tmp_path: Path,
) -> None:
    shown = {"past": 4, "step": 0.2, "side": 16}

    def write(name: str, fps: int, frames: int) -> Path:
        with video_writer(tmp_path / name, fps=fps, height=64, width=64) as add:
            for number in range(frames):
                add(np.full((64, 64, 3), 4 * number, np.uint8))
        return tmp_path / name

    frames, seconds = read_pairs(write("fast.mp4", 10, 60), gap=0.5, **shown)
    assert frames.shape == (4, 5, 3, 16, 16)  # spread over all of it
    assert seconds.tolist() == [pytest.approx([1.1, 0.9, 0.7, 0.5], abs=1e-3)] * 4
    ahead = frames[:, -1:].float().mean((2, 3, 4)) - frames[:, :-1].float().mean((2, 3, 4))
    assert torch.allclose(ahead, seconds * 40, atol=6)  # they are those of these times
    _, seconds = read_pairs(write("slow.mp4", 2, 10), gap=0.2, **shown)
    assert seconds[0].tolist() == pytest.approx([2.0, 1.5, 1.0, 0.5], abs=1e-3)
    with pytest.raises(UserError, match="shorter than 1.60 s"):
        read_pairs(write("short.mp4", 10, 8), gap=1.0, **shown)


def test_the_line_of_a_head_without_a_tab_runs(runs: Path) -> None:
    _, *words = shlex.split(predict_line(runs / "depth"))
    assert main(words) == 0
    assert any((runs / "depth/predictions").iterdir())


def test_the_videos_of_episodes_are_shown(client: Client, runs: Path) -> None:
    shown = client.predict("1-fail.mp4", api_name="/depth_2")
    path = shown["video"] if isinstance(shown, dict) else shown
    own = runs / "depth-that-acted/episodes/val-0000002/1-fail.mp4"
    assert Path(path).read_bytes() == own.read_bytes()


def test_a_plug_in_has_a_tab_of_what_it_writes(client: Client, photographs: Path) -> None:
    *_, text = client.predict(handle_file(photographs / "red.png"), api_name="/brightness")
    assert text == "brightness 87"


# --- what users send ----------------------------------------------------------------------------


def _png(width: int, height: int) -> bytes:
    """Return a PNG that says a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def _jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


HOSTILE = {
    "bomb.png": (_png(60_000, 60_000), "megapixels"),
    "truncated.jpg": (_jpeg()[:800], "truncated|corrupt"),
    "empty.png": (b"", "empty"),
    "drawing.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no JPEG"),
    "text.jpg": (b"not a picture", "no JPEG"),
    "tiny.png": (_png(2, 2), "under 16 pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_one_line(client: Client, tmp_path: Path, name: str) -> None:
    data, says = HOSTILE[name]
    (tmp_path / name).write_bytes(data)
    for tab in ("/depth", "/reconstruct_open"):
        with pytest.raises(AppError, match=says) as told:
            client.predict(handle_file(tmp_path / name), api_name=tab)
        assert "\n" not in str(told.value) and "Traceback" not in str(told.value)


def test_a_video_is_no_picture_and_a_picture_no_video(
    client: Client, runs: Path, photographs: Path
) -> None:
    video = runs / "depth-that-acted/episodes/val-0000002/0-success.mp4"
    with pytest.raises(AppError, match="(?i)invalid file type|no JPEG"):
        client.predict(handle_file(video), api_name="/depth")
    with pytest.raises(AppError, match="(?i)invalid file type|cannot be read as a video"):
        client.predict(handle_file(photographs / "red.png"), 0.5, api_name="/video")


def test_a_large_photograph_is_reduced_and_a_turned_one_upright(
    client: Client, tmp_path: Path
) -> None:
    Image.new("RGB", (3000, 6000), "blue").save(tmp_path / "large.jpg")
    note, _, picture, *_ = client.predict(handle_file(tmp_path / "large.jpg"), api_name="/depth")
    assert "Reduced from 3000 x 6000 to 768 x 1536" in note
    assert pixels(picture).shape == (1536, 768, 3)
    turned = Image.new("RGB", (600, 300))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    _, _, picture, *_ = client.predict(handle_file(tmp_path / "turned.jpg"), api_name="/depth")
    assert pixels(picture).shape == (600, 300, 3)


def test_two_users_do_not_mix(address: str, photographs: Path) -> None:
    users = [Client(address, verbose=False, httpx_kwargs=PATIENT) for _ in range(2)]
    for user, name in zip(users, ("red", "green"), strict=True):
        user.predict(handle_file(photographs / f"{name}.png"), api_name="/reconstruct_open")
    jobs = [user.submit(0.5, 1, 0, api_name="/reconstruct") for user in users]
    truths = [pixels(job.result()[3])[0, 0].argmax() for job in jobs]
    assert truths == [0, 1]  # red, green
    for user in users:
        user.close()


# --- what it must not do ------------------------------------------------------------------------


def _get(address: str, path: str, host: str | None = None) -> tuple[int, bytes, Any]:
    """Ask for a path as it is, which other clients would tidy up."""
    where = urlsplit(address)
    link = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    link.request("GET", path, headers={"Host": host or where.netloc})
    answer = link.getresponse()
    return answer.status, answer.read(), answer.headers


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file=..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=//etc/passwd",
        "/file=/etc/passwd",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/file=file:///etc/passwd",
    ],
)
def test_nothing_outside_of_its_folder_is_served(address: str, path: str) -> None:
    status, body, _ = _get(address, path)
    assert status in (307, 400, 403, 404, 405) and b"root:" not in body, (status, body[:200])


def test_neither_runs_nor_the_folder_are_served(
    address: str, runs: Path, photographs: Path
) -> None:
    for file in (runs / "depth/best.ckpt", photographs / "red.png", runs / "depth/config.yaml"):
        status, body, _ = _get(address, f"/gradio_api/file={file}")
        assert status in (403, 404), (file, status)


def test_only_this_machine_can_ask_and_the_page_asks_no_other(address: str) -> None:
    port = urlsplit(address).port
    listening = Path("/proc/net/tcp").read_text().splitlines()[1:]
    hosts = {line.split()[1].split(":")[0] for line in listening if f":{port:04X} 0" in line}
    assert hosts == {"0100007F"}  # 127.0.0.1
    status, _, headers = _get(address, "/")
    assert status == 200 and headers["content-security-policy"].startswith("default-src 'self'")
    assert _get(address, "/", host="evil.example")[0] == 400  # a name that leads here
    assert _get(address, "/monitoring")[0] == 403
    foreign = [a for a in app_runs.CONTACTED if isinstance(a, tuple) and not _is_own(a[0])]
    assert not foreign


def _is_own(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def test_gradients_are_never_kept(client: Client, photographs: Path) -> None:
    """A page that stays open would otherwise fill its memory."""
    client.predict(handle_file(photographs / "red.png"), api_name="/brightness")
    assert torch.is_grad_enabled()
