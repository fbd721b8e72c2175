"""Seeded damage to valid files: to bytes, to the numbers and words in them, and to JSON."""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Iterator
from typing import Any

NUMBERS = (0, 1, -1, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
WORDS = (
    *("0", "-1", "2147483647", "18446744073709551616", "1" * 5000, "1e999", "-1e-999", "nan"),
    *("inf", "-inf", "", " ", "null", "true", "\0", "\r\n", "é\u202e\U0001f600", "..", "../../x"),
    *("/etc/passwd", "[" * 5000, "{" * 5000, '"', "x" * 300, "&a [*a]", "!!python/name:os.system"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 2**31, 2**63, 10**400, float("nan"), float("inf"), -0.0, "", "x"),
    *("\0", "../../x", "/etc/passwd", "é\u202e\U0001f600", "\ud800", "x" * 300, [], {}, [[]]),
    *({"a": 1}, [1, 2, 3], [[1e308] * 4] * 4, [[0] * 4] * 4, ["a"] * 16),
)
_TOKEN = re.compile(r"[^\s,:{}\[\]()\"']+")
_DIGITS = re.compile(rb"\d+")


def damaged(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Return a file with one to three mutations.

    Args:
        rng: Chooses them.
        data: The file.
        others: Files of the same kind, of which parts may be taken.
    """
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kinds = [_bits, _bits, _block, _number, _number, _cut, _splice, _digits]
        if _is_text(data):
            kinds += [_words] * 8
        if data[:1] in b"{[" and data:
            kinds += [_json] * 24
        data = rng.choice(kinds)(rng, data, others)
    return data


def _is_text(data: bytes) -> bool:
    try:
        return "\0" not in data.decode()
    except UnicodeDecodeError:
        return False


def _place(rng: random.Random, data: bytes) -> int:
    """Choose a byte: of the beginning or the end, where headers and tables lie, or anywhere."""
    near = rng.choice((32, 256, 4096, len(data)))
    at = rng.randrange(min(near, len(data)) or 1)
    return at if rng.random() < 0.7 else max(0, len(data) - 1 - at)


def _bits(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 64)) if data else 0):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _block(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    start = _place(rng, data)
    stop = start + rng.choice((1, 4, 16, 512, max(1, len(data) // 4)))
    block = data[start:stop]
    new = rng.choice((b"", block * 2, bytes(len(block)), rng.randbytes(len(block)), block * 20))
    return data[:start] + new + data[stop:]


def _number(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    at, order = _place(rng, data), rng.choice("<>")
    form, size = rng.choice((("B", 1), ("H", 2), ("I", 4), ("I", 4), ("Q", 8)))
    if rng.random() < 0.5:
        at -= at % size
    number = rng.choice(NUMBERS) % (1 << 8 * size)
    return data[:at] + struct.pack(order + form, number) + data[at + size :]


def _digits(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    found = list(_DIGITS.finditer(data[:4096]))
    if not found:
        return data
    at = rng.choice(found)
    new = rng.choice((b"0", b"-1", b"2147483647", b"99999999999999999999", b"nan", b"1e9"))
    return data[: at.start()] + new + data[at.end() :]


def _cut(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    return data[: rng.choice((0, 1, _place(rng, data), rng.randrange(len(data) + 1)))]


def _splice(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _words(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    text = data.decode(errors="replace")
    found = list(_TOKEN.finditer(text))
    if not found:
        return data
    at, other = rng.choice(found), rng.choice(found)
    lines = text.splitlines(keepends=True)
    number = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        text = text[: at.start()] + other[0] + text[at.end() :]
    elif kind == 1:
        text = "".join(lines[:number] + rng.choice(([], lines[number : number + 1] * 2)))
        text += "".join(lines[number + 1 :])
    else:
        text = text[: at.start()] + rng.choice(WORDS) + text[at.end() :]
    return text.encode(errors="surrogatepass")


def _json(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    try:
        content = {"": json.loads(data)}
    except (ValueError, RecursionError):  # an earlier mutation
        return data
    content = copy.deepcopy(content)
    inside, key = rng.choice(list(_places(content)))
    action = rng.random()
    if action < 0.15 and inside is not content:
        del inside[key]
    elif action < 0.3:
        other, its_key = rng.choice(list(_places(content)))
        inside[key] = copy.deepcopy(other[its_key])
    else:
        inside[key] = rng.choice(VALUES)
    return json.dumps(content.get("")).encode()


def _places(content: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], dict | list):
            yield from _places(content[key])
