"""`weights: tiny` from a built wheel, in an empty folder and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

from pixio_lightning.cli.main import main
from pixio_lightning.models.weights.shipped import RECIPE, SHIPPED
from pixio_lightning.training import results

ROOT = Path(__file__).parents[2]
FILES = {"tiny.safetensors", "tiny.decoder.safetensors", "tiny.README.md"}
OFFLINE = """\
import socket, sys
def refused(*_):
    raise OSError("there is no network")
socket.socket.connect = refused
"""
SMALL = ("--data.scenes", "{train: 4, held_out: 4, views: 2, size: 64}", "--data.num_workers", "0")
DEPTH = ("fit", "-c", "depth/demo", "--model.backbone.weights", "tiny", *SMALL)
DEPTH += ("--trainer.max_steps", "2", "--panels.every_n_steps", "0")
# By encoder and decoder together, with nothing trained here.
RECONSTRUCT = ("predict", "-c", RECIPE, "--model.backbone.weights", "tiny")
RECONSTRUCT += ("--model.pretrained_decoder", "true", "--data.source", "folder")
RECONSTRUCT += ("--data.path", "pictures", "--data.num_workers", "0")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build wheel and sdist, and unpack the wheel as pip does."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", folder]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module")
def used(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Probe depth and reconstruct a picture with the unpacked wheel, both in one process.

    Returns the working directory, which has a folder named as the weights; `printed` is there too.
    """
    where = tmp_path_factory.mktemp("used")
    (where / "tiny").mkdir()
    (where / "pictures").mkdir()
    Image.fromarray(data.coffee()).save(where / "pictures/coffee.png")
    code = f"""
import pixio_lightning
from pixio_lightning.cli.main import main
assert main({[*DEPTH]}) == 0
print(pixio_lightning.load("runs/depth/demo").backbone.digest, pixio_lightning.__file__)
assert main({[*RECONSTRUCT]}) == 0
"""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    environment |= {"PIXIO_CACHE": str(where / "cache")}
    line = [sys.executable, "-c", OFFLINE + code]
    done = subprocess.run(line, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (where / "printed").write_text(done.stdout)
    return where


def test_the_files_are_in_wheel_and_sdist(site: Path) -> None:
    folder = site / "pixio_lightning/models/weights"
    assert {path.name for path in folder.glob("tiny.*")} == FILES
    with tarfile.open(next(site.parent.glob("*.tar.gz"))) as sdist:
        packed = {Path(name).name for name in sdist.getnames() if "/weights/tiny." in name}
    assert packed == FILES
    assert (folder / "tiny.safetensors").read_bytes() == SHIPPED["tiny"].read_bytes()


def test_depth_is_probed_and_read_back(site: Path, used: Path) -> None:
    printed = (used / "printed").read_text().splitlines()
    assert any("weights       tiny (matched" in line for line in printed), printed
    assert "  licence       Apache-2.0" in printed
    about = results.read(used / "runs/depth/demo")[-1]["backbone"]
    assert (about["weights"], about["licence"]) == ("tiny", "Apache-2.0")
    assert about["digest"] in SHIPPED["tiny"].with_name("tiny.README.md").read_text()
    assert f"{about['digest']} {site / 'pixio_lightning/__init__.py'}" in printed


def test_a_picture_is_reconstructed(used: Path) -> None:
    (picture,) = (used / "runs" / RECIPE / "predictions").glob("coffee*.png")
    with Image.open(picture) as image:
        assert image.width > 2 * image.height


def test_a_run_that_begins_with_it_keeps_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is finished for the same line, and its export is under the same licence."""
    monkeypatch.chdir(tmp_path)
    words = ["fit", "-c", RECIPE, "--model.backbone.weights", "tiny", *SMALL]
    words += ["--model.pretrained_decoder", "true", "--data.batch_size", "4"]
    words += ["--trainer.max_steps", "2", "--panels.every_n_steps", "0", "--data.val_images", "4"]
    words += ["--trainer.accelerator", "cpu"]
    assert main(words) == 0 and "finished" not in capsys.readouterr().out
    assert main(words) == 0 and "finished" in capsys.readouterr().out
    assert main(["export", f"runs/{RECIPE}/last.ckpt", "--out", "on.safetensors"]) == 0
    assert "licence of the weights: Apache-2.0" in capsys.readouterr().out
