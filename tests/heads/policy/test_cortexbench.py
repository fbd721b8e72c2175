"""CortexBench: pickles are read as the suites write them, and run nothing whatever they say."""

from __future__ import annotations

import builtins
import collections
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pixio_heads.policy.cortexbench import read, trifinger
from pixio_heads.policy.cortexbench.arrays import unpickled
from pixio_lightning.errors import UserError

STEPS = 6


def demonstration(seed: int, proprio: tuple[str, int] | None = None) -> dict[str, Any]:
    """What the suites store of an episode."""
    rng = np.random.default_rng(seed)
    infos: dict[str, Any] = {"internal_state": rng.normal(size=(STEPS, 9))}
    if proprio:
        infos[proprio[0]] = rng.normal(size=(STEPS, proprio[1]))
    return {
        "images": rng.integers(0, 256, (STEPS, 16, 20, 3), np.uint8),
        "actions": rng.normal(size=(STEPS, 4)).astype(np.float32),
        "rewards": rng.normal(size=STEPS),
        "env_infos": infos,
        "init_state_dict": collections.OrderedDict(
            qpos=np.asfortranarray(rng.normal(size=(3, 2))),
            goal=np.float64(0.5),
            done=np.bool_(True),
        ),
        "terminated": False,
        "names": np.array(["a", None], object),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("proprio", "width"),
    [(("gripper_proprio", 4), 4), (("proprio", 24), 24), (("proprio", 30), 30), (None, 0)],
    ids=["metaworld", "pen", "relocate", "dmc"],
)
def test_each_suite_is_read(
    tmp_path: Path, protocol: int, proprio: tuple[str, int] | None, width: int
) -> None:
    demos = [demonstration(seed, proprio) for seed in range(3)]
    file = tmp_path / "task.pickle"
    file.write_bytes(pickle.dumps(demos, protocol))
    found, digest = read(file, limit=2, trusted=True)
    assert len(found) == 2 and digest != read(file, limit=None, trusted=True)[1]
    for demo, stored in zip(found, demos, strict=False):
        assert np.array_equal(demo.actions, stored["actions"])
        assert demo.proprio.shape == (STEPS, width) and demo.proprio.dtype == np.float32
        if proprio:
            expected = stored["env_infos"][proprio[0]].astype(np.float32)
            assert np.array_equal(demo.proprio, expected)
        for step in range(STEPS):
            assert np.array_equal(demo.frame(step), stored["images"][step])
    demo.frame(0)[:] = 0  # whoever changes it, what was read stays
    assert demo.frame(0).any()


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_all_kinds_are_as_they_were(tmp_path: Path, protocol: int) -> None:
    kinds = ("?", "u1", "i2", ">i4", "u8", "f2", ">f4", "f8", "U3", "S2")
    arrays = [np.arange(6).astype(kind).reshape(2, 3) for kind in kinds]
    arrays += [np.empty((0, 4)), np.array(2.5), np.arange(6.0).reshape(2, 3).T]
    file = tmp_path / "a.pickle"
    file.write_bytes(pickle.dumps(arrays, protocol))
    for array, found in zip(arrays, unpickled(file), strict=True):
        assert np.array_equal(found.values, array) and found.values.dtype == array.dtype


def test_names_of_numpy_1_are_known(tmp_path: Path) -> None:
    file = tmp_path / "a.pickle"
    data = pickle.dumps(demonstration(0)["actions"], 3)
    assert b"numpy._core" in data
    file.write_bytes(data.replace(b"numpy._core", b"numpy.core"))
    assert np.array_equal(unpickled(file).values, demonstration(0)["actions"])


def test_a_pickle_is_not_read_unasked(tmp_path: Path) -> None:
    file = tmp_path / "task.pickle"
    file.write_bytes(pickle.dumps([demonstration(0)]))
    with pytest.raises(UserError, match="set data.trust_pickle to true"):
        read(file, limit=1, trusted=False)


class Reduced:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def with_object(value: Any) -> Any:
    array = np.empty(1, object)
    array[0] = value
    return array


