"""The students in a checkpoint of distillation: `FILE:STUDENT` names one of several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixio_lightning.errors import UserError, nearest, printable
from pixio_lightning.files import expanded
from pixio_lightning.models.weights.shipped import SHIPPED, located


def split_student(source: str) -> tuple[str, str]:
    """Split `FILE:STUDENT`; the student is empty where none is named, as of shipped weights.

    A leading `~` of the file becomes the home folder.
    """
    source = expanded(located(source))
    file, _, student = source.rpartition(":")
    if not student or Path(source).exists():
        return source, ""
    return (file, student) if file.endswith((".ckpt", ".pt", ".pth", ".bin")) else (source, "")


def absolute(source: str) -> str:
    """Return the source of weights with the path of its file made absolute, where it is a file."""
    file, student = split_student(source)
    if not file or source in SHIPPED or not Path(file).exists():
        return source
    return str(Path(file).resolve()) + (f":{student}" if student else "")


def student_in(
    checkpoint: Mapping[str, Any], student: str, path: Path
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return the tensors of one student under their own names, and what is said of it.

    Args:
        checkpoint: As it was read, with the entry `pixio`.
        student: Its name; it may be empty where there is one alone.
        path: For messages.

    Returns:
        None where the checkpoint is none of distillation.

    Raises:
        UserError: There is no such student, or several and none is named.
    """
    students, state = checkpoint["pixio"].get("students"), checkpoint.get("state_dict")
    if students is None and not student:
        return None
    if not isinstance(students, Mapping) or not students or not isinstance(state, Mapping):
        raise UserError(f"{path} holds no students" + (f", so no '{student}'" if student else ""))
    names = [str(name) for name in students]
    if not student and len(names) > 1:
        raise UserError(
            f"{path} holds {len(names)} students: name one, as in {path}:{printable(names[0])} "
            f"(there are {printable(', '.join(names))})"
        )
    student = student or names[0]
    if student not in names:
        raise UserError(
            f"{path} holds no student '{student}'{nearest(student, names) or ';'} "
            f"there are {printable(', '.join(names))}"
        )
    own = {n: t for n, t in state.items() if str(n).startswith(f"decoder.{student}.")}
    return {"state_dict": own}, students[student]
