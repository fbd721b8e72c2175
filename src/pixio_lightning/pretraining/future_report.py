"""What a run of future prediction logs of held-out pairs, and what may be said of it."""

from __future__ import annotations

from pixio_lightning.training.run_folder import Metrics

# Logged as val/NAME: errors of hidden patches, a mean over pairs.
LOGGED = (
    *("loss", "hue", "structure", "zero", "copy", "hedged", "hedged_hue", "hedged_structure"),
    *("warp", "wrong_past", "moving", "moving_hedged", "moving_patches", "psnr", "psnr_copy"),
)
# Those that are means over the patches that move.
WEIGHED_BY = {"moving": "moving_patches", "moving_hedged": "moving_patches"}

_BASELINES = {
    "zero": "predicting zero",
    "copy": "copying the last frame",
    "hedged": "hedged copy",
    "warp": "exact flow",
    "wrong_past": "past of another clip",
}


def report(metrics: Metrics) -> dict[str, str]:
    """Return what to say of a run, by name; nothing where nothing was evaluated."""
    found = {name: metrics.first_and_last(f"val/{name}") for name in LOGGED}
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
    facts["hedged copy"] += (
        f" (hue {last['hedged_hue']:.3f} + structure {last['hedged_structure']:.3f})"
    )
    if "moving" in last:
        facts["patches that move"] = (
            f"{last['moving']:.3f}, hedged copy {last['moving_hedged']:.3f}"
        )
    facts["PSNR"] = f"{last['psnr']:.1f} dB, copy {last['psnr_copy']:.1f} dB"
    facts["verdict"] = verdict(last)
    return facts


def verdict(last: dict[str, float]) -> str:
    """Say "predicts" only where copying does less well and the past is used."""
    if "wrong_past" not in last:
        return "none: whether the past is used shows beside that of another clip; hold out two"
    if last["wrong_past"] <= last["loss"]:
        return "does not use the past: that of another clip does as well"
    better = 1 - last["structure"] / last["hedged_structure"] if last["hedged_structure"] else 0.0
    if better > 0:
        return f"predicts: its structure is {better:.1%} better than a hedged copy's"
    whole = "below" if last["loss"] < last["hedged"] else "not below"
    return (
        f"uses the past, but its structure is no better than a hedged copy's (whole loss {whole})"
    )
