"""The tab of a run that has played episodes: its newest videos, and what came of each."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import gradio as gr

from pixio_lightning.cli.app.uploads import Folders, one_line
from pixio_lightning.errors import UserError, visible
from pixio_lightning.files.text import read_text

_MOST_ROWS = 200


def newest_videos(run: Path) -> dict[str, Path]:
    """Return the videos of the last evaluation that left any, by name."""
    evaluations = [path for path in (run / "episodes").glob("*") if any(path.rglob("*.mp4"))]
    if not evaluations:
        return {}
    newest = max(evaluations, key=lambda path: path.stat().st_mtime)
    return {visible(p.relative_to(newest).as_posix()): p for p in sorted(newest.rglob("*.mp4"))}


def add_rollouts_tab(run: Path, tab: str, folders: Folders) -> None:
    """Put the tab on the page."""
    videos = newest_videos(run)
    first = next(iter(videos))

    @one_line
    def show(name: str, request: gr.Request) -> str:
        if name not in videos:
            raise UserError(f"there is no video '{name}'")
        # A copy, so that nothing but the page's own folder is ever served.
        return shutil.copy(str(videos[name]), str(folders.fresh(request, tab)))

    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            chosen = gr.Dropdown(list(videos), value=first, label="Episode")
            gr.Markdown(
                "The policy sees these frames and no others. The end of a name says what came of "
                "the episode: success, fail or broken."
            )
        with gr.Column(scale=2, min_width=300):
            video = gr.Video(label="What the policy saw", interactive=False, loop=True)
    table = _table(run / "episodes.csv")
    if table:
        gr.Dataframe(
            table[1:], headers=table[0], label="Episodes", interactive=False, max_height=320
        )
    # When the page is opened, and when another one is chosen.
    gr.on(None, show, chosen, video, api_name=tab)


def _table(path: Path) -> list[list[str]]:
    """Return the rows of episodes.csv, the newest first below the header."""
    if not path.exists():
        return []
    rows = [[visible(cell) for cell in row] for row in csv.reader(io.StringIO(read_text(path)))]
    return rows[:1] + rows[:0:-1][:_MOST_ROWS]
