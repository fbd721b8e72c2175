"""Runs of distillation through the command line, and what is made of their checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import tiny_run
import torch
import yaml

from pixio_lightning import Backbone, Distillation, UserError, load
from pixio_lightning.cli.main import main
from pixio_lightning.models.weights.read import digest, read
from pixio_lightning.training.base import BackboneModule

_STUDENT = {"name": "pixio_vitt16", "weights": "random", "tune": "full", "drop_path": 0.2}
_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 4, "num_heads": 1}


def write_recipe(folder: Path, teacher: Path, *names: str) -> Path:
    """Write a recipe that distils the teacher of `tiny_run` into a student of each name."""
    recipe = yaml.safe_load((teacher.parents[1] / "tiny.yaml").read_text())
    students = {
        name: {"backbone": _STUDENT | {"model_args": _VIT}, "mask_ratio": 0.5, "mask_grid": 2}
        for name in names
    }
    arguments = {"backbone": {"weights": str(teacher)}, "students": students}
    arguments["optim"] = {"lr": 1e-3, "warmup": 1}
    recipe["model"] = {"class_path": "Distillation", "init_args": arguments}
    path = folder / "distill.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    recipe = tiny_run.write_recipe(folder)
    assert tiny_run.fit(recipe, folder / "run", "--trainer.max_steps", 2) == 0
    return folder / "run" / "last.ckpt"


@pytest.fixture(scope="module")
def run(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two students."""
    folder = tmp_path_factory.mktemp("distilled")
    recipe = write_recipe(folder, teacher, "small", "other")
    assert tiny_run.fit(recipe, folder / "run", "--panels.every_n_steps", 4) == 0
    return folder / "run"


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


def test_loaded_students_are_not_compiled(run: Path, tmp_path: Path) -> None:
    stored = torch.load(run / "last.ckpt", weights_only=True)
    for student in stored["pixio"]["config"]["init_args"]["students"].values():
        backbone = student["backbone"]
        backbone.get("init_args", backbone).update(compile=True, checkpointing=True)
    torch.save(stored, tmp_path / "compiled.ckpt")
    students: Any = load(tmp_path / "compiled.ckpt").students
    for student in students.values():
        assert not student.backbone.compile_blocks and not student.backbone.checkpointing


def test_a_student_is_read_from_its_checkpoint_whatever_that_names(
    run: Path, tmp_path: Path
) -> None:
    """Also where it says of the backbone only which weights it wants to have fetched."""
    stored = torch.load(run / "last.ckpt", weights_only=True)
    for student in stored["pixio"]["config"]["init_args"]["students"].values():
        student["backbone"] = {"weights": "hf:someone/weights", "tune": "full"}
    torch.save(stored, tmp_path / "odd.ckpt")
    students: Any = load(tmp_path / "odd.ckpt").students
    assert {s.backbone.weights for s in students.values()} == {
        f"{tmp_path}/odd.ckpt:small",
        f"{tmp_path}/odd.ckpt:other",
    }


def test_a_checkpoint_holds_students_and_no_teacher(run: Path, teacher: Path) -> None:
    stored = torch.load(run / "last.ckpt", weights_only=True)
    assert {name.split(".")[1] for name in stored["state_dict"]} == {"small", "other"}
    assert stored["pixio"]["backbone_digest"] == digest(read(str(teacher)).encoder)
    assert stored["pixio"]["students"].keys() == {"small", "other"}
    assert sorted(p.name for p in (run / "panels").iterdir()) == [
        "step-0000004.png",
        "step-0000008.png",
    ]
    rows = tiny_run.table(run)
    # The report's loss is the mean of both students', in training and on held-out images.
    for part in ("train", "val"):
        found = [row for row in rows if f"{part}/loss" in row]
        assert found
        for row in found:
            mean = (row[f"{part}/small"] + row[f"{part}/other"]) / 2
            assert row[f"{part}/loss"] == pytest.approx(mean, rel=1e-5)


