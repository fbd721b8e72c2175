"""`pixio doctor`: what this installation consists of, and what in it is broken.

Everything is read from metadata, the environment and files. With `imports`, every plug-in is
imported in other processes, so that one that crashes the interpreter is found too.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pixio_lightning.cli import recipes
from pixio_lightning.errors import UserError
from pixio_lightning.files import bytes_by_kind, cache_home, default_cache, plugins

# Entry points whose callbacks Lightning adds to each Trainer without being told.
_CALLBACKS = "lightning.pytorch.callbacks_factory"

# Torch and Lightning take 20 s to import from a cold network disk; ten times that is a hang.
IMPORT_SECONDS = 200
NVIDIA_SMI_SECONDS = 20  # it hangs when a driver is broken

LICENCES = {
    "Pixio, released": "FAIR Noncommercial Research License",
    "tiny, shipped": "Apache-2.0",
    "MAE in timm": "CC-BY-NC-4.0",
    "DINOv2": "Apache-2.0",
    "DINOv3": "DINOv3 License",
}


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    state: str
    broken: bool = False


def examine(*, imports: bool) -> int:
    """Print the report; return 1 when something is broken, else 0."""
    broken = 0
    for title, findings in (
        ("Versions", versions()),
        ("Extras", extras()),
        ("Machine", machine()),
        ("Caches", caches()),
        ("Plug-ins", plug_ins(imports=imports)),
        ("Licences of weights", (Finding(*item) for item in LICENCES.items())),
    ):
        print(title)
        for finding in findings:
            mark = "!!" if finding.broken else "  "
            print(f"{mark} {finding.subject:<18} {finding.state}", flush=True)
            broken += finding.broken
    print(f"{broken} broken, marked !!" if broken else "nothing is broken")
    return 1 if broken else 0


def versions() -> Iterator[Finding]:
    """Compare installed versions with what this distribution's own metadata asks for."""
    yield Finding("python", platform.python_version())
    try:
        ours = metadata.distribution("pixio-lightning")
    except metadata.PackageNotFoundError:
        state = "not installed, so its heads are not found: pip install pixio-lightning"
        yield Finding("pixio-lightning", f"{state} (in a checkout: pip install -e .)", True)
        return
    yield Finding("pixio-lightning", ours.version)
    for requirement in map(Requirement, ours.requires or []):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _library(requirement)


def extras() -> Iterator[Finding]:
    """Say of every extra whether its packages are here, or how to get them: none is needed."""
    try:
        ours = metadata.distribution("pixio-lightning")
    except metadata.PackageNotFoundError:
        return
    requirements = [Requirement(text) for text in ours.requires or []]
    for extra in ours.metadata.get_all("Provides-Extra") or []:
        missing = dict.fromkeys(_missing(extra, requirements))
        state = "installed"
        if missing:
            state = f"lacks {', '.join(missing)}: pip install 'pixio-lightning[{extra}]'"
            state += f" (in a checkout: pip install -e '.[{extra}]')"
        yield Finding(extra, state)


def _missing(extra: str, requirements: Sequence[Requirement]) -> Iterator[str]:
    """Yield what an extra asks for and is not here; of an extra that names others, theirs too."""
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or marker.evaluate({"extra": ""}):
            continue  # needed in any case, as `versions` says
        if not marker.evaluate({"extra": extra}):
            continue
        if canonicalize_name(requirement.name) == "pixio-lightning":
            for other in sorted(requirement.extras):
                yield from _missing(other, requirements)
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield requirement.name
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name}{requirement.specifier} (there is {version})"


def _library(requirement: Requirement) -> Finding:
    name, specifier = requirement.name, str(requirement.specifier)
    needs = f"needs {specifier or 'any version'}: pip install '{name}{specifier}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, f"not installed, {needs}", True)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, f"{version}, {needs}", True)
    return Finding(name, f"{version}  ({specifier})" if specifier else version)


