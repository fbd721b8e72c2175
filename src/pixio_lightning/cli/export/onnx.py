"""`pixio export --to onnx`: an encoder, or a trained head with its encoder, for onnxruntime.

Shapes: B images, H x W pixels of an image, K class tokens, C width, h x w patches.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pixio_lightning.errors import UserError
from pixio_lightning.files import written_aside
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.models.weights.shipped import located
from pixio_lightning.training.checkpoints.checkpoint_io import read_plain
from pixio_lightning.training.checkpoints.load import WeightsNeeded, class_of, load
from pixio_lightning.training.dense_head import DenseHead
from pixio_lightning.training.head import Head
from pixio_lightning.training.run_folder import chosen_checkpoint

# How far what onnxruntime computes may be from what torch does, of the greatest value.
TOLERANCE = 1e-4
_MOST_BYTES = 2 * 10**9
_CHECKED = (1, 3)  # batches that are compared


class EncoderGraph(nn.Module):
    """Bytes of images to `patches` `(B, C, h, w)` and `cls` `(B, K, C)` of the last tapped block.

    Args:
        backbone: Loaded.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Encode uint8 images `(B, 3, H, W)`."""
        layer = self.backbone(images).layers[-1]
        found = {"patches": layer.patches}
        return found | ({"cls": layer.cls} if self.backbone.n_cls_tokens else {})


class HeadGraph(nn.Module):
    """Bytes of images to what a head predicts for them; a dense head sees them as one window.

    Args:
        head: With its weights.
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def prepare(self, size: tuple[int, int]) -> None:
        """Make images of a size `(height, width)` the windows of a dense head, which are square.

        Raises:
            UserError: The head predicts nothing from a single image.
        """
        self.head.prepared(np.zeros((*size, 3), np.uint8))
        if isinstance(self.head, DenseHead):
            self.head.window = size[0]

    def forward(self, images: Tensor) -> Any:
        """Predict for uint8 images `(B, 3, H, W)`."""
        head = self.head
        features = head.backbone(head.inputs(images), normalized=True)
        if isinstance(head, DenseHead):
            return head.from_mean(head.decode_window(features))
        size = (images.shape[-2], images.shape[-1])
        return head(features.only(head.reads), {"image": images, "size": size})


def export(
    source: str, out: Path, *, image_size: int | None = None, weights: str | None = None
) -> dict[str, Any]:
    """Write `out`, compare it with torch, and return what it is.

    Args:
        source: A checkpoint or a run folder, whose head is exported with its encoder; or weights of
            an encoder.
        out: A new file that ends in `.onnx`.
        image_size: Side of the images in pixels; None takes the one that a head evaluates, of a
            dense head a window's, else height and width that the encoder was made for.
        weights: Of the frozen backbone of a head, where its own are not at hand.

    Raises:
        UserError: A package is missing, the file exists, the size does not fit, or the model has no
            such form.
    """
    _require()
    if out.suffix != ".onnx":
        raise UserError(f"--out {out} must end in .onnx")
    if out.exists():
        raise UserError(f"{out} exists already: remove it or give another --out")
    graph, backbone, about = _graph(source, weights)
    size = _size(graph, backbone) if image_size is None else (image_size, image_size)
    for side in size:
        if side < 1 or side % backbone.stride:
            given = "--image-size is" if image_size is not None else "the side of an image would be"
            raise UserError(
                f"{given} {side}, but expected a multiple of {backbone.stride}, the pixels of a "
                f"token of {backbone.name}: give such an --image-size"
            )
    if sum(p.numel() for p in graph.parameters()) * 4 > _MOST_BYTES:
        raise UserError("a file of ONNX holds 2 GB, and this model has more: export --to another")
    images = torch.randint(0, 256, (2, backbone.channels, *size), dtype=torch.uint8)
    if isinstance(graph, HeadGraph):
        graph.prepare(size)
    with torch.no_grad():
        try:
            outputs = _named(graph(images))
        except KeyError as error:
            name = about.get("head", "the model")
            raise UserError(
                f"{name} needs {error} beside images, so it has no form of ONNX"
            ) from None
        program = _traced(graph, images, list(outputs))
    about |= {"images": f"uint8 (B, {backbone.channels}, {size[0]}, {size[1]})"}
    about |= {name: f"(B, {', '.join(map(str, t.shape[1:]))})" for name, t in outputs.items()}
    program.model.metadata_props["pixio"] = json.dumps(about)
    with written_aside(out, durable=True) as aside:
        program.save(str(aside))
        about["difference"] = _difference(graph, aside, images)
    return about


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--to onnx needs {error.name}: pip install 'pixio-lightning[onnx]'"
        ) from None


