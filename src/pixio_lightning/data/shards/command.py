"""`pixio shard`: pack images or clips into shards, or compare shards with their index."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pixio_lightning.errors import visible
from pixio_lightning.files import expanded

USAGE = "pixio shard SOURCE OUT [options] | pixio shard SHARDS --verify"


def main(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Pack images into parquet shards with an index; the same line again goes on."""
    parser.add_argument(
        "source",
        type=expanded,
        help="folder of JPEG, PNG, WebP, TIFF, BMP at any depth, or of parquet or tar shards",
    )
    parser.add_argument("out", type=expanded, nargs="?", help="folder for the shards")
    parser.add_argument("--rows", type=int, help="images of a shard (10000)")
    parser.add_argument("--group", type=int, default=100, help="of a row group (%(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="shards at a time (%(default)s)")
    parser.add_argument("--split", help="which shards, where their names tell, such as train")
    parser.add_argument("--in-order", action="store_true", help="keep a folder's order")
    clips = parser.add_argument_group("clips of videos, or of folders of frames")
    clips.add_argument("--clips", action="store_true", help="pack frames, a row group each clip")
    clips.add_argument("--fps", type=float, default=8.0, help="frames a second (%(default)g)")
    clips.add_argument("--seconds", type=float, default=4.0, help="of a clip (%(default)g)")
    clips.add_argument("--side", type=int, default=288, help="shorter one in pixels (%(default)s)")
    about = "read all shards of SOURCE, and compare them with the sizes and digests of its index"
    parser.add_argument("--verify", action="store_true", help=about)
    options = parser.parse_args(argv)
    if options.verify == (options.out is not None):
        parser.error("expected SOURCE and OUT, or shards and --verify")
    if options.verify:
        others = ("rows", "group", "split", "in_order", "clips", "fps", "seconds", "side")
        if any(getattr(options, name) != parser.get_default(name) for name in others):
            parser.error("--verify takes no option but --jobs")
        from pixio_lightning.data.shards.verify import verify

        shards, digests = verify(options.source, jobs=options.jobs)
        print(f"{shards} shards are what the index says; it has the digests of {digests}")
        return 0
    out = Path(options.out)
    common: dict[str, Any] = {"shuffled": not options.in_order, "jobs": options.jobs}
    images_only, clips_only = ("group", "split"), ("fps", "seconds", "side")
    for name in images_only if options.clips else clips_only:
        if getattr(options, name) != parser.get_default(name):
            parser.error(f"--{name} is for {'images' if options.clips else 'clips: add --clips'}")
    what, recipe = "", "pretrain/folder"
    if options.clips:
        from pixio_lightning.data.clips.pack import Form, pack_clips
        from pixio_lightning.data.shards.pack import ROWS

        common["rows"] = ROWS if options.rows is None else options.rows
        form = Form(options.fps, options.seconds, options.side)
        index, count = pack_clips(options.source, out, form, **common)
        what, recipe = f" of {count} clips", "video/shards"
    else:
        from pixio_lightning.data.shards.pack import pack

        common |= {"rows": options.rows, "split": options.split, "group": options.group}
        index = pack(options.source, out, **common)
    size = sum(entry.size for entry in index.shards) / 1e6
    print(f"{index.rows} images{what} in {len(index.shards)} shards, {size:.1f} MB, in {out}")
    for name, reason in index.skipped:
        print(visible(f"skipped {name}: {reason}"))
    bad = Path(options.out) / "bad_files.txt"
    if bad.exists():
        with bad.open("rb") as listed:
            count = sum(1 for _ in listed)
        print(f"{count} files were left out, listed in {bad}")
    print(f"next:\n  pixio fit -c {recipe} --data.source shards --data.path {out}")
    return 0
