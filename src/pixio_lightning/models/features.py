"""Features: what a backbone hands to a head.

Shapes: B batch, K class tokens, h x w grid of patches, n visible patches, C width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pixio_lightning.errors import UserError

# What may be read of the features: all tokens, the class tokens, the patches, or none at all.
Reads = Literal["tokens", "cls", "patches", "nothing"]


# Named tuples, because DDP and FSDP find the tensors in a module's output only inside types
# that torch's pytree knows.
class Layer(NamedTuple):
    """The tokens after one block; registers are left out.

    Attributes:
        tokens: `(B, K + n, C)`, class tokens first, with the encoder's final norm.
        raw_tokens: The same without the norm.
        n_cls: Class tokens K.
        grid: Height and width in patches; None where there are not all patches.
    """

    tokens: Tensor
    raw_tokens: Tensor
    n_cls: int
    grid: tuple[int, int] | None

    def as_map(self, tokens: Tensor) -> Tensor:
        """Return something of all patches, `(B, h w, C)`, as a map `(B, C, h, w)`.

        Raises:
            ValueError: There are not all patches.
        """
        if self.grid is None:
            raise ValueError(
                "no map of patches: a masked pass has .tokens (or pass keep=None), and a head that "
                "reads class tokens has only .cls"
            )
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    @property
    def patches(self) -> Tensor:
        """Normed patch tokens as a map `(B, C, h, w)`."""
        return self.as_map(self.tokens[:, self.n_cls :])

    @property
    def raw_patches(self) -> Tensor:
        """Patch tokens before the norm as a map `(B, C, h, w)`."""
        return self.as_map(self.raw_tokens[:, self.n_cls :])

    @property
    def cls(self) -> Tensor:
        """Normed class tokens `(B, K, C)`; K may be 0."""
        return self.tokens[:, : self.n_cls]

    @property
    def raw_cls(self) -> Tensor:
        """Class tokens before the norm `(B, K, C)`; K may be 0."""
        return self.raw_tokens[:, : self.n_cls]


class Features(NamedTuple):
    """The tapped layers of one forward pass, shallow to deep.

    Attributes:
        layers: One `Layer` for each tapped block.
        dense_cls: Whether `dense` appends the mean class token to every patch.
    """

    layers: tuple[Layer, ...]
    dense_cls: bool

    @property
    def tokens(self) -> Tensor:
        """Normed tokens `(B, K + n, C)` of the last layer."""
        return self.layers[-1].tokens

    @property
    def pooled(self) -> Tensor:
        """One vector per image `(B, C)`: the mean class token.

        The mean patch where there is none, or where `reads` is `patches`.
        """
        layer = self.layers[-1]
        return (layer.cls if layer.n_cls else layer.tokens).mean(dim=1)

    def only(self, reads: Reads) -> Features:
        """Return what a head says it reads, and no more.

        Of `cls` on a backbone without class tokens these are the patches.
        """
        if reads == "tokens":
            return self
        if reads == "nothing":
            return self._replace(layers=())
        return self._replace(layers=tuple(_part(layer, reads) for layer in self.layers))

    def rows(self, start: int, stop: int) -> Features:
        """Return the features of some of the images."""
        layers = [
            layer._replace(tokens=layer.tokens[start:stop], raw_tokens=layer.raw_tokens[start:stop])
            for layer in self.layers
        ]
        return self._replace(layers=tuple(layers))

    def dense(self, i: int = -1) -> Tensor:
        """Return what a dense head reads: patches, with the mean class token where that helps.

        Returns:
            `(B, 2C, h, w)` with the class token, `(B, C, h, w)` without; channels lie last in
            memory, as in the tokens. Convolutions keep to that, and small ones take two thirds of
            the time.

        Raises:
            ValueError: Class tokens, which belong to it, or patches were left out.
        """
        layer = self.layers[i]
        if not self.dense_cls:
            return layer.patches
        if not layer.n_cls:
            raise ValueError(
                "dense features hold the mean class token, which a head that reads patches does "
                "not get: let its `reads` be 'tokens', or take .layers[i].patches"
            )
        patches = layer.tokens[:, layer.n_cls :]
        mean = layer.cls.mean(dim=1, keepdim=True).expand_as(patches)
        return layer.as_map(torch.cat([patches, mean], dim=2))


def _part(layer: Layer, reads: Reads) -> Layer:
    k = layer.n_cls
    if reads == "cls" and k:  # without any, patches stand for them
        return Layer(layer.cls, layer.raw_cls, k, None)
    return Layer(layer.tokens[:, k:], layer.raw_tokens[:, k:], 0, layer.grid)


def joined(parts: Sequence[Features]) -> Features:
    """Return the features of several passes, of equal grids, as of one."""
    if len(parts) == 1:
        return parts[0]
    layers = [
        same[0]._replace(
            tokens=torch.cat([layer.tokens for layer in same]),
            raw_tokens=torch.cat([layer.raw_tokens for layer in same]),
        )
        for same in zip(*(part.layers for part in parts), strict=True)
    ]
    return parts[0]._replace(layers=tuple(layers))


def dense_cls_of(given: bool | None, n_cls_tokens: int, *, name: str) -> bool:
    """Return whether dense features carry the mean class token.

    Args:
        given: What is asked for; None takes what suits the family.
        n_cls_tokens: Class tokens of the model.
        name: Of the model.

    Raises:
        UserError: It is asked for, and the model has none.
    """
    if given and not n_cls_tokens:
        raise UserError(f"backbone.dense_cls is true, but {name} has no class tokens")
    return n_cls_tokens > 0 and "dinov3" not in name if given is None else given


def tapped_blocks(
    layers: Literal["last", "quarters"] | list[int], depth: int, *, name: str
) -> list[int]:
    """Return the indices of the blocks that heads read, in order.

    Args:
        layers: `last`, `quarters` (four, evenly spread) or indices; negative ones from the end.
        depth: Number of blocks.
        name: Of the model, for the message.

    Raises:
        UserError: It is none of these; or a block does not exist, or is named twice.
    """
    if layers == "last":
        return [depth - 1]
    listed = isinstance(layers, (list, tuple)) and all(type(layer) is int for layer in layers)
    if layers != "quarters" and not listed:
        raise UserError(
            f"backbone.layers is {layers!r}, but expected last, quarters or a list of whole numbers"
        )
    quarters = [depth * (i + 1) // 4 - 1 for i in range(4)]
    indices = quarters if layers == "quarters" else layers
    taps = sorted(i % depth if -depth <= i < depth else i for i in indices)
    if not taps or taps[-1] >= depth or taps[0] < 0 or len({*taps}) < len(taps):
        raise UserError(
            f"backbone.layers is {layers}, but {name} has blocks 0 to {depth - 1}, "
            "each to be named once"
        )
    return taps
