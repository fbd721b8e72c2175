"""Does noise defeat self-curation? Scenes beside product shots, clean and noisy, same JPEG.

A product shot is one object on plain ground: hard to call interesting, and easy to reconstruct
while it is clean. Both sets get the same noise and the same JPEG compression; printed is the mean
loss and the share that the paper's rule, min(1, loss), keeps: without and with a noise floor of the
strength of the noise.

Run: python benchmarks/curation_noise.py [CHECKPOINT]   (after pixio fit -c pretrain/demo)
"""

from __future__ import annotations

import argparse
import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixio_lightning.curation.scoring import image_losses, load_model
from pixio_lightning.data.scenes.raycast import Body, Light, Part, World, look_at, photograph
from pixio_lightning.data.scenes.render import render_scene
from pixio_lightning.data.scenes.store import scene_seed
from pixio_lightning.data.scenes.textures import Shape, random_material
from pixio_lightning.keyed import key_of

SIZE = 64
QUALITY = 90


def product_shot(seed: int) -> NDArray[np.uint8]:
    """Render one plain object on plain ground from above, `(SIZE, SIZE, 3)`, without noise.

    The light is even, as in a shop's photographs: the ground is one colour but for the shadow.
    """
    rng = np.random.default_rng(seed)
    ground = random_material(rng, plain=1.0, saturation=(0, 0.2), value=(0.5, 0.9))
    below = Part(Shape.BOX, np.array([0, 0, -0.5]), np.array([np.inf, np.inf, 0.5]), ground)
    half = rng.uniform(0.15, 0.35, 3)
    shape = list(Shape)[int(rng.integers(3))]
    half = np.full(3, half[0]) if shape is Shape.SPHERE else half
    thing = Part(shape, np.array([0, 0, half[2]]), half, random_material(rng, plain=1.0))
    bodies = [
        Body("ground", np.zeros(3), 0.0, (below,), encloses=True),
        Body("box", np.zeros(3), rng.uniform(0, np.pi), (thing,)),
    ]
    lamp = Light(1000 * np.array([*rng.uniform(-0.5, 0.5, 2), 1.0]), np.ones(3), np.inf, 8.0)
    world = World(bodies, [lamp], np.full(3, 0.2), None)
    angle = rng.uniform(0, 2 * np.pi)
    position = np.array([1.6 * np.cos(angle), 1.6 * np.sin(angle), rng.uniform(1.3, 1.9)])
    pose = look_at(position, np.array([0, 0, half[2]]), roll=0.0)
    radiance, _ = photograph(world, [pose], size=SIZE, focal=1.2 * SIZE, rng=rng)
    display = (1 - np.exp(-0.5 / radiance.mean() * radiance)) ** (1 / 1.8)
    return np.clip(255 * display.T.reshape(SIZE, SIZE, 3) + 0.5, 0, 255).astype(np.uint8)


def photographed(image: NDArray[np.uint8], noise: float, seed: int) -> NDArray[np.uint8]:
    """Add noise of a standard deviation in levels, then compress and decode."""
    rng = np.random.default_rng(seed)
    noisy = image + noise * rng.standard_normal(image.shape)
    buffer = io.BytesIO()
    rounded = np.clip(noisy + 0.5, 0, 255).astype(np.uint8)
    Image.fromarray(rounded).save(buffer, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(buffer))


def main() -> None:
    """Score both sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default="runs/pretrain/demo/last.ckpt")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--panel", help="write a few of the pictures to this PNG")
    options = parser.parse_args()
    model = load_model(options.checkpoint)
    n = options.images
    scenes = [
        render_scene(scene_seed("test", i), views=1, size=SIZE, places=["studio"]).views[0].image
        for i in range(n)
    ]
    sets = {"scenes": scenes, "product shots": [product_shot(i) for i in range(n)]}
    keys = torch.tensor([key_of(f"noise/{i}") for i in range(n)])
    print("| images | noise, levels | floor, levels | mean loss | kept by min(1, loss) |")
    print("|---|---|---|---|---|")
    shown = []
    for noise in (0.0, 1.0, 2.0, 4.0):
        for name, images in sets.items():
            taken = [photographed(image, noise, i) for i, image in enumerate(images)]
            shown.append(np.concatenate(taken[:12], axis=1))
            batch = torch.from_numpy(np.stack(taken)).permute(0, 3, 1, 2)
            for floor in dict.fromkeys((0.0, noise or 1.0)):
                loss = image_losses(model, batch, keys, noise_floor=floor)
                kept = loss.clamp(max=1).mean()
                print(f"| {name} | {noise:g} | {floor:g} | {loss.mean():.3f} | {kept:.3f} |")
    if options.panel:
        Image.fromarray(np.concatenate(shown)).save(options.panel)


if __name__ == "__main__":
    main()
