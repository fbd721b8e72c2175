"""Data: pictures and samples from files, hubs, shards and rendered scenes, as a stream of batches.

What heads and plug-ins import. Names are loaded when they are first used, see `facade`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixio_lightning import facade

if TYPE_CHECKING:
    from pixio_lightning.data.batches import Bad as Bad
    from pixio_lightning.data.clips.video import VIDEO_SUFFIXES as VIDEO_SUFFIXES
    from pixio_lightning.data.clips.video import frames_at as frames_at
    from pixio_lightning.data.clips.video import opened_video as opened_video
    from pixio_lightning.data.clips.video import video_frames as video_frames
    from pixio_lightning.data.clips.video import video_writer as video_writer
    from pixio_lightning.data.clips.video import write_video as write_video
    from pixio_lightning.data.decode import FORMATS as FORMATS
    from pixio_lightning.data.decode import STOPS as STOPS
    from pixio_lightning.data.decode import BadImage as BadImage
    from pixio_lightning.data.decode import Crop as Crop
    from pixio_lightning.data.decode import Orientation as Orientation
    from pixio_lightning.data.decode import centre as centre
    from pixio_lightning.data.decode import centre_crop as centre_crop
    from pixio_lightning.data.decode import check_crops as check_crops
    from pixio_lightning.data.decode import cut as cut
    from pixio_lightning.data.decode import decode_numbers as decode_numbers
    from pixio_lightning.data.decode import decode_pixels as decode_pixels
    from pixio_lightning.data.decode import open_picture as open_picture
    from pixio_lightning.data.decode import random_crop as random_crop
    from pixio_lightning.data.decode import read_file as read_file
    from pixio_lightning.data.decode import to_tensor as to_tensor
    from pixio_lightning.data.depth import DEPTH_SUFFIXES as DEPTH_SUFFIXES
    from pixio_lightning.data.depth import encode_png as encode_png
    from pixio_lightning.data.depth import read_depth as read_depth
    from pixio_lightning.data.depth import read_npy as read_npy
    from pixio_lightning.data.depth import require_reader as require_reader
    from pixio_lightning.data.depth import resampled as resampled
    from pixio_lightning.data.depth import rescaled as rescaled
    from pixio_lightning.data.depth import to_metres as to_metres
    from pixio_lightning.data.depth import unit_of as unit_of
    from pixio_lightning.data.hub import HubRows as HubRows
    from pixio_lightning.data.hub import content as content
    from pixio_lightning.data.hub import open_columns as open_columns
    from pixio_lightning.data.listing.archive import Archive as Archive
    from pixio_lightning.data.listing.pairs import PairedFiles as PairedFiles
    from pixio_lightning.data.listing.pairs import Partners as Partners
    from pixio_lightning.data.listing.pairs import folders_of_pairs as folders_of_pairs
    from pixio_lightning.data.listing.pairs import images_to_predict as images_to_predict
    from pixio_lightning.data.listing.pairs import pairs_of_split as pairs_of_split
    from pixio_lightning.data.listing.splits import Part as Part
    from pixio_lightning.data.listing.splits import part_of as part_of
    from pixio_lightning.data.parquet import TooLarge as TooLarge
    from pixio_lightning.data.parquet import read_groups as read_groups
    from pixio_lightning.data.pixels import Pixels as Pixels
    from pixio_lightning.data.sample_data import SampleData as SampleData
    from pixio_lightning.data.samples import FrameSamples as FrameSamples
    from pixio_lightning.data.samples import HeldOutSamples as HeldOutSamples
    from pixio_lightning.data.samples import Images as Images
    from pixio_lightning.data.samples import RandomKey as RandomKey
    from pixio_lightning.data.samples import Sample as Sample
    from pixio_lightning.data.samples import Samples as Samples
    from pixio_lightning.data.samples import TrainingSamples as TrainingSamples
    from pixio_lightning.data.samples import View as View
    from pixio_lightning.data.samples import spread as spread
    from pixio_lightning.data.scenes import raycast as raycast
    from pixio_lightning.data.scenes import textures as textures
    from pixio_lightning.data.scenes.clip_store import RenderedClips as RenderedClips
    from pixio_lightning.data.scenes.clips import Clip as Clip
    from pixio_lightning.data.scenes.clips import exact_flow as exact_flow
    from pixio_lightning.data.scenes.clips import render_clip as render_clip
    from pixio_lightning.data.scenes.clips import warped as warped
    from pixio_lightning.data.scenes.render import SCENE_CLASSES as SCENE_CLASSES
    from pixio_lightning.data.scenes.render import lights_of as lights_of
    from pixio_lightning.data.scenes.samples import SceneSamples as SceneSamples
    from pixio_lightning.data.scenes.store import Scenes as Scenes
    from pixio_lightning.data.scenes.store import scene_seed as scene_seed
    from pixio_lightning.data.scenes.worlds import PLACES as PLACES
    from pixio_lightning.data.scenes.worlds import is_open as is_open
    from pixio_lightning.data.scenes.worlds import known_places as known_places
    from pixio_lightning.data.shards.index import open_index as open_index
    from pixio_lightning.data.shards.score_files import write_scores as write_scores
    from pixio_lightning.data.sources import IMAGE_SUFFIXES as IMAGE_SUFFIXES
    from pixio_lightning.data.sources import FolderSource as FolderSource
    from pixio_lightning.data.sources import Source as Source
    from pixio_lightning.data.sources import digest_of as digest_of
    from pixio_lightning.data.sources import digest_of_files as digest_of_files
    from pixio_lightning.data.sources import existing_folder as existing_folder
    from pixio_lightning.data.sources import held_out as held_out
    from pixio_lightning.data.sources import hold_out as hold_out
    from pixio_lightning.data.sources import image_files as image_files
    from pixio_lightning.data.sources import is_hidden as is_hidden
    from pixio_lightning.data.sources import listed as listed
    from pixio_lightning.data.sources import visible_files as visible_files
    from pixio_lightning.data.stream import Loader as Loader
    from pixio_lightning.data.stream import Positions as Positions

__getattr__ = facade(__name__)
