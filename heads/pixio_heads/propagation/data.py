"""PropagationData: clips whose first frame is labelled, from rendered clips or from files."""

from __future__ import annotations

from typing import Any, NamedTuple

from pixio_heads.propagation import layouts
from pixio_heads.propagation.clip_samples import JointClips, Look, MaskClips, SceneObjects
from pixio_heads.propagation.joint_files import JOINTS, require_scipy
from pixio_heads.propagation.metrics import UNKNOWN
from pixio_lightning.data import SampleData, Samples, existing_folder
from pixio_lightning.errors import UserError, above_0

_VIP_CLASSES = 20  # with the background


class _Labels(NamedTuple):
    """What a source knows of its clips: the kind of its labels, how many, and the size seen."""

    kind: str
    number: int = 0
    size: tuple[int, int] | None = None


_OF_SOURCE = {
    "scenes": _Labels("objects"),
    "davis2017": _Labels("objects", 0, (480, 880)),
    "vip": _Labels("classes", _VIP_CLASSES, (448, 880)),
    "jhmdb": _Labels("joints", JOINTS, (320, 320)),
}


class PropagationData(SampleData):
    """Clips: `image` of all frames, `target`, their masks or joints, and `stored`, their own size.

    Nothing is trained, so there is one split: what is validated, tested and predicted is the same.
    To predict, the mask of the first frame is enough.

    Args:
        source: `scenes`, clips that are rendered on first use; `davis2017`, masks of objects;
            `vip`, masks of classes; `jhmdb`, joints of a person.
        path: The folder; not for scenes.
        split: List of DAVIS or VIP to read, as `val`.
        clip_seconds: Duration of a rendered clip, whose frames are `scenes.views`.
        smallest: Share of the first frame that an object of a rendered clip fills at least.
        image_size: Height and width that frames are brought to; None takes the protocol's: 480x880
            for DAVIS, 448x880 for VIP, 320x320 for JHMDB, and those of rendered clips.
        grey: Whether the colours of the frames are taken away.
        batch_size: Of no effect: nothing is trained.
        val_batch_size: Clips per process and step; they must be of one size and length;
            `predict` takes one by one.

    Raises:
        UserError: A key does not fit the source.
    """

    sources = ("scenes", "davis2017", "vip", "jhmdb")
    predict_batch_size = 1

    def __init__(
        self,
        source: str = "scenes",
        path: str | None = None,
        *,
        split: str = "val",
        clip_seconds: float = 2.0,
        smallest: float = 0.015,
        image_size: tuple[int, int] | None = None,
        grey: bool = False,
        batch_size: int = 1,
        val_batch_size: int = 1,
        **loading: Any,
    ) -> None:
        super().__init__(
            source, path, batch_size=batch_size, val_batch_size=val_batch_size, **loading
        )
        if image_size is not None and min(image_size) < 1:
            raise UserError(f"data.image_size is {list(image_size)}; expected height and width")
        if not 0 <= smallest < 1:
            raise UserError(f"data.smallest is {smallest}; expected a share, 0 to below 1")
        if source == "scenes" and self.scenes.views < 2:
            raise UserError(
                f"data.scenes.views is {self.scenes.views}, the frames of a clip; expected 2 or "
                "more"
            )
        above_0("data.clip_seconds", clip_seconds, "seconds")
        self.read_by("davis2017", "vip", split=split)
        self.read_by("scenes", clip_seconds=clip_seconds, smallest=smallest)
        about = _OF_SOURCE[source]
        self.split, self.clip_seconds = split, clip_seconds
        self.smallest, self.grey = smallest, grey
        self.labels, self.num_labels = about.kind, about.number
        self.image_size = image_size or about.size

    @property
    def dataset(self) -> str:
        """What records call the data."""
        size = "" if self.image_size is None else ", {}x{}".format(*self.image_size)
        seen = size + ", grey" * self.grey
        if self.source == "scenes":
            clips = f"{self.scenes.held_out} clips of {self.scenes.views} frames"
            clips = self.scenes.described(clips)
            return f"scenes {clips}, objects over {self.smallest:g}{seen}"
        listed = f", {self.split}" if self.source in ("davis2017", "vip") else ""
        return f"{self.source} {self.path}{listed}{seen}"

    def prepare_data(self) -> None:
        """Render the clips once, in one process."""
        if self.source == "scenes":
            self.samples_of("val")

    def training_size(self) -> int:
        """Return the number of clips, which are all there are."""
        return len(self.samples_of("val"))

    def open(self, split: str) -> Samples:
        """Return the clips."""
        look = Look(self.image_size, self.grey, self.max_megapixels)
        predicting = split == "predict"
        if self.source == "scenes":
            return SceneObjects(self.scenes, self.clip_seconds, look, smallest=self.smallest)
        root = existing_folder(self.path or "", "data.path")
        if self.source == "jhmdb":
            require_scipy()
            return JointClips(root, layouts.jhmdb_clips(root), look, predicting=predicting)
        listed = layouts.davis_clips if self.source == "davis2017" else layouts.vip_clips
        greatest = self.num_labels - 1 if self.num_labels else UNKNOWN - 1
        clips = listed(root, self.split)
        return MaskClips(root, clips, look, predicting=predicting, greatest=greatest)
