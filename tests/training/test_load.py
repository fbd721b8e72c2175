"""From a checkpoint back to the module: only what is installed, and only what fits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import pixio_lightning
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
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
    with pytest.raises(UserError, match="unfolds without end"):
        refuse_foreign(f"[&a [], {', '.join(['*a'] * 200_000)}]", ours=ours, path="x")


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


def test_a_head_that_diverged_is_refused(trained: Path, tmp_path: Path) -> None:
    stored = torch.load(trained, weights_only=True)
    name = next(name for name in stored["state_dict"] if name.endswith("weight"))
    stored["state_dict"][name].view(-1)[0] = float("nan")
    torch.save(stored, tmp_path / "diverged.ckpt")
    with pytest.raises(UserError, match=f"NaN or infinite values, in {name}"):
        pixio_lightning.load(tmp_path / "diverged.ckpt")


def test_another_backbone_is_refused_by_its_digest(trained: Path) -> None:
    with pytest.raises(UserError, match="digest"):
        pixio_lightning.load(trained, weights="random:3")


def test_a_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="none of `pixio fit`"):
        pixio_lightning.load(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("pixio_heads.depth.head:Depth", "pixio_lightning.dense_decoders.LinearDecoder"),
        ("Depth", "pixio_lightning.models.dense_decoders.LinearDecoder"),
    ],
)
def test_checkpoints_name_classes_by_where_they_were(
    written: str, name: str, trained: Path, tmp_path: Path
) -> None:
    config = torch.load(trained, weights_only=True)["pixio"]["config"]
    config["init_args"]["decoder"]["class_path"] = name
    head = pixio_lightning.load(rewritten(trained, tmp_path, config=config, **{"class": written}))
    assert type(head.decoder).__name__ == "LinearDecoder"
    images = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(head.predict(images), pixio_lightning.load(trained).predict(images))
