"""Every spelling of the weights is read whole, and nothing unsafe or damaged is read at all."""

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import PixioBackbone, PixioConfig, PixioModel

from pixio_lightning.errors import MissingWeights, UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.vit import PixioViT
from pixio_lightning.models.weights.fill import fill
from pixio_lightning.models.weights.key_names import (
    from_timm,
    infer,
    to_mae_decoder,
    to_official,
    to_timm,
)
from pixio_lightning.models.weights.read import Weights, digest, licence_of, read
from pixio_lightning.models.weights.report import matched

CONFIG = {
    "hidden_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "image_size": 64,
    "n_cls_tokens": 8,
}
ARGS = {
    "patch_size": 16,
    "img_size": 64,
    "n_cls_tokens": 8,
    "in_chans": 3,
    "embed_dim": 96,
    "depth": 4,
    "num_heads": 6,
}


def randomize(model):
    """Leave no norm at 1/0 and no bias at 0, so that a tensor in the wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def theirs():
    return randomize(PixioModel(PixioConfig(**CONFIG)))


@pytest.fixture(scope="module")
def official(theirs):
    return to_official(theirs.state_dict())[0]


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def loaded(source, **kwargs):
    model = PixioViT(**ARGS).eval()
    report = fill(model, read(str(source)), **kwargs)
    assert report.matched == report.total == 54 == len(model.state_dict())
    return model


def tokens(model, images):
    with torch.no_grad():
        return model.forward_features(images)


def hub_names(state):
    """The names that the released files have, which mix the run-time and the written ones."""
    renames = [("layers.", "encoder.layer."), ("attention.o_proj", "attention.output.dense")]
    renames += [("layernorm_before", "norm1"), ("layernorm_after", "norm2")]
    for ours, hub in (("q", "query"), ("k", "key"), ("v", "value")):
        renames.append((f"attention.{ours}_proj", f"attention.attention.{hub}"))
    for old, new in renames:
        state = {n.replace(old, new): t for n, t in state.items()}
    return state


def spelled(how, theirs, official):
    run_time = theirs.state_dict()
    fresh = {"layernorm.weight": torch.ones(96), "layernorm.bias": torch.zeros(96)}
    prefix = {"compiled": "_orig_mod.", "ddp": "module.", "nested": "module.model._orig_mod."}
    return {
        "official": lambda: official,
        "run_time": lambda: run_time,
        "hub": lambda: hub_names(run_time),
        "backbone": lambda: {f"pixio.{n}": t for n, t in run_time.items()} | fresh,
        "compiled": lambda: {prefix["compiled"] + n: t for n, t in official.items()},
        "ddp": lambda: {"model": {prefix["ddp"] + n: t for n, t in run_time.items()}, "epoch": 3},
        "nested": lambda: {"state_dict": {prefix["nested"] + n: t for n, t in official.items()}},
    }[how]()


@pytest.mark.parametrize(
    "how", ["official", "run_time", "hub", "backbone", "compiled", "ddp", "nested"]
)
def test_spellings_give_equal_outputs(how, theirs, official, images, tmp_path):
    torch.save(spelled(how, theirs, official), tmp_path / "w.pth")
    encoder, decoder, _ = to_official(torch.load(tmp_path / "w.pth"))
    assert digest(encoder) == digest(official) and not decoder
    weights = Weights(encoder, None, {"model_args": ARGS}, how)
    model = PixioViT(**infer(encoder, weights.meta)["model_args"]).eval()
    fill(model, weights)
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
    torch.testing.assert_close(tokens(model, images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shard", ["5GB", "300KB"])
def test_save_pretrained_folders(shard, theirs, official, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    loaded(tmp_path)
    weights = read(str(tmp_path))
    assert digest(weights.encoder) == digest(official)
    assert infer(weights.encoder, weights.meta) == {"name": None, "model_args": ARGS}


def test_the_second_norm_of_pixio_backbone(theirs, official, tmp_path):
    theirs.save_pretrained(tmp_path / "model")
    backbone = PixioBackbone.from_pretrained(tmp_path / "model")
    backbone.save_pretrained(tmp_path / "backbone")
    assert (load_file(tmp_path / "backbone/model.safetensors")["layernorm.weight"] == 1).all()
    assert digest(read(str(tmp_path / "backbone")).encoder) == digest(official)

    state = backbone.state_dict()
    for name in ("layernorm.weight", "layernorm.bias"):
        state[name] = state[f"pixio.{name}"] + 1
    with pytest.raises(UserError, match="two different final norms"):
        to_official(state)
    state["pixio.layernorm.weight"] = torch.ones(96)
    state["pixio.layernorm.bias"] = torch.zeros(96)
    assert torch.equal(to_official(state)[0]["norm.weight"], state["layernorm.weight"])


def test_pretraining_checkpoints_keep_their_decoder(official, tmp_path):
    decoder = {"decoder_embed.weight": torch.ones(8, 96), "mask_token": torch.ones(1, 1, 8)}
    decoder["decoder_blocks.0.norm1.bias"] = torch.ones(8)
    theirs = {"model": official | decoder, "args": argparse.Namespace(blr=1e-4), "epoch": 1}
    torch.save(theirs, tmp_path / "theirs.pth")
    ours = {f"backbone.vit.{n}": t for n, t in official.items()}
    ours |= {f"decoder.{n}": t for n, t in to_mae_decoder(decoder).items()}
    backbone = {"name": None, "model_args": ARGS, "licence": "CC-BY-4.0"}
    torch.save({"state_dict": ours, "pixio": {"backbone": backbone}}, tmp_path / "ours.ckpt")
    for name in ("theirs.pth", "ours.ckpt"):
        weights = read(str(tmp_path / name))
        assert digest(weights.encoder) == digest(official)
        assert digest(weights.decoder) == digest(decoder)
        line = fill(PixioViT(**ARGS), weights).line()
        assert line == "matched 54 of 54 tensors, 3 decoder tensors left out"
    assert weights.meta == backbone and licence_of(weights.source, weights.meta) == "CC-BY-4.0"


def test_a_head_is_neither_encoder_nor_decoder(official, tmp_path):
    state = {f"backbone.vit.{n}": t for n, t in official.items()} | {"decoder.w": torch.ones(2)}
    assert list(to_official(state)[2]) == ["decoder.w"] and not to_official(state)[1]
    head = {"state_dict": {"decoder.w": torch.ones(2)}, "pixio": {"backbone": {"weights": "W.pth"}}}
    torch.save(head, tmp_path / "head.ckpt")
    with pytest.raises(UserError, match=r"backbone was frozen.*W\.pth"):
        read(str(tmp_path / "head.ckpt"))


@pytest.mark.parametrize("how", ["official", "run_time", "hub", "ddp", "nested", "student"])
def test_a_distilled_encoder_comes_without_its_projector(how, theirs, official, tmp_path):
    """As distillation stores it: the way to the teacher's width stands beside the encoder."""
    projector = {f"last_proj.{n}.weight": torch.ones(4, 96) for n in (0, 3)}
    projector |= {f"last_proj.{n}.bias": torch.ones(4) for n in (0, 1, 3)}
    wrap = {"ddp": "module.", "nested": "module.model._orig_mod.", "student": "student."}
    if how in ("run_time", "hub"):
        state = spelled(how, theirs, official) | projector
    else:
        state = {wrap.get(how, "") + n: t for n, t in (official | projector).items()}
    torch.save({"model": state, "optimizer": {}, "epoch": 3}, tmp_path / "distilled.pth")
    weights = read(str(tmp_path / "distilled.pth"))
    assert digest(weights.encoder) == digest(official) and weights.decoder is None
    line = fill(PixioViT(**ARGS), weights).line()
    assert line == "matched 54 of 54 tensors, 5 other tensors left out"


