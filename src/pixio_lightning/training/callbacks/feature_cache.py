"""Features of a frozen backbone, computed once and read from disk ever after.

A store is a folder named by a hash of everything the features depend on: the backbone's tensors,
the tapped blocks, the precision, what the head shows the backbone, the samples, the source of the
classes that prepare them, and the version of this package. A hit decodes no file of the data set.
"""

from __future__ import annotations

import hashlib
import inspect
import marshal
import shutil
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pixio_lightning.data.batches import Bad, collate
from pixio_lightning.data.sample_data import SampleData, plain_facts
from pixio_lightning.data.samples import View
from pixio_lightning.data.sources import digest_of
from pixio_lightning.errors import UserError
from pixio_lightning.files import default_cache, written_aside
from pixio_lightning.training.callbacks.feature_store import NamedViews, Store, Writer
from pixio_lightning.training.callbacks.progress import say
from pixio_lightning.training.strategy import of_first
from pixio_lightning.training.task_module import TaskModule

Head = Any  # `training.head.Head`, which imports this module

# Attributes of a head that say nothing of what its `fit_statistics` does. Runs of other seeds share
# statistics as they share features.
_NOT_OF_STATISTICS = {"cache", "config", "optim", "outcome", "provenance", "seed", "training"}


# Another version may decode, crop or encode an image otherwise. The number is raised where that
# changes between versions.
_CODE = (version("pixio-lightning"), 2)


Digest = Callable[[str], str]  # of a split; all processes call it


class FeatureCache(L.Callback):
    """For a head with `cache`: its statistics, and the features that it trains on, from disk.

    The head brings it along, and it stays with a trainer that goes on to another module.
    """

    def __init__(self) -> None:
        self._digests: dict[str, str] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._digests.clear()  # files may have changed since an earlier run

    def on_fit_start(self, trainer: L.Trainer, pl_module: Head) -> None:
        self.on_validation_start(trainer, pl_module)
        if getattr(pl_module, "cache", False) and pl_module.reads != "nothing":
            _install(pl_module, partial(self._digest, pl_module))

    def on_validation_start(self, trainer: L.Trainer, pl_module: Head) -> None:
        if getattr(pl_module, "cache", False):
            digest = partial(self._digest, pl_module)
            pl_module.renew_statistics(lambda: _statistics(pl_module, digest))

    on_test_start = on_validation_start

    def teardown(self, trainer: L.Trainer, pl_module: Head, stage: str) -> None:
        """Let the data give images again: another head would read features that are not its own."""
        if isinstance(data := trainer.datamodule, SampleData):
            data.stores.clear()

    def on_exception(self, trainer: L.Trainer, pl_module: Head, exception: BaseException) -> None:
        """Do the same where a run ends early."""
        self.teardown(trainer, pl_module, "fit")

    def _digest(self, head: Head, split: str) -> str:
        """Return the digest of a split, for which one process looks at all of its files, once."""
        if split not in self._digests:
            look = partial(_sample_data(head).digest, split)
            self._digests[split] = of_first(look, head.trainer)
        return self._digests[split]


def _install(head: Head, digest: Digest) -> None:
    """Encode all samples that a training reads and are not in the cache yet, then use the cache.

    Raises:
        UserError: The data is random, or is no SampleData.
    """
    data = _sample_data(head)
    if data.random:
        raise UserError(
            "model.cache: training views are random, so none would be read twice; "
            "set data.views to a number of fixed ones, or switch augmentation off"
        )
    sets = {"train": data.training_set().stored, "val": data.evaluation_set("val").stored}
    for split, samples in sets.items():
        store = Store(default_cache() / "features" / store_name(head, data, split, digest))
        _fill(head, data, store, samples, split)
        data.stores[split] = store


def _statistics(head: Head, digest: Digest) -> dict[str, Tensor]:
    """Return what a head's `fit_statistics` found, from the cache if it looked before."""
    data = _sample_data(head)
    own = plain_facts(head, without=_NOT_OF_STATISTICS)
    about = (
        own,
        head.statistics_samples,
        _CODE,
        source_of(head, TaskModule),
        source_of(data, SampleData),
    )
    # Those of labels serve every backbone, those of features one.
    names = [(about, digest("train")), (about, store_name(head, data, "train", digest))]
    paths = [default_cache() / "features" / f"statistics-{digest_of(*name)}.pt" for name in names]
    # One process reads: another may have written the file since, or see another cache.
    files = paths if head.trainer.is_global_zero else []
    known = next((found for path in files if (found := _read(path)) is not None), None)
    if (known := head.trainer.strategy.broadcast(known)) is not None:
        return known
    encoded: list[bool] = []
    hook = head.backbone.register_forward_pre_hook(lambda *_: encoded.append(True))
    try:
        found = head.compute_statistics()
    finally:
        hook.remove()
    if head.trainer.is_global_zero:
        with written_aside(paths[bool(encoded)]) as aside:
            torch.save({name: tensor.cpu() for name, tensor in found.items()}, aside)
    return found


