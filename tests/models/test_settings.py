"""What a file says of itself builds a plain model of known sizes, and does nothing else."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import pixio_lightning
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.mae_decoder import DecoderSize
from pixio_lightning.models.vit import PixioViT
from pixio_lightning.models.weights.read import read
from pixio_lightning.pretraining.masked_pixels import PixelPretraining

SMALL = {"embed_dim": 48, "depth": 1, "num_heads": 3, "img_size": 64}
TIMM = "vit_tiny_patch16_224"


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


class World:
    """A server, a pickle and a folder that a hostile file may name, and whether it reached them."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[str] = []
        self.connections: list[Any] = []
        world = self

        class Server(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                world.requests.append(self.path)
                self.send_error(404)

            do_HEAD = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Server)
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/w.pth"
        self.sung, self.cache, self.local = folder / "sung", folder / "cache", folder / "local"
        self.pickle = folder / "evil.pth"
        torch.save({"weight": Canary(self.sung)}, self.pickle)
        self.cache.mkdir()
        self.local.mkdir()
        config = {"architecture": TIMM, "model_args": {"checkpoint_path": str(self.pickle)}}
        (self.local / "config.json").write_text(json.dumps(config))

    def is_untouched(self) -> bool:
        return not (
            self.requests or self.connections or self.sung.exists() or [*self.cache.iterdir()]
        )


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    (tmp_path / "world").mkdir()
    world = World(tmp_path / "world")
    connect = socket.socket.connect

    def counted(self: socket.socket, address: Any) -> None:
        world.connections.append(address)
        if isinstance(address, tuple) and address[0] != "127.0.0.1":
            raise ConnectionRefusedError(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", counted)
    yield world
    world.server.shutdown()
    world.server.server_close()


# What each says beside its sizes: (name or None, settings).
Said = tuple[str | None, dict[str, Any]]
HOSTILE: dict[str, Callable[[World], Said]] = {
    "pretrained": lambda w: (TIMM, {"pretrained": True}),
    "url": lambda w: (
        TIMM,
        {"pretrained": True, "pretrained_cfg": {"url": w.url}, "cache_dir": str(w.cache)},
    ),
    "file": lambda w: (TIMM, {"pretrained": True, "pretrained_cfg": {"file": str(w.pickle)}}),
    "hub id": lambda w: (TIMM, {"pretrained": True, "pretrained_cfg": {"hf_hub_id": "a/b"}}),
    "overlay": lambda w: (TIMM, {"pretrained": True, "pretrained_cfg_overlay": {"url": w.url}}),
    "strictness": lambda w: (TIMM, {"pretrained_strict": False}),
    "checkpoint path": lambda w: (TIMM, {"checkpoint_path": str(w.pickle)}),
    "checkpoint path of ours": lambda w: ("pixio_vitt16", {"checkpoint_path": str(w.pickle)}),
    "cache folder": lambda w: (TIMM, {"cache_dir": str(w.cache)}),
    "a class": lambda w: (TIMM, {"norm_layer": "torch.nn.LayerNorm"}),
    "a block": lambda w: ("pixio_vitt16", {"block_fn": "os.system"}),
    "features": lambda w: (TIMM, {"features_only": True, "out_indices": [0]}),
    "hub name": lambda w: ("hf-hub:someone/model", {}),
    "hub name, old": lambda w: ("hf_hub:someone/model", {}),
    "local name": lambda w: (f"local-dir:{w.local}", {}),
    "path as name": lambda w: (str(w.local), {}),
    "url as name": lambda w: (w.url, {}),
}


def tensors(name: str | None) -> dict[str, torch.Tensor]:
    if name == "pixio_vitt16":
        return PixioViT(**SMALL).state_dict()
    return timm.create_model(TIMM, num_classes=0, **SMALL).state_dict()


def as_safetensors(folder: Path, name: str | None, args: Any, **more: Any) -> Path:
    said = {"name": name, "model_args": args} | more
    save_file(tensors(name), folder / "w.safetensors", {"pixio": json.dumps(said)})
    return folder / "w.safetensors"


def as_folder(folder: Path, name: str | None, args: Any, **more: Any) -> Path:
    save_file(tensors(name), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name, "model_args": args}))
    return folder


