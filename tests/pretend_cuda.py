"""A pretended CUDA device: tensors that say `cuda:0`, hold values on the CPU, and refuse to mix.

FakeTensorMode decides where the result of every operation lies and refuses operands on two
devices, as CUDA would; the values are computed on the CPU. So whole runs of the command line go
through, with metrics, checkpoints and pictures, and end with the numbers of the CPU. What it cannot
show is what needs the hardware: streams, the precision of kernels, memory.

    with pretend_cuda() as words:
        main(["fit", "-c", "depth/demo", "-c", "with/debug", *words])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.accelerators import AcceleratorRegistry, CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_map_only

from pixio_lightning.models import probes

CUDA = torch.device("cuda:0")
_INSIDE = torch.device("lazy")
NAME = "pretend_cuda"
_fake = FakeTensorMode()
# Whether it computes in double precision, as CUDA does and Apple's MPS does not.
_float64 = True
# Operations for which a real device would be waited for: they have read values off it, or copied
# what is on the CPU to it without `non_blocking`.
reads: list[str] = []
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnCuda(Tensor):
    """A tensor that says it is on `cuda:0`, around one that holds the values.

    To C++ it is on the device of lazy tensors, which has no driver to be looked for, and which
    nothing else uses: what autograd makes "where the tensor is" is known by it.
    """

    value: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, value: Tensor) -> OnCuda:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            value.size(),
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            layout=value.layout,
            device=_INSIDE,
        )
        made.value = value
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["value"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> OnCuda:
        return OnCuda(inner["value"])

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"OnCuda({self.value!r})"

    def tolist(self) -> Any:
        """Return plain numbers; torch offers it for no subclass."""
        reads.append("tolist")
        return self.value.tolist()

    def numpy(self, **kwargs: Any) -> Any:
        """Refuse, as CUDA does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendCuda(TorchDispatchMode):
    """Sends every operation through the device's rules."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _mapped(function: Callable[[Any], Any], arguments: Any, kind: type = Tensor) -> Any:
    """Apply it to the tensors of a kind: tree_map_only, in a third of the time."""
    if isinstance(arguments, kind):
        return function(arguments)
    if isinstance(arguments, (list, tuple)):
        return type(arguments)([_mapped(function, x, kind) for x in arguments])
    if isinstance(arguments, dict):
        return {key: _mapped(function, x, kind) for key, x in arguments.items()}
    return arguments


def _tensors(arguments: Any) -> list[Any]:
    found: list[Any] = []
    _mapped(found.append, arguments)
    return found


def _shadow(tensor: Tensor) -> Tensor:
    return torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )


# Where results lie follows from where the operands do, and whether they are single numbers.
_known: dict[tuple[Any, ...], list[str] | None] = {}


def _result_devices(func: Any, given: list[Any], args: Any, kwargs: Any) -> list[str] | None:
    """Return the kinds of device of the results; None where their shapes depend on values."""
    operands = ((x.device.type, x.ndim == 0) for x in given)
    key = (func, str(kwargs.get("device")), *operands)
    if key not in _known:
        with _fake:
            args, kwargs = _mapped(_shadow, (args, kwargs))
            try:
                found = func(*args, **kwargs)
            except (DynamicOutputShapeException, DataDependentOutputException):
                _known[key] = None
            else:
                _known[key] = [x.device.type for x in _tensors(found)]
    return _known[key]


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    given = _tensors((args, kwargs))
    from_cuda = any(isinstance(x, OnCuda) for x in given)
    asked, devices = kwargs.get("device"), []
    if asked is not None and asked.type == _INSIDE.type:
        asked, kwargs = CUDA, kwargs | {"device": CUDA}
    to_cuda = asked is not None and asked.type == "cuda"
    on_cuda = from_cuda and asked is None
    if from_cuda or to_cuda:
        devices = _result_devices(func, given, args, kwargs)
        if devices is None:
            # CUDA takes indices from the CPU, not the other way round.
            indexed = func is torch.ops.aten.index.Tensor and isinstance(given[0], OnCuda)
            mixed = {x.device for x in given if x.ndim}
            if len(mixed) > 1 and not indexed:
                raise RuntimeError(f"{func} got tensors on two devices: {mixed}")
        else:
            on_cuda = "cuda" in devices
    with _disable_current_modes():
        plain = kwargs | {"device": torch.device("cpu")} if to_cuda else kwargs
        inner_args, inner_kwargs = _mapped(lambda x: x.value, (args, plain), OnCuda)
        out = func(*inner_args, **inner_kwargs)
    # Operations in place may return nothing; what depends on values gives the host a shape, of an
    # index only where it is a mask.
    shaped = devices is None and (
        func is not torch.ops.aten.index.Tensor or any(x.dtype == torch.bool for x in given[1:])
    )
    copied = func in _COPIES and on_cuda and not isinstance(given[-1], OnCuda)
    if copied and not (kwargs.get("non_blocking") or args[2:]):
        reads.append(f"{func} to the device")
    if from_cuda and (shaped or (not on_cuda and out is not None)):
        reads.append(str(func))
    if not on_cuda:
        return out
    if not _float64 and any(x.dtype == torch.float64 for x in _tensors(out)):
        raise TypeError(f"{func} would give float64, which this device does not have")
    out = _mapped(OnCuda, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if from_cuda else out


class PretendAccelerator(CPUAccelerator):
    """Has one device, the pretended one."""

    def setup_device(self, device: torch.device) -> None:
        """Accept the device."""

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [CUDA]

    @staticmethod
    def auto_device_count() -> int:
        return 1


class PretendStrategy(SingleDeviceStrategy):
    """Puts the module on the pretended device."""

    strategy_name = NAME

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(device=CUDA, **kwargs)


@contextmanager
def pretend_cuda(monkeypatch: pytest.MonkeyPatch, *, float64: bool = True) -> Iterator[list[str]]:
    """Run what is inside on the pretended device.

    Args:
        monkeypatch: Of the test.
        float64: Whether it computes in double precision; without, as Apple's MPS.

    Yields:
        The words of a command line that put a trainer on it.
    """
    if NAME not in AcceleratorRegistry:
        AcceleratorRegistry.register(NAME, PretendAccelerator)
        StrategyRegistry.register(NAME, PretendStrategy)
    save, load = torch.save, torch.load

    # Files hold bytes of CPU tensors either way; reading says where they go.
    def saved(content: Any, *args: Any, **kwargs: Any) -> None:
        with _disable_current_modes():
            save(tree_map_only(OnCuda, lambda x: x.value, content), *args, **kwargs)

    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        to_cuda = isinstance(map_location, (str, torch.device)) and "cuda" in str(map_location)
        with _disable_current_modes():
            content = load(file, map_location="cpu", **kwargs)
            return tree_map_only(Tensor, OnCuda, content) if to_cuda else content

    with monkeypatch.context() as patch, _fake, PretendCuda():
        patch.setattr(torch, "save", saved)
        patch.setattr(torch, "load", loaded)
        if not float64:
            patch.setitem(globals(), "_float64", False)
            patch.setattr(probes, "_WITHOUT_FLOAT64", ("mps", "cuda"))
        words = ["--trainer.accelerator", NAME, "--trainer.strategy", NAME]
        yield [*words, "--trainer.inference_mode", "false"]  # wrapped tensors have no such mode