def _read(path: Path) -> dict[str, Tensor] | None:
    """Return statistics, if they are there; what was damaged is computed anew, as features are."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError):
        return None


def source_of(thing: object, base: type) -> list[str]:
    """Return digests of the files that define the classes of something, down to a base.

    Plug-ins change without a version of this package. What these files import is not looked at. Of
    classes without a file, as a notebook's, it is their compiled functions.
    """
    found = set()
    for cls in type(thing).__mro__:
        if issubclass(cls, base):
            try:
                code = Path(inspect.getsourcefile(cls) or "").read_bytes()
            except (OSError, TypeError):
                own = [f.__code__ for f in vars(cls).values() if inspect.isfunction(f)]
                code = marshal.dumps(own)
            found.add(hashlib.blake2b(code, digest_size=16).hexdigest())
    return sorted(found)


def _sample_data(head: Head) -> SampleData:
    data = head.trainer.datamodule
    if not isinstance(data, SampleData):
        raise UserError(f"model.cache needs data that derives from SampleData; {data} does not")
    return data


def store_name(head: Head, data: SampleData, split: str, digest: Digest) -> str:
    """Return the name of the store of a split: a hash of all its features depend on."""
    backbone = head.backbone
    return digest_of(
        _CODE,
        head.backbone_digest,
        {k: v for k, v in backbone.identity.items() if k not in ("weights", "licence")},
        backbone.tapped,
        head.trainer.precision,
        head.input_config,
        head.reads,
        digest(split),
        source_of(data, SampleData),
        (data.views, data.seed) if split == "train" and data.views else None,
        *_source_of_inputs(head),
    )


def _source_of_inputs(head: Head) -> list[str]:
    """Return digests of the files of a head that shows the backbone something of its own."""
    ways = {"inputs", "encode", "encode_images"}
    ours = f"{__name__.partition('.')[0]}."
    kinds = [cls for cls in type(head).__mro__ if not cls.__module__.startswith(ours)]
    return source_of(head, TaskModule) if any(ways & vars(cls).keys() for cls in kinds) else []


def _fill(head: Head, data: SampleData, store: Store, samples: Any, split: str) -> None:
    """Encode what is not in a store yet, each process its share.

    Raises:
        UserError: In all processes, where one of them does not see what the others have.
    """
    trainer, listed = head.trainer, samples.fixed_views()
    # Chosen by one process: what another has begun to write changes what a late one would choose.
    jobs = [job for job in listed if job[0] not in store] if trainer.is_global_zero else []
    if jobs := trainer.strategy.broadcast(jobs):
        _encode_all(head, data, store, samples, split, jobs)
        trainer.strategy.barrier("cache")
    if missing := _missing(store, listed):  # others have written since this process read it
        store.reload()
        missing = _missing(store, listed)
    if not trainer.strategy.reduce_boolean_decision(not missing, all=True):
        where = f"{missing} of {len(listed)} encoded views are not in {store.folder}"
        if not missing:
            where = f"another process does not see the encoded views that are in {store.folder}"
        raise UserError(
            f"{where}: with several nodes, set PIXIO_CACHE to a folder that all of them see"
        )


def _missing(store: Store, listed: list[tuple[str, Any]]) -> int:
    return sum(name not in store for name, _ in listed)


def _encode_all(
    head: Head,
    data: SampleData,
    store: Store,
    samples: Any,
    split: str,
    jobs: list[tuple[str, Any]],
) -> None:
    """Encode this process's share of the views in `jobs`, which all processes have alike."""
    trainer = head.trainer
    mine = jobs[trainer.global_rank :: trainer.world_size]
    if trainer.is_global_zero:
        say(f"encoding {len(jobs)} {split} views once, into {store.folder}")
    loader = DataLoader(
        NamedViews(samples, mine),
        batch_size=data.batch_size if split == "train" else data.val_batch_size,
        **data.loader_arguments | {"collate_fn": _gather},
    )
    if mine:
        writer = Writer(store.folder)
        hidden = None if trainer.is_global_zero else True
        with (
            # Evaluation looks through windows where training sees crops.
            head.in_mode(training=split == "train"),
            tqdm(total=len(mine), unit="view", desc=split, disable=hidden, leave=False) as bar,
        ):
            for names, batch, bad in loader:
                for name, reason in bad:
                    writer.add(name, (name, reason))
                if names:
                    _encode(head, names, batch, writer)
                bar.update(len(names) + len(bad))
        writer.close()


def _gather(found: list[tuple[str, View]]) -> tuple[list[str], dict[str, Any], list[Bad]]:
    """Collate what can be used, in the worker: a few large tensors travel faster than many."""
    bad = [(name, view[1]) for name, view in found if isinstance(view, tuple)]
    good = {name: view for name, view in found if isinstance(view, dict)}
    batch = collate([view | {"bad": []} for view in good.values()]) if good else {}
    return list(good), batch, bad


def _encode(head: Head, names: list[str], batch: dict[str, Any], writer: Writer) -> None:
    if "image" not in batch:  # they do not fit beside each other
        raise UserError(": ".join(batch["bad"][0]))
    kept = {k: v for k, v in batch.items() if k not in ("image", "key", "name", "bad")}
    trainer = head.trainer
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        features = head.encode(trainer.strategy.batch_to_device(batch))
    raw = torch.stack([layer.raw_tokens for layer in features.layers], dim=1)
    # Back to one row for each sample, whatever windows or views the head made of it.
    kept["features"] = raw.view(len(names), -1, *raw.shape[1:]).cpu()
    kept["grid"] = features.layers[-1].grid
    if raw.nbytes > shutil.disk_usage(writer.folder).free:
        raise UserError(f"no room in {writer.folder}: set PIXIO_CACHE to a folder on a larger disk")
    for i, name in enumerate(names):
        writer.add(name, {k: v[i] if isinstance(v, Tensor) else v for k, v in kept.items()})
