"""The licence of weights as one text, in which those of the teachers they learned from stay.

`OWN; distilled from NAME, LICENCE; distilled from NAME, LICENCE`, where OWN is what the weights
began with; of weights that began at random it is left out.
"""

from __future__ import annotations

_FROM = "distilled from "


def distilled(licence: str, teacher: str, of_teacher: str) -> str:
    """Return the licence of what a student becomes.

    Args:
        licence: Of what it begins with.
        teacher: The name of the teacher's model.
        of_teacher: The teacher's licence.
    """
    source = f"{_FROM}{teacher}, {of_teacher}"
    if of_teacher.startswith("none") or f"; {source}; " in f"; {licence}; ":
        return licence  # as a student says that is read again
    return source if licence.startswith("none") else f"{licence}; {source}"


def is_open(licence: str) -> bool:
    """Whether nothing is known that weights are under."""
    start, teachers = _split(licence)
    return _says_nothing(start) and not teachers


def stated(licence: str, own: str) -> str | None:
    """Return a licence with the part that is open, if there is one, stated as `own`.

    What a teacher is under stays; None where nothing is open.
    """
    start, teachers = _split(licence)
    return own + teachers if _says_nothing(start) or start == own else None


def _says_nothing(licence: str) -> bool:
    return licence.lower().startswith(("none", "unknown"))


def _split(licence: str) -> tuple[str, str]:
    """Return what weights are under themselves, and the rest, of the teachers."""
    start, mark, rest = licence.partition(f"; {_FROM}")
    return start, mark + rest
