"""How the tensors of a file fit those of a model, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pixio_lightning.errors import UserError, some_of


@dataclass(frozen=True)
class Report:
    """How the tensors of a file fit those of a model.

    Attributes:
        matched: Tensors with the same name and shape.
        total: Tensors of the model.
        missing: Names the model has and the file lacks.
        unexpected: Names the file has and the model lacks.
        mismatched: `(name, shape in the model, shape in the file)`.
        decoder: Tensors of a decoder that were left out.
        others: Further tensors that were left out, a head's for example.
    """

    matched: int
    total: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    decoder: int = 0
    others: int = 0

    def line(self) -> str:
        """Return one line for the user, nothing kept back."""
        left = {"decoder": self.decoder, "other": self.others}
        parts = [f"{n} {kind} tensors left out" for kind, n in left.items() if n]
        return ", ".join([f"matched {self.matched} of {self.total} tensors", *parts])

    def check(self, source: str) -> None:
        """Raise a `UserError` that names the first tensors that do not fit, if any."""
        shapes = [f"{n} {here} here, {there} there" for n, here, there in self.mismatched]
        kinds: dict[str, Iterable[str]] = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "other shapes": shapes,
        }
        told = [f"{kind}: {some_of(names, limit=5)}" for kind, names in kinds.items() if names]
        if told:
            raise UserError(f"{source} does not fit the model: {self.line()}; {'; '.join(told)}")


def matched(
    model_state: Mapping[str, Tensor],
    encoder: Mapping[str, Tensor],
    *,
    decoder: int = 0,
    others: int = 0,
) -> Report:
    """Compare names and shapes; `decoder` and `others` count what is left out on purpose."""
    shared = [name for name in model_state if name in encoder]
    shapes = [(n, tuple(model_state[n].shape), tuple(encoder[n].shape)) for n in shared]
    mismatched = tuple(triple for triple in shapes if triple[1] != triple[2])
    return Report(
        matched=len(shared) - len(mismatched),
        total=len(model_state),
        missing=tuple(n for n in model_state if n not in encoder),
        unexpected=tuple(n for n in encoder if n not in model_state),
        mismatched=mismatched,
        decoder=decoder,
        others=others,
    )
