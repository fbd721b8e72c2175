"""Pixels: what is trained on, validated and predicted, and what becomes of unusable images."""

import multiprocessing
from collections import Counter
from itertools import islice
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.shards.keep_rule import Curation
from pixio_lightning.errors import UserError
from pixio_lightning.keyed import key_of

N = 30


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i in range(N):
        pixels = np.random.default_rng(i).integers(0, 256, (24, 32, 3), np.uint8)
        path = folder / "abc"[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def damage(photos: Path, *names: str) -> None:
    for name in names:
        (photos / name).write_bytes(b"damaged")


def pixels(path: Path, stage: str = "fit", **options: object) -> Pixels:
    """A set-up data module, attached to a trainer as in a run."""
    options = {"image_size": 16, "batch_size": 4, "num_workers": 0, "val_images": 5} | options
    data = Pixels("folder", str(path), **options)  # type: ignore[arg-type]
    data.trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=path.parent / "run")
    data.setup(stage)
    return data


def trained(data: Pixels, batches: int) -> set[int]:
    loader = islice(iter(data.train_dataloader()), batches)
    return {key for batch in loader for key in batch["key"].tolist()}


def names_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_hub_data_set_holds_out_its_own_split(photos: Path, tmp_path: Path) -> None:
    import datasets

    pictures = [{"bytes": path.read_bytes(), "path": None} for path in photos.rglob("*.png")]
    column = datasets.Features({"image": datasets.Image()})
    whole = {"train": pictures[:20], "validation": pictures[20:]}
    datasets.DatasetDict(
        {k: datasets.Dataset.from_dict({"image": v}, features=column) for k, v in whole.items()}
    ).save_to_disk(str(tmp_path / "set"))
    options = {"image_size": 16, "batch_size": 5, "num_workers": 0}
    data = Pixels("hub", str(tmp_path / "set"), val_split="validation", **options)  # type: ignore
    data.setup("fit")
    assert [len(source) for source in data.labelled] == [20, 10]
    names = [name for batch in data.val_dataloader() for name in batch["name"]]
    assert names == [f"validation/{i:08d}" for i in range(10)]
    with pytest.raises(UserError, match="data.val_split 'validation' .* data.source hub"):
        Pixels("folder", str(photos), val_split="validation")


