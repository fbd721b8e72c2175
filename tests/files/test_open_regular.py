"""Files are opened, or the reason is an OSError, whatever a table calls them."""

from pathlib import Path

import pytest

from pixio_lightning.files.text import open_regular


@pytest.mark.parametrize("name", ["a\0b.jpg", "a\ud800.jpg", "there_is_none.jpg"])
def test_what_no_file_is_called_is_not_found(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / name)


def test_bytes_that_are_no_text_may_be_a_name(tmp_path: Path) -> None:
    (tmp_path / "a\udcff.jpg").write_bytes(b"abc")
    file, size = open_regular(tmp_path / "a\udcff.jpg")
    with file:
        assert (file.read(), size) == (b"abc", 3)
