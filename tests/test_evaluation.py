"""Rows that only fill a batch up are dropped, and no others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pixio_lightning.evaluation import without_padding


def batch(*weights: float, **more: Any) -> dict[str, Any]:
    size = len(weights)
    return {
        "weight": torch.tensor(weights),
        "key": torch.arange(size),
        "image": torch.arange(size * 12).view(size, 3, 2, 2),
        "name": [f"sample-{i}" for i in range(size)],
        "size": (2, 2),
    } | more


def test_a_full_batch_is_returned_as_it_is() -> None:
    whole, prediction = batch(1, 1, 1), {"depth": torch.rand(3, 4), "scale": torch.tensor(2.0)}
    kept, found = without_padding(whole, prediction)
    assert kept is whole and found is prediction


def test_padding_is_dropped_from_all_that_has_a_row_for_each_sample() -> None:
    padded = batch(1, 0, 1, 0, target={"depth": torch.rand(4, 5)}, scale=torch.tensor(3.0))
    prediction = (torch.rand(4, 2), {"points": torch.rand(4, 2, 3)}, torch.tensor(1.0), None)
    kept, found = without_padding(padded, prediction)
    assert kept.keys() == padded.keys() and kept["size"] == (2, 2)
    assert kept["key"].tolist() == [0, 2] and kept["name"] == ["sample-0", "sample-2"]
    assert torch.equal(kept["image"], padded["image"][[0, 2]])
    assert torch.equal(kept["target"]["depth"], padded["target"]["depth"][[0, 2]])
    assert torch.equal(found[0], prediction[0][[0, 2]])
    assert torch.equal(found[1]["points"], prediction[1]["points"][[0, 2]])
    # A number is of the batch, not of a sample.
    assert kept["scale"] is padded["scale"] and found[2] is prediction[2] and found[3] is None


def test_a_batch_of_nothing_else_is_empty() -> None:
    kept, found = without_padding(batch(0, 0), torch.rand(2, 3))
    assert kept["name"] == [] and len(kept["key"]) == 0 and found.shape == (0, 3)


@pytest.mark.parametrize("where", ["batch", "prediction"])
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 1, 0)], ids=["full", "padded"])
def test_a_table_of_another_length_is_refused_before_it_is_mistaken_for_samples(
    weights: tuple[float, ...], where: str
) -> None:
    """One of 3 rows would lose one in a padded batch of 3: so it is refused in every other batch.

    In full batches, too, or only the last batch of an evaluation would tell.
    """
    table = torch.eye(4)
    for inside in (table, [table], {"classes": {"table": table}}):
        whole = batch(*weights, table=inside) if where == "batch" else batch(*weights)
        prediction: Any = torch.rand(3, 2) if where == "batch" else (torch.rand(3, 2), inside)
        with pytest.raises(ValueError, match=r"batch of 3 samples .* shape \(4, 4\): every"):
            without_padding(whole, prediction)
