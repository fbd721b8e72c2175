"""Windows, baselines, pictures and files of the segmentation head."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pixio_heads.segmentation.head import Segmentation
from pixio_lightning.cli.main import main
from pixio_lightning.errors import UserError
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.features import Features, Layer
from pixio_lightning.training import visualize

NAMES = ["sky", "sea", "sand", "rock", "ship"]


@pytest.fixture
def head() -> Segmentation:
    backbone = Backbone(
        "pixio_vitt16",
        weights="random:0",
        model_args={"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
    )
    head = Segmentation(backbone, window=32, stride=20)
    head.data_info = {"num_classes": 5, "class_names": NAMES}
    head.configure_model()
    # At its start the map is nearly flat: nothing would tell one window from another.
    torch.nn.init.normal_(head.decoder.projection.weight)
    return head.eval()


def images(*size: int, count: int = 2) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8)


def test_windows_add_their_soft_max(head: Segmentation) -> None:
    """One window at a time, zero beyond the border, by hand."""
    batch = images(45, 70)
    normal = head.backbone.normalize(batch)
    padded = F.pad(normal, (0, 64, 0, 64))
    total = torch.zeros(2, 5, 45 + 64, 70 + 64)
    with torch.no_grad():
        for top in (0, 20, 40):
            for left in (0, 20, 40, 60):
                window = padded[..., top : top + 32, left : left + 32]
                features = head.backbone(window, normalized=True)
                shares = head.decoder(features, (32, 32)).softmax(1)
                total[..., top : top + 32, left : left + 32] += shares
    expected = total[..., :45, :70]
    scores = head.predict(batch)
    assert torch.allclose(scores.softmax(1), expected / expected.sum(1, keepdim=True), atol=1e-5)
    assert (scores.argmax(1) == expected.argmax(1)).float().mean() > 0.999
    assert len(scores.argmax(1).unique()) > 1
    # The scores are log-probabilities, so that their loss is that of the mixture.
    assert torch.allclose(scores.exp().sum(1), torch.ones(2, 45, 70), atol=1e-5)


def test_soft_max_before_the_mean_is_not_the_mean_before_soft_max(head: Segmentation) -> None:
    """One window is sure of one class, three lean to another: logits and shares disagree."""
    strong, weak = torch.tensor([[40.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    logits = torch.stack([strong, weak, weak, weak]).view(4, 2)
    assert logits.mean(0).argmax() == 0 and logits.softmax(1).mean(0).argmax() == 1

    class Fixed(torch.nn.Module):
        def forward(self, features: object, size: tuple[int, int]) -> Tensor:
            return logits[:, :, None, None].expand(4, 2, *size)

    head.decoder, head.window, head.stride = Fixed(), 32, 16
    features = Features((Layer(torch.zeros(4, 1, 1), torch.zeros(4, 1, 1), 0, (1, 1)),), False)
    scores = head(features, {"size": (32, 24)})  # windows at rows 0 and 16, columns 0 and 16
    assert scores.shape == (1, 2, 32, 24)
    assert scores[0, :, 20, 20].argmax() == 1 and scores[0, :, 0, 0].argmax() == 0


def test_training_never_cuts(head: Segmentation) -> None:
    head.train()
    batch = {"image": images(64, 64), "size": (64, 64)}
    features = head.encode(batch)
    assert features.tokens.shape[0] == 2 and features.layers[-1].grid == (4, 4)
    assert torch.equal(head(features, batch), head.decoder(features, (64, 64)))


def test_majorities_are_those_of_the_labels(head: Segmentation) -> None:
    """Of images of three sizes: 1 to the left, mostly 3 to the right, 255 in one corner.

    The most frequent class is that of most pixels, not of most images.
    """
    first = torch.ones(2, 64, 64, dtype=torch.uint8)
    first[:, :, 32:] = 3
    first[:, :8, :8] = 255
    other = torch.ones(1, 128, 64, dtype=torch.uint8)
    other[:, :16, :8] = 255
    found = head.fit_statistics([{"target": first}, {"target": other}])
    assert found["majority"] == 1
    large = torch.full((1, 640, 640), 2, dtype=torch.uint8)
    assert head.fit_statistics([{"target": first}, {"target": large}])["majority"] == 2
    expected = torch.ones(64, 64, dtype=torch.long)
    expected[:, 32:] = 3
    assert torch.equal(found["majority_map"], expected)  # where no pixel has a class: the majority
    head.statistics = found
    guesses = head.baselines({"target": torch.zeros(2, 32, 48, dtype=torch.uint8)})
    assert torch.equal(guesses["majority"], torch.ones(2, 32, 48, dtype=torch.long))
    assert guesses["majority_map"].shape == (2, 32, 48)
    assert (guesses["majority_map"][:, :, :24] == 1).all()
    assert (guesses["majority_map"][:, :, 24:] == 3).all()


def test_classes_that_never_occur_are_named(
    head: Segmentation, capsys: pytest.CaptureFixture
) -> None:
    """Also one that a map of 64 pixels would miss."""
    target = torch.zeros(2, 256, 256, dtype=torch.uint8)
    target[:, 100:] = 3
    target[1, 1, 1] = 4
    head.fit_statistics([{"target": target}])
    said = capsys.readouterr().out
    assert said == "2 of 5 classes are in none of 2 training samples: 'sea', 'sand'\n"


@pytest.mark.parametrize(("other", "said"), [(0, "show sky"), (255, "Is that the foreground?")])
def test_masks_of_a_single_class_are_refused(other: int, said: str, head: Segmentation) -> None:
    """255 is ignored: every figure would be 1, of the model and of what never looks."""
    target = torch.zeros(2, 64, 64, dtype=torch.uint8)
    target[:, :32] = other
    with pytest.raises(UserError, match=re.escape(said)):
        head.fit_statistics([{"target": target}])


def test_pictures_show_classes_and_name_those_that_occur(head: Segmentation) -> None:
    target = torch.full((1, 32, 32), 2)
    target[:, :8] = 255
    scores = torch.zeros(1, 5, 32, 32)
    scores[:, 2] = 1
    scores[:, 4, :, 16:] = 2
    batch = {"image": images(32, 32, count=1), "target": target.to(torch.uint8)}
    panel = head.picture([batch], [scores])
    colours = visualize.class_colours(5)
    _, truth, guess, error = panel.rows[0]
    assert (truth[:, :8] == 128).all() and (truth[:, 8:] == colours[2][:, None, None]).all()
    assert torch.equal(guess[:, 20, 20], colours[4]) and torch.equal(guess[:, 20, 4], colours[2])
    assert (error[:, :8] == 128).all() and not error[:, 8:, :16].any()
    assert (error[:, 8:, 16:] == colours[4][:, None, None]).all()
    assert [swatch.name for swatch in panel.swatches] == ["sand", "ship"]


def test_files_hold_indices_and_colours(head: Segmentation, tmp_path: Path) -> None:
    scores = torch.randn(2, 5, 20, 30)
    batch = {"image": images(20, 30), "name": ["a/b.jpg", "c.jpg"]}
    head.write(scores, batch, tmp_path)
    with Image.open(tmp_path / "a/b.jpg.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), scores[0].argmax(0).numpy())
        shown = np.asarray(image.convert("RGB"))
    colours = visualize.class_colours(5).numpy()
    assert np.array_equal(shown, colours[scores[0].argmax(0).numpy()])
    assert (tmp_path / "c.jpg_colour.png").exists()


def test_many_classes_have_colours_apart_and_lines_in_the_legend() -> None:
    colours = visualize.class_colours(150)
    assert (
        torch.equal(colours[:16], visualize.class_colours(16)) and len(colours.unique(dim=0)) == 150
    )
    swatches = tuple(
        visualize.Swatch(f"class {i}", tuple(c)) for i, c in enumerate(colours.tolist())
    )
    rows = [[images(32, 32, count=1)[0]]]
    plain = visualize.compose(visualize.Panel(rows, ["image"]))
    long = visualize.compose(visualize.Panel(rows, ["image"], swatches=swatches))
    assert long.width == plain.width and long.height > plain.height + 50 * 24
    found = {tuple(c) for c in np.asarray(long).reshape(-1, 3).tolist()}
    assert found >= {swatch.colour for swatch in swatches}


def test_a_checkpoint_knows_its_classes_where_a_folder_of_photographs_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from skimage import data

    monkeypatch.setenv("PIXIO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "in/cats").mkdir(parents=True)
    Image.fromarray(data.chelsea()).save(tmp_path / "in/cats/chelsea.jpg")
    words = ["-c", "segmentation/demo", "-c", "with/debug", "--out", str(tmp_path / "run")]
    words += ["--data.scenes", "{train: 2, held_out: 2, views: 2, size: 64}"]
    words += ["--panels.every_n_steps", "0"]
    folder = ["--data.source", "folder", "--data.path", str(tmp_path / "in")]
    assert main(["fit", *words]) == 0
    assert main(["predict", *words, *folder]) == 0
    found = Image.open(tmp_path / "run/predictions/cats/chelsea.jpg.png")
    assert found.size == data.chelsea().shape[1::-1] and np.asarray(found).max() < 16
    assert main(["fit", *words, *folder, "--fresh"]) == 2
    assert "give data.num_classes" in capsys.readouterr().err
