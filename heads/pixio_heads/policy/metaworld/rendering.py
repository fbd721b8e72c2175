"""Pictures of a MuJoCo scene, drawn without a screen."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixio_lightning.errors import UserError

_PACKAGES = "apt-get install libosmesa6, or libegl1 libegl-mesa0 libopengl0 libgl1-mesa-dri"
_PROBE = """
import mujoco
context = mujoco.GLContext(8, 8)
context.make_current()
scale = mujoco.mjtFontScale.mjFONTSCALE_100.value
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), scale).free()
context.free()
"""
# Neighbouring rows of noise differ by about its standard deviation, those of a scene far less.
_NOISE = 0.7


@cache
def opengl() -> str:
    """Return the kind of OpenGL that MuJoCo can draw with here, and set MUJOCO_GL to it.

    A MUJOCO_GL that is set is the only one tried. Trying takes a process of its own: MuJoCo chooses
    when it is imported, and once.

    Raises:
        UserError: None works.
    """
    given = os.environ.get("MUJOCO_GL")
    kinds = ("osmesa", "egl") if sys.platform == "linux" else ("glfw",)
    for kind in [given] if given else kinds:
        env = os.environ | {"MUJOCO_GL": kind}
        tried = subprocess.run([sys.executable, "-c", _PROBE], env=env, capture_output=True)
        if tried.returncode == 0:
            os.environ["MUJOCO_GL"] = kind
            return kind
    if given:
        raise UserError(f"MuJoCo draws nothing with MUJOCO_GL={given}: unset it, or {_PACKAGES}")
    raise UserError(f"MuJoCo finds no OpenGL to draw with ({', '.join(kinds)}): {_PACKAGES}")


class Renderer:
    """Draws a scene from one of its cameras; one owner of the context, closed by `close`.

    `mujoco.Renderer` frees its context before what lies in it, which then may be deleted from the
    context of another renderer: that one's pictures are memory noise from then on.

    Args:
        model: The scene; its quality settings are changed.
        data: Its state.
        size: Side of the pictures in pixels.
        camera: Name of a camera.
        shadows: Whether shadows, reflections and smoothed edges are drawn, as the scene asks for;
            without a GPU they take nine tenths of the time.

    Raises:
        UserError: There is no such OpenGL or camera.
    """

    def __init__(self, model: Any, data: Any, size: int, camera: str, *, shadows: bool) -> None:
        kind = opengl()
        # Pictures are small: threads cost more than they give, and processes share the cores.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        import mujoco

        # Where it was imported before MUJOCO_GL was set, `mujoco.GLContext` is another.
        gl = import_module(f"mujoco.{kind}" if kind in ("osmesa", "egl") else "mujoco")
        self._mujoco = mujoco
        number = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        # Some cameras hang upside down: the z part of their upward axis is negative.
        self._upside_down = data.cam_xmat[number].reshape(3, 3)[2, 1] < -0.1
        view = model.vis
        view.global_.offwidth = view.global_.offheight = size
        if not shadows:
            view.quality.shadowsize = view.quality.offsamples = 0
        self._gl = gl.GLContext(size, size)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = shadows
        self._model, self._option = model, mujoco.MjvOption()
        self._frame = mujoco.MjrRect(0, 0, size, size)
        self._size = size

    def draw(self, data: Any, *, fill: int = 0) -> NDArray[np.uint8]:
        """Return a picture uint8 `(size, size, 3)`, row 0 at the top.

        Args:
            data: State of the scene.
            fill: What the pixels are before; nothing of it is left.
        """
        mujoco = self._mujoco
        self._gl.make_current()
        mujoco.mjv_updateScene(
            *(self._model, data, self._option, None, self._camera),
            *(mujoco.mjtCatBit.mjCAT_ALL, self._scene),
        )
        mujoco.mjr_render(self._frame, self._scene, self._context)
        pixels = np.full((self._size, self._size, 3), fill, np.uint8)
        mujoco.mjr_readPixels(pixels, None, self._frame, self._context)
        # OpenGL's first row is the lowest; half a turn besides leaves the rows and swaps columns.
        return np.ascontiguousarray(pixels[:, ::-1] if self._upside_down else pixels[::-1])

    def check(self, data: Any) -> None:
        """Draw twice, and see that pictures are pictures.

        Raises:
            RuntimeError: They are not.
        """
        first, again = self.draw(data, fill=0), self.draw(data, fill=255)
        if not np.array_equal(first, again) or is_noise(first):
            raise RuntimeError(
                f"the pictures drawn with MUJOCO_GL={opengl()} are memory noise or empty: "
                "another renderer in this process may have taken its place"
            )

    def close(self) -> None:
        """Free what lies in the context, and then the context."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def is_noise(picture: NDArray[np.uint8]) -> bool:
    """Return whether a picture `(H, W, 3)` has one colour, or no two rows that are alike."""
    spread = picture.std()
    rows = np.abs(np.diff(picture.astype(np.int16), axis=0)).mean()
    return bool(spread < 1 or rows > _NOISE * spread)
