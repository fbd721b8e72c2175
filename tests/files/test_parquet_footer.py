"""What footers say of columns is what pyarrow reads, and damage is an error that can be caught."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixio_lightning.data.parquet import read_rows
from pixio_lightning.files import ColumnChunk, column_chunks, open_parquet


def test_they_are_as_pyarrow_reads_them(tmp_path: Path) -> None:
    rows = 40
    table = pa.table(
        {
            "number": range(rows),
            "wide": pa.array(range(rows), pa.float64()),
            "truth": [i % 2 == 0 for i in range(rows)],
            "image": [{"bytes": b"%d" % i, "path": None} for i in range(rows)],
            "list": [[i, i + 1] for i in range(rows)],
            "observation.state": pa.array([[0.5, 1]] * rows, pa.list_(pa.float32(), 2)),
            **{f"column {i}": ["text"] * rows for i in range(20)},  # a long list in the footer
        }
    )
    for version, codec in (("1.0", "none"), ("2.6", "zstd")):
        path = tmp_path / f"{codec}.parquet"
        options = {"version": version, "write_page_index": True, "use_dictionary": ["number"]}
        pq.write_table(table, path, row_group_size=17, compression=codec, **options)
        with open_parquet(path) as file:
            assert file.num_row_groups == 3
            for group in range(3):
                about = file.metadata.row_group(group)
                parts = [about.column(i) for i in range(about.num_columns)]
                expected = [
                    ColumnChunk(
                        p.path_in_schema, p.physical_type, p.num_values, p.total_uncompressed_size
                    )
                    for p in parts
                ]
                assert column_chunks(file, group) == expected
    assert len(expected) == 27


def test_a_column_that_contradicts_itself_raises(tmp_path: Path) -> None:
    """Asking pyarrow for its metadata ends the process."""
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"a": range(24)}), path, compression="none")
    content = bytearray(path.read_bytes())
    # Of the histogram of definition levels, 0 and 24, one entry is too few.
    at = content.rindex(b"\x19\x26\x00\x30")
    content[at : at + 4] = b"\x19\x16\xb0\x00"
    path.write_bytes(content)
    with open_parquet(path) as file:
        assert column_chunks(file, 0)[0].num_values == 24
        with pytest.raises(OSError, match="histogram size mismatch"):
            read_rows(file, 0, ["a"])


def test_a_column_without_an_order_is_read(tmp_path: Path) -> None:
    """Asking pyarrow to write its metadata down ends the process."""
    path = tmp_path / "set.parquet"
    pq.write_table(pa.table({"a": range(24), "b": [[1]] * 24, "c": range(24)}), path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"\x19\x3c" + 3 * b"\x1c\x00\x00")
    content[at + 2] = 0  # the first of three has no kind
    path.write_bytes(content)
    with path.open("rb") as opened, open_parquet(opened) as file:
        found = [chunk.path for chunk in column_chunks(file, 0)]
        assert found == ["a", "b.list.element", "c"]
        assert read_rows(file, 0, ["b"])["b"].to_pylist() == [[1]] * 24
