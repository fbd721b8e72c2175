"""Files: written whole or not at all, read within bounds, and named below their folder.

And the plug-ins, as the metadata of what is installed names them.

Nothing here imports torch.
"""

from pixio_lightning.files.atomic import (
    move,
    recover_folder,
    replace_folder,
    write_bytes,
    write_text,
    written_aside,
)
from pixio_lightning.files.cache import bytes_by_kind, cache_home, default_cache
from pixio_lightning.files.home import expanded
from pixio_lightning.files.lines import add_line, add_rows, line_break
from pixio_lightning.files.locks import lock, locked
from pixio_lightning.files.naming import output_name, output_path
from pixio_lightning.files.parquet_footer import ColumnChunk, column_chunks, open_parquet
from pixio_lightning.files.text import open_regular, parse_json, parse_yaml, read_text, unfolded

__all__ = [
    "ColumnChunk",
    "add_line",
    "add_rows",
    "bytes_by_kind",
    "cache_home",
    "column_chunks",
    "default_cache",
    "expanded",
    "line_break",
    "lock",
    "locked",
    "move",
    "open_parquet",
    "open_regular",
    "output_name",
    "output_path",
    "parse_json",
    "parse_yaml",
    "read_text",
    "recover_folder",
    "replace_folder",
    "unfolded",
    "write_bytes",
    "write_text",
    "written_aside",
]
