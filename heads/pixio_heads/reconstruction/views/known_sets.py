"""What is known of public data sets: metres, rendering, which depth counts, how often one is seen.

As in MapAnything's loaders and in the training on all of its sets
(https://github.com/facebookresearch/map-anything).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pixio_heads.reconstruction.views.wai.depth_rules import DepthRule
from pixio_lightning.errors import UserError, nearest

_Value = TypeVar("_Value", bool, float)


@dataclass(frozen=True)
class SetFlags:
    """What is said of a data set; None is what is known of it.

    Args:
        metric: Whether lengths are metres.
        synthetic: Whether images are rendered.
        weight: How often it is trained on beside the others, whatever the number of its scenes; of
            a set that is not known 1.
        covisibility: `data.covisibility` of this set.

    Raises:
        UserError: A number is out of range.
    """

    metric: bool | None = None
    synthetic: bool | None = None
    weight: float | None = None
    covisibility: float | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise UserError(f"a weight in data.sets is {self.weight:g}; expected over 0")
        if self.covisibility is not None and not 0 < self.covisibility <= 1:
            raise UserError(
                f"a covisibility in data.sets is {self.covisibility:g}; expected over 0 up to 1"
            )


@dataclass(frozen=True)
class SetFacts:
    """What holds for the scenes of a data set.

    Attributes:
        metric: Whether lengths are metres; None leaves it to the file of each scene.
        synthetic: Whether images are rendered; None is not.
        rule: Which depth counts; None applies the masks that its files have.
        weight: How often it is trained on beside others.
        covisibility: How much of a view its neighbour must see; None is as of all.
        name: The set's.
    """

    metric: bool | None = None
    synthetic: bool | None = None
    rule: DepthRule | None = None
    weight: float = 1.0
    covisibility: float | None = None
    name: str = ""


_WHOLE = DepthRule()
_MASKED = DepthRule(usable=True)
_NEAR = DepthRule(zero_is_ambiguous=True, percentile=95)
# By their folders' names. Weights are the sets of views of a pass, 420,000 of most.
_KNOWN = {
    "ase": SetFacts(True, True, _WHOLE),
    "blendedmvs": SetFacts(False, False, _MASKED),
    "dl3dv": SetFacts(False, False, _MASKED),
    "dynamicreplica": SetFacts(True, True, _WHOLE, weight=320 / 420),
    "eth3d": SetFacts(True, False, _WHOLE, covisibility=0.025),
    "megadepth": SetFacts(False, False, _MASKED),
    "mpsd": SetFacts(True, False, _MASKED, covisibility=0.15),
    "mvs_synth": SetFacts(True, True, _NEAR),
    "paralleldomain4d": SetFacts(True, True, _NEAR),
    "sailvos3d": SetFacts(True, True, _NEAR),
    "scannetppv2": SetFacts(True, False, _WHOLE),
    "spring": SetFacts(True, True, DepthRule(sky=True, usable=True), weight=16 / 420),
    "tav2_wb": SetFacts(True, True, DepthRule(percentile=95, usable=True)),
    "unrealstereo4k": SetFacts(True, True, _NEAR, weight=44 / 420),
}
_ALSO = {"tartanairv2_wb": "tav2_wb"}


def _plain(name: str) -> str:
    """Return a name without case and punctuation; ScanNet++ is not ScanNet."""
    return re.sub("[^a-z0-9]", "", name.lower().replace("+", "p"))


_PLAIN = {_plain(name): name for name in _KNOWN} | {_plain(a): b for a, b in _ALSO.items()}


def known_name(name: str) -> str:
    """Return the name that MapAnything has for a set; of one that is not known its own."""
    return _PLAIN.get(_plain(name), name)


def is_known(name: str) -> bool:
    """Whether a set is known, by the name that MapAnything has for it."""
    return name in _KNOWN


@dataclass(frozen=True)
class Flags:
    """What is said of scenes beside what their files say.

    Attributes:
        metric: Whether lengths are metres; None leaves it to what is known of the set, or to the
            files of a scene that is in none.
        synthetic: Whether images are rendered; None leaves it to the set; without one they are not.
        sets: Of sets by their folders' names, before anything else.
        covisibility: How much of a view its neighbour must see; None leaves it to the set.
        masks: Whether depth that is no geometry is taken out.
    """

    metric: bool | None = None
    synthetic: bool | None = None
    sets: Mapping[str, SetFlags] = field(default_factory=dict)
    covisibility: float | None = None
    masks: bool = True

    def of(self, folder: Path, said: str | None, *, needed: bool) -> SetFacts:
        """Return what holds for the scenes in a folder.

        Args:
            folder: The set's.
            said: The name of the set in the file of a scene; the folder's counts before it.
            needed: Whether the folder is one of several sets, of which it must be known whether
                they are metric and synthetic.

        Raises:
            UserError: Nothing is known of it.
        """
        own = folder.name or folder.resolve().name
        there = {known_name(name): flags for name, flags in self.sets.items()}
        names = [known_name(name) for name in (own, said) if name]
        name = next((name for name in names if name in there or name in _KNOWN), own)
        given, known = there.get(name, SetFlags()), _KNOWN.get(name, SetFacts())
        metric = _first(given.metric, self.metric, known.metric)
        synthetic = _first(given.synthetic, self.synthetic, known.synthetic)
        if needed and (metric is None or synthetic is None):
            raise UserError(
                f"'{folder}' holds scenes of a set '{name}', of which it is not known whether "
                "lengths are metres and images are rendered; say so, as in "
                f"--data.sets '{{{name}: {{metric: true, synthetic: false}}}}'"
                f"{nearest(name, _KNOWN)}"
            )
        return SetFacts(
            metric,
            synthetic,
            known.rule if self.masks else _WHOLE,
            known.weight if given.weight is None else given.weight,
            _first(given.covisibility, self.covisibility, known.covisibility),
            name,
        )

    def refuse_others(self, root: Path, found: Iterable[str]) -> None:
        """Raise a UserError where a set is flagged that is not among those found."""
        there = sorted(set(found))
        for name in self.sets:
            if known_name(name) not in there:
                raise UserError(
                    f"data.sets names '{name}', but '{root}' holds the sets {', '.join(there)}"
                    f"{nearest(name, there)}"
                )


def _first(*values: _Value | None) -> _Value | None:
    return next((value for value in values if value is not None), None)
