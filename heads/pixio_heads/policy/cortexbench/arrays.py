"""Pickles of numpy arrays and plain containers, read without running anything that they name.

A pickle calls what it names. Here the few names that arrays are pickled with stand for functions of
this file, which make arrays out of bytes; numpy's own take object arrays, and sizes and flags that
do not fit the bytes. Every other name is refused.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.errors import UserError

# Booleans, integers, floats, text, and objects, of which nothing is kept; no records.
_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU]\d+|O8?)")


class Refused(Exception):
    """Something that is no array and no plain container; the text says what."""


class _Named:
    """What a name in a pickle stands for: it can be called, and not be changed."""

    __slots__ = ("make",)
    make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any]) -> None:
        object.__setattr__(self, "make", make)

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"a change of {name}")

    def __setstate__(self, state: Any) -> None:
        raise Refused("a change of what it names")


class _Dtype:
    """A dtype by its name, with the byte order that its state gives."""

    __slots__ = ("name",)

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if not isinstance(name, str) or not _DTYPE.fullmatch(name):
            raise Refused(f"arrays of dtype {name!r}")
        self.name = name

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(state[2:5]):
            raise Refused(f"arrays of dtype {self.name} with fields")
        self.name = order + self.name.lstrip("<>=|")


class Array:
    """An array that is still to be filled.

    Attributes:
        values: It; None of one that holds objects, or before its state was read.
    """

    __slots__ = ("values",)

    def __init__(self, *of: Any) -> None:
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):
            return
        self.values = _filled(data, dtype, shape, "F" if fortran else "C")


def _filled(data: Any, dtype: Any, shape: Any, order: str) -> NDArray[Any]:
    """Return an array that is a view of bytes, and no larger than they are."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | bytearray):
        raise Refused(f"an array in a {type(data).__name__}")
    if "O" in dtype.name:  # its bytes would be addresses
        raise Refused("objects in bytes")
    kind = np.dtype(dtype.name)
    if kind.itemsize * math.prod(shape) != len(data):
        raise Refused(f"an array of shape {shape} in {len(data)} bytes")
    return np.ndarray(shape, kind, data, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any) -> Any:
    return _filled(data, dtype, (), "C").item()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: str) -> Array:
    array = Array()
    array.values = _filled(data, dtype, shape, order)
    return array


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO, size: int) -> None:
        super().__init__(file)
        self.room = size
        numpy_names: dict[str, Callable[..., Any]] = {
            "multiarray._reconstruct": Array,
            "multiarray.scalar": _scalar,
            "numeric._frombuffer": _from_buffer,
        }
        self.named = {
            "numpy.ndarray": _Named(_uncalled),
            "numpy.dtype": _Named(_Dtype),
            "_codecs.encode": _Named(self.encode),
            "collections.OrderedDict": _Named(lambda: {}),
            "__builtin__.bytes": _Named(lambda: b""),  # how protocol 2 keeps none
            **{
                f"numpy.{core}.{name}": _Named(make)
                for core in ("core", "_core")
                for name, make in numpy_names.items()
            },
        }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; raises Refused where nothing does."""
        try:
            return self.named[f"{module}.{name}"]
        except KeyError:
            raise Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise Refused("a reference out of the file")

    def encode(self, text: Any, encoding: Any) -> bytes:
        """Return text as bytes: how protocol 2 keeps those of Python 3."""
        if encoding != "latin1" or not isinstance(text, str):
            raise Refused(f"_codecs.encode with {encoding!r}")
        self.room -= len(text)
        if self.room < 0:
            raise Refused("text that is used again and again")
        return text.encode("latin1")


def _uncalled(*args: Any) -> Any:
    raise Refused("a call of numpy.ndarray")


def unpickled(file: Path) -> Any:
    """Return the content of a pickle; its arrays are views of the bytes in it, as `Array`.

    Raises:
        UserError: It holds anything but arrays and plain containers, or it is damaged.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            return load(stream, size)
    except Refused as error:
        raise UserError(
            f"'{file}' holds more than arrays and plain containers ({error}): refused, and nothing "
            "of it was executed"
        ) from None
    except OSError as error:
        raise UserError(f"'{file}' cannot be read ({error.strerror})") from None
    # Damaged bytes lead the reader wherever they happen to.
    except Exception as error:
        reason = type(error).__name__
        raise UserError(f"'{file}' is no pickle, or a damaged one ({reason})") from None


def load(stream: BinaryIO, size: int) -> Any:
    """Return the content of a stream of so many bytes; raises Refused, or whatever it leads to."""
    for opcode, argument, _ in pickletools.genops(stream):
        # The reader's table of what was seen is as long as the largest number in it.
        if opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > size:
            raise Refused("a number of an object that is larger than the file")
    stream.seek(0)
    return _Reader(stream, size).load()
