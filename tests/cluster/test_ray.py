"""The pipeline of docs/curation.md on a real Ray gives the scores that `pixio predict` gives."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from running import pixio, train_on_shards

from pixio_lightning.cli.main import main
from pixio_lightning.data import open_index
from pixio_lightning.data.shards.score_files import check_scores

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-cluster installs it")

DOCS = Path(__file__).parents[2] / "docs" / "curation.md"


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "shards"
    own = shutil.copytree(pictures, folder.parent / "pictures")
    (own / "broken.jpg").write_bytes(b"no picture")
    assert main(["shard", str(own), str(folder), "--rows", "10", "--group", "5"]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(shards: Path) -> Path:
    return train_on_shards(shards)


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return the scores of a folder, shard by shard."""
    table = pq.read_table(sorted(folder.glob("*.parquet")))
    return {name: table[name].to_numpy() for name in table.column_names}


def test_the_documented_pipeline_gives_the_scores_of_predict(
    shards: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pixio(
        *("predict", "-c", "curation/score", "--data.path", shards, "--out", tmp_path),
        *("--model.backbone.weights", checkpoint, "--data.max_bad", 0.1, "--data.num_workers", 0),
        *("--trainer.accelerator", "cpu", "--trainer.precision", "32-true"),
    )
    code = re.findall(r"```python\n([^`]*import ray\n[^`]*)```", DOCS.read_text())[0]
    for text, here in {
        '"SHARDS"': repr(str(shards)),
        '"SCORES"': repr(str(tmp_path / "ray")),
        '"last.ckpt"': repr(str(checkpoint)),
        "bf16-mixed": "32-true",
        "num_gpus=1": "num_cpus=1",
        "range(8)": "range(2)",
        "iter_batches(256": "iter_batches(4",
    }.items():
        assert text in code
        code = code.replace(text, here)
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        exec(code, {"__name__": "__main__"})  # whose classes go to the workers as they are
    finally:
        ray.shutdown()

    ours, rays = read(tmp_path / "scores"), read(tmp_path / "ray")
    assert len(ours["hash"]) == 41 and np.isnan(ours["loss"]).sum() == 1
    for name in ("hash", "entropy", "width", "height"):
        np.testing.assert_array_equal(rays[name], ours[name])
    np.testing.assert_allclose(rays["loss"], ours["loss"], rtol=1e-6)
    index = open_index(str(shards))
    assert check_scores(index, str(tmp_path / "ray")) == check_scores(
        index, str(tmp_path / "scores")
    )
