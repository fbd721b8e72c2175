"""The tab of a head that looks at several pictures: a real `predict` on a folder of them."""

from __future__ import annotations

import shutil
import threading
import warnings
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import lightning as L
import numpy as np
import trimesh
from jsonargparse import ArgumentParser

from pixio_lightning.cli.app.loaded import Loaded, data_config
from pixio_lightning.cli.app.uploads import Folders, offer_examples, one_line, open_photo
from pixio_lightning.cli.app.written_files import pack, sort_files
from pixio_lightning.data.clips.video import VIDEO_SUFFIXES
from pixio_lightning.errors import UserError
from pixio_lightning.files import write_bytes
from pixio_lightning.training.checkpoints.named_code import refuse_foreign
from pixio_lightning.training.head import Head

_MOST_VIEWS = 24


def wants_sets(head: Head) -> bool:
    """Whether a head refuses a single picture, as it looks at several."""
    try:
        head.prepared(np.zeros((64, 64, 3), np.uint8))
    except UserError:
        return True
    return False


def add_set_tab(loaded: Loaded, tab: str, examples: Sequence[Path], folders: Folders) -> None:
    """Put the tab on the page."""
    work = _Work(loaded, tab, folders)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            upload = gr.File(
                label="Pictures, or a video",
                file_count="multiple",
                file_types=["image", "video"],
                height=150,
            )
            offer_examples(examples, upload, all_at_once=True)
            views = gr.Slider(
                2, _MOST_VIEWS, 8, step=1, label="Views at most", info="spread over those given"
            )
            with gr.Row():
                start = gr.Button("Predict", variant="primary")
                stop = gr.Button("Stop")
            note = gr.Markdown(
                "Give two pictures or more of one place, or a video, or take the examples."
            )
        with gr.Column(scale=3, min_width=300):
            # Gradio 6.31 draws nothing where the first scene comes after the page.
            axes = folders.root / "axes.glb"
            write_bytes(axes, trimesh.creation.axis(origin_size=0.02).export(file_type="glb"))
            label = "3D: drag to turn, scroll to come near"
            cloud = gr.Model3D(str(axes), label=label, height=480)
            panels = gr.Gallery(label="Pictures", columns=2, interactive=False, visible=False)
            files = gr.File(label="All files", file_count="multiple", interactive=False)
    running = start.click(
        work.predict,
        [upload, views],
        [note, cloud, panels, files],
        api_name=tab,
        concurrency_id="model",
        show_progress_on=[note],
    )
    stop.click(
        lambda: "Stopped.", None, note, cancels=[running], api_visibility="private", queue=False
    )


class _Work:
    """What the tab does with a head."""

    def __init__(self, loaded: Loaded, tab: str, folders: Folders) -> None:
        assert isinstance(loaded.module, Head)
        self.head, self.tab, self.folders = loaded.module, tab, folders
        self.config = data_config(loaded)
        self.one_at_a_time = threading.Lock()  # a module has one trainer

    @one_line
    def predict(
        self,
        paths: list[str] | None,
        views: int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio finds it)
    ) -> Iterator[tuple[Any, ...]]:
        """Yield what is being done, and at last a scene, pictures and all files."""
        if not paths:
            raise UserError("choose pictures first, at least two, or a video")
        if self.config is None:
            raise UserError("the run's config.yaml, which says how its data is read, is not there")
        place = self.folders.fresh(request, self.tab)
        progress(0.1, desc="reading")
        source = _gathered([*map(Path, paths)], place / "pictures")
        yield f"Predicting {len(paths)} files ...", gr.skip(), gr.skip(), None
        progress(0.4, desc="predicting")
        with self.one_at_a_time:
            data = _data_of(self.config, self.head, source, int(views))
            _run(self.head, data, place)
        yield "Writing ...", gr.skip(), gr.skip(), None
        written = sort_files(place / "predictions")
        archive = pack(written.files, place / "predictions", place / f"{self.tab}.zip")
        scene = str(written.clouds[0]) if written.clouds else gr.skip()
        pictures = [str(path) for path in written.pictures]
        names = ", ".join(path.name for path in written.files)
        yield (
            f"Written: {names}",
            scene,
            gr.Gallery(pictures, visible=bool(pictures)),
            [str(archive), *map(str, written.files)],
        )


def _gathered(paths: list[Path], folder: Path) -> Path:
    """Return the video, or a folder of the pictures, each of which has been looked at."""
    if len(paths) == 1 and paths[0].suffix.lower() in VIDEO_SUFFIXES:
        return paths[0]
    if len(paths) < 2:
        raise UserError("one picture is given; expected several of one place, or a video")
    folder.mkdir(parents=True)
    for number, path in enumerate(paths):
        open_photo(str(path))
        shutil.copyfile(path, folder / f"{number:03d}-{path.name[-40:]}")
    return folder


def _data_of(config: dict[str, Any], head: Head, source: Path, views: int) -> L.LightningDataModule:
    """Return the run's own data module, on what was uploaded.

    Raises:
        UserError: It reads no files, or names code that is not the head's.
    """
    known = config["init_args"]
    given = {"path": str(source), "predict_views": views, "num_workers": 0, "val_batch_size": 1}
    arguments = known | {key: value for key, value in given.items() if key in known}
    ours = {name.partition(".")[0] for name in (__name__, type(head).__module__)}
    refuse_foreign([config.get("class_path"), known], ours=ours, path="of the run's data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=L.LightningDataModule)
    for kind in ("folder", "files", known.get("source")):
        asked = config | {"init_args": arguments | {"source": kind}}
        try:
            return parser.instantiate_classes(parser.parse_object({"data": asked})).data
        except (ArgumentError, UserError) as error:
            problem = error
    raise UserError(f"this run's data reads no pictures of yours: {problem}")


def _run(head: Head, data: L.LightningDataModule, folder: Path) -> None:
    """Let Lightning predict, as `pixio predict` does."""
    device = head.device
    with warnings.catch_warnings(action="ignore"):
        trainer = L.Trainer(
            default_root_dir=folder,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.predict(head, datamodule=data, return_predictions=False)
        finally:
            head.to(device)  # a trainer leaves its module on the processor
