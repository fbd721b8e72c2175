"""Whether shards are still what their index says: `pixio shard SHARDS --verify`."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tqdm import tqdm

from pixio_lightning.data.shards.format import Shard
from pixio_lightning.data.shards.index import INDEX, read_index
from pixio_lightning.data.shards.remote import check_address, file_system, join
from pixio_lightning.errors import UserError, at_least_1

_SHOWN = 3
_AT_ONCE = 1 << 22  # bytes


def verify(path: str, *, jobs: int = 2) -> tuple[int, int]:
    """Read all shards once, and compare them with the index beside them.

    Opening a data set looks at sizes alone: digests take reading every byte.

    Args:
        path: Folder or address with an index, as `pixio shard` writes it.
        jobs: Shards at a time.

    Returns:
        How many shards there are, and how many of them the index has a digest of; of others the
        size is compared.

    Raises:
        UserError: `jobs` is below 1, there is no index, or a shard is missing or another; the first
            are named.
    """
    at_least_1(**{"--jobs": jobs})
    files, _ = check_address(path, "the source")
    if not files.exists(join(path, INDEX)):
        raise UserError(f"'{path}' has no {INDEX}: only what `pixio shard` wrote can be verified")
    shards = read_index(path, key="the source").shards
    with ThreadPoolExecutor(jobs) as pool:
        looked = pool.map(partial(_difference, path), shards)
        bar = tqdm(looked, "verifying shards", len(shards), disable=None)
        wrong = [f"{s.path} {found}" for s, found in zip(shards, bar, strict=True) if found]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{len(wrong)} of {len(shards)} shards in '{path}' are not what {INDEX} says: "
            f"{', '.join(wrong[:_SHOWN])}{more}; fetch or pack them anew"
        )
    return len(shards), sum(bool(shard.sha256) for shard in shards)


def _difference(root: str, shard: Shard) -> str:
    """Say how a shard differs from what the index says; nothing where it does not."""
    hashed, size = hashlib.sha256(), 0
    try:
        with file_system(root).open(join(root, shard.path), "rb") as file:
            while data := file.read(_AT_ONCE):
                size += len(data)
                if shard.sha256:
                    hashed.update(data)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or type(error).__name__})"
    if size != shard.size:
        return f"has {size:,} bytes instead of {shard.size:,}"
    return "has another sha256" if shard.sha256 and hashed.hexdigest() != shard.sha256 else ""