def as_our_folder(folder: Path, name: str | None, args: Any, **more: Any) -> Path:
    save_file(tensors(name), folder / "model.safetensors")
    said = {"architecture": TIMM, "pixio": {"name": name, "model_args": args} | more}
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def as_checkpoint(folder: Path, name: str | None, args: Any, **more: Any) -> Path:
    state = {f"backbone.vit.{n}": t for n, t in tensors(name).items()}
    about = {"backbone": {"name": name, "model_args": args} | more}
    torch.save({"state_dict": state, "pixio": about}, folder / "w.ckpt")
    return folder / "w.ckpt"


CARRIERS = {
    "safetensors": as_safetensors,
    "folder": as_folder,
    "our folder": as_our_folder,
    "checkpoint": as_checkpoint,
}


def trained(folder: Path, *, frozen: bool, name: str | None, args: Any) -> Path:
    """Write what `pixio fit` does of a pretraining run, and change what it says of itself."""
    backbone = Backbone("pixio_vitt16", weights="random:0", tune="full", model_args=SMALL)
    module = PixelPretraining(backbone, decoder=DecoderSize(32, 1, 2), mask_grid=1)
    settings = {"name": name, "weights": "random:0", "tune": "full", "model_args": args}
    module.config = {"class_path": "pixio_lightning.pretraining.masked_pixels.PixelPretraining"}
    decoder = {"dim": 32, "depth": 1, "heads": 2}
    module.config["init_args"] = {"backbone": settings, "mask_grid": 1, "decoder": decoder}
    module.configure_model()
    stored: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(stored)
    stored["pixio"]["backbone"] |= {"name": name, "model_args": args}
    if frozen:
        stored["pixio"]["backbone_digest"] = "0" * 16
    torch.save(stored, folder / "run.ckpt")
    return folder / "run.ckpt"


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("hostile", HOSTILE)
def test_weights_reach_nothing_by_what_they_say(
    hostile: str, carrier: str, world: World, tmp_path: Path
) -> None:
    name, args = HOSTILE[hostile](world)
    path = CARRIERS[carrier](tmp_path, name, SMALL | args)
    with pytest.raises(UserError) as refused:
        Backbone(weights=str(path)).load()
    assert world.is_untouched()
    one_line(refused.value)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_checkpoints_reach_nothing_by_what_they_say(
    hostile: str, frozen: bool, world: World, tmp_path: Path
) -> None:
    name, args = HOSTILE[hostile](world)
    path = trained(tmp_path, frozen=frozen, name=name, args=SMALL | args)
    with pytest.raises(UserError) as refused:
        pixio_lightning.load(path)
    assert world.is_untouched()
    one_line(refused.value)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_users_name_no_other_source_either(hostile: str, world: World) -> None:
    name, args = HOSTILE[hostile](world)
    with pytest.raises(UserError) as refused:
        Backbone(name, weights="random:0", model_args=SMALL | args).load()
    assert world.is_untouched()
    one_line(refused.value)


def test_the_world_would_be_reached(world: World) -> None:
    _, args = HOSTILE["url"](world)
    args["pretrained_cfg"]["num_classes"] = 0
    with pytest.raises(Exception, match="404"):
        timm.create_model(TIMM, num_classes=0, **args)
    assert world.requests and world.connections
    torch.load(world.pickle, weights_only=False)
    assert world.sung.exists()


def test_harmless_descriptions_still_build(tmp_path: Path) -> None:
    for carrier, write in CARRIERS.items():
        folder = tmp_path / carrier
        folder.mkdir()
        assert Backbone(weights=str(write(folder, TIMM, SMALL))).load().name == TIMM
    assert pixio_lightning.load(trained(tmp_path, frozen=False, name="pixio_vitt16", args=SMALL))