def _graph(source: str, weights: str | None) -> tuple[nn.Module, Backbone, dict[str, Any]]:
    """Return what is exported, its encoder, and what to say of it."""
    head = _head_of(Path(located(source)), weights)
    if head is None and weights is not None:
        raise UserError(f"--weights are of a head's frozen backbone, but '{source}' has no head")
    if head is not None:
        backbone = head.backbone
        return HeadGraph(head).eval(), backbone, _told_of(head) | _said_of(backbone)
    # Also of a run: of distillation the encoder is a student, which is told from its checkpoint.
    backbone = Backbone(weights=str(chosen_checkpoint(Path(source)) or source))
    graph = EncoderGraph(backbone.load().eval()).eval()
    return graph, backbone, _said_of(backbone)


def _told_of(head: Head) -> dict[str, Any]:
    """Return what a head says of itself, as plain data."""
    about: dict[str, Any] = {"head": type(head).__name__}
    if isinstance(head, DenseHead):
        about["sees"] = "one window of an image, of which `pixio predict` blends several"
    return about | ({"output": head.output_config} if head.output_config else {})


def _said_of(backbone: Backbone) -> dict[str, Any]:
    parameters = sum(p.numel() for p in backbone.parameters())
    return {
        "encoder": f"{backbone.name}, {parameters:,} parameters",
        "patch size": str(backbone.patch_size),
        "class tokens": str(backbone.n_cls_tokens),
        "licence": backbone.licence,
    }


def _head_of(path: Path, weights: str | None) -> Head | None:
    """Return the head in a checkpoint of `pixio fit`, or in the one chosen of a run folder.

    None of weights, and of what trains an encoder as such.
    """
    path = chosen_checkpoint(path) or path
    about = read_plain(path).get("pixio") if path.suffix == ".ckpt" and path.exists() else None
    name = about.get("class") if isinstance(about, dict) else None
    if name is None or not issubclass(class_of(str(name), path), Head):
        return None
    try:
        head = load(path, weights=weights)
    except WeightsNeeded as error:
        raise error.typed() from None
    assert isinstance(head, Head)
    return head


def _size(graph: nn.Module, backbone: Backbone) -> tuple[int, int]:
    """Return height and width of what a head evaluates, or else what an encoder was made for."""
    side = graph.head.evaluation_side if isinstance(graph, HeadGraph) else None
    if side is not None:
        return side, side
    return backbone.grid[0] * backbone.stride, backbone.grid[1] * backbone.stride


def _named(found: Any) -> dict[str, Tensor]:
    """Return the outputs by name.

    Raises:
        UserError: They are no tensors.
    """
    if isinstance(found, Tensor):
        return {"prediction": found}
    fields = found._asdict() if hasattr(found, "_asdict") else found
    if isinstance(fields, dict) and all(isinstance(t, Tensor) for t in fields.values()):
        return fields
    raise UserError("--to onnx takes heads that predict tensors; this one predicts something else")


def _traced(graph: nn.Module, images: Tensor, names: list[str]) -> Any:
    """Return the program of a graph, for any number of images.

    Raises:
        UserError: What the model does has no such form.
    """
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                graph,
                (images,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=["images"],
                output_names=names,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            text = " ".join(str(error).split())[:300]
            raise UserError(f"the model cannot be written as ONNX: {text}") from None


def _difference(graph: nn.Module, path: Path, images: Tensor) -> float:
    """Return how far onnxruntime is from torch, of the greatest value.

    Raises:
        UserError: It is too far.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in _CHECKED:
        some = torch.cat([images, images.flip(0)])[:count]
        with torch.no_grad():
            expected = _named(graph(some)).values()
        found = session.run(None, {"images": some.numpy()})
        for ours, theirs in zip(expected, found, strict=True):
            scale = max(float(ours.abs().max()), 1e-12)
            worst = max(worst, float((ours - torch.from_numpy(theirs)).abs().max()) / scale)
    if not worst <= TOLERANCE:
        raise UserError(
            f"onnxruntime differs from torch by {worst:.1e} of the greatest value, more than "
            f"{TOLERANCE:.0e}: nothing is written"
        )
    return worst