def test_a_student_is_an_ordinary_backbone(run: Path, images: torch.Tensor) -> None:
    """By its name, alone in what is read, and with its own architecture."""
    module = load(run)
    assert isinstance(module, Distillation) and not module.training
    names = dict(module.decoder.items())
    for name in ("small", "other"):
        backbone = Backbone(weights=f"{run / 'last.ckpt'}:{name}")
        found = backbone(images).tokens
        assert (backbone.depth, backbone.embed_dim, backbone.drop_path) == (4, 12, 0.0)
        assert backbone.matched == "matched 54 of 54 tensors, 6 other tensors left out"
        assert torch.equal(found, names[name].backbone(images).tokens)
    digests = {digest(model.backbone.vit.state_dict()) for model in names.values()}
    assert len(digests) == 2


def test_a_file_of_several_students_wants_a_name(run: Path) -> None:
    file = str(run / "last.ckpt")
    with pytest.raises(UserError, match=r"holds 2 students: name one, as in .*last\.ckpt:other"):
        Backbone(weights=file)
    with pytest.raises(UserError, match="no student 'smal', did you mean 'small'"):
        Backbone(weights=f"{file}:smal")


def test_of_one_student_the_file_is_the_weights(teacher: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, teacher, "only"), tmp_path / "run"
    assert tiny_run.fit(recipe, out, "--trainer.max_steps", 1) == 0
    file = str(out / "last.ckpt")
    assert Backbone(weights=file).digest == Backbone(weights=f"{file}:only").digest
    assert not any("train/only" in row for row in tiny_run.table(out))


@pytest.mark.parametrize("damage", [None, [], {"small": 3}, {"small": {"name": "os.system"}}])
def test_odd_descriptions_of_students_are_one_line(run: Path, tmp_path: Path, damage) -> None:
    stored = torch.load(run / "last.ckpt", weights_only=True)
    stored["pixio"]["students"] = damage
    file = tmp_path / "odd.ckpt"
    torch.save(stored, file)
    with pytest.raises(UserError) as caught:
        Backbone(weights=f"{file}:small")
    assert "\n" not in str(caught.value)


def test_other_files_hold_no_students(teacher: Path) -> None:
    with pytest.raises(UserError, match="holds no students, so no 'small'"):
        Backbone(weights=f"{teacher}:small")


