"""What a head may ask of the framework: parts of the features, histories of frames, no image."""

from __future__ import annotations

import importlib
import linecache
import shutil
import sys
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError
from traced_memory import traced

from pixio_lightning import Backbone, Features, Head, SampleData
from pixio_lightning.cli.main import main
from pixio_lightning.data import BadImage, Sample, Samples
from pixio_lightning.errors import UserError
from pixio_lightning.models import Reads
from pixio_lightning.training import results
from pixio_lightning.training.callbacks import EvaluationLog, feature_cache
from pixio_lightning.training.callbacks.feature_store import Store, Writer

SIZE, FRAMES, HISTORY = 32, 7, 3
TINY = {"img_size": SIZE, "embed_dim": 24, "depth": 2, "num_heads": 2}
read: list[str] = []


class Histories:
    """Every three frames in a row, of which the middle one may be broken."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __len__(self) -> int:
        return FRAMES

    def name(self, index: int) -> str:
        return f"step/{index}"

    def frames(self, index: int) -> list[str]:
        return [f"frame/{max(index - back, 0)}" for back in (2, 1, 0)]

    def frame(self, name: str) -> np.ndarray:
        read.append(name)
        if name == self.broken:
            raise BadImage("torn")
        generator = np.random.default_rng(int(name.removeprefix("frame/")))
        return generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def load(self, index: int) -> Sample:
        return {"target": np.float32([index])}

    def digest(self) -> str:
        return f"histories{self.broken}"


class Numbers:
    """Samples without an image."""

    def __len__(self) -> int:
        return 3

    def name(self, index: int) -> str:
        return f"number/{index}"

    def frames(self, index: int) -> list[str]:
        return []

    def frame(self, name: str) -> np.ndarray:
        raise AssertionError("there are none")

    def load(self, index: int) -> Sample:
        return {"target": np.float32([index])}

    def digest(self) -> str:
        return "numbers"


class HistoryData(SampleData):
    def __init__(self, *, broken: str = "", **loading: Any) -> None:
        super().__init__(batch_size=4, num_workers=0, steps_per_epoch=1, **loading)
        self.broken = broken

    def open(self, split: str) -> Samples:
        return Histories(self.broken) if split == "train" else Numbers()


class Step(Head):
    """Which step of seven a history ends with; evaluated on numbers alone."""

    monitor = ("val/score", "min")

    def __init__(self, backbone: Backbone, *, part: Reads = "cls", **keys: Any) -> None:
        super().__init__(backbone, **keys)
        self.part = part

    @property
    def reads(self) -> Reads:
        return self.part

    def build(self, backbone: Backbone) -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(HISTORY * backbone.embed_dim, 1)

    def forward(self, features: Features, batch: dict[str, Any]) -> Tensor:
        assert self.decoder is not None
        if self.part == "nothing":
            assert features.layers == ()
            return torch.zeros_like(batch["target"]) + next(self.decoder.parameters()).sum()
        return self.decoder(features.pooled.unflatten(0, (-1, HISTORY)).flatten(1))

    def loss(self, prediction: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(prediction, batch["target"])}

    def validation_loss(self, prediction: Tensor, batch: dict[str, Any]) -> None:
        return None

    def predicted(self, batch: dict[str, Any]) -> Tensor:
        return batch["target"] + 1 if "image" not in batch else super().predicted(batch)

    def metrics(self) -> MeanSquaredError:
        return MeanSquaredError()


def head(**keys: Any) -> Step:
    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    return Step(backbone, **keys)


def fit(
    folder: Path, model: Head, data: L.LightningDataModule, steps: int = 2, **options: Any
) -> dict[str, Tensor]:
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, data)
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith("decoder")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    read.clear()
    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_histories_share_their_frames_in_the_cache(cache: Path, tmp_path: Path) -> None:
    plain = fit(tmp_path, head(), HistoryData())
    assert len(read) == 8 * HISTORY
    read.clear()
    cached = fit(tmp_path, head(cache=True), HistoryData())
    assert sorted(read) == sorted(f"frame/{i}" for i in range(FRAMES))
    read.clear()
    again = fit(tmp_path, head(cache=True), HistoryData())
    assert not read
    for name, tensor in plain.items():
        torch.testing.assert_close(cached[name], tensor)
        assert torch.equal(again[name], cached[name])


def test_features_of_another_version_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, head(cache=True), HistoryData())
    read.clear()
    monkeypatch.setattr(feature_cache, "_CODE", "another version")
    fit(tmp_path, head(cache=True), HistoryData())
    assert len(read) == FRAMES


def test_features_of_data_whose_source_has_changed_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plug-in under work has one version all the time."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "plugged_histories.py"

    def encoded(text: str) -> int:
        file.write_text(f"from {__name__} import HistoryData\n\n\n{text}")
        sys.modules.pop(file.stem, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        read.clear()
        fit(tmp_path, head(cache=True), importlib.import_module(file.stem).Own())
        return len(read)

    assert encoded("class Own(HistoryData):\n    pass\n") == FRAMES
    assert encoded("class Own(HistoryData):\n    pass\n") == 0
    prepare = "def prepare(self, sample):\n        return super().prepare(sample)\n"
    assert encoded(f"class Own(HistoryData):\n    {prepare}") == FRAMES


def test_data_give_images_again_after_a_cached_training(tmp_path: Path) -> None:
    """Another head would read features that are not its own backbone's."""
    data = HistoryData()
    fit(tmp_path, head(cache=True), data)
    read.clear()
    plain = fit(tmp_path, head(), data)
    assert len(read) == 8 * HISTORY
    for name, tensor in fit(tmp_path, head(), HistoryData()).items():
        assert torch.equal(plain[name], tensor)