ODD = {
    "boolean": lambda t: t > 0,
    "integer": lambda t: t.to(torch.int64),
    "complex": lambda t: t.to(torch.complex64),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
    "NaN": lambda t: t.index_fill(0, torch.tensor([1]), float("nan")),
    "infinite": lambda t: t.index_fill(0, torch.tensor([1]), float("-inf")),
    "too large": lambda t: t.double() * 1e300,
    "half infinite": lambda t: t.half().index_fill(0, torch.tensor([1]), float("inf")),
}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize("kind", ODD)
def test_weights_that_are_no_finite_floats_are_refused(kind, official, tmp_path):
    name = "blocks.2.attn.qkv.bias"
    torch.save(official | {name: ODD[kind](official[name])}, tmp_path / "w.pth")
    model = PixioViT(**ARGS)
    before = digest(model.state_dict())
    with pytest.raises(UserError, match=name.replace(".", "[.]")) as error:
        fill(model, read(str(tmp_path / "w.pth")))
    assert "\n" not in str(error.value) and digest(model.state_dict()) == before


def test_names_of_a_file_only_show(official, tmp_path):
    torch.save(official | {"head.\x1b]0;owned\x07\nroot: yes": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="unexpected: 'head.*owned") as error:
        fill(PixioViT(**ARGS), read(str(tmp_path / "w.pth")))
    assert str(error.value).isprintable()


def test_odd_structures_are_one_line(official, tmp_path):
    ours = {f"backbone.vit.{n}": t for n, t in official.items()}
    queries = {"embeddings.patch_embeddings.projection.weight": torch.ones(4, 3, 2, 2)}
    part = "layers.0.attention.{}_proj.weight"
    queries |= {part.format(n): torch.ones(2, i) for i, n in enumerate("qkv")}
    odd = [
        {5: torch.ones(1)},
        {"state_dict": 5},
        {"state_dict": ours, "pixio": {"backbone": 5}},
        {"state_dict": ours, "pixio": {"backbone": "x"}},
        {"state_dict": {5: torch.ones(1)}, "pixio": {"backbone": {}}},
        {"state_dict": 5, "pixio": {"backbone": {"weights": ["\x1b[2J"]}}},
        queries,
        official | {"cls_token": torch.ones(8, 96)},
        official | {"patch_embed.proj.weight": torch.ones(96, 768)},
        official | {"cls_token": torch.ones(1, 0, 96)},
        official | {"pos_embed": torch.ones(264)},
    ]
    for content in odd:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError) as error:
            weights = read(str(tmp_path / "w.pth"))
            infer(weights.encoder, weights.meta)
        assert str(error.value).isprintable()
    torch.save({"state_dict": official, "hyper_parameters": 5}, tmp_path / "w.pth")
    assert digest(read(str(tmp_path / "w.pth")).encoder) == digest(official)
    (tmp_path / "f").mkdir()
    for index in ({"weight_map": 5}, {"weight_map": {"a": 5}}, {"weight_map": ["a"]}):
        (tmp_path / "f/model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="weight_map"):
            read(str(tmp_path / "f"))


def test_other_models_pass_through_and_two_encoders_are_refused(official):
    dino = {"patch_embed.proj.weight": torch.ones(4, 3, 2, 2), "mask_token": torch.ones(1, 4)}
    assert to_official(dino)[0] == dino
    twice = {f"{who}.{n}": t for who in ("teacher", "student") for n, t in official.items()}
    with pytest.raises(UserError, match="2 encoders, under 'student.', 'teacher.'"):
        to_official(twice)


def test_timm_spelling_round_trip(official):
    stock = to_timm(official, 8)
    assert stock["cls_token"].shape[1] == 1 and stock["reg_token"].shape[1] == 7
    assert digest(from_timm(stock)) == digest(official)
    with pytest.raises(UserError, match="decoder_norm"):
        to_timm(official | {"decoder_norm.bias": torch.ones(1)}, 8)


class Canary:
    def __reduce__(self):
        return os.system, (f"touch {os.environ['CANARY']}",)


def test_nothing_in_a_checkpoint_is_executed(official, tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    (tmp_path / "canary_module.py").write_text(f"open({str(canary)!r}, 'w')\nclass Model: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save({"model": official, "extra": Canary()}, tmp_path / "pickle.pth")
    named = {"_class_path": "canary_module.Model", "_instantiator": "canary_module.Model"}
    torch.save({"state_dict": official, "hyper_parameters": named}, tmp_path / "named.ckpt")
    for name, said in (("pickle.pth", r"\(.*system\): refused"), ("named.ckpt", "names code")):
        with pytest.raises(UserError, match=said):
            read(str(tmp_path / name))
    assert not canary.exists() and "canary_module" not in sys.modules
    # The same files do reach for the canary when they are trusted.
    torch.load(tmp_path / "pickle.pth", weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 1000, 0.5, -10])
def test_damaged_files(suffix, keep, official, tmp_path):
    path = tmp_path / f"w{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(official, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match="cannot read .* bytes.: truncated") as error:
        read(str(path))
    assert "\n" not in str(error.value)


def test_wrong_sources(official, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(official, "encoder.pth")
    torch.save([1], "list.pth")
    Path("model.onnx").write_bytes(b"x")
    os.mkfifo("pipe.pth")
    messages = {
        "encodr.pth": "did you mean 'encoder.pth'",
        "facebook/pixio-vith16": "hf:facebook/pixio-vith16",
        "https://host/x.pth": "not read from a URL",
        "s3://bucket/x.pth": "not read from a URL",
        "list.pth": "holds a list",
        "model.onnx": "expected .safetensors",
        "pipe.pth": "neither a file nor a folder",
        ".": "several weight files .'encoder.pth', 'list.pth', 'pipe.pth'",
    }
    for source, message in messages.items():
        with pytest.raises(UserError, match=message):
            read(source)
    Path("bert").mkdir()
    Path("bert/config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="model_type 'bert'"):
        read("bert")
    index = {"weight_map": {"a": "../encoder.pth"}}
    Path("bert/config.json").unlink()
    Path("bert/model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not in the folder"):
        read("bert")


def test_no_partial_load(official):
    model = PixioViT(**ARGS)
    before = digest(model.state_dict())
    wrong = {n: t for n, t in official.items() if n != "norm.bias"} | {"head.bias": torch.ones(1)}
    wrong["cls_token"] = official["cls_token"][:, :1]
    with pytest.raises(UserError) as error:
        fill(model, Weights(wrong, None, {}, "w.pth"))
    for part in ("52 of 54", "missing: 'norm.bias'", "unexpected: 'head.bias'", "(1, 8, 96) here"):
        assert part in str(error.value)
    assert digest(model.state_dict()) == before
    assert matched(model.state_dict(), {}).missing == tuple(model.state_dict())


def test_meta_model_comes_to_life_in_its_own_dtype(official, images, theirs):
    with torch.device("meta"):
        model = PixioViT(**ARGS).eval()
    half = {n: t.to(torch.float64) for n, t in official.items()}
    fill(model, Weights(half, None, {}, "w.pth"))
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    with torch.no_grad():
        expected = theirs(images).last_hidden_state
    torch.testing.assert_close(tokens(model, images), expected, atol=1e-5, rtol=0)


def test_infer(official):
    with torch.device("meta"):
        tiny = PixioViT(embed_dim=192, depth=12, num_heads=3).state_dict()
    args = {"patch_size": 16, "img_size": 256, "n_cls_tokens": 8, "in_chans": 3}
    assert infer(tiny) == {"name": "pixio_vitt16", "model_args": args}
    assert infer(tiny, {"name": "pixio_vitt16"}) == infer(tiny)
    with pytest.raises(UserError, match="states embed_dim 768, its tensors say 192"):
        infer(tiny, {"name": "pixio_vitb16"})
    with pytest.raises(UserError, match="attention heads"):
        infer(official)
    wide = PixioViT(**{**ARGS, "img_size": (64, 96)}).state_dict()
    with pytest.raises(UserError, match="24 patch positions do not make up a square"):
        infer(wide, {"model_args": {"num_heads": 6}})
    stated = {"model_args": {"num_heads": 6, "img_size": [64, 96]}}
    assert infer(wide, stated)["model_args"]["img_size"] == (64, 96)


def test_digest_tells_apart(official):
    assert digest(dict(reversed(official.items()))) == digest(official)
    assert digest({"a": torch.zeros(2, 3)}) != digest({"a": torch.zeros(3, 2)})
    assert digest({"a": torch.zeros(2)}) != digest({"a": torch.zeros(2).to(torch.bfloat16)})
    assert digest({"a": torch.zeros(2)}) != digest({"b": torch.zeros(2)})


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache, repository, commit="a" * 40):
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(commit)
    (root / "snapshots" / commit).mkdir(parents=True)
    return root / "snapshots" / commit


def test_hub_cache_offline(hub_cache, theirs, official):
    safe = cached(hub_cache, "facebook/pixio-tiny")
    theirs.save_pretrained(safe)
    torch.save({"wrong": torch.ones(1)}, safe / "pixio_tiny.pth")
    for revision in ("", "@main", "@" + "a" * 40):
        weights = read(f"hf:facebook/pixio-tiny{revision}")
        assert digest(weights.encoder) == digest(official)
    assert "Noncommercial" in licence_of(weights.source, weights.meta)
    torch.save(official, cached(hub_cache, "me/pickled") / "pixio.pth")
    assert digest(read("hf:me/pickled").encoder) == digest(official)
    for source in ("hf:me/absent", "hf:me/pickled@v2"):
        with pytest.raises(UserError, match="not in the cache.*hf download"):
            read(source)
    with pytest.raises(UserError, match="expected hf:ORG/NAME"):
        read("hf:one/two/three")


@pytest.fixture
def refusing_hub(monkeypatch):
    """Return how to let a server stand for the Hub, which refuses everything with one code.

    Of files it may give a status of its own; with 0 it never answers.
    """
    servers, ended = [], Event()

    def begin(code, of_files=None):
        class Hub(BaseHTTPRequestHandler):
            def do_GET(self):
                if of_files is not None and "/resolve/main/" in self.path:
                    if of_files:
                        self.send_response(of_files)
                        self.end_headers()
                    else:
                        ended.wait()
                    return
                self.send_response(403 if code == "GatedRepo" else 404)
                self.send_header("X-Error-Code", code)
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Hub))
        Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{servers[-1].server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        )
        return servers[-1]

    yield begin
    ended.set()
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "said"), [("GatedRepo", "is gated"), ("RepoNotFound", "does not exist")]
)
def test_gated_and_missing_repositories(code, said, hub_cache, refusing_hub):
    refusing_hub(code)
    with pytest.raises(UserError, match=f"{said}.* accept its licence at .*hf auth login"):
        read("hf:facebook/pixio-vith16")
    with pytest.raises(MissingWeights, match=f"^timm/{TIMMS} .*{said}.*hf auth login"):
        Backbone(TIMMS, weights="timm").find()