def test_names_of_places_are_told_where_they_belong() -> None:
    for name, said in (("hf-hub:timm/x", "'hf:timm/x'"), ("local-dir:/data/x", "'/data/x'")):
        with pytest.raises(UserError, match=f"names a place.*backbone.weights {said}"):
            Backbone(name, weights="random")


def one_line(error: UserError) -> str:
    text = str(error)
    assert "\n" not in text and "\x1b" not in text and len(text) < 900
    return text


DEEP: Any = 1
for _ in range(50):
    DEEP = [DEEP]

# (key, value): of a type or size that no encoder has.
WRONG: list[tuple[str, Any]] = [
    *(("embed_dim", v) for v in ("48", 48.5, -48, 0, 10**9, 10**400, None, [48], {}, True, "x")),
    *(("depth", v) for v in ("1", 0, -1, 10**6, 2, None, [1], 1.5)),
    *(("num_heads", v) for v in ("3", 0, -3, 10**6, 5, None, False, 0.5)),
    *(
        ("patch_size", v)
        for v in ("16", 0, -16, [16], [16, 16, 16], [16, "16"], 14, {"a": 1}, DEEP)
    ),
    *(("img_size", v) for v in ("64", 0, -64, 10**9, [64, 64, 64], [64, None], 96, 15, {})),
    *(("in_chans", v) for v in ("3", 0, -3, 4, None, [3])),
    *(("n_cls_tokens", v) for v in ("8", 0, -8, 9, 10**9, None)),
    *(("mlp_ratio", v) for v in ("4", 0, -4, 1e30, float("nan"), float("inf"), 3, [4])),
    *(("qkv_bias", v) for v in ("true", 1, None, [], False)),
    *(("reg_tokens", v) for v in (10**12, -1, "4")),
    *(("init_values", v) for v in ("x", float("nan"), [])),
    ("pos_init", "sine"),
    ("pos_init", ["sincos"]),
    ("global_pool", "sum"),
    ("drop_rate", 2),
    ("deptth", 1),
    ("\x1b[31mred", 1),
    ("x" * 10_000, 1),
]
WRONG_TOP: list[tuple[str, Any]] = [
    *(
        ("name", v)
        for v in (5, [], {}, "", "x" * 10_000, "\x1b[2J", "resnet50", "vit.", DEEP, True)
    ),
    *(("model_args", v) for v in ("x", 5, [], [["depth", 1]], True, DEEP)),
    *(("mean", v) for v in ("0.5", 0.5, [], [0.5] * 2, [0.5] * 4, ["a"] * 3, [[0.5] * 3], {})),
    *(("mean", v) for v in ([float("nan")] * 3, [float("inf"), 0.5, 0.5], [None] * 3, DEEP)),
    *(
        ("std", v)
        for v in ([0.0] * 3, [-0.1] * 3, [float("nan")] * 3, [10**400] * 3, "x", [0.2] * 9)
    ),
    *(("licence", v) for v in (5, ["MIT"], {"MIT": True})),
]


# What JSON cannot say, but a checkpoint can.
WRONG_PLAIN: list[tuple[Any, Any]] = [
    *(("depth", v) for v in (1j, b"1", {1}, torch.ones(()), 10**10_000, ("1",))),
    *(("img_size", v) for v in ((64, 64.0), {64}, torch.tensor([64, 64]), torch.float32)),
    *((key, 1) for key in (5, b"depth", ("depth",), None)),
    *(("name", v) for v in (b"pixio_vitt16", ("pixio_vitt16",), 1j)),
    *(("model_args", v) for v in (b"", torch.ones(3), 1j)),
    *(("mean", v) for v in (torch.full((3,), 0.5), {0.5}, (0.5, 1j, 0.5))),
]


def described(key: Any, value: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"name": "pixio_vitt16", "model_args": dict(SMALL)}
    top = key in ("name", "model_args", "mean", "std", "licence")
    (about if top else about["model_args"])[key] = value
    return about