def test_features_of_a_head_whose_source_has_changed_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it shows the backbone something of its own; `input_config` may be forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "plugged_steps.py"

    def encoded(text: str) -> int:
        file.write_text(f"from {__name__} import Step\n\n\nclass Own(Step):\n    {text}\n")
        sys.modules.pop(file.stem, None)
        importlib.invalidate_caches()
        linecache.clearcache()
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        read.clear()
        backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
        own = importlib.import_module(file.stem).Own(backbone, cache=True)
        fit(tmp_path, own, HistoryData())
        return len(read)

    assert encoded("first = 1") == FRAMES
    assert encoded("second = 2") == 0
    config = "input_config = {}\n    def inputs(self, images):\n        "
    assert encoded(f"{config}return super().inputs(images)") == FRAMES
    assert encoded(f"{config}return super().inputs(images)") == 0
    assert encoded(f"{config}return super().inputs(images) / 2") == FRAMES


def test_inputs_without_their_config_are_one_line(tmp_path: Path) -> None:
    class Halved(Step):
        def inputs(self, images: Tensor) -> Tensor:
            return super().inputs(images) / 2

    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    with pytest.raises(UserError, match="Halved overrides `inputs`, but not `input_config`, by"):
        fit(tmp_path, Halved(backbone, cache=True), HistoryData())