def raw(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
BUILD = b"(K\x01K\x02\x85cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR\x89C\x10" + bytes(16) + b"tb"


def attacks(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Return pickles that make the marker, or break the reader, and what they are refused for."""
    touch = f"open({str(marker)!r}, 'w')"
    system = Reduced(os.system, (f"touch {marker}",))
    objects: dict[str, tuple[Any, str]] = {
        "system": (system, "posix.system"),
        "eval": (Reduced(eval, (touch,)), "__builtin__.eval"),
        "exec": (Reduced(exec, (touch,)), "__builtin__.exec"),
        "open": (Reduced(open, (str(marker), "w")), "open"),
        "inside": ([demonstration(0), {"images": [{"a": system}]}], "posix.system"),
        "in an object array": (with_object(system), "posix.system"),
        "numpy load": (Reduced(np.load, (str(marker),)), "numpy.load"),
        "numpy memmap": (Reduced(np.memmap, (str(marker), "u1", "w+", 0, 8)), "numpy.memmap"),
        "fromfile": (Reduced(np.fromfile, (str(marker),)), "fromfile"),
        "zeros": (Reduced(np.zeros, (1 << 40,)), "numpy.*zeros"),
        "encode": (Reduced(__import__("_codecs").encode, ("a", "rot13")), "encode with 'rot13'"),
        "bytearray": (Reduced(bytearray, (1 << 40,)), "__builtin__.bytearray"),
        "record": (np.zeros(2, [("a", "f8")]), "dtype"),
        "dates": (np.zeros(2, "M8[s]"), "dtype 'M8'"),
        "class": (Path("x"), "pathlib"),
    }
    found = {}
    for name, (value, message) in objects.items():
        found[name] = (pickle.dumps(value, 2), message)
    array = raw(RECONSTRUCT, BUILD)
    text = struct.pack("<I", 1000) + b"a" * 1000
    again = b"h\x01h\x02X\x06\x00\x00\x00latin1\x86R0" * 3000
    called = b"cnumpy\nndarray\n(J\xff\xff\xff\x7f\x85tR"
    chain = b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(U\x02ostRU\x06systemtR(U\x05touchtR"
    return found | {
        "getattr": (raw(chain), "builtins.getattr"),
        "runstring": (raw(b"cnumpy.testing\nrunstring\n(U\x011}tR"), "numpy.testing.runstring"),
        "below a name": (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.fromfile\x93.", "ndarray.fromfile"),
        "setattr": (raw(b"c_codecs\nencode\nN}X\x04\x00\x00\x00makeK\x01s\x86b"), "a change of"),
        "type": (raw(b"cnumpy\ndtype\n)\x81"), "UnpicklingError"),
        "called": (raw(called), "a call of numpy.ndarray"),
        "persistent": (raw(b"Pabc\n"), "reference out of the file"),
        "extension": (raw(b"\x82\x01"), "damaged"),
        "large": (array.replace(b"K\x02\x85", b"K\x03\x85"), "in 16 bytes"),
        "negative": (
            array.replace(b"K\x02\x85", b"J\xfe\xff\xff\xffJ\xff\xff\xff\xff\x86"),
            "damaged",
        ),
        "addresses": (array.replace(b"f8", b"O8"), "objects in bytes"),
        "memo": (raw(b"]r\xff\xff\xff\x7f"), "larger than the file"),
        "again": (
            raw(b"c_codecs\nencode\nq\x01X", text, b"q\x02", again, b"N"),
            "used again and again",
        ),
        "cut short": (pickle.dumps([demonstration(0)])[:-500], "damaged"),
        "no pickle": (b"PK\x03\x04", "no pickle"),
        "empty": (b"", "no pickle"),
    }


@pytest.mark.parametrize("name", attacks(Path("x")))
def test_nothing_of_a_pickle_is_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    data, message = attacks(marker)[name]
    file = tmp_path / "task.pickle"
    file.write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        read(file, limit=None, trusted=True)
    assert not marker.exists()
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_the_attacks_are_real(tmp_path: Path) -> None:
    """The plain reader makes the marker: the test above can fail."""
    made = 0
    for name in ("system", "eval", "in an object array"):
        marker = tmp_path / name.replace(" ", "_")
        pickle.loads(attacks(marker)[name][0])
        made += marker.exists()
    assert made == 3 and builtins.eval is eval


def spoiled(change: Callable[[dict[str, Any]], Any]) -> Any:
    demos = [demonstration(seed, ("proprio", 24)) for seed in range(2)]
    return [demos[0], change(demos[1]) or demos[1]]


BROKEN: dict[str, tuple[Any, str]] = {
    "no list": ({"images": 1}, "no list of dicts"),
    "empty": ([], "expected demonstrations"),
    "no actions": (spoiled(lambda d: d.update(action=d.pop("actions"))), "did you mean 'action'"),
    "length": (
        spoiled(lambda d: d.update(actions=d["actions"][:-1])),
        "demonstration 1 has 5 actions, 6 images, 6 proprio",
    ),
    "grey": (spoiled(lambda d: d.update(images=d["images"][..., :1])), r"uint8 \(6, 16, 20, 1\)"),
    "floats": (spoiled(lambda d: d.update(images=d["images"] / 255)), "images is float64"),
    "flat": (spoiled(lambda d: d.update(actions=d["rewards"])), r"expected numbers \(T, n\)"),
    "objects": (spoiled(lambda d: d.update(actions=d["names"])), "actions is Array"),
    "widths": (spoiled(lambda d: demonstration(1, ("proprio", 30))), "as many states"),
    "no steps": (
        spoiled(lambda d: d.update({k: d[k][:0] for k in ("images", "actions")}, env_infos={})),
        "0 actions",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_pickle_is_one_line(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    file = tmp_path / "task.pickle"
    file.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        read(file, limit=None, trusted=True)
    assert str(file) in str(error.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "walker_walk.pickle").touch()
    with pytest.raises(UserError, match="did you mean 'walker_walk.pickle'"):
        read(tmp_path / "walker_walks.pickle", limit=None, trusted=True)


@pytest.mark.parametrize("kind", ["tensors", "arrays", "lists"])
@pytest.mark.parametrize("more", [0, 1])
def test_trifinger_is_read(tmp_path: Path, kind: str, more: int) -> None:
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "ft_pos_cur": rng.normal(size=(STEPS + more, 9)).astype(np.float32),
        "delta_ftpos": rng.normal(size=(STEPS, 3)),
        "image_60": rng.integers(0, 256, (STEPS + more, 16, 16, 3), np.uint8),
    }
    change = {"tensors": torch.from_numpy, "arrays": np.asarray, "lists": list}[kind]
    for name in ("demo-1", "demo-0"):
        (tmp_path / name).mkdir()
        stored = {key: change(values) for key, values in content.items()}
        torch.save(stored, tmp_path / name / trifinger.FILE)
    found = trifinger.read(tmp_path)
    assert [demo.name for demo in found] == ["demo-0", "demo-1"]
    assert np.array_equal(found[0].proprio, content["ft_pos_cur"][:STEPS])
    assert np.array_equal(found[0].actions, content["delta_ftpos"].astype(np.float32))
    assert np.array_equal(found[0].frame(5), content["image_60"][5])


def test_a_trifinger_file_runs_nothing(tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "demo" / trifinger.FILE
    file.parent.mkdir()
    torch.save({"a": Reduced(os.system, (f"touch {marker}",))}, file)
    with pytest.raises(UserError, match="posix.system"):
        trifinger.read(tmp_path)
    assert not marker.exists()
    file.write_bytes(b"PK\x03\x04 damaged")
    with pytest.raises(UserError, match="downsample.pth' cannot be read"):
        trifinger.read(tmp_path)
    with pytest.raises(UserError, match="holds no downsample.pth"):
        trifinger.read(tmp_path / "nowhere")
