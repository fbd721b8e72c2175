"""What the page says of the values of a map: as they are, in the unit that something states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixio_heads.depth import Depth, RelativeDepth
from pixio_lightning.cli.app.picture_tab import unit_of
from pixio_lightning.cli.app.written_files import sort_files
from pixio_lightning.data import encode_png
from pixio_lightning.models import Backbone


def value(folder: Path, unit: str = "") -> str:
    found = sort_files(folder, unit=unit).map
    assert found is not None
    return found.at(1, 0)


@pytest.mark.parametrize(("unit", "said"), [("", "2.02e+04"), ("K", "2.02e+04 K")])
def test_a_map_of_a_plug_in_is_shown_as_it_is(unit: str, said: str, tmp_path: Path) -> None:
    values = np.array([[1, 20195], [0, 0]], np.uint16)
    Image.fromarray(values).save(tmp_path / "map.png")
    assert value(tmp_path, unit) == said
    (tmp_path / "map.png").unlink()
    np.save(tmp_path / "map.npy", values.astype(np.int64))
    assert value(tmp_path, unit) == said
    np.save(tmp_path / "map.npy", np.array([[0.25, 7.5], [0, 0]]))
    assert value(tmp_path, unit) == f"7.5 {unit}".strip()


def test_a_png_that_states_metres_is_shown_in_them(tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(encode_png(np.array([[1.0, 20.195], [0, 0]]), unit=1e-3))
    assert value(tmp_path, "K") == "20.2 m"


def test_the_unit_is_the_head_s() -> None:
    backbone = Backbone("pixio_vitt16", weights="random:0")
    depth = Depth(backbone)
    depth.data_info["max_depth"] = 10.0
    assert unit_of(depth) == "metres"
    assert unit_of(RelativeDepth(backbone)) == ""  # which says that it has none