# --- timm's own -----------------------------------------------------------------------------------

TIMMS = "test_vit.r160_in1k"  # a small model of timm's, with a classifier of 1000 classes


@pytest.fixture
def timms(hub_cache):
    """Weights as timm has them on the Hub, in the cache; returns the model."""
    model = randomize(timm.create_model("test_vit"))
    save_file(model.state_dict(), cached(hub_cache, f"timm/{TIMMS}") / "model.safetensors")
    return model


def test_timms_own_weights_are_all_read(timms):
    backbone = Backbone(TIMMS, weights="timm").load()
    state = timms.state_dict()
    assert not [name for name in backbone.vit.state_dict() if name.startswith("head.")]
    for name, tensor in backbone.vit.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert backbone.matched == "timm's own, matched 78 of 78 tensors"
    # What timm resizes, it has.
    larger = Backbone(TIMMS, weights="timm", model_args={"img_size": 192, "patch_size": 8}).load()
    assert "78 of 78" in larger.matched and larger.grid == (24, 24)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"depth": 7}, "missing: 'blocks.6.norm1.weight"),
        ({"depth": 5}, "unexpected: 'blocks.5.norm1.weight"),
        ({"qk_norm": True}, "missing: 'blocks.0.attn.q_norm.weight"),
        ({"init_values": 1e-5}, "missing: 'blocks.0.ls1.gamma"),
        ({"global_pool": "avg"}, "missing: 'fc_norm.weight', .*unexpected: 'norm.weight"),
        ({"num_classes": 10}, "other shapes: 'head.weight"),
    ],
)
def test_a_model_that_timms_weights_would_fill_in_part_is_refused(arguments, said):
    """Before anything is looked for, as timm would leave the rest at random."""
    with pytest.raises(UserError, match=f"what timm has of {TIMMS} does not fit.*{said}"):
        Backbone(TIMMS, weights="timm", model_args=arguments)


