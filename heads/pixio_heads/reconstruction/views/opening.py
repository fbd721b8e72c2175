"""The scenes of a folder by split: folders of their own, lists, or a share that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pixio_heads.reconstruction.views.frames import FileScene, Scene
from pixio_heads.reconstruction.views.known_sets import Flags, is_known
from pixio_heads.reconstruction.views.layouts import is_scene, open_scenes, split_scenes
from pixio_heads.reconstruction.views.wai.scene_lists import listed_scenes
from pixio_lightning.data import Part, existing_folder, part_of
from pixio_lightning.errors import UserError


@dataclass(frozen=True)
class SceneFiles:
    """Scenes in files.

    Attributes:
        path: The folder that holds them.
        source: `folder`, `wai` or `blendedmvs`.
        hold_out: Share of the scenes that is held out where nothing else tells the splits.
        views: Of a set that is trained on, and of one that is evaluated, at most.
        lists: Folder of lists of the scenes of each split.
        scale: Metres per unit of depth; see `open_scenes`.
        max_megapixels: Larger images are bad.
        flags: What is said of the scenes.
        opened: The scenes of the folders that were opened: what they say of cameras is read once.
    """

    path: str
    source: str
    hold_out: float
    views: tuple[int, int]
    lists: str | None
    scale: float | None
    max_megapixels: float
    flags: Flags
    opened: dict[Path, list[FileScene]] = field(default_factory=dict, compare=False)

    def of(self, split: str) -> Sequence[Scene]:
        """Open the scenes of a split.

        Raises:
            UserError: They are not there, or not what they should be.
        """
        part = self.part(split)
        if part.folder not in self.opened:
            self.opened[part.folder] = open_scenes(
                part.folder,
                self.source,
                scale=self.scale,
                max_megapixels=self.max_megapixels,
                flags=self.flags,
            )
        scenes = self.opened[part.folder]
        if part.whole:
            return scenes
        if self.lists is not None:
            return listed_scenes(scenes, existing_folder(self.lists, "data.scene_lists"), split)
        train, held_out = split_scenes(scenes, share=self.hold_out, views=self.views)
        if split == "train" and not train:
            raise UserError("data.hold_out is 1, so there is no scene to train on: set it lower")
        return train if split == "train" else held_out

    def part(self, split: str) -> Part:
        """Return where the scenes of a split are."""
        root = existing_folder(self.path, "data.path")
        if self.lists is not None:
            return Part(root, whole=False)
        # A scene may be called train, as one of Tanks and Temples is.
        return part_of(root, split, holds=lambda folder: not is_scene(folder, self.source))


def names_anywhere(scenes: Sequence[Scene], *, limit: int) -> list[str]:
    """Return names of scenes that mean the same in whatever folder they are: `SET/SCENE`.

    Args:
        scenes: Those of data sets that are not known have no such names.
        limit: So many at most, of whole sets; the smallest first, as those that are tested on are.
    """
    found: dict[str, list[str]] = {}
    for scene in scenes:
        if is_known(scene.set_name):
            name = Path(scene.name).name
            found.setdefault(scene.set_name, []).append(f"{scene.set_name}/{name}")
    names: list[str] = []
    for of_set in sorted(found.values(), key=len):
        if len(names) + len(of_set) > limit:
            break
        names += of_set
    return names