def test_held_out_images_are_never_trained_on(photos: Path) -> None:
    data = pixels(photos)
    held_out = {key for batch in data.val_dataloader() for key in batch["key"].tolist()}
    everything = {key_of(name) for name in names_of(photos)}
    assert len(held_out) == 3  # a tenth
    assert trained(data, 3 * N // 4) == everything - held_out


def test_held_out_images_from_a_folder_of_their_own(photos: Path, tmp_path: Path) -> None:
    (photos / "c").rename(tmp_path / "others")
    data = pixels(photos, val_path=str(tmp_path / "others"))
    assert trained(data, N // 4) == {key_of(name) for name in names_of(photos)}
    (batch, rest) = data.val_dataloader()
    found = batch["name"] + rest["name"]
    assert len(set(found)) == 5 and set(found) <= set(names_of(tmp_path / "others"))
    inside = "lies inside data.path .* would be trained on"
    for val_path in (photos, photos / "a"):
        with pytest.raises(UserError, match=inside):
            Pixels("folder", str(photos), val_path=str(val_path))
    with pytest.raises(UserError, match=r"^data.path '.*a' lies inside data.val_path"):
        Pixels("folder", str(photos / "a"), val_path=str(photos))
    with pytest.raises(UserError, match=r"^data.val_path '.*othres' is not a folder, did you mean"):
        pixels(photos, val_path=str(tmp_path / "othres"))


def test_every_held_out_image_is_weighed_once(photos: Path) -> None:
    data = pixels(photos)
    name = next(iter(data.val_dataloader()))["name"][0]
    damage(photos, name)
    (batch,) = data.val_dataloader()
    weighed = [n for n, w in zip(batch["name"], batch["weight"].tolist(), strict=True) if w == 1]
    assert len(batch["name"]) == 3  # another in its place, without a weight
    assert len(set(weighed)) == len(weighed) == batch["weight"].sum() == 2 and name not in weighed
    assert data.bad == {name: "no JPEG, PNG, WebP, TIFF or BMP"}


def test_predict_covers_every_image_once(photos: Path) -> None:
    batches = list(pixels(photos, "predict").predict_dataloader())
    assert Counter(name for batch in batches for name in batch["name"]) == Counter(names_of(photos))
    assert all(batch["image"].shape[1:] == (3, 16, 16) for batch in batches)
    assert sum(float(batch["weight"].sum()) for batch in batches) == N


@pytest.mark.parametrize(("asked", "given"), [(2, 2), (3, 3), (50, 3)])
def test_samples_are_different_held_out_images(photos: Path, asked: int, given: int) -> None:
    data = pixels(photos)
    held_out = {name for batch in data.val_dataloader() for name in batch["name"]}
    batch = data.samples(asked)
    assert batch["image"].dtype == torch.uint8 and len(batch["image"]) == given
    assert len(set(batch["name"])) == given and set(batch["name"]) <= held_out
    assert set(batch) == {"image", "size", "key", "weight", "name"}


def test_classes_are_offered_to_probes(photos: Path) -> None:
    train, held_out = pixels(photos).labelled
    labels = [s.label(i) for s in (train, held_out) for i in range(len(s))]
    assert Counter(labels) == {"a": 10, "b": 10, "c": 10}


@pytest.mark.parametrize(
    ("source", "path", "text"),
    [
        ("scenes", "photos", "data.path 'photos' is given, but data.source is scenes"),
        ("folder", None, "data.source is folder: give data.path"),
        ("hub", None, "data.source is hub: give data.path"),
    ],
)
def test_source_and_path_must_agree(source: str, path: str | None, text: str) -> None:
    with pytest.raises(UserError, match=f"^{text}"):
        Pixels(source, path)  # type: ignore[arg-type]


def test_what_a_folder_of_pictures_has_not_is_refused(photos: Path) -> None:
    with pytest.raises(UserError, match="data.split 'val' is of the hub and of shards"):
        Pixels("folder", str(photos), split="val")
    with pytest.raises(UserError, match="data.restart_pass is True, but data.source is folder"):
        Pixels("folder", str(photos), restart_pass=True)
    for part in ("train", "train[:3]"):
        with pytest.raises(UserError, match="held-out samples .* trained on .* data.val_split$"):
            Pixels("hub", str(photos), val_split=part).setup("fit")
    with pytest.raises(UserError, match="data.column 'image' is of the hub and of shards"):
        Pixels("folder", str(photos), column="image")
    with pytest.raises(UserError, match="data.curation.scores, which names the scores, is missing"):
        Pixels("shards", str(photos), curation=Curation(fraction=0.3))


@pytest.mark.parametrize(("train", "val"), [("train", "val"), ("Training", "validation")])
def test_a_folder_with_train_and_val_is_divided_so(photos: Path, train: str, val: str) -> None:
    (photos / val).mkdir()
    (photos / "c").rename(photos / val / "c")
    (photos / train).mkdir()
    for name in ("a", "b"):
        (photos / name).rename(photos / train / name)
    data = pixels(photos, val_images=N)
    assert trained(data, N // 4) == {key_of(name) for name in names_of(photos / train)}
    found = {name for batch in data.val_dataloader() for name in batch["name"]}
    assert found == set(names_of(photos / val))


@pytest.mark.parametrize(
    "classes",
    [("dev", "training", "cat"), ("train", "training"), ("val", "valid", "train"), ("val",)],
)
def test_classes_may_be_called_as_splits_are(photos: Path, classes: tuple[str, ...]) -> None:
    names = dict(zip("abc", (*classes, "x", "y"), strict=False))
    for name, new in names.items():
        (photos / name).rename(photos / new)
    data = pixels(photos, val_images=1)
    data.setup("fit")
    assert data.training_size() == N - 1


def test_pictures_beside_train_and_val_are_not_left_out_silently(photos: Path) -> None:
    for name, new in zip("ab", ("train", "val"), strict=True):
        (photos / name).rename(photos / new)
    with pytest.raises(
        UserError, match="train/ and val/ beside .c/., whose pictures are in neither"
    ):
        pixels(photos).setup("fit")
    pixels(photos / "train", val_path=str(photos / "val")).setup("fit")


@pytest.mark.parametrize("test", ["test", "Testing"])
def test_pictures_to_test_on_are_not_trained_on(photos: Path, test: str) -> None:
    """Also where there are none to validate on; a probe on them would be of what was seen."""
    (photos / "train").mkdir()
    for name in "ab":
        (photos / name).rename(photos / "train" / name)
    (photos / "c").rename(photos / test)
    data = pixels(photos, val_images=1)
    data.setup("fit")
    assert data.training_size() == len(names_of(photos / "train")) - 1
    (photos / "train" / "a").rename(photos / "more")
    if test == "test":
        with pytest.raises(UserError, match="train/ and test/ beside .more/., whose pictures"):
            pixels(photos).setup("fit")


# --- unusable images --------------------------------------------------------------------------


def listed(photos: Path) -> list[str]:
    return sorted((photos.parent / "run" / "bad_files.txt").read_text().splitlines())


BAD = ["a/00.png", "b/01.png", "c/02.png", "a/03.png", "b/04.png"]
LINES = sorted(f"{name}\tno JPEG, PNG, WebP, TIFF or BMP" for name in BAD)


def train_some(photos: Path) -> None:
    data = pixels(photos, val_images=1)
    trained(data, 4 * N)
    assert len(data.bad) in (4, 5)  # one of them may be the one that is held out


def test_bad_images_are_listed_once(photos: Path) -> None:
    """Met in many passes, by several processes at once and by a later run."""
    damage(photos, *BAD)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_some, args=(photos,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    data = pixels(photos, val_images=1)
    trained(data, 2 * N)
    list(data.val_dataloader())
    assert listed(photos) == LINES
    assert data.bad_reasons == {"no JPEG, PNG, WebP, TIFF or BMP": 5}


def test_a_name_of_any_bytes_is_listed(photos: Path) -> None:
    (photos / "a" / "00.png").rename(photos / "a" / b"caf\xe9.png".decode(errors="surrogateescape"))
    data = pixels(photos, max_megapixels=1e-5)
    batches = iter(data.val_dataloader())
    with pytest.raises(UserError, match="none of 27 images can be used"):
        trained(data, 1)
    with pytest.raises(UserError, match="none of 3 images can be used"):
        next(batches)
    text = (photos.parent / "run" / "bad_files.txt").read_bytes()
    assert b"a/caf\xe9.png\tover 1e-05 megapixels\n" in text
    assert text.count(b"\n") == N


def test_too_many_bad_images_stop_the_run(photos: Path) -> None:
    damage(photos, *BAD)
    data = pixels(photos, max_bad=0.1)
    with pytest.raises(UserError) as stopped:
        trained(data, 4 * N)
    text = str(stopped.value)
    assert "of 27 images are unusable" in text and "data.max_bad 0.1" in text and "\n" not in text
    assert "no JPEG, PNG, WebP, TIFF or BMP" in text
    assert len(listed(photos)) in (3, 4, 5)


@pytest.mark.parametrize("max_bad", [0.2, None])
def test_a_few_bad_images_do_not(photos: Path, max_bad: float | None) -> None:
    damage(photos, *BAD)
    trained(pixels(photos, max_bad=max_bad), 4 * N)
    assert len(listed(photos)) in (4, 5)


def test_a_part_of_the_images_stops_a_run_only_when_it_is_clear(photos: Path) -> None:
    """Each of many processes judges by its own, at every step: chance must not stop one of them."""
    data = pixels(photos, max_bad=0.001)
    names = [f"{i}.png" for i in range(50)]
    data.bad |= dict.fromkeys(names, "damaged")
    data.judge(names[:42], 20_000, 1_000_000)  # 20 are expected, and 42 were 5 deviations more
    with pytest.raises(UserError, match="43 of 20000 images are unusable"):
        data.judge(names[:43], 20_000, 1_000_000)
    data.judge(names[:20], 20_000, 20_000)
    with pytest.raises(UserError, match="21 of 20000 images are unusable"):
        data.judge(names[:21], 20_000, 20_000)  # all of them were seen


def test_predicting_first_leaves_nothing_held_out_to_train_on(photos: Path) -> None:
    data = pixels(photos, "predict")
    assert len(data.evaluation_set("predict")) == N
    data.setup("fit")
    alone = pixels(photos)
    assert data.training_size() == alone.training_size() == N - 3
    assert data.names_of("val") == alone.names_of("val")
    assert len(data.evaluation_set("val")) == 3


def test_bad_held_out_images_are_no_share_of_the_training_ones(photos: Path) -> None:
    apart = photos.parent / "apart"
    (photos / "a").rename(apart)
    damage(apart, *(path.name for path in sorted(apart.iterdir())[:8]))
    data = pixels(photos, max_bad=0.1, val_path=str(apart), val_images=10)
    for _ in data.val_dataloader():
        pass
    trained(data, N)
    assert len(data.bad) == 8 and len(listed(photos)) == 8