def test_a_file_of_timms_that_is_not_whole_is_refused(timms, hub_cache):
    (path,) = hub_cache.rglob("model.safetensors")
    state = timms.state_dict()
    del state["blocks.3.mlp.fc1.bias"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"cannot load weights.*Missing.*blocks.3.mlp.fc1.bias"):
        Backbone(TIMMS, weights="timm").load()


def test_timms_weights_are_looked_for_before_anything_is_run(hub_cache):
    with pytest.raises(UserError, match="timm has none of pixio_vitb16$"):
        Backbone("pixio_vitb16", weights="timm")
    for do in (Backbone.find, Backbone.load):
        with pytest.raises(MissingWeights, match=f"not in the cache.*`hf download timm/{TIMMS}`"):
            do(Backbone(TIMMS, weights="timm"))
    Backbone(TIMMS, weights="random").find()


def test_what_is_in_the_cache_is_not_asked_for(timms, refusing_hub):
    refusing_hub("RepoNotFound")
    Backbone(TIMMS, weights="timm").find()


@pytest.mark.parametrize("status", [200, 404, 503, 0])
def test_a_mirror_need_answer_for_files_alone(status, hub_cache, refusing_hub, monkeypatch):
    """What it says of files, but that they are not open, is for the download to judge."""
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    refusing_hub("RepoNotFound", of_files=status)
    Backbone(TIMMS, weights="timm").find()


def test_a_hub_that_cannot_be_reached_is_told_before_a_run(hub_cache, refusing_hub):
    server = refusing_hub("RepoNotFound")
    server.shutdown()
    server.server_close()
    with pytest.raises(MissingWeights, match="the Hub cannot be reached"):
        Backbone(TIMMS, weights="timm").find()
