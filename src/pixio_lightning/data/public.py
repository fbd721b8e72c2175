"""What heads and plug-ins import of the data side."""

from pixio_lightning.data.batches import Bad
from pixio_lightning.data.clips.video import SUFFIXES as VIDEO_SUFFIXES
from pixio_lightning.data.clips.video import frames_at, opened_video, video_frames, video_writer
from pixio_lightning.data.decode import (
    FORMATS,
    STOPS,
    BadImage,
    Crop,
    Orientation,
    centre_crop,
    check_crops,
    cut,
    decode_numbers,
    decode_pixels,
    open_picture,
    random_crop,
    read_file,
    to_tensor,
)
from pixio_lightning.data.depth import SUFFIXES as DEPTH_SUFFIXES
from pixio_lightning.data.depth import (
    encode_png,
    read_depth,
    read_npy,
    require_reader,
    to_metres,
    unit_of,
)
from pixio_lightning.data.hub import HubRows, content, open_columns
from pixio_lightning.data.listing.archive import Archive
from pixio_lightning.data.listing.pairs import (
    PairedFiles,
    Partners,
    folders_of_pairs,
    images_to_predict,
    pairs_of_split,
)
from pixio_lightning.data.listing.splits import Part, part_of
from pixio_lightning.data.parquet import TooLarge, column_facts, read_groups
from pixio_lightning.data.pixels import Pixels
from pixio_lightning.data.sample_data import SampleData
from pixio_lightning.data.samples import (
    FrameSamples,
    HeldOutSamples,
    Images,
    RandomKey,
    Sample,
    Samples,
    TrainingSamples,
    View,
    spread,
)
from pixio_lightning.data.scenes import raycast, textures
from pixio_lightning.data.scenes.clip_store import RenderedClips
from pixio_lightning.data.scenes.clips import Clip, exact_flow, render_clip, warped
from pixio_lightning.data.scenes.render import CLASSES as SCENE_CLASSES
from pixio_lightning.data.scenes.render import lights_of
from pixio_lightning.data.scenes.samples import SceneSamples
from pixio_lightning.data.scenes.store import Scenes, scene_seed
from pixio_lightning.data.scenes.worlds import PLACES, is_open, known_places
from pixio_lightning.data.shards.index import open_index
from pixio_lightning.data.shards.score_files import write_scores
from pixio_lightning.data.sources import SUFFIXES as IMAGE_SUFFIXES
from pixio_lightning.data.sources import (
    FolderSource,
    Source,
    digest_of,
    digest_of_files,
    existing_folder,
    held_out,
    hold_out,
    image_files,
    is_hidden,
    listed,
    visible_files,
)
from pixio_lightning.data.stream import Loader, Positions

__all__ = [
    "Archive",
    "PairedFiles",
    "Partners",
    "pairs_of_split",
    "folders_of_pairs",
    "Bad",
    "Clip",
    "RenderedClips",
    "exact_flow",
    "render_clip",
    "warped",
    "BadImage",
    "RandomKey",
    "Crop",
    "DEPTH_SUFFIXES",
    "FORMATS",
    "FolderSource",
    "FrameSamples",
    "HeldOutSamples",
    "HubRows",
    "Images",
    "IMAGE_SUFFIXES",
    "Loader",
    "Pixels",
    "Orientation",
    "PLACES",
    "Part",
    "Positions",
    "STOPS",
    "SCENE_CLASSES",
    "Sample",
    "SampleData",
    "Samples",
    "SceneSamples",
    "Scenes",
    "Source",
    "TooLarge",
    "TrainingSamples",
    "VIDEO_SUFFIXES",
    "View",
    "centre_crop",
    "check_crops",
    "column_facts",
    "content",
    "cut",
    "decode_numbers",
    "decode_pixels",
    "digest_of",
    "digest_of_files",
    "encode_png",
    "existing_folder",
    "frames_at",
    "held_out",
    "hold_out",
    "image_files",
    "images_to_predict",
    "is_hidden",
    "is_open",
    "known_places",
    "lights_of",
    "listed",
    "open_columns",
    "open_index",
    "part_of",
    "open_picture",
    "opened_video",
    "random_crop",
    "raycast",
    "read_depth",
    "read_file",
    "read_groups",
    "read_npy",
    "require_reader",
    "scene_seed",
    "spread",
    "to_metres",
    "textures",
    "to_tensor",
    "unit_of",
    "video_frames",
    "video_writer",
    "visible_files",
    "write_scores",
]