@pytest.mark.parametrize(("key", "value"), WRONG + WRONG_TOP)
def test_wrong_values_are_one_line(key: str, value: Any, tmp_path: Path) -> None:
    state = PixioViT(**SMALL).state_dict()
    save_file(state, tmp_path / "w.safetensors", {"pixio": json.dumps(described(key, value))})
    with pytest.raises(UserError) as refused:
        Backbone(weights=str(tmp_path / "w.safetensors")).load()
    one_line(refused.value)


@pytest.mark.parametrize(("key", "value"), WRONG_PLAIN, ids=range(len(WRONG_PLAIN)))
def test_wrong_values_of_a_checkpoint_are_one_line(key: Any, value: Any, tmp_path: Path) -> None:
    state = {f"backbone.vit.{n}": t for n, t in PixioViT(**SMALL).state_dict().items()}
    about = {"backbone": described(key, value)}
    torch.save({"state_dict": state, "pixio": about}, tmp_path / "w.ckpt")
    with pytest.raises(UserError) as refused:
        Backbone(weights=str(tmp_path / "w.ckpt")).load()
    one_line(refused.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "truncated or not a checkpoint"),
        ('{"a": ' * 50_000 + "1" + "}" * 50_000, "truncated or not a checkpoint"),
        ('{"depth": 1' + "0" * 5000 + "}", "truncated or not a checkpoint"),
        ("[]", "truncated or not a checkpoint"),
        ('{"model_args": {"depth": NaN}}', "depth is nan, expected a whole number"),
    ],
)
def test_odd_json(text: str, said: str, tmp_path: Path) -> None:
    state = PixioViT(**SMALL).state_dict()
    save_file(state, tmp_path / "w.safetensors", {"pixio": text})
    (tmp_path / "folder").mkdir()
    save_file(state, tmp_path / "folder/model.safetensors")
    folder = text.replace('{"model_args"', '{"architecture": "pixio_vitt16", "model_args"')
    (tmp_path / "folder/config.json").write_text(folder)
    for source in ("w.safetensors", "folder"):
        with pytest.raises(UserError, match=said) as refused:
            Backbone(weights=str(tmp_path / source))
        one_line(refused.value)


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        (TIMM, {"depth": 1000}, "depth is 1000, but the tensors .* say 1"),
        (TIMM, {"embed_dim": 60_000}, "embed_dim is 60000, but the tensors .* say 48"),
        (TIMM, {"patch_size": 14}, r"patch_size is 14, but the tensors .* say \(16, 16\)"),
        (TIMM, {"in_chans": 1000}, "in_chans is 1000, but the tensors .* say 3"),
        (TIMM, {"img_size": 65_536}, "does not fit the model: .*pos_embed"),
        ("vit_giant_patch14_dinov2", {}, "does not fit the model"),
    ],
)
def test_sizes_agree_with_the_tensors_before_anything_is_built(
    name: str, args: dict, said: str, tmp_path: Path
) -> None:
    save_file(tensors(TIMM), tmp_path / "w.safetensors")
    sizes = SMALL | args if name == TIMM else {}
    with pytest.raises(UserError, match=said) as refused:
        Backbone(name, weights=str(tmp_path / "w.safetensors"), model_args=sizes).load()
    one_line(refused.value)


TOKENS = {
    "none beside them": (None, (1, 3, 48)),
    "of one axis": ((1, 1, 48), (3,)),
    "wider": ((1, 1, 48), (1, 3, 96)),
    "several": ((2, 1, 48), (1, 3, 48)),
}


@pytest.mark.parametrize("tokens", TOKENS)
def test_tokens_that_do_not_belong_together(tokens: str, tmp_path: Path) -> None:
    """A file that says it is timm's has its class token and its registers joined."""
    state = PixioViT(**SMALL).state_dict()
    del state["cls_token"]
    for name, shape in zip(("cls_token", "reg_token"), TOKENS[tokens], strict=True):
        state |= {name: torch.zeros(shape)} if shape else {}
    said = {"name": "pixio_vitt16", "model_args": SMALL, "content": "timm"}
    save_file(state, tmp_path / "w.safetensors", {"pixio": json.dumps(said)})
    with pytest.raises(UserError, match="'cls_token' and 'reg_token' do not belong together"):
        Backbone(weights=str(tmp_path / "w.safetensors"))