@pytest.mark.parametrize(
    ("promised", "returned", "said"),
    [
        (("zero", "mean"), ("zero",), "returns 'zero', but its `baseline_names` says 'zero', 'me"),
        (("zero",), ("zero", "mean"), "returns 'zero', 'mean', but its `baseline_names` says 'ze"),
        ((), ("zero",), "returns 'zero', but its `baseline_names` says none"),
    ],
)
def test_baselines_of_other_names_than_were_promised_are_refused(
    promised: tuple[str, ...], returned: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    class Beside(Step):
        baseline_names = promised

        def baselines(self, batch: dict[str, Any]) -> dict[str, Tensor]:
            return {name: torch.zeros_like(batch["target"]) for name in returned}

    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    with pytest.raises(UserError, match=said):
        fit(tmp_path, Beside(backbone), HistoryData())


def test_a_baseline_may_have_nothing_to_say_of_a_batch(tmp_path: Path) -> None:
    class Sometimes(Step):
        baseline_names = ("first",)

        def baselines(self, batch: dict[str, Any]) -> dict[str, Tensor | None]:
            first = bool((batch["target"] == 0).any())
            return {"first": torch.zeros_like(batch["target"]) if first else None}

    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    model = Sometimes(backbone)
    fit(tmp_path, model, HistoryData(val_batch_size=1))
    assert model.outcome is not None
    assert (model.outcome.n, model.outcome.baselines) == (3, {"first": {"score": 0.0}})


class PlainData(L.LightningDataModule):
    """Someone's own: it says no more than it must."""

    batch_size = 2

    def batches(self) -> DataLoader:
        image = torch.zeros(HISTORY, 3, SIZE, SIZE, dtype=torch.uint8)
        samples = [{"image": image, "target": torch.tensor([float(i)]), "key": i} for i in range(4)]
        return DataLoader(samples, batch_size=2)  # type: ignore[arg-type]

    train_dataloader = val_dataloader = batches


def test_data_of_one_s_own_need_no_weight_and_no_name(tmp_path: Path) -> None:
    model = head()
    fit(tmp_path, model, PlainData(), callbacks=[EvaluationLog()])
    assert model.outcome is not None and model.outcome.n == 4
    line = results.read(tmp_path)[-1]
    assert (line["dataset"], line["seed"]["data"]) == ("PlainData", None)


def test_data_of_one_s_own_run_under_the_command_line(tmp_path: Path) -> None:
    words = ["fit", "--model", f"{__name__}.Step", "--data", f"{__name__}.PlainData"]
    words += [
        "--model.backbone",
        f"{{name: pixio_vits16, weights: 'random:1', model_args: {TINY}}}",
    ]
    words += ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--out", str(tmp_path)]
    assert main(words) == 0
    last, best = results.read(tmp_path)[-1], tmp_path / "best.ckpt"
    assert last["n"] == 4 and last["dataset"] == "PlainData" and best.exists()


def test_statistics_of_data_that_have_no_loader_for_them_are_one_line(tmp_path: Path) -> None:
    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    with pytest.raises(UserError, match="but PlainData has no statistics_dataloader"):
        fit(tmp_path, Counting(backbone), PlainData())


def test_a_head_that_is_not_built_predicts_nothing() -> None:
    with pytest.raises(UserError, match="Step is not built yet.* pixio_lightning.load"):
        head().predict(torch.zeros(1, HISTORY, 3, SIZE, SIZE, dtype=torch.uint8))


def test_what_must_be_known_of_data_is_named_where_there_is_none() -> None:
    class Sized(Step):
        data_attributes = ("steps",)

    class Ranged(Step):
        evaluation_attributes = ("nearest",)

        def metrics(self) -> MeanSquaredError:
            return MeanSquaredError(num_outputs=self.evaluation_info["nearest"])

    backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
    for kind, name in ((Sized, "steps"), (Ranged, "nearest")):
        said = f"{kind.__name__} must know {name} of its data, but there is no data module: give"
        with pytest.raises(UserError, match=said):
            kind(backbone).configure_model()


class Pictures(Numbers):
    """Samples of one image each."""

    def load(self, index: int) -> Sample:
        image = np.full((SIZE, SIZE, 3), 40 * index, dtype=np.uint8)
        return super().load(index) | {"image": np.stack([image] * HISTORY)}


class PictureData(HistoryData):
    def open(self, split: str) -> Samples:
        return Pictures()


class Centred(Step):
    """Knows the mean of what its backbone makes of the first batch."""

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        return {"mean": self.encode(next(iter(loader))).pooled.mean(0)}


class Counting(Step):
    """Knows how many histories there are."""

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        return {"count": torch.tensor(sum(len(batch["target"]) for batch in loader))}


@pytest.mark.parametrize(("kind", "shared"), [(Centred, False), (Counting, True)])
def test_statistics_of_features_are_of_one_backbone(
    kind: type[Step], shared: bool, cache: Path, tmp_path: Path
) -> None:
    found = []
    for seed in (1, 2, 1):
        args = {"weights": f"random:{seed}", "tune": "frozen", "model_args": TINY}
        model = kind(Backbone("pixio_vits16", **args), cache=True)
        fit(tmp_path, model, PictureData())
        found.append(next(iter(model.statistics.values())))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[1]) == shared
    assert len(list((cache / "features").glob("statistics-*.pt"))) == (1 if shared else 2)


class CountedData(PictureData):
    """Notes the splits whose files are looked at for a digest."""

    def __init__(self) -> None:
        super().__init__()
        self._looked: list[str] = []

    def digest(self, split: str) -> str:
        self._looked.append(split)
        return super().digest(split)


def test_files_are_looked_at_once_in_a_run(cache: Path, tmp_path: Path) -> None:
    data = CountedData()
    for _ in range(2):  # between the runs of a process they may change
        model = Centred(Backbone("pixio_vits16", weights="random:1", model_args=TINY), cache=True)
        fit(tmp_path, model, data)
        assert sorted(data._looked) == ["train", "val"]
        data._looked.clear()


def test_a_store_is_read_again_only_after_something_was_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[Path] = []
    reload = Store.reload

    def counted(store: Store) -> None:
        times.append(store.folder)
        reload(store)

    monkeypatch.setattr(Store, "reload", counted)
    fit(tmp_path, head(cache=True), HistoryData())
    first = len(times)
    fit(tmp_path, head(cache=True), HistoryData())
    assert len(times) - first == 2 < first  # of training and validation, when they are opened


