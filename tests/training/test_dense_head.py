"""Images through windows: which there are, what is put together again, and how much is held."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pixio_heads.depth.data import DepthData
from pixio_heads.depth.head import Depth
from pixio_heads.segmentation.head import Segmentation
from pixio_lightning.errors import UserError
from pixio_lightning.models import sliding_window
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.training.dense_head import DenseHead

SEEN = {"window": 256, "stride": 170}


@pytest.mark.parametrize(
    ("size", "n"),
    [((426, 560), 12), ((375, 1242), 24), ((256, 256), 4), ((170, 256), 2), ((100, 100), 1)],
)
def test_counts_and_coverage(size: tuple[int, int], n: int) -> None:
    """Of NYUv2, KITTI, an image as large as a window, and smaller ones."""
    places = sliding_window.corners(size, **SEEN)
    assert len(places) == n
    covered = torch.zeros(size)
    for top, left in places:
        covered[top : top + 256, left : left + 256] += 1
    assert covered.min() >= 1


def test_windows_that_do_not_overlap_see_an_image_of_their_size_once() -> None:
    assert sliding_window.corners((256, 512), window=256, stride=256) == [(0, 0), (0, 256)]


def cut(images: torch.Tensor, at_once: int = 5) -> torch.Tensor:
    pieces = list(sliding_window.cut(images, **SEEN, at_once=at_once))
    assert all(len(piece) == at_once for piece in pieces[:-1]) and len(pieces[-1]) <= at_once
    return torch.cat(pieces)


@pytest.mark.parametrize("size", [(426, 560), (375, 1242), (100, 300)])
def test_what_is_cut_is_put_together_again(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size)
    pieces = cut(images)
    assert pieces.shape[1:] == (3, 256, 256)
    mean = sliding_window.Mean(2, size, **SEEN)
    for piece in pieces.split(7):
        mean.add(piece)
    assert torch.allclose(mean.result(), images, atol=1e-6)
    assert torch.equal(pieces, torch.cat([cut(image[None], 100) for image in images]))


def test_the_border_is_zero_and_overlaps_are_averaged() -> None:
    pieces = cut(torch.ones(1, 1, 200, 300))
    assert pieces[-1, 0, 30:].sum() == 0  # the last row of windows starts at 170
    mean = sliding_window.Mean(1, (200, 300), **SEEN)
    mean.add(torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 256, 256))
    merged = mean.result()
    assert merged[0, 0, 0, 0] == 0 and merged[0, 0, 199, 299] == 2 and merged[0, 0, 199, 200] == 1.5


def test_blended_windows_leave_no_seam() -> None:
    """Windows that each see something else: a mean has steps at their borders, a blend none."""
    size, window, stride = (64, 200), 64, 42
    steps = []
    for blend in (False, True):
        mean = sliding_window.Mean(1, size, window=window, stride=stride, blend=blend)
        layout = {"window": window, "stride": stride, "inside": blend}
        count = len(sliding_window.corners(size, **layout))
        values = torch.arange(count).remainder(2).float()
        mean.add(values[:, None, None, None].expand(count, 1, window, window))
        found = mean.result()
        assert found.min() >= 0 and found.max() <= 1
        steps.append(float(found.diff(dim=-1).abs().max()))
    assert steps[1] < 0.1 < 0.4 < steps[0]
    same = sliding_window.Mean(1, size, window=window, stride=stride, blend=True)
    same.add(torch.full((count, 1, window, window), 3.0))
    assert torch.allclose(same.result(), torch.full((1, 1, *size), 3.0))


def test_windows_of_half_precision_are_added_in_full() -> None:
    mean = sliding_window.Mean(1, (64, 200), window=64, stride=16, blend=True)
    count = len(sliding_window.corners((64, 200), window=64, stride=16, inside=True))
    mean.add(torch.full((count, 1, 64, 64), 0.7, dtype=torch.bfloat16))
    expected = torch.full((1, 1, 64, 200), 0.7).bfloat16().float()
    torch.testing.assert_close(mean.result(), expected)


@pytest.mark.parametrize("length", [10, 64, 65, 96, 128, 200, 1111])
def test_windows_that_are_blended_lie_inside(length: int) -> None:
    """Over the border is nothing but zeros: what a window says there is of another picture."""
    starts = sliding_window.origins(length, window=64, stride=32, inside=True)
    assert starts[0] == 0 and starts[-1] == max(0, length - 64)
    assert all(0 < b - a <= 32 for a, b in pairwise(starts))


def test_a_stride_beyond_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves pixels out"):
        sliding_window.origins(100, window=16, stride=17)


# --- heads ------------------------------------------------------------------------------------


def head(kind: type[DenseHead], **keys: Any) -> DenseHead:
    backbone = Backbone(
        "pixio_vitt16",
        weights="random:0",
        model_args={"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32},
    )
    made = kind(backbone, **{"window": 32, "stride": 20} | keys)
    made.data_info = {"num_classes": 5, "class_names": list("abcde"), "max_depth": 10.0}
    made.evaluation_info = {"min_depth": 1e-3, "max_depth": 10.0}
    torch.manual_seed(0)
    made.configure_model()
    # At its start the map is nearly flat: nothing would tell one window from another.
    torch.nn.init.normal_(made.decoder.projection.weight)
    return made.eval()


both = pytest.mark.parametrize("kind", [Depth, Segmentation])


@both
def test_chunks_change_nothing_and_bound_what_is_encoded(kind: type[DenseHead]) -> None:
    images = torch.randint(0, 256, (2, 3, 45, 70), dtype=torch.uint8)  # 12 windows each
    whole = head(kind, windows_per_chunk=1000)
    expected = whole.predict(images)
    batch = {"image": images, "size": (45, 70)}
    with torch.no_grad():
        features = whole.encode(batch)
        assert len(features.tokens) == 24
        assert torch.allclose(whole(features, batch), expected, atol=1e-6)
    for most in (1, 5, 24):
        chunked = head(kind, windows_per_chunk=most)
        seen: list[int] = []
        for module in (chunked.backbone.vit.blocks[0], chunked.decoder.projection):
            module.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(len(x[0])))
        assert torch.allclose(chunked.predict(images), expected, atol=1e-6)
        assert max(seen) == most
        with torch.no_grad():
            seen.clear()
            again = chunked.encode(batch)
            assert all(
                torch.allclose(a.raw_tokens, b.raw_tokens, atol=1e-5)
                for a, b in zip(again.layers, features.layers, strict=True)
            )
            assert torch.allclose(chunked(again, batch), expected, atol=1e-6)
            assert max(seen) == most


@both
def test_an_image_as_large_as_a_window_is_seen_through_four(kind: type[DenseHead]) -> None:
    """As the published evaluation starts windows: at 0 and at the stride, in each direction."""
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    four, one = head(kind), head(kind, stride=32)
    with torch.no_grad():
        batch = {"image": images, "size": (32, 32)}
        assert len(four.encode(batch).tokens) == 4 and len(one.encode(batch).tokens) == 1
        normal = one.backbone.normalize(images)
        once = one.decode_crop(one.backbone(normal, normalized=True), (32, 32))
    shown = one.predict(images)
    if kind is Segmentation:
        once, shown = once.softmax(1), shown.softmax(1)
    assert torch.allclose(shown, once, atol=1e-6)
    assert not torch.allclose(four.predict(images), one.predict(images), atol=1e-3)


@pytest.mark.parametrize("size", [(24, 16), (32, 48), (64, 64), (300, 200)])
def test_what_is_shown_has_no_seam(size: tuple[int, int]) -> None:
    """Also where evaluation lays windows side by side, and of images smaller than a window."""
    depth = head(Depth, stride=32)
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with torch.no_grad():
        shown = depth.predict(picture)
    assert min(shown.shape[-2:]) in (32, 48, 64)  # a window, or up to two of them
    # Of 10 metres; windows side by side leave steps of 8 and more.
    assert max(float(shown.diff(dim=dim).abs().max()) for dim in (-1, -2)) < 2


def test_a_photograph_is_shown_at_the_size_of_the_training_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metres and classes are known at one scale; a head that was told of none takes two windows."""
    for i in range(3):
        size = (60, 80) if i else (110, 90)
        for kind, array in (("images", np.zeros((*size, 3), np.uint8)), ("depth", None)):
            path = tmp_path / kind / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full(size, 2000, np.uint16) if array is None else array).save(path)
    depth = head(Depth)
    picture = torch.zeros(1, 3, 400, 300, dtype=torch.uint8)

    def shown(image: Tensor) -> tuple[int, ...]:
        with torch.no_grad():
            return tuple(depth.predicted_to_show({"image": image}).shape[1:])

    assert (
        shown(picture) == (85, 64)
        and shown(picture[..., :50, :40]) == (50, 40)
        and shown(picture[..., :10, :8]) == (40, 32)
    )
    keys: dict[str, Any] = {"batch_size": 2, "num_workers": 0, "max_depth": 10.0}
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, default_root_dir=tmp_path)
    data = DepthData("folder", str(tmp_path), image_size=48, short_side=48, **keys)
    with pytest.raises(UserError, match="data.short_side 48 is for training images alone"):
        trainer.fit(depth, data)
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, default_root_dir=tmp_path)
    trainer.fit(depth, DepthData("folder", str(tmp_path), image_size=48, **keys))
    assert "trained on crops of 48 px, evaluated through windows of 32" in capsys.readouterr().out
    side = int(depth.statistics["short_side"])
    assert side in (60, 90)  # of two images, the third is held out
    depth.eval()
    assert shown(picture) == (round(400 * side / 300), side)
    assert shown(picture[..., :10, :8]) == (40, 32)
    depth.predict_side = 48
    assert shown(picture) == (64, 48)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"window": 40}, "model.window is 40, but expected a multiple of 16"),
        ({"stride": 33}, "model.stride is 33, but expected 1 to model.window, 32"),
        ({"stride": 0}, "model.stride is 0, but"),
        ({"windows_per_chunk": 0}, "model.windows_per_chunk is 0, but expected at least 1"),
    ],
)
def test_windows_that_cannot_be(keys: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        head(Depth, **keys)


TWELVE_MEGAPIXELS = """
import re, sys, torch
sys.path[:0] = sys.argv[1].split(":")
torch.set_num_threads(1)
from pixio_heads.depth.head import Depth
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.dense_decoders import DPTDecoder

sizes = {"embed_dim": 64, "depth": 4, "num_heads": 2, "img_size": 256}
backbone = Backbone("pixio_vitt16", weights="random:0", layers="quarters", model_args=sizes)
head = Depth(backbone, decoder=lambda a, b, taps: DPTDecoder(
    a, b, taps, features=16, stages=(16, 16, 16, 16)))
head.data_info = {"max_depth": 10.0}
head.evaluation_info = {"min_depth": 1e-3, "max_depth": 10.0}
head.configure_model()


def peak():  # of this program alone: getrusage also counts what its parent held when it was forked
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1e6


head.predict(torch.zeros(1, 3, 256, 256, dtype=torch.uint8))
libraries = peak()
depth = head.predict(torch.zeros(1, 3, 3000, 4000, dtype=torch.uint8))
assert depth.shape == (1, 3000, 4000) and bool((depth > 0).all())
print(peak() - libraries)
"""


@pytest.mark.slow  # that chunks bound what is held is shown above
def test_a_photograph_of_twelve_megapixels_takes_little_memory() -> None:
    """432 windows with a map each: all at once they were 113 MB of maps and 4 GB of the decoder."""
    line = [sys.executable, "-c", TWELVE_MEGAPIXELS, ":".join(sys.path)]
    found = subprocess.run(line, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) < 0.9  # GB beyond what a picture of one window takes
