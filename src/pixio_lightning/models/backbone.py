"""Backbone: any Vision Transformer behind one interface, from construction to features.

Shapes: B batch, N = h*w patches, n visible patches, K class tokens, C width of a token.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixio_lightning.errors import UserError, refuse_unread
from pixio_lightning.keyed import RandomKey
from pixio_lightning.models import build as architecture
from pixio_lightning.models import drop_path as drop_paths
from pixio_lightning.models.blocks import compile_blocks
from pixio_lightning.models.features import Features, Layer, Reads, dense_cls_of, tapped_blocks
from pixio_lightning.models.masking import embed
from pixio_lightning.models.vit import published_positions
from pixio_lightning.models.weights import fill
from pixio_lightning.models.weights import read as weight_files

# Pixels between tokens where patches are of no power of two, as 14; others keep their own.
STRIDE = 16


class Backbone(nn.Module):
    """An encoder that turns images into `Features`.

    It is built on the meta device, so its sizes and licence are known at once and nothing is
    allocated; `load` fills it, called by Lightning or by the first forward pass.

    Args:
        name: `pixio_vit{t,s,b,l,h,1b,5b}16`, or a Vision Transformer of `timm.list_models()`.
            A checkpoint or export of ours knows its own name.
        weights: A path (checkpoint, .pth, .safetensors, or a folder of transformers or timm),
            `hf:ORG/NAME`, `timm` for timm's own, `tiny` for the small Pixio of this package (a file
            of that name is `./tiny`), `random:SEED`, or `random`, which follows the run's seed, or
            is `random:0` if the backbone is frozen.
        tune: `frozen`, `full`, or the number of last blocks to train.
        layers: Blocks whose output heads read: `last`, `quarters` (four, evenly spread, as dense
            heads use) or a list of indices.
        drop_path: Stochastic depth of the last block that runs, rising linearly from 0 at the
            first.
        dense_cls: Whether dense features carry the mean class token; None takes what suits the
            family (Pixio, MAE and DINOv2 yes, DINOv3 and models without class tokens no).
        checkpointing: Recompute blocks in the backward pass: less memory, a third more compute.
        compile: Compile every block with torch.compile, in place.
        model_args: Further arguments of the model: `n_cls_tokens`, `patch_size`, `img_size`,
            `in_chans`, `pos_init`, ..., `mean` and `std` of the input; see `settings.ARGUMENTS`.

    Raises:
        UserError: The name is unknown, or disagrees with the weights; or a layer does not exist; or
            a key of training is given to a backbone that is frozen.
    """

    mean: Tensor
    std: Tensor
    drop_rates: Tensor
    vit: Any  # a VisionTransformer or one of timm's relatives, which share no base class

    def __init__(
        self,
        name: str | None = None,
        *,
        weights: str,
        tune: Literal["frozen", "full"] | int = "frozen",
        layers: Literal["last", "quarters"] | list[int] = "last",
        drop_path: float = 0.0,
        dense_cls: bool | None = None,
        checkpointing: bool = False,
        compile: bool = False,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.weights = weights = os.fspath(weights)
        self._tune, self.drop_path = tune, drop_path
        self.checkpointing, self.compile_blocks = checkpointing, compile
        self._file = None if architecture.is_generated(weights) else weight_files.read(weights)
        self.name, model_args = architecture.resolve_architecture(
            name, weights, self._file, model_args or {}
        )
        stated: dict[str, Any] = {k: model_args.pop(k) for k in ("mean", "std") if k in model_args}
        self.model_args = model_args
        with torch.device("meta"):
            self.vit = architecture.build(self.name, model_args)
        if weights == "timm":
            architecture.fits_timms(self.name, model_args, self.vit)
        self._describe(stated, dense_cls)
        self._digest = ""
        # True is equal to 1, and would train the last block alone.
        if isinstance(tune, bool) or tune not in ("frozen", "full", *range(self.depth + 1)):
            raise UserError(
                f"backbone.tune is {tune!r}; give frozen, full, or the number of last blocks to "
                f"train, 0 to {self.depth}"
            )
        drop_paths.check(drop_path, frozen=self.frozen)
        if self.frozen:
            forward_only = "nothing of the backbone is trained, so that no block is run backward"
            refuse_unread("backbone.checkpointing", checkpointing, False, forward_only)
        self.tapped = tapped_blocks(layers, self.depth, name=self.name)
        self.blocks_run = self.tapped[-1] + 1
        self._drop_paths: dict[int, drop_paths.Pair] = {}
        self.loaded, self.matched = False, ""
        self._freeze()  # so that a plan made before anything is loaded counts what is trained

    # --- construction -------------------------------------------------------------------------

    def _describe(self, statistics: dict[str, Any], dense_cls: bool | None) -> None:
        config = self.vit.pretrained_cfg
        self.embed_dim: int = self.vit.embed_dim
        self.depth: int = len(self.vit.blocks)
        self.patch_size: int = self.vit.patch_embed.patch_size[0]
        # Power-of-two patches read the image as it is; patch 14 is resized to 16-pixel tokens.
        fits = STRIDE % self.patch_size == 0 or self.patch_size % STRIDE == 0
        self.stride = self.patch_size if fits else STRIDE
        cls_token = self.vit.cls_token
        self.n_cls_tokens: int = 0 if cls_token is None else cls_token.shape[1]
        self.n_registers: int = self.vit.num_prefix_tokens - self.n_cls_tokens
        self.dense_cls = dense_cls_of(dense_cls, self.n_cls_tokens, name=self.name)
        self.dense_dim = self.embed_dim * (2 if self.dense_cls else 1)
        self.licence = architecture.licence(self.name, self.weights, self._file, config)
        self._statistics: dict[str, list[float]] = {}
        # A file that says nothing of mean and deviation gets those that timm has for the name.
        self.input_assumed = self._file is not None and "mean" not in statistics
        self.channels: int = self.vit.patch_embed.proj.in_channels
        for key in ("mean", "std"):
            value = self._statistics[key] = list(statistics.get(key, config[key]))
            if len(value) not in ((1, self.channels) if key in statistics else (self.channels,)):
                raise UserError(
                    f"backbone.model_args.{key} has {len(value)} values, but {self.name} takes "
                    f"images of {self.channels} channels (in_chans): give mean and std of each"
                )
            values = torch.tensor(value, dtype=torch.float32, device="cpu").view(1, -1, 1, 1)
            self.register_buffer(key, values, persistent=False)

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data from which the same architecture can be built again."""
        arguments = {"model_args": architecture.plain(self.model_args), **self._statistics}
        whence = {"weights": self.weights, "licence": self.licence}
        return {"name": self.name, **arguments, **whence}

    @property
    def grid(self) -> tuple[int, int]:
        """Grid of patches the positions were learned on."""
        return tuple(self.vit.patch_embed.grid_size)

    @property
    def tune(self) -> Literal["frozen", "full"] | int:
        """What is trained, as it was given; gradients and checkpoints go by it from the start."""
        return self._tune

    @property
    def heads(self) -> int | list[int]:
        """Attention heads of the blocks: one number, or where they differ, one of each block."""
        found = [part.num_heads for part in self.vit.modules() if hasattr(part, "num_heads")]
        return found[0] if len({*found}) == 1 else found

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone is trained."""
        return self.tune == "frozen" or self.tune == 0

    def load(self) -> Backbone:
        """Allocate the model and fill it with its weights; a second call does nothing.

        A load that fails leaves the backbone as it was, so that the next call fails alike.

        Raises:
            UserError: A tensor is missing or unexpected, all of them named; or one is not finite.
        """
        if self.loaded:
            return self
        # In float32, whatever the run's precision: one seed is one start and one file has one
        # digest, also where all is cast afterwards.
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            vit, matched = self._filled()
        finally:
            torch.set_default_dtype(dtype)
        self.vit, self.matched = fill.gradients_as(self.vit, vit), matched
        if dtype != torch.float32:
            self._keep_digest()
            vit.to(dtype)
        return self._prepare()

    def find(self) -> None:
        """Look for timm's weights, which alone were not looked for yet; nothing is fetched.

        Raises:
            MissingWeights: They are neither in the cache nor to be had.
        """
        if self.weights == "timm" and not self.loaded:
            architecture.find_timms(self.name)

    def load_empty(self) -> Backbone:
        """Be as after `load`, but on the meta device: another process sends the values."""
        if self.loaded:
            return self
        with torch.device("meta"):  # anew: in the dtype that is the default now
            vit = architecture.build(self.name, self.model_args)
        self.vit = fill.gradients_as(self.vit, vit)
        return self._prepare()

    def _prepare(self) -> Backbone:
        if self.drop_path:
            run = self.vit.blocks[: self.blocks_run]
            installed = drop_paths.install(run, self.drop_path)
            self._drop_paths = dict(enumerate(installed[self._first_tuned :], self._first_tuned))
            self.register_buffer("drop_rates", drop_paths.rates_of(installed), persistent=False)
        if self.compile_blocks:
            compile_blocks(self.vit.blocks)
        # Last: until here nothing counts as loaded, whatever went wrong.
        self.loaded, self._file = True, None
        return self.train(self.training)

    def _filled(self) -> tuple[nn.Module, str]:
        """Build the model with its weights; returns it and what is said of them."""
        if self._file is not None:
            # Against the model on the meta device first: what does not fit allocates nothing.
            fill.fits(self.vit, self._file)
            vit = architecture.build(self.name, self.model_args)
            return vit, fill.fill(vit, self._file).line()
        # No checkpoint holds a frozen backbone, so it must come out the same in the next run.
        weights = "random:0" if self.frozen and self.weights == "random" else self.weights
        return architecture.generate(self.name, self.model_args, weights=weights)

    @property
    def digest(self) -> str:
        """Hash of the weights; those of a frozen backbone as they were read, before any cast.

        Of sharded tensors every process must call it, see `weights.digest`.
        """
        self.load()
        if self.frozen:
            self._keep_digest()
            return self._digest
        return weight_files.digest(self.vit.state_dict())

    def _keep_digest(self) -> None:
        if self.frozen and not self._digest:
            self._digest = weight_files.digest(self.vit.state_dict())

    @property
    def _first_tuned(self) -> int:
        if self.tune == "full":
            return 0
        return self.depth if self.frozen else max(0, self.blocks_run - int(self.tune))

    def _freeze(self) -> None:
        """Leave gradients only to what training is meant to change and the output depends on."""
        self.vit.requires_grad_(False)
        if self.frozen:
            return
        for block in self.vit.blocks[self._first_tuned : self.blocks_run]:
            block.requires_grad_(True)
        self._final_norm.requires_grad_(True)
        if self.tune == "full":
            self.vit.patch_embed.requires_grad_(True)
            for part in ("cls_token", "reg_token", "pos_embed", "norm_pre"):
                if getattr(self.vit, part, None) is not None:
                    getattr(self.vit, part).requires_grad_(True)

    @property
    def _final_norm(self) -> nn.Module:
        """Models that pool by averaging keep their last norm under another name in timm."""
        norm = self.vit.norm
        return self.vit.fc_norm if isinstance(norm, nn.Identity) else norm

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; a frozen backbone stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def _apply(self, fn: Any, recurse: bool = True) -> Backbone:
        self.load()  # moving or casting a model on the meta device needs its values
        if self.frozen and fn(torch.empty(0, device="cpu")).dtype != torch.float32:
            self._keep_digest()
        super()._apply(fn, recurse)
        for key, value in self._statistics.items():  # as stated, where weights are cast to half
            if getattr(self, key).dtype.itemsize < 4:
                setattr(self, key, torch.tensor(value, device=self.mean.device).view(1, -1, 1, 1))
        return self

    # --- forward ------------------------------------------------------------------------------

    def normalize(self, images: Tensor) -> Tensor:
        """Turn uint8 `(B, 3, H, W)` into floats with the model's own mean and deviation."""
        if images.dtype != torch.uint8:
            raise TypeError(f"normalize takes uint8 images, got {images.dtype}")
        if images.shape[-3] != self.channels:
            raise UserError(
                f"images of {images.shape[-3]} channels, but {self.name} takes {self.channels} "
                "(backbone.model_args.in_chans, or what its weights are made for)"
            )
        return (images.float() / 255 - self.mean) / self.std

    def resize(self, images: Tensor) -> Tensor:
        """Scale images so that a patch covers `stride` pixels of the original; often nothing.

        Raises:
            UserError: The sides are no multiples of `stride`.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise UserError(
                f"images of {height} x {width} pixels do not divide into tokens of {self.stride}; "
                f"crop or pad to multiples of {self.stride}"
            )
        if self.stride == self.patch_size:
            return images
        size = (height // self.stride * self.patch_size, width // self.stride * self.patch_size)
        return F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)

    def forward(
        self,
        images: Tensor,
        *,
        keep: Tensor | None = None,
        normalized: bool = False,
        resized: bool = False,
        random_key: RandomKey | None = None,
    ) -> Features:
        """Encode images.

        Args:
            images: uint8 `(B, 3, H, W)`, or what `normalize` returned with `normalized=True`.
            keep: int64 `(B, n)`, the patches to embed and run, in any order; None runs all.
            normalized: Whether `images` went through `normalize`.
            resized: Whether they went through `resize` after it.
            random_key: Random key for drop path; needed in training when `drop_path` is set.

        Returns:
            The features of the tapped blocks.

        Raises:
            TypeError: Floats that were not declared normalised.
        """
        if images.dtype == torch.uint8:
            images = self.normalize(images)
        elif not normalized:
            raise TypeError(
                f"the backbone takes uint8 images, got {images.dtype}: pass uint8, or pass "
                "backbone.normalize(uint8) with normalized=True"
            )
        self.load()
        factors = self._draw_drop_paths(random_key)
        if not resized:
            images = self.resize(images)
        images = images.to(self.vit.patch_embed.proj.weight.dtype)
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        n_prefix, n_cls = self.vit.num_prefix_tokens, self.n_cls_tokens
        own = published_positions(self.name, self.vit, grid)
        x, rope = embed(self.vit, images, grid, keep, positions=own)
        layers = []
        for i, block in enumerate(islice(self.vit.blocks, self.blocks_run)):
            arguments: dict[str, Any] = {} if rope is None else {"rope": rope}
            if i in self._drop_paths:
                block = partial(drop_paths.run, block, self._drop_paths[i], factors[i])
            if self.checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False, **arguments)
            else:
                x = block(x, **arguments)
            if i in self.tapped:
                # Class tokens stand first, registers behind them.
                raw = x if n_prefix == n_cls else torch.cat([x[:, :n_cls], x[:, n_prefix:]], 1)
                tokens = self._final_norm(raw)
                layers.append(Layer(tokens, raw, n_cls, grid if keep is None else None))
        return Features(tuple(layers), self.dense_cls)

    def features_from_tokens(
        self, raw: Tensor, grid: tuple[int, int] | None, reads: Reads = "tokens"
    ) -> Features:
        """Return `forward(...).only(reads)` of an earlier pass from what its blocks put out.

        Args:
            raw: `(B, L, n, C)`, the `raw_tokens` of the L tapped layers.
            grid: Height and width in patches.
            reads: Which tokens these are.
        """
        n_cls = 0 if reads == "patches" else self.n_cls_tokens
        layers = [Layer(self._final_norm(x), x, n_cls, grid) for x in raw.unbind(1)]
        return Features(tuple(layers), self.dense_cls)

    def _draw_drop_paths(self, random_key: RandomKey | None) -> Sequence[drop_paths.Factors]:
        if not self._drop_paths:
            return ()
        if not self.training:
            return [(None, None)] * self.blocks_run
        return drop_paths.draw_factors(self.drop_rates, random_key)
