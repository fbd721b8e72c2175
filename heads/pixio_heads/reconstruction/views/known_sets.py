"""Which data sets are in metres and which are rendered, where several lie beside each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pixio_lightning.errors import UserError, nearest


@dataclass(frozen=True)
class SetFlags:
    """What must be known of a data set.

    Attributes:
        metric: Whether lengths are metres.
        synthetic: Whether images are rendered.
    """

    metric: bool
    synthetic: bool


# By their folders' names, as MapAnything has them.
_METRIC_SYNTHETIC = (
    *("ase", "dynamicreplica", "mvs_synth", "paralleldomain4d", "sailvos3d", "spring"),
    *("tav2_wb", "tartanairv2_wb", "unrealstereo4k"),
)
_METRIC_REAL = ("scannetppv2", "eth3d", "mpsd")
_NOT_METRIC = ("blendedmvs", "dl3dv", "megadepth")
_KNOWN = {
    **{name: SetFlags(metric=True, synthetic=True) for name in _METRIC_SYNTHETIC},
    **{name: SetFlags(metric=True, synthetic=False) for name in _METRIC_REAL},
    **{name: SetFlags(metric=False, synthetic=False) for name in _NOT_METRIC},
}


def _plain(name: str) -> str:
    """Return a name without case and punctuation; ScanNet++ is not ScanNet."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


_PLAIN = {_plain(name): flags for name, flags in _KNOWN.items()}


@dataclass(frozen=True)
class Flags:
    """What is said of scenes beside what their files say.

    Attributes:
        metric: Whether lengths are metres; None leaves it to what is known of the set, or to the
            files of a scene that is in none.
        synthetic: Whether images are rendered; None leaves it to the set; without one they are not.
        sets: Of sets by their folders' names, before anything else.
    """

    metric: bool | None = None
    synthetic: bool | None = None
    sets: Mapping[str, SetFlags] = field(default_factory=dict)

    def of(self, folder: Path) -> SetFlags:
        """Return the flags of the set that a folder is.

        Raises:
            UserError: Nothing is known of it.
        """
        name = folder.name
        if name in self.sets:
            return self.sets[name]
        known = _PLAIN.get(_plain(name))
        metric = known.metric if known and self.metric is None else self.metric
        synthetic = known.synthetic if known and self.synthetic is None else self.synthetic
        if metric is None or synthetic is None:
            raise UserError(
                f"'{folder}' holds scenes of a set '{name}', of which it is not known whether "
                "lengths are metres and images are rendered; say so, as in "
                f"--data.sets '{{{name}: {{metric: true, synthetic: false}}}}'"
                f"{nearest(name, _KNOWN)}"
            )
        return SetFlags(metric, synthetic)

    def refuse_others(self, root: Path, found: Iterable[str]) -> None:
        """Raise a UserError where a set is flagged that is not among those found."""
        there = sorted(set(found))
        for name in self.sets:
            if name not in there:
                raise UserError(
                    f"data.sets names '{name}', but '{root}' holds "
                    f"{'the sets ' + ', '.join(there) if there else 'no folder of scenes'}"
                    f"{nearest(name, there)}"
                )
