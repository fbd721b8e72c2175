"""What a run of future prediction logs of held-out pairs, and what may be said of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from pixio_lightning.training.evaluation_metrics import ListMetric
from pixio_lightning.training.run_folder import Metrics

# Summed over held-out pairs and logged as val/NAME: errors of hidden patches, a mean over pairs.
SUMMED = (
    *("loss", "hue", "structure", "zero", "copy", "hedged", "hedged_hue", "hedged_structure"),
    *("warp", "wrong_past", "moving", "moving_hedged", "moving_patches", "psnr", "psnr_copy"),
)
# Those that are means over the patches that move.
WEIGHED_BY = {"moving": "moving_patches", "moving_hedged": "moving_patches"}
# What follows from the hedged copy, and is said only where that is fitted.
OF_HEDGED = ("hedged", "hedged_hue", "hedged_structure", "moving_hedged", "gain_error")

_BASELINES = {
    "zero": "predicting zero",
    "copy": "copying the last frame",
    "hedged": "hedged copy",
    "warp": "exact flow",
    "wrong_past": "past of another clip",
}


class MeanError(ListMetric):
    """The standard error of a mean over pairs, of which those of one video vary together.

    It is that of a cluster-robust variance (Liang and Zeger, 1986,
    https://doi.org/10.1093/biomet/73.1.13), ``G / (G - 1) * sum_g (sum_i (x_i - mean))^2 / n^2``
    for n pairs of G videos: the usual one where each pair is of its own.
    """

    values: list[Tensor]
    weights: list[Tensor]
    videos: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        none = torch.zeros(0)
        super().__init__({"values": none, "weights": none, "videos": none.long()}, **kwargs)

    def update(self, value: Tensor, weight: Tensor, video: Tensor) -> None:
        """Add values `(B,)`, weights that are 0 for what does not count, and int64 videos."""
        self.values.append(value.float())
        self.weights.append(weight.float())
        self.videos.append(video.long())

    def compute(self) -> Tensor:
        """Return the error in float64; infinity for fewer than two videos."""
        value, weight, video = (
            dim_zero_cat(state).cpu() for state in (self.values, self.weights, self.videos)
        )
        value, video = value[weight > 0].double(), video[weight > 0]
        videos, of_each = video.unique(return_inverse=True)
        groups = len(videos)
        if groups < 2:
            return torch.tensor(torch.inf, dtype=torch.float64)
        sums = value.new_zeros(groups).index_add_(0, of_each, value - value.mean())
        return (groups / (groups - 1) * sums.square().sum()).sqrt() / len(value)


def report(metrics: Metrics) -> dict[str, str]:
    """Return what to say of a run, by name; nothing where nothing was evaluated."""
    found = {name: metrics.first_and_last(f"val/{name}") for name in (*SUMMED, "gain_error")}
    loss = found["loss"]
    if loss is None:
        return {}
    last = {name: pair[1] for name, pair in found.items() if pair is not None}
    facts = {
        "held-out loss": f"first {loss[0]:.3f}, last {loss[1]:.3f} "
        f"(hue {last['hue']:.3f} + structure {last['structure']:.3f})"
    }
    for name, title in _BASELINES.items():
        if name in last:
            facts[title] = f"{last[name]:.3f}"
    if "hedged" in last:
        facts["hedged copy"] += (
            f" (hue {last['hedged_hue']:.3f} + structure {last['hedged_structure']:.3f})"
        )
    if "moving" in last:
        facts["patches that move"] = f"{last['moving']:.3f}"
    if "moving_hedged" in last:
        facts["patches that move"] += f", hedged copy {last['moving_hedged']:.3f}"
    facts["PSNR"] = f"{last['psnr']:.1f} dB, copy {last['psnr_copy']:.1f} dB"
    facts["verdict"] = verdict(last)
    return facts


def verdict(last: dict[str, float]) -> str:
    """Say "predicts" only where copying does clearly less well and the past is used.

    Clearly is by more than two standard errors of the difference, over the held-out videos.
    """
    if "wrong_past" not in last:
        return "none: whether the past is used shows beside that of another clip; hold out two"
    if last["wrong_past"] <= last["loss"]:
        return "does not use the past: that of another clip does as well"
    if "hedged" not in last:
        return "none: no hedged copy is fitted, which only training does"
    if "gain_error" not in last:
        return "none: clips of one video vary together; hold out two videos"
    gain, error = last["hedged_structure"] - last["structure"], last["gain_error"]
    if gain > 2 * error:
        better = gain / last["hedged_structure"]
        return f"predicts: its structure is {better:.1%} better than a hedged copy's"
    how = "no better than" if gain <= 0 else "within two standard errors of"
    whole = "below" if last["loss"] < last["hedged"] else "not below"
    return f"uses the past, but its structure is {how} a hedged copy's (whole loss {whole})"
