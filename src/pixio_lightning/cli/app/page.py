"""The page: a tab for each thing that is loaded."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr

from pixio_lightning import __version__
from pixio_lightning.cli.app import examples
from pixio_lightning.cli.app.features_tab import add_features_tab
from pixio_lightning.cli.app.loaded import Loaded
from pixio_lightning.cli.app.picture_tab import add_picture_tab, rehearse
from pixio_lightning.cli.app.reconstruct_tab import add_reconstruct_tab
from pixio_lightning.cli.app.rollouts_tab import add_rollouts_tab, newest_videos
from pixio_lightning.cli.app.set_tab import add_set_tab, wants_sets
from pixio_lightning.cli.app.uploads import Folders
from pixio_lightning.cli.app.video_tab import add_video_tab
from pixio_lightning.models.backbone import Backbone
from pixio_lightning.pretraining.future_frames import FuturePrediction
from pixio_lightning.pretraining.masked_pixels import PixelPretraining
from pixio_lightning.training.head import Head

_FONTS = ["system-ui", "sans-serif"]  # of this machine: nothing is fetched
THEME = gr.themes.Default(
    primary_hue="teal",
    neutral_hue="slate",
    font=_FONTS,
    font_mono=["ui-monospace", "monospace"],
).set(  # darker than they come, so that they can be read
    block_info_text_color="*neutral_600",
    body_text_color_subdued="*neutral_600",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
)
# Labels stand above pictures, not over them.
CSS = """
.block > label[data-testid="block-label"] { position: static; }
body:not(.dark) button[role="tab"].selected { color: var(--primary-700) !important; }
"""
# For those who listen, or have no mouse: a label needs a role to be read aloud, which empty places
# of Gradio lack, and the 3D view would come before everything else.
SCRIPT = """
() => new MutationObserver(() => {
    document.querySelectorAll("div.empty[aria-label]:not([role])")
        .forEach((place) => place.setAttribute("role", "img"))
    document.querySelectorAll("canvas[tabindex='1']")
        .forEach((view) => view.setAttribute("tabindex", "0"))
}).observe(document.body, {childList: true, subtree: true, attributeFilter: ["tabindex"]})
"""
_FORGET_AFTER = 3600  # seconds until results are removed


def build(loaded: Sequence[Loaded], work: Path, *, folder: Path | None = None) -> gr.Blocks:
    """Return the page.

    Args:
        loaded: What it shows, at least one.
        work: A folder of its own, for examples and results.
        folder: Of pictures among which neighbours are looked for.
    """
    folders, given = Folders(work / "requests"), work / "examples"
    given.mkdir(parents=True)
    pictures = examples.render_pictures(given)
    tabs: list[tuple[str, Loaded, Callable[[str], None]]] = []
    for one in loaded:
        tabs += [(title, one, add) for title, add in _tabs_of(one, pictures, given, folders)]
    backbones = _distinct(loaded)
    with gr.Blocks(title="pixio", delete_cache=(600, _FORGET_AFTER)) as page:
        gr.Markdown(f"# pixio\n{', '.join(one.name for one in loaded)}")
        with gr.Tabs():
            seen: dict[str, int] = {}
            for title, one, add in tabs:
                seen[title] = seen.get(title, 0) + 1
                several = sum(title == other for other, *_ in tabs) > 1
                number = f" {seen[title]}" * (seen[title] > 1)
                with gr.Tab(f"{title}{number}: {one.name}" if several else title):
                    add(re.sub(r"\W+", "_", title + number).lower())
            with gr.Tab("Features"):
                add_features_tab(backbones, pictures, folder)
        gr.Markdown(
            f"pixio-lightning {__version__}. Pictures stay on the machine that runs this page."
        )
        page.unload(folders.forget)
    # Two at a time, whichever tabs they come from: more would only take turns on the processor.
    page.queue(default_concurrency_limit=2, max_size=64)
    return page


def _tabs_of(
    one: Loaded, pictures: Sequence[Path], given: Path, folders: Folders
) -> list[tuple[str, Callable[[str], None]]]:
    """Return the titles of what a run has, beside its features, and what puts each on the page."""
    module = one.module
    if isinstance(module, PixelPretraining):
        return [("Reconstruct", lambda tab: add_reconstruct_tab(one, pictures, tab))]
    if isinstance(module, FuturePrediction):
        clip = examples.render_video(given)
        return [("Video", lambda tab: add_video_tab(one, tab, clip))]
    if not isinstance(module, Head):
        return []
    title = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(module).__name__)
    if one.folder is not None and newest_videos(one.folder):
        run = one.folder
        return [(title, lambda tab: add_rollouts_tab(run, tab, folders))]
    if wants_sets(module):
        views = examples.render_views(given)
        return [(title, lambda tab: add_set_tab(one, tab, views, folders))]
    rehearsal = rehearse(module, folders.root / "rehearsal")
    if rehearsal.problem:
        return [(title, lambda tab: _add_excuse(one, rehearsal.problem))]
    return [(title, lambda tab: add_picture_tab(one, tab, rehearsal, pictures, folders))]


def _add_excuse(one: Loaded, problem: str) -> None:
    text = f"This head makes nothing of a single picture: {problem}"
    if one.folder is not None:
        text += f"\n\n`{predict_line(one.folder)}` lets it predict its own data."
    gr.Markdown(text)


def predict_line(folder: Path) -> str:
    """Return the line that lets a run predict its own data, whatever else was typed for it."""
    config = shlex.quote(str(folder / "config.yaml"))
    return f"pixio predict -c {config} --out {shlex.quote(str(folder))}"


def _distinct(loaded: Sequence[Loaded]) -> dict[str, Backbone]:
    """Return the encoders by the names of their runs, each once."""
    found: dict[str, Backbone] = {}
    digests = set()
    for one in loaded:
        if one.backbone.digest not in digests:
            digests.add(one.backbone.digest)
            name = one.name if one.name not in found else f"{one.name} ({len(found) + 1})"
            found[name] = one.backbone
    return found