def machine() -> Iterator[Finding]:
    """Report the processors, the memory and the GPUs that a run would see."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    yield Finding("cpu cores", str(cores))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's own limit
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    yield Finding("memory", f"{memory / 2**30:.1f} GiB")
    yield from gpus()
    threads = os.environ.get("OMP_NUM_THREADS")
    unset = "unset: on the CPU, a run computes with the cores that its data workers leave"
    yield Finding("OMP_NUM_THREADS", threads or unset)


def gpus() -> Iterator[Finding]:
    """Ask `nvidia-smi` for the GPUs; torch is not imported."""
    if shutil.which("nvidia-smi") is None:
        yield Finding("gpus", "none seen")
        return
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=NVIDIA_SMI_SECONDS,
        )
    except subprocess.TimeoutExpired:
        yield Finding("gpus", f"nvidia-smi does not answer in {NVIDIA_SMI_SECONDS} s", True)
        return
    if answer.returncode:
        reason = _last_line(answer.stderr or answer.stdout)
        yield Finding("gpus", f"nvidia-smi fails: {reason}", True)
        return
    for index, line in enumerate(answer.stdout.strip().splitlines()):
        name, memory, driver = (part.strip() for part in line.split(","))
        yield Finding(f"gpu {index}", f"{name}, {memory}, driver {driver}")


def caches() -> Iterator[Finding]:
    """Report the folders that features and downloads go to, and what they hold and have left."""
    own = default_cache()
    downloads = Path(os.environ.get("HF_HOME") or cache_home() / "huggingface").expanduser()
    for variable, folder in (("PIXIO_CACHE", own.absolute()), ("HF_HOME", downloads.absolute())):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free / 2**30
        writable = "" if os.access(existing, os.W_OK) else ", not writable"
        yield Finding(variable, f"{folder}, {free:.0f} GiB free{writable}")
    kinds = [f"{n / 2**30:.1f} GiB of {kind}" for kind, n in bytes_by_kind(own).items() if n >> 26]
    if kinds:
        yield Finding("cached", f"{', '.join(kinds)}; what is deleted is made again when needed")


def plug_ins(*, imports: bool) -> Iterator[Finding]:
    """Report every head and every folder of recipes that installed distributions declare."""
    heads = plugins.installed(plugins.HEADS)
    claims = Counter(head.name for head in heads)
    faults = [_fault(head, claims[head.name]) for head in heads]
    if imports:
        sound = [i for i, fault in enumerate(faults) if not fault]
        found = import_faults([heads[i] for i in sound])
        for i, fault in zip(sound, found, strict=True):
            faults[i] = fault
    for head, fault in zip(heads, faults, strict=True):
        described = f"{head.target} of {head.origin}"
        yield Finding(head.name, f"{described}: {fault}" if fault else described, bool(fault))
    if not heads:
        yield Finding("heads", "none installed")
    for added in plugins.installed(_CALLBACKS):
        told = f"callbacks of {added.origin}, which Lightning adds to every run of its own accord"
        yield Finding(added.name, told)
    for root in recipes.roots():
        missing = "" if root.path.is_dir() else ": no such folder"
        yield Finding("recipes", f"{root.path} of {root.origin}{missing}", bool(missing))


def _fault(head: plugins.Plugin, claims: int) -> str:
    if claims > 1:
        return "the name is claimed more than once; uninstall one of the distributions"
    try:
        plugins.docstring(head)
    except UserError as error:
        return str(error)
    return ""


# Imports `module:attribute` after another, and writes a byte to an open file after each.
_IMPORTS = """\
import importlib, operator, os, sys
for target in sys.argv[2:]:
    module, _, attribute = target.partition(":")
    operator.attrgetter(attribute)(importlib.import_module(module))
    os.write(int(sys.argv[1]), b".")
"""


def import_faults(heads: Sequence[plugins.Plugin]) -> list[str]:
    """Import plug-ins in a process of their own; return the last line of each one's error, or "".

    Those after one that fails, or that ends the interpreter, are imported by another process.
    """
    faults: list[str] = []
    while left := heads[len(faults) :]:
        with tempfile.TemporaryFile() as imported:
            number = imported.fileno()
            targets = [f"{head.module}:{head.attribute}" for head in left]
            # -P: the current folder is no part of an installation.
            command = [sys.executable, "-P", "-c", _IMPORTS, str(number), *targets]
            try:
                done = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    timeout=IMPORT_SECONDS,
                    pass_fds=[number],
                )
                fault = _last_line(done.stderr)
                fault = fault or f"its import ends with exit code {done.returncode}"
            except subprocess.TimeoutExpired:
                fault = f"does not finish importing in {IMPORT_SECONDS} s"
            faults += [""] * os.fstat(number).st_size
        if len(faults) < len(heads):
            faults.append(fault)
    return faults


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]
