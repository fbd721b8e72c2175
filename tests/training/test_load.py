"""From a checkpoint back to the module: only what is installed, and only what fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pixio_lightning
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.weights.students import absolute
from pixio_lightning.training.checkpoints.named_code import refuse_foreign


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXIO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        words = ["-c", "depth/demo", "-c", "with/debug", "--out", str(folder / "run")]
        words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
        assert main(["fit", *words]) == 0
    return folder / "run/last.ckpt"


def rewritten(path: Path, folder: Path, **about: object) -> Path:
    stored = torch.load(path, weights_only=True)
    stored["pixio"] |= about
    torch.save(stored, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def test_a_loaded_head_predicts_on_plain_images(trained: Path) -> None:
    head = pixio_lightning.load(trained)
    images = torch.randint(0, 255, (2, 3, 64, 96), dtype=torch.uint8)
    depth = head.predict(images)
    assert depth.shape == (2, 64, 96) and depth.min() > 0 and not head.training
    batch = {"image": images, "size": (64, 96), "name": ["a", "b"]}
    assert torch.equal(head.predict(batch), depth)


def test_a_class_that_is_not_installed_is_not_imported(trained: Path, tmp_path: Path) -> None:
    path = rewritten(trained, tmp_path, **{"class": "antigravity:Head"})
    with pytest.raises(UserError, match="no installed head"):
        pixio_lightning.load(path)
    assert "antigravity" not in sys.modules


def test_a_foreign_class_in_the_configuration_is_refused(trained: Path, tmp_path: Path) -> None:
    config = torch.load(trained, weights_only=True)["pixio"]["config"]
    config["init_args"]["decoder"] = {"class_path": "antigravity.Decoder"}
    with pytest.raises(UserError, match="which its head does not use: refused"):
        pixio_lightning.load(rewritten(trained, tmp_path, config=config))
    assert "antigravity" not in sys.modules


EVIL = """
from pathlib import Path
from typing import Any
from torch import nn
Path(__file__).with_name("sung").touch()
class Decoder(nn.Module): ...
def make(*args, **kwargs) -> nn.Module: return Decoder()
"""
LAZY = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    import evil_module
    return getattr(evil_module, name)
"""
# Where a checkpoint may name code, and how it would be written there.
NAMED = {
    "string": {"decoder": "evil_module.make"},
    "class": {"decoder": {"class_path": "evil_module.Decoder"}},
    "module in a folder": {"decoder": "evil_folder.module.make"},
    "module in a package": {"decoder": {"class_path": "evil_package.module.Decoder"}},
    "module of a package in use": {"decoder": "used_package.module.make"},
    "name of a package in use": {"decoder": "used_package.module"},
    "yaml": {"decoder": "{class_path: evil_module.Decoder}"},
    "yaml with escapes": {"decoder": '{"class\\x5fpath": "evil\\x5fmodule.Decoder"}'},
    "yaml list": {"decoder": "- evil_module.make"},
    "yaml in yaml": {"decoder": "{init_args: '{make: evil_module.make}'}"},
    "file": {"decoder": "FOLDER/evil.yaml"},
    "optimiser": {"optim": "evil_module.make"},
    "inside": {
        "decoder": {"class_path": "LinearDecoder", "init_args": {"a": ["evil_module.make"]}}
    },
    "further arguments": {"decoder": {"class_path": "x", "dict_kwargs": {"evil_module.make": 1}}},
    "backbone": {"backbone": {"class_path": "evil_module.Decoder", "init_args": {}}},
    "name": {"backbone": {"name": "evil_module.make", "weights": "random:0"}},
    "system": {"decoder": "os.system"},
    "process": {"decoder": {"class_path": "subprocess.Popen", "init_args": {"args": "touch sung"}}},
    "model of timm": {"decoder": {"class_path": "timm.create_model"}},
    "hub": {"decoder": "torch.hub.load"},
    "module that imports when asked": {"decoder": "used_lazy.Decoder"},
    "re-exported": {"decoder": "pixio_lightning.training.checkpoints.checkpoint_io.shutil.rmtree"},
    "re-exported name": {"decoder": "pixio_lightning.training.results.subprocess.run"},
}


