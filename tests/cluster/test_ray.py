"""The pipeline of docs/curation.md on a real Ray gives the scores of `predict -c curation/score`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from running import TINY, pixio

from pixio_lightning.cli.main import main

ray = pytest.importorskip("ray.data", reason="Ray is not installed: make test-cluster installs it")

DOCS = Path(__file__).parents[2] / "docs" / "curation.md"


@pytest.fixture(scope="module")
def shards(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray") / "shards"
    (pictures / "broken.jpg").write_bytes(b"no picture")
    assert main(["shard", str(pictures), str(folder), "--rows", "10", "--group", "5"]) == 0
    return folder


@pytest.fixture(scope="module")
def checkpoint(shards: Path) -> Path:
    """A few steps of the tiny recipe on the shards."""
    recipe = yaml.safe_load(yaml.safe_dump(TINY))
    recipe["data"]["init_args"] |= {"source": "shards", "path": str(shards), "max_bad": 0.1}
    path = shards.parent / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))
    pixio("fit", "-c", path, "--out", shards.parent / "run")
    return shards.parent / "run" / "last.ckpt"


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return the scores of a folder, sorted by image."""
    table = pq.read_table(sorted(folder.glob("*.parquet"))).sort_by("hash")
    return {name: table[name].to_numpy() for name in table.column_names}


def test_the_documented_pipeline_gives_the_scores_of_predict(
    shards: Path, checkpoint: Path, tmp_path: Path
) -> None:
    pixio(
        *("predict", "-c", "curation/score", "--data.path", shards, "--out", tmp_path),
        *("--model.backbone.weights", checkpoint, "--data.max_bad", 0.1, "--data.num_workers", 0),
        *("--trainer.accelerator", "cpu"),
    )
    code = re.findall(r"```python\n(import ray\n.*?)```", DOCS.read_text(), flags=re.DOTALL)[0]
    for text, here in {
        '"SHARDS"': repr(str(shards)),
        '"SCORES"': repr(str(tmp_path / "ray")),
        '"last.ckpt"': repr(str(checkpoint)),
        "num_gpus=1, concurrency=8, batch_size=256": "concurrency=2, batch_size=10",
    }.items():
        assert text in code
        code = code.replace(text, here)
    ray = pytest.importorskip("ray")
    env = {
        name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ
    }
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": env})
    try:
        exec(code, {})
    finally:
        ray.shutdown()

    ours, rays = read(tmp_path / "scores"), read(tmp_path / "ray")
    assert len(ours["hash"]) == 41 and np.isnan(ours["loss"]).sum() == 1
    for name in ("hash", "entropy", "width", "height"):
        np.testing.assert_array_equal(rays[name], ours[name])
    np.testing.assert_allclose(rays["loss"], ours["loss"], rtol=1e-6)
