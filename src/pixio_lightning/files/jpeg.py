"""What the bytes of a JPEG say before any is decoded (ITU-T T.81, annex B)."""

from __future__ import annotations

import numpy as np


def has_more_scans(data: bytes, most: int) -> bool:
    """Whether a JPEG has more than `most` scans, up to its end.

    Each of them passes over all pixels. Behind the end phones append a film, which may hold any
    bytes, as may a segment with a thumbnail.

    Args:
        data: The file, which begins as a JPEG does.
        most: Scans that it may have.
    """
    values = np.frombuffer(data, np.uint8)
    begun = np.flatnonzero(values[:-1] == 0xFF)
    after = values[begun + 1]
    if np.count_nonzero(after == 0xDA) <= most:
        return False  # wherever they are
    # What follows 0xFF in coded data is stuffed, a fill byte, or a restart of the coding; 1 has no
    # length, which would hide what follows.
    markers = begun[~np.isin(after, [0, 1, 0xFF, *range(0xD0, 0xD9)])]
    scans, at = 0, 2  # behind the marker that every JPEG begins with
    while (number := int(np.searchsorted(markers, at))) < len(markers) and scans <= most:
        at = int(markers[number])
        if data[at + 1] == 0xD9:  # the end
            break
        scans += data[at + 1] == 0xDA
        # A segment says its length, and what it holds is no marker.
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return scans > most