@pytest.mark.parametrize("where", NAMED)
def test_nothing_a_checkpoint_names_is_imported_or_called(
    where: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = ["evil_module.py", "evil_folder/module.py", "evil_package/module.py"]
    for place in [*places, "evil_package/__init__.py", "used_package/module.py"]:
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text(EVIL)
    (tmp_path / "used_package/__init__.py").touch()
    (tmp_path / "used_lazy.py").write_text(LAZY)
    (tmp_path / "evil.yaml").write_text("class_path: evil_module.Decoder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("used_package")
    __import__("used_lazy")
    config = torch.load(trained, weights_only=True)["pixio"]["config"]
    for key, value in NAMED[where].items():
        text = isinstance(value, str)
        config["init_args"][key] = value.replace("FOLDER", str(tmp_path)) if text else value
    before = {*sys.modules}
    path = rewritten(trained, tmp_path, config=config)
    try:
        with pytest.raises(UserError) as refused:
            pixio_lightning.load(path)
        assert str(refused.value).isprintable()
        said = "does not fit Depth" if where == "file" else "does not use: refused"
        assert said in str(refused.value)
        new = {*sys.modules} - before
        assert not [name for name in new if name.startswith(("evil", "used"))]
        assert not [*tmp_path.rglob("sung")]
    finally:
        for name in [n for n in sys.modules if n.startswith(("evil_", "used_"))]:
            del sys.modules[name]


def test_what_only_looks_like_code_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    ours = {"pixio_lightning"}
    texts = ["Dr.Pepper", "images.zip", "a: b", "1.5", "wall.e.png", "math.pi", "random.txt", ""]
    texts += [
        "torch.nn.GELU",
        "pixio_lightning.models.dense_decoders.LinearDecoder",
        "- x.y",
        "[a.b, c]",
    ]
    refuse_foreign({"classes": texts, "nested": [{"path": "/data/a.b"}]}, ours=ours, path="x")
    doubled = [f"&a{i + 1} [*a{i}, *a{i}]" for i in range(20)]
    with pytest.raises(UserError, match="unfolds without end"):
        refuse_foreign(f"[&a0 [], {', '.join(doubled)}]", ours=ours, path="x")


@pytest.mark.parametrize("about", [5, {}, {"config": 5}, {"config": {"init_args": 5}}])
def test_a_checkpoint_that_says_it_wrongly(about: object, tmp_path: Path) -> None:
    for content in (about, {"config": {"init_args": {"backbone": about}}, "class": "os:nothing"}):
        torch.save({"state_dict": {}, "pixio": content}, tmp_path / "other.ckpt")
        with pytest.raises(UserError) as refused:
            pixio_lightning.load(tmp_path / "other.ckpt")
        assert str(refused.value).isprintable()


@pytest.mark.parametrize("weights", ["hf:someone/weights", "timm"])
def test_nothing_is_fetched_that_only_the_checkpoint_names(
    weights: str, trained: Path, tmp_path: Path
) -> None:
    config = torch.load(trained, weights_only=True)["pixio"]["config"]
    config["init_args"]["backbone"]["init_args"]["weights"] = weights
    path = rewritten(trained, tmp_path, config=config)
    with pytest.raises(UserError, match=f"may have to be fetched.*weights='{weights}'"):
        pixio_lightning.load(path)
    assert pixio_lightning.load(path, weights="random:0").backbone.weights == "random:0"


def test_a_loaded_module_is_not_compiled_and_recomputes_nothing(
    trained: Path, tmp_path: Path
) -> None:
    """Those are of training, and a machine that predicts may have no compiler."""
    config = torch.load(trained, weights_only=True)["pixio"]["config"]
    config["init_args"]["backbone"]["init_args"] |= {"compile": True, "checkpointing": True}
    head: Any = pixio_lightning.load(rewritten(trained, tmp_path, config=config))
    assert not head.backbone.compile_blocks and not head.backbone.checkpointing
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(head.predict(images), pixio_lightning.load(trained).predict(images))


def test_weights_for_a_backbone_that_was_trained_are_refused(trained: Path, tmp_path: Path) -> None:
    stored = torch.load(trained, weights_only=True)
    del stored["pixio"]["backbone_digest"]
    torch.save(stored, tmp_path / "tuned.ckpt")
    with pytest.raises(UserError, match="'random:0' would not be read: leave them out"):
        pixio_lightning.load(tmp_path / "tuned.ckpt", weights="random:0")


def test_a_head_that_diverged_is_refused(trained: Path, tmp_path: Path) -> None:
    stored = torch.load(trained, weights_only=True)
    name = next(name for name in stored["state_dict"] if name.endswith("weight"))
    stored["state_dict"][name].view(-1)[0] = float("nan")
    torch.save(stored, tmp_path / "diverged.ckpt")
    with pytest.raises(UserError, match=f"NaN or infinite values, in '{name}"):
        pixio_lightning.load(tmp_path / "diverged.ckpt")


def test_another_backbone_is_refused_by_its_digest(trained: Path) -> None:
    with pytest.raises(UserError, match="digest"):
        pixio_lightning.load(trained, weights="random:3")


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="none of `pixio fit`"):
        pixio_lightning.load(tmp_path / "other.ckpt")


# --- from anywhere, on anything ------------------------------------------------------------------


def test_a_run_folder_is_its_best_checkpoint(trained: Path) -> None:
    best = torch.load(trained.with_name("best.ckpt"), weights_only=True)["state_dict"]
    state = pixio_lightning.load(trained.parent).state_dict()
    assert best and all(torch.equal(state[name], best[name]) for name in best)


def test_a_head_is_loaded_elsewhere_than_it_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On frozen weights in a file, named as they lay there."""
    small = {"embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 64}
    backbone = Backbone("pixio_vitt16", weights="random:3", model_args=small).load()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    meta = {"name": backbone.name, "model_args": small}
    save_file(backbone.vit.state_dict(), "small.safetensors", {"pixio": json.dumps(meta)})
    words = ["-c", "depth/demo", "-c", "with/debug"]
    # What the recipe says of its own backbone gives way to what this one says.
    words += ["--model.backbone.weights", "small.safetensors"]
    words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
    assert main(["fit", *words, "--out", "run"]) == 0
    monkeypatch.chdir(tmp_path)
    assert pixio_lightning.load("there/run").backbone.embed_dim == 32
    (tmp_path / "there").rename(tmp_path / "moved")
    found = pixio_lightning.load("moved/run").backbone  # both were moved
    assert found.weights == str(tmp_path / "moved/small.safetensors")
    (tmp_path / "moved/run").rename(tmp_path / "run")
    with pytest.raises(UserError, match=r"which are not there from here: .* load\(..., weights="):
        pixio_lightning.load("run")
    assert pixio_lightning.load("run", weights="moved/small.safetensors")
    with pytest.raises(UserError, match="weights 'nowhere.safetensors' of checkpoint .* not exist"):
        pixio_lightning.load("run", weights="nowhere.safetensors")
    # Another file in the place of the one that is named is another backbone.
    other = Backbone("pixio_vitt16", weights="random:4", model_args=small).load()
    save_file(other.vit.state_dict(), "small.safetensors", {"pixio": json.dumps(meta)})
    with pytest.raises(UserError, match="digest"):
        pixio_lightning.load("run", weights="small.safetensors")
    (tmp_path / "deep").mkdir()
    (tmp_path / "run").rename(tmp_path / "deep/run")
    monkeypatch.chdir("deep")
    with pytest.raises(UserError, match="digest"):
        pixio_lightning.load("run")


def test_the_home_folder_may_be_written_as_a_tilde(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = pixio_lightning.load(trained).backbone
    meta = {"name": backbone.name, "model_args": backbone.identity["model_args"]}
    state = backbone.vit.state_dict()
    save_file(state, tmp_path / "w.safetensors", {"pixio": json.dumps(meta)})
    (tmp_path / "run").symlink_to(trained.parent)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = pixio_lightning.load("~/run", weights="~/w.safetensors").backbone
    assert found.digest == backbone.digest
    assert absolute("~/w.safetensors") == str(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no home folder of '~no-such'"):
        pixio_lightning.load(trained, weights="~no-such/w.safetensors")


@pytest.mark.filterwarnings("error:The given NumPy array is not writable")
def test_a_picture_is_given_in_any_way(trained: Path, tmp_path: Path) -> None:
    head: Any = pixio_lightning.load(trained)
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    expected = head.predict(picture)
    assert expected.shape == (1, 64, 85)  # as it was looked at: a window high
    opaque = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=2)
    pixels.setflags(write=False)  # as np.asarray of a PIL image is
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, opaque, pixels / 255):
        assert torch.equal(head.predict(given), expected)
    both = head.predict([picture, pixels[:32]])
    assert torch.equal(both[0], expected) and both[1].shape == (1, 64, 128)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    assert torch.equal(head.predict(tensor / 255), head.predict(tensor))
    assert head.predict(pixels[..., 0]).shape == (1, 64, 85)


def test_an_image_of_pil_is_read_as_its_file_is(trained: Path, tmp_path: Path) -> None:
    head: Any = pixio_lightning.load(trained)
    numbers = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(">u2")
    wide = Image.frombytes("I;16B", (64, 48), numbers.tobytes())
    wide.save(tmp_path / "wide.tif")
    assert torch.equal(head.predict(wide), head.predict(tmp_path / "wide.tif"))
    shares = (numbers / 65535).astype(np.float32)
    assert torch.equal(head.predict(Image.fromarray(shares)), head.predict(shares))
    with pytest.raises(UserError, match="expected 0 to 1"):
        head.predict(Image.fromarray(shares * 9))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 64, 64, dtype=torch.uint8), r"\(3, 64, 64\) .* give image\[None\]"),
        (torch.zeros(2, 1, 64, 64, dtype=torch.uint8), r"expected \(B, 3, H, W\)"),
        (torch.full((1, 3, 64, 64), 2.0), "floats of 2 to 2; expected 0 to 1"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.int64), "images are torch.int64; expected uint8"),
        (np.zeros((3, 64, 64), np.uint8), "channels last"),
        (np.full((64, 64, 3), np.nan), "expected 0 to 1"),
        ({1, 2}, "set is no picture; expected a path"),
        ("nowhere.png", "picture 'nowhere.png' cannot be read: No such file"),
        (__file__, "no JPEG, PNG"),
    ],
)
def test_what_is_no_picture_is_one_line(trained: Path, images: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        pixio_lightning.load(trained).predict(images)
    assert "\n" not in str(refused.value)


def test_a_head_keeps_float32(trained: Path, capsys: pytest.CaptureFixture) -> None:
    """Cast, a truth of 9.99 m would be 10 and a digest another: autocast does it right."""
    head = pixio_lightning.load(trained)
    for cast in (head.half, head.bfloat16):
        with pytest.raises(UserError, match="keeps its weights in float32.*bf16-mixed"):
            cast()
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        assert head.predict(images).dtype == torch.float32
    words = ["-c", "depth/demo", "-c", "with/debug", "--out", str(trained.parent)]
    words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
    for verb in ("validate", "check"):
        assert main([verb, *words, "--trainer.precision", "bf16-true"]) == 2
        assert "give trainer.precision bf16-mixed" in capsys.readouterr().err


@pytest.mark.parametrize(("form", "shown"), [(None, "null"), (2, "2"), ("1", "'1'")])
def test_a_checkpoint_of_another_format_is_refused(
    form: object, shown: str, trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"is of format {shown}, and this version reads format 1"):
        pixio_lightning.load(rewritten(trained, tmp_path, format=form))