def test_an_entry_of_a_store_takes_little_memory(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    for i in range(2000):
        about = {"target": torch.tensor(i), "size": (256, 256), "grid": (16, 16)}
        writer.add(f"n01440764/n01440764_{i:08d}.JPEG#0", about | {"features": torch.ones(1, 4)})
    writer.add("bad", ("bad", "torn"))
    writer.close()
    store = Store(tmp_path)
    held, _ = traced(lambda: Store(tmp_path))
    assert held / len(store) < 500  # bytes
    last = store["n01440764/n01440764_00001999.JPEG#0"]
    assert isinstance(last, dict) and (last["target"], last["size"]) == (1999, (256, 256))
    assert torch.equal(last["features"], torch.ones(1, 4)) and store["bad"] == ("bad", "torn")


@pytest.mark.parametrize(("part", "tokens"), [("cls", 8), ("patches", 4), ("tokens", 12)])
def test_the_cache_holds_what_the_head_reads(
    part: Reads, tokens: int, cache: Path, tmp_path: Path
) -> None:
    fit(tmp_path, head(cache=True, part=part), HistoryData())
    (folder,) = (cache / "features").iterdir()
    stored = Store(folder)
    assert len(stored) == FRAMES
    entry = stored["frame/0"]
    assert isinstance(entry, dict) and entry["features"].shape == (1, 1, tokens, 24)
    assert "image" not in entry


def test_what_is_read_is_the_same_with_and_without_a_cache() -> None:
    model = head()
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    whole = model.backbone(images)
    for part in ("cls", "patches", "tokens"):
        model.part = part
        found = model.encode_images(images)
        raw = torch.stack([layer.raw_tokens for layer in found.layers], dim=1)
        back = model.backbone.features_from_tokens(raw, found.layers[-1].grid, part)
        torch.testing.assert_close(back, found)
        expected = whole.layers[-1].patches.mean((2, 3)) if part == "patches" else whole.pooled
        torch.testing.assert_close(back.pooled, expected)
        if part == "patches":  # not the mean of no class token, which is no number
            with pytest.raises(ValueError, match="let its `reads` be 'tokens'"):
                found.dense()


def test_a_head_that_reads_nothing_opens_no_store(cache: Path, tmp_path: Path) -> None:
    fit(tmp_path, head(cache=True, part="nothing"), HistoryData())
    assert not (cache / "features").exists()


def test_a_frozen_backbone_encodes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = head(part="tokens")
    images = torch.randint(0, 256, (5, 3, SIZE, SIZE), dtype=torch.uint8)
    at_once = model.encode_images(images)
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    model.images_per_chunk = 2
    torch.testing.assert_close(model.encode_images(images), at_once)
    assert sizes == [2, 2, 1]


def test_a_broken_frame_is_one_bad_sample_and_others_take_its_place(
    cache: Path, tmp_path: Path
) -> None:
    data = HistoryData(broken="frame/6")
    fit(tmp_path, head(cache=True), data)
    assert data.bad == {"step/6": "torn"}


def test_samples_without_image_are_evaluated_without_a_loss(tmp_path: Path) -> None:
    model = head()
    fit(tmp_path, model, HistoryData())
    assert model.outcome is not None
    assert (model.outcome.n, model.outcome.loss) == (3, None)
    assert model.outcome.metrics == {"score": pytest.approx(1.0)}


def test_a_backbone_of_other_channels_than_the_data_is_refused() -> None:
    given = TINY | {"in_chans": 4, "mean": [0.5], "std": [0.5]}
    backbone = Backbone("pixio_vitt16", weights="random", model_args=given)
    head = Head(backbone)
    with pytest.raises(UserError, match="takes images of 4 channels .* SampleData gives 3"):
        head.read_data_attributes(SampleData())

    class Satellites(SampleData):
        channels = 4

    head.read_data_attributes(Satellites())


def test_a_random_backbone_beside_it_reads_the_same_tokens() -> None:
    backbone = Backbone(
        "pixio_vits16", weights="random:1", dense_cls=False, layers=[0, 1], model_args=TINY
    )
    images = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    untrained = Step(backbone, part="tokens").encode_untrained(images)
    assert untrained.dense_cls is False
    assert untrained.dense().shape == backbone(images).dense().shape


class Quantile(Step):
    """With statistics that depend on an argument."""

    def __init__(self, backbone: Backbone, *, share: float, **keys: Any) -> None:
        super().__init__(backbone, **keys)
        self.share = share

    def fit_statistics(self, loader: Any) -> dict[str, Tensor]:
        targets = torch.cat([batch["target"] for batch in loader])
        return {"quantile": targets.quantile(self.share)}


def test_statistics_of_one_setting_are_not_those_of_another(cache: Path, tmp_path: Path) -> None:
    found = []
    for share in (0.0, 1.0, 1.0):
        backbone = Backbone("pixio_vits16", weights="random:1", tune="frozen", model_args=TINY)
        model = Quantile(backbone, share=share, cache=True)
        fit(tmp_path, model, HistoryData())
        found.append(model.statistics["quantile"].item())
    assert found == [0, FRAMES - 1, FRAMES - 1]
    assert len(list((cache / "features").glob("statistics-*.pt"))) == 2