def test_a_run_is_loaded_with_the_teacher_it_had(
    run: Path, teacher: Path, tmp_path: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batch = {"image": images, "key": torch.tensor([1, 2])}
    one = load(run / "last.ckpt").pictures(batch)
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(teacher.read_bytes())
    two = load(run / "last.ckpt", weights=str(moved)).pictures(batch)
    for first, second in zip(one.rows, two.rows, strict=True):
        assert all(map(torch.equal, first, second))
    with pytest.raises(UserError, match="trained on a frozen backbone with digest"):
        load(run / "last.ckpt", weights=f"{run / 'last.ckpt'}:small")


def test_a_student_is_exported_and_read_back(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = f"{run / 'last.ckpt'}:other"
    for form, name in (("safetensors", "other.safetensors"), ("timm", "other-timm")):
        assert main(["export", source, "--to", form]) == 0
        assert Backbone(weights=name).digest == Backbone(weights=source).digest


def test_onnx_of_a_student_is_the_student_and_not_its_teacher(
    run: Path, teacher: Path, tmp_path: Path, monkeypatch, capsys, images: torch.Tensor
) -> None:
    """Also where its teacher is no more; of several, one is named, as for the other formats."""
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(run, tmp_path / "copied"))
    stored = torch.load(copy / "last.ckpt", weights_only=True)
    stored["pixio"]["config"]["init_args"]["backbone"]["weights"] = "moved.ckpt"
    torch.save(stored, copy / "last.ckpt")
    for form in ("onnx", "safetensors"):
        assert main(["export", "copied", "--to", form, "--out", f"x.{form}"]) == 2
        assert "holds 2 students: name one" in capsys.readouterr().err
    source = f"{copy / 'last.ckpt'}:other"
    assert main(["export", source, "--to", "onnx"]) == 0
    student = Backbone(weights=source)
    session = onnxruntime.InferenceSession("other.onnx", providers=["CPUExecutionProvider"])
    patches = session.run(["patches"], {"images": images.numpy()})[0]
    with torch.no_grad():
        expected = student(images).layers[-1].patches
    assert patches.shape[1] == student.embed_dim == 12
    torch.testing.assert_close(torch.from_numpy(patches), expected, rtol=1e-3, atol=1e-4)
    count = sum(p.numel() for p in student.parameters())
    assert (
        f"| encoder | pixio_vitt16, {count:,} parameters |" in Path("other.README.md").read_text()
    )


@pytest.mark.slow  # as of a run with two, above
def test_onnx_of_a_run_with_one_student(teacher: Path, tmp_path: Path, capsys) -> None:
    recipe, out = write_recipe(tmp_path, teacher, "only"), tmp_path / "run"
    assert tiny_run.fit(recipe, out, "--trainer.max_steps", 1) == 0
    capsys.readouterr()
    words = ["export", str(out), "--to", "onnx", "--out", str(tmp_path / "only.onnx")]
    assert main(words) == 0
    assert "patches: (B, 12, 4, 4)" in capsys.readouterr().out


def test_a_head_learns_on_a_student(run: Path, tmp_path: Path) -> None:
    words = ["-c", "depth/demo", "-c", "with/debug", "--out", str(tmp_path / "depth")]
    words += ["--model.backbone.weights", f"{run / 'last.ckpt'}:other"]
    words += ["--data.scenes", "{train: 2, held_out: 2, views: 1, size: 32}"]
    words += ["--model.window", "32", "--model.stride", "32", "--model.predict_side", "32"]
    words += ["--model.decoder.positions", "[4, 4]"]
    assert main(["fit", *words]) == 0
    head = load(tmp_path / "depth")
    assert head.backbone.digest == Backbone(weights=f"{run / 'last.ckpt'}:other").digest


def test_a_student_goes_on_from_another_one(run: Path, teacher: Path, tmp_path: Path) -> None:
    """And the licence that is told comes from the file."""
    recipe = write_recipe(tmp_path, teacher, "small")
    words = ["--model.students.small.backbone.weights", f"{run / 'last.ckpt'}:small"]
    words += ["--trainer.max_steps", "1", "--model.optim.lr", "0"]
    words += ["--model.students.small.backbone.name", "pixio_vitt16"]
    assert tiny_run.fit(recipe, tmp_path / "run", *words) == 0
    file = str(tmp_path / "run" / "last.ckpt")
    assert Backbone(weights=file).digest == Backbone(weights=f"{run / 'last.ckpt'}:small").digest


def test_teachers_that_are_not_there_are_refused(
    teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, teacher, "small")
    for weights, message in (
        ("random", "the teacher's weights are random"),
        (str(tmp_path / "gone.ckpt"), "no such file or folder"),
    ):
        words = ["--model.backbone.weights", weights, "--model.backbone.name", "pixio_vitt16"]
        assert tiny_run.fit(recipe, tmp_path / "run", *words) == 2
        assert message in capfd.readouterr().err


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, log = run.parent / "distill.yaml", BackboneModule.log_training

    def stop(module: BackboneModule, loss: torch.Tensor) -> None:
        if module.global_step == 5:
            raise KeyboardInterrupt
        log(module, loss)

    with monkeypatch.context() as patch:
        patch.setattr(BackboneModule, "log_training", stop)
        assert tiny_run.fit(recipe, tmp_path / "run") == 130
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 5
    assert tiny_run.fit(recipe, tmp_path / "run") == 0
    one, two = (
        torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, tmp_path / "run")
    )
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    assert tiny_run.table(run) == tiny_run.table(tmp_path / "run")


def test_what_a_student_takes_from_a_graph_or_memory_is_free_to_change(run: Path) -> None:
    """Recomputing its blocks changes nothing that is learned; its mask does."""
    recipe = run.parent / "distill.yaml"
    words = ["--model.students.small.backbone.checkpointing", "true"]
    assert tiny_run.fit(recipe, run, *words) == 0
    assert tiny_run.fit(recipe, run, "--model.students.small.mask_ratio", 0.25) == 2
