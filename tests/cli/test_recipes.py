"""Recipes by name and by path, in this package and in plug-ins, and the headers they open with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from pixio_lightning.cli import recipes
from pixio_lightning.cli.config_tree import in_files
from pixio_lightning.errors import UserError
from pixio_lightning.files import plugins
from pixio_lightning.training.optim import Optim, peak_lr

TEXT = """\
# Normals on ScanNet: a frozen backbone
# and a linear head.
# reproduces: nothing published
# run: pixio fit -c plugged/linear
#   --data.path DIR
#
# expect: 12.3 degrees: the mean error
seed_everything: 0
# note: this is a comment of the body
"""


@pytest.fixture
def plug_in(tmp_path, monkeypatch) -> Path:
    """Install a distribution that brings a folder of recipes; its package cannot be imported."""
    folder = tmp_path / "recipe_plug" / "sub" / "recipes"
    (folder / "plugged").mkdir(parents=True)
    (tmp_path / "recipe_plug" / "__init__.py").write_text("raise RuntimeError")
    (folder / "plugged" / "linear.yaml").write_text(TEXT)
    info = tmp_path / "my_heads-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-heads\nVersion: 1.0\n")
    entry = f"[{plugins.RECIPES}]\nmine = recipe_plug.sub.recipes\n"
    (info / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["pretrain/demo", "with/debug"])
def test_own_recipe_is_found_by_name_and_by_path(name):
    path = recipes.find(name)
    assert path.parts[-2:] == tuple(f"{name}.yaml".split("/"))
    assert recipes.find(path) == path
    assert recipes.header(path).summary


def test_recipe_of_a_plugin_is_found_without_import(plug_in):
    assert recipes.find("plugged/linear") == plug_in / "plugged" / "linear.yaml"
    origins = {recipe.name: recipe.origin for recipe in recipes.all_recipes()}
    assert origins["plugged/linear"] == "my-heads 1.0"
    assert origins["pretrain/demo"] == recipes.BUILT_IN
    assert "recipe_plug" not in sys.modules


def test_header_is_the_leading_comment_only(plug_in):
    header = recipes.header(plug_in / "plugged" / "linear.yaml")
    assert header.summary == "Normals on ScanNet: a frozen backbone and a linear head."
    assert header.fields == {
        "reproduces": "nothing published",
        "run": "pixio fit -c plugged/linear --data.path DIR",
        "expect": "12.3 degrees: the mean error",
    }


def test_existing_file_wins_over_a_name(plug_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plugged").mkdir()
    Path("plugged/linear").write_text("a: 1")
    assert recipes.find("plugged/linear") == Path("plugged/linear")
    Path("my.yaml").write_text("a: 1")
    assert recipes.find("my.yaml") == Path("my.yaml")


def test_two_roots_with_one_name_are_both_named(plug_in):
    (plug_in / "pretrain").mkdir()
    (plug_in / "pretrain" / "demo.yml").write_text(TEXT)
    with pytest.raises(
        UserError, match="of pixio-lightning.* my-heads 1.0|my-heads 1.0.* of pixio"
    ):
        recipes.find("pretrain/demo")


@pytest.mark.parametrize("name", ["pretrain/dmeo", "pretrain/demo.yaml"])
def test_unknown_recipe_gets_the_nearest_name(name):
    with pytest.raises(UserError, match=f"'{name}'.*did you mean 'pretrain/demo'"):
        recipes.find(name)


def test_missing_folder_of_a_plugin_is_listed_and_harms_nobody(plug_in):
    plug_in.rename(plug_in.with_name("moved"))
    missing = [root for root in recipes.roots() if not root.path.is_dir()]
    assert [root.origin for root in missing] == ["my-heads 1.0"]
    assert recipes.find("pretrain/demo")


@pytest.mark.parametrize("kind", ["linear", "dpt"])
@pytest.mark.parametrize(
    ("name", "images", "per_gpu"),
    [
        ("depth/nyuv2", 24_231, 4),
        ("depth/kitti", 23_158, 4),
        ("segmentation/ade20k", 20_210, 2),
        ("segmentation/voc", 10_582, 4),
        ("segmentation/loveda", 2_522, 1),
    ],
)
def test_published_probes_take_the_steps_of_60_passes(name, kind, images, per_gpu):
    """On 8 GPUs: each takes an eighth of the images, rounded up, and drops what fills no batch."""
    recipe = yaml.safe_load(recipes.find(f"{name}_{kind}").read_text())
    steps = -(-images // 8) // per_gpu
    data = recipe["data"]["init_args"]
    assert data["batch_size"] == 8 * per_gpu and data["steps_per_epoch"] == steps
    assert recipe["trainer"]["max_steps"] == 60 * steps
    assert recipe["checkpoint"] == {"every_n_steps": steps}
    assert recipe["panels"] == {"every_n_steps": 10 * steps}


def test_a_recipe_whose_rate_is_for_a_batch_says_on_how_many_devices():
    """Lightning would take all there are, and with them as many times the batch."""
    named = {recipe.name: in_files([recipe.path]) for recipe in recipes.all_recipes()}
    # A head that is given no rate has an `lr` of its own.
    fixed = {name: keys for name, keys in named.items() if "model.optim.blr" not in keys}
    trained = {name: keys for name, keys in fixed.items() if keys.get("trainer.max_steps", 0) > 1}
    assert len(trained) > 30
    assert [name for name, keys in trained.items() if "trainer.devices" not in keys] == []


def test_what_goes_on_from_an_encoder_trains_it_at_a_quarter_of_a_fresh_rate():
    def rate(name):
        recipe = yaml.safe_load(recipes.find(name).read_text())
        optim = Optim(**recipe["model"]["init_args"]["optim"])
        devices = {"auto": 8}.get(recipe["trainer"]["devices"], recipe["trainer"]["devices"])
        return optim, peak_lr(optim, recipe["data"]["init_args"]["batch_size"] * devices)

    (_, fresh), (optim, decoder) = rate("video/shards"), rate("video/continue")
    assert decoder == pytest.approx(fresh)
    assert decoder * optim.backbone_lr_scale == pytest.approx(fresh / 4)


@pytest.mark.parametrize("task", ["depth", "segmentation"])
def test_the_demos_see_a_view_as_one_window(task):
    """Their published figures are of one pass over a view."""
    recipe = yaml.safe_load(recipes.find(f"{task}/demo").read_text())
    model, scenes = recipe["model"]["init_args"], recipe["data"]["init_args"]["scenes"]
    assert model["window"] == model["stride"] == scenes["size"]
