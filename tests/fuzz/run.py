"""Damaged inputs, in processes of their own: `python tests/fuzz/run.py GROUP/KIND FIRST COUNT`.

Every input is a value or a line for the user. What is neither is printed with its seed, of which
`python tests/fuzz/run.py GROUP/KIND SEED 1` repeats the input alone. GROUP takes all of its kinds.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from importlib import import_module
from pathlib import Path
from typing import TextIO

TESTS = Path(__file__).resolve().parents[1]
HELPERS = ("heads/reconstruction", "heads/policy", "heads/propagation")
sys.path[:0] = [str(TESTS), *(str(TESTS / helper) for helper in HELPERS)]

import mutations  # noqa: E402
from kind import Form, Kind  # noqa: E402

from pixio_lightning.data import BadImage  # noqa: E402
from pixio_lightning.errors import UserError  # noqa: E402

SECONDS = 60  # of one input, on a machine that does other things as well
MEMORY = 1536 << 20  # bytes that an input may add to what the process holds
_MOST_SHOWN = 10


def main(name: str, first: int, count: int) -> int:
    """Read `count` damaged inputs of each kind; returns how many kinds have one that failed."""
    group, _, one = name.partition("/")
    kinds: dict[str, Kind] = import_module(f"fuzzed_{group}").KINDS
    failed = 0
    for kind in [one] if one else kinds:
        # Each in a copy of this process, which may crash and whose memory is counted.
        child = os.fork()
        if not child:
            os._exit(min(1, _in_child(f"{group}/{kind}", kinds[kind], first, count)))
        if status := os.waitpid(child, 0)[1]:
            print(f"FAILED {group}/{kind} ended with {os.waitstatus_to_exitcode(status)}")
            failed += 1
        sys.stdout.flush()
    return failed


def _in_child(name: str, kind: Kind, first: int, count: int) -> int:
    warnings.simplefilter("ignore")
    # Libraries in C write to the terminal themselves.
    told = os.fdopen(os.dup(1), "w", buffering=1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with tempfile.TemporaryDirectory() as work:
        for variable in ("PIXIO_CACHE", "HF_HOME", "HF_DATASETS_CACHE"):
            os.environ[variable] = f"{work}/cache"
        try:
            return _run(name, kind, first, count, Path(work), told)
        except Exception:
            print(traceback.format_exc(), file=told)
            return 1


def _run(name: str, kind: Kind, first: int, count: int, work: Path, told: TextIO) -> int:
    forms: list[Form] = []
    for number, make in enumerate(kind.forms):
        folder = work / f"{number}"
        folder.mkdir()
        forms.append(Form(folder, [folder / file for file in make(folder)]))
    whole = [[file.read_bytes() for file in form.files] for form in forms]
    for form in forms:
        kind.read(form.folder)  # it is valid, or what is damaged of it would say nothing
    before = _peak()
    _bound_address_space()
    failed, values, slowest = 0, 0, (0.0, first)
    for seed in range(first, first + count):
        rng = random.Random(zlib.crc32(name.encode()) << 32 | seed)
        number = rng.randrange(len(forms))
        at = rng.randrange(len(forms[number].files))
        file, data = forms[number].files[at], whole[number][at]
        others = [contents[at % len(contents)] for contents in whole]
        changed = mutations.damaged(rng, data, others)
        if rng.random() < 0.7:
            with contextlib.suppress(Exception):  # what is damaged need not be repairable
                changed = kind.repaired(rng, changed)
        file.write_bytes(changed)
        # In time, or the trace of where it hangs is shown and this process ends.
        print(f"at seed {seed}", file=told)
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=told)
        problem, begun = "", time.perf_counter()
        try:
            kind.read(forms[number].folder)
            values += 1
        except (UserError, BadImage) as error:
            if "\n" in str(error):
                problem = f"a message of several lines: {error!r}"
        except Exception:
            problem = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        slowest = max(slowest, (time.perf_counter() - begun, seed))
        added = _peak() - before
        if added > MEMORY:
            problem = f"{added:,} bytes of memory\n{problem}"
        if problem:
            print(f"FAILED {name} {seed} ({file.name}): {problem}", file=told)
            failed += 1
        file.write_bytes(data)
        if added > MEMORY or failed >= _MOST_SHOWN:
            break  # the peak only rises, so nothing after it can be told
    print(
        f"DONE {name}: {failed} failed of {count}, {values} were read; longest "
        f"{slowest[0]:.2f} s (seed {slowest[1]}); {(_peak() - before) >> 20} MiB added",
        file=told,
    )
    return failed


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _bound_address_space() -> None:
    """Let what asks for far more than the bound fail here, and not fill the machine."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 3 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
