"""What an epoch of probing costs with and without the cache of features.

Probes a random backbone for depth on rendered scenes of 256 pixels, once as it is and once with
`model.cache`, and prints seconds of an epoch without the cache, of the first one with it (features
are computed) and of a later one.

Run: python benchmarks/cached_probe.py [--backbone NAME] [--images N] [--decoder linear|dpt ...]
     [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import lightning as L

from pixio_lightning.cli.class_lookup import import_named
from pixio_lightning.cli.lightning_cli import PixioCLI
from pixio_lightning.cli.options import parse_options
from pixio_lightning.cli.run import fit

WIDTHS = {  # of the trunk, and of the pyramid's levels: Depth Anything V2's small, base and large
    "dpt-s": (64, [48, 96, 192, 384]),
    "dpt-b": (128, [96, 192, 384, 768]),
    "dpt": (256, [256, 512, 1024, 1024]),
}


class Clock(L.Callback):
    """Seconds of each epoch; the first counts from before the features were computed."""

    def __init__(self) -> None:
        self.started = 0.0
        self.epochs: list[float] = []

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Start the clock of the first epoch."""
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Note an epoch, start the next."""
        now = time.perf_counter()
        self.epochs.append(now - self.started)
        self.started = now


def words(out: Path, decoder: str, options: argparse.Namespace, *, cached: bool) -> list[str]:
    """Return the command line of a run of two epochs."""
    steps = options.images // 4
    line = ["-c", f"depth/nyuv2_{'linear' if decoder == 'linear' else 'dpt'}", "-c", "with/debug"]
    line += ["--out", str(out), "--model.backbone.name", options.backbone]
    line += ["--model.backbone.weights", "random:0", "--model.cache", str(cached).lower()]
    line += ["--data.scenes", f"{{train: {options.images // 4}, held_out: 1, views: 4, size: 256}}"]
    line += ["--data.image_size", "256", "--data.flip", "false", "--data.batch_size", "4"]
    line += ["--data.num_workers", "2", "--data.steps_per_epoch", str(steps)]
    line += ["--trainer.max_steps", str(2 * steps), "--trainer.limit_val_batches", "0"]
    line += ["--trainer.num_sanity_val_steps", "0", "--panels.every_n_steps", "0"]
    if decoder != "linear":
        features, stages = WIDTHS[decoder]
        line += [f"--model.decoder.features={features}", f"--model.decoder.stages={stages}"]
    return line


def main() -> None:
    """Time every decoder and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pixio_vitb16")
    parser.add_argument("--images", type=int, default=32)
    decoders = ["linear", *WIDTHS]
    parser.add_argument("--decoder", nargs="+", choices=decoders, default=decoders)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows, figures = [], {}
    for decoder in options.decoder:
        seconds = []
        for cached in (False, True):
            # A cache of its own, or the second decoder would find what the first one computed.
            with tempfile.TemporaryDirectory() as folder:
                os.environ["PIXIO_CACHE"] = str(Path(folder) / "cache")
                asked = parse_options(words(Path(folder), decoder, options, cached=cached))
                import_named(asked.configs, asked.rest)
                cli, clock = PixioCLI(asked, "fit"), Clock()
                cli.trainer.callbacks.insert(0, clock)
                fit(cli)
                seconds.append(clock.epochs)
        (_, without), (first, again) = seconds
        figures[decoder] = {"uncached": without, "first": first, "later": again}
        rows.append(
            f"| {decoder} | {without:.1f} s | {first:.1f} s | {again:.2f} s "
            f"| {first / again:.1f}x | {without / again:.1f}x |"
        )
    print(f"\n{options.backbone}, {options.images} images of 256x256, an epoch\n")
    print("| decoder | uncached | cached, first | cached, later | first/later | uncached/later |")
    print("|---|---|---|---|---|---|", *rows, sep="\n")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
