"""Messages are one line that a terminal only shows, whatever they quote."""

import numpy as np
import pytest
import torch

from pixio_lightning.errors import UserError, causes, out_of_memory, printable


def test_text_of_a_file_cannot_move_the_cursor() -> None:
    hostile = "a\x1b[2J\rb\x9b31m\nc\u202ed\u2028e\x00é"
    assert printable(hostile) == "a?[2J b?31m c?d e?é"
    assert str(UserError(f"no '{hostile}'")) == "no 'a?[2J b?31m c?d e?é'"
    assert len(printable("x" * 10**7)) == 200 and printable("x" * 10**7).endswith("...")
    assert printable("depth 3, 日本") == "depth 3, 日本"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB "
            "of which 1 GiB is free. Including non-PyTorch memory, this process has 78 GiB in use.",
            "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total "
            "capacity of 79 GiB of which 1 GiB is free)",
        ),
        ("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`", "CUDA error: out of"),
        ("MPS backend out of memory (MPS allocated: 9 GB)", "MPS backend"),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUBLAS"),
        ("Caught RuntimeError in DataLoader worker.\nTraceback\nE: out of memory", "(E: out of"),
        ("mat1 and mat2 shapes cannot be multiplied", ""),
    ],
)
def test_memory_that_runs_out_is_told_in_one_line(text: str, said: str) -> None:
    found = out_of_memory(RuntimeError(text))
    assert said in found and bool(found) == bool(said) and "\n" not in found
    assert not out_of_memory(ValueError(text))


def test_memory_that_runs_out_here_is_known_as_such() -> None:
    assert out_of_memory(torch.OutOfMemoryError()) == "out of memory"
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert "you tried to allocate" in out_of_memory(caught.value)
    with pytest.raises(MemoryError) as refused:
        np.empty(1 << 60, np.uint8)
    assert "Unable to allocate" in out_of_memory(refused.value)


def test_causes_of_an_error_end() -> None:
    """Each once, what it was raised from before what was being handled, also in a circle."""
    first, second, third = ValueError("1"), OSError("2"), RuntimeError("3")
    first.__cause__, second.__context__, third.__cause__ = second, third, first
    assert list(causes(first)) == [first, second, third]
    assert list(causes(third)) == [third, first, second]
    assert list(causes(None)) == []