def test_a_folder_s_code_is_not_looked_at(world: World, tmp_path: Path) -> None:
    """`auto_map` is how transformers is told to run a file of the folder, or of a hub."""
    save_file(PixioViT(**SMALL).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "modeling.py").write_text(f"open({str(world.sung)!r}, 'w')")
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "image_size": 64}
    code = {"AutoModel": "modeling.X", "AutoConfig": f"{world.url}--modeling.X"}
    said = {"model_type": "pixio", "auto_map": code, "trust_remote_code": True}
    (tmp_path / "config.json").write_text(json.dumps(said | sizes))
    assert read(str(tmp_path)).meta == {"model_args": SMALL}
    assert world.is_untouched()


def test_a_licence_only_shows(tmp_path: Path) -> None:
    licence = "MIT\x1b]0;title\x07\nadmin: grant\u202eall" + "x" * 10_000
    path = as_safetensors(tmp_path, "pixio_vitt16", SMALL, licence=licence)
    shown = Backbone(weights=str(path)).licence
    assert shown.startswith("MIT?") and len(shown) <= 200 and shown.isprintable()
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", shown)


UNREAD: dict[str, Any] = {
    "class_token": False,
    "reg_tokens": 3,
    "no_embed_class": True,
    "pos_embed": "none",
    "pos_drop_rate": 0.9,
    "global_pool": "avg",
    "dynamic_img_size": False,
}


@pytest.mark.parametrize("name", UNREAD)
def test_settings_that_would_change_nothing_are_refused(name: str) -> None:
    """An ablation with them would find no difference."""
    with pytest.raises(UserError, match=name):
        Backbone("pixio_vitt16", weights="random", model_args={name: UNREAD[name]})


def test_what_is_dropped_is_drawn_by_sample_and_step_or_not_at_all(tmp_path: Path) -> None:
    """From torch's generator, a run that goes on would draw again what it has drawn."""
    rates = ("drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "pos_drop_rate")
    for rate in rates:
        with pytest.raises(UserError, match=f"model_args.{rate} is 0.3, .*backbone.drop_path is"):
            Backbone("vit_tiny_patch16_224", weights="random", model_args={rate: 0.3})
    stated = SMALL | {"proj_drop_rate": 0.5, "attn_drop_rate": 0.5}
    backbone = Backbone(weights=str(as_safetensors(tmp_path, "pixio_vitt16", stated)), tune="full")
    dropouts = [m for m in backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and all(module.p == 0 for module in dropouts)


def test_arguments_that_no_model_takes() -> None:
    with pytest.raises(UserError, match=r"there is no setting 'patch_drop_rate'"):
        Backbone("vit_tiny_patch16_224", weights="random", model_args={"patch_drop_rate": 0.5})
    with pytest.raises(UserError, match=r"patch_size is \[8, 16\], but expected square patches"):
        Backbone("pixio_vitt16", weights="random", model_args={"patch_size": [8, 16]})
    for layers in ("first", [1.0, 2.0]):
        with pytest.raises(UserError, match="expected last, quarters or a list of whole"):
            Backbone("pixio_vitt16", weights="random", layers=layers)  # type: ignore[arg-type]
    siglip = {"embed_dim": 64, "depth": 2, "num_heads": 2}
    with pytest.raises(UserError, match="dense_cls is true, but .* has no class tokens"):
        Backbone("vit_base_patch16_siglip_224", weights="random", dense_cls=True, model_args=siglip)


def test_weights_are_given_as_a_path_too(tmp_path: Path) -> None:
    path = as_safetensors(tmp_path, "pixio_vitt16", SMALL)
    assert Backbone(weights=path).name == "pixio_vitt16"  # type: ignore[arg-type]
