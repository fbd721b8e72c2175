"""The page in a real browser: every tab by hand, in light and dark, wide and narrow."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]
_reason = "`make test-app` installs it"
playwright = pytest.importorskip("playwright.sync_api", reason=_reason)
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason=_reason)

_CHROMIUM = shutil.which("chromium")
# Where pictures of the page are kept, to be looked at.
_PICTURES = os.environ.get("PIXIO_APP_PICTURES")
_PATIENCE = 120_000  # milliseconds
# WebGL without a graphics card, for the 3D view.
_ARGUMENTS = ["--no-sandbox", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if _CHROMIUM is None:
        pytest.skip("no chromium here; `make test-app` installs it")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
        yield chromium
        chromium.close()


class Visitor:
    """Somebody who looks at the page; what the browser complains of is kept.

    Args:
        browser: Of Playwright.
        address: The page's.
        theme: `light` or `dark`.
        width: Of the window, in pixels.
    """

    def __init__(self, browser: Any, address: str, *, theme: str = "light", width: int = 1280):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.page.set_default_timeout(_PATIENCE)
        self.complaints: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(f"{address}?__theme={theme}")
        self.page.wait_for_selector("button[role=tab]")

    def _heard(self, message: Any) -> None:
        # Where there is no graphics card, the 3D view tries WebGPU first and says so.
        if message.type == "error" and "WebGPU" not in message.text:
            self.complaints.append(message.text)

    def _asked(self, request: Any) -> None:
        if not re.match(r"http://127\.0\.0\.1[:/]|data:|blob:", request.url):
            self.complaints.append(f"asked {request.url}")

    def open(self, title: str) -> Any:
        """Choose a tab, which may be in the menu of those that do not fit."""
        tab = self.page.get_by_role("tab", name=title, exact=True)
        if tab.count() == 0 or not tab.is_visible():
            self.page.locator(".overflow-menu > button").click()
            tab = self.page.locator(".overflow-dropdown").get_by_text(title, exact=True)
        tab.click()
        return self.page.get_by_role("tabpanel").filter(visible=True).first

    def image(self, panel: Any, label: str) -> Any:
        """Return a picture by its label, once it is there."""
        found = panel.locator(f'img[alt="{label}"]')
        playwright.expect(found).to_be_visible(timeout=_PATIENCE)
        return found

    def changes(self, image: Any, act: Any) -> None:
        """Wait until what somebody does has changed a picture."""
        before = image.get_attribute("src")
        act()
        playwright.expect(image).not_to_have_attribute("src", before, timeout=_PATIENCE)

    def close(self) -> None:
        self.page.close()
        assert self.complaints == []


@pytest.fixture
def visitor(browser: Any, address: str) -> Iterator[Visitor]:
    one = Visitor(browser, address)
    yield one
    one.close()


def _upload(panel: Any, *paths: Path, number: int = 0) -> None:
    panel.locator("input[type=file]").nth(number).set_input_files([str(path) for path in paths])


def test_blocks_are_hidden_by_clicking(visitor: Visitor, photographs: Path) -> None:
    panel = visitor.open("Reconstruct")
    _upload(panel, photographs / "gradient.png")
    masked = visitor.image(panel, "Masked input (click a block)")
    blocks = panel.get_by_label("Hidden blocks")
    slider = panel.get_by_label("range slider for Mask ratio")

    def to_half() -> None:
        slider.focus()
        for _ in range(5):
            slider.press("ArrowLeft")
        slider.dispatch_event("pointerup")

    visitor.changes(masked, to_half)
    playwright.expect(blocks).to_have_value(re.compile(r"^\d(, |-)\d$"))
    hidden = blocks.input_value()
    box = masked.bounding_box()
    visitor.changes(masked, lambda: masked.click(position={"x": 5, "y": box["height"] - 5}))
    playwright.expect(blocks).not_to_have_value(hidden)  # of 2 x 2 blocks, the third


def test_a_patch_is_compared_by_clicking(visitor: Visitor, photographs: Path) -> None:
    panel = visitor.open("Features")
    _upload(panel, photographs / "gradient.png")
    heat = visitor.image(panel, "Similarity to the patch")
    picture = visitor.image(panel, "Picture (click a patch)")
    visitor.changes(heat, lambda: picture.click(position={"x": 5, "y": 5}))
    playwright.expect(panel.get_by_text(re.compile("Patch 0, 0 of"))).to_be_visible()
    _upload(panel, photographs / "red.png", number=-1)
    visitor.image(panel, "Similarity to the patch of the second picture")
    panel.get_by_role("button", name="Find the nearest in the folder").click()
    playwright.expect(panel.get_by_text("gradient.png: 1.000")).to_be_visible(timeout=_PATIENCE)


def test_a_map_has_values_and_files(visitor: Visitor, tmp_path: Path) -> None:
    panel = visitor.open("Depth: depth/demo")
    panel.locator(".thumbnail-item").nth(1).click()
    picture = visitor.image(panel, "Picture (click for the value)")
    visitor.image(panel, "Panel with its scale")
    value = panel.get_by_label("Value")
    playwright.expect(value).to_have_value(re.compile("median"))
    picture.click(position={"x": 20, "y": 20})
    playwright.expect(value).to_have_value(re.compile(r"^[\d.]+ m +\(x \d+, y \d+\)$"))
    with visitor.page.expect_download() as started:
        panel.get_by_role("link", name="Download files").or_(
            panel.get_by_role("button", name="Download files")
        ).first.click()
    started.value.save_as(tmp_path / "files.zip")
    with zipfile.ZipFile(tmp_path / "files.zip") as files:
        assert sorted(files.namelist()) == ["office.png", "office_colour.png"]


def test_views_become_a_scene_that_is_drawn(visitor: Visitor) -> None:
    panel = visitor.open("Reconstruction")
    panel.get_by_role("button", name="Take these views").click()
    playwright.expect(panel.locator(".file-preview tr")).to_have_count(2)
    panel.get_by_role("button", name="Predict").click()
    playwright.expect(panel.locator("canvas").first).to_be_visible(timeout=_PATIENCE)
    playwright.expect(panel.get_by_text("points.ply").first).to_be_visible()


def test_clips_and_episodes_are_shown(visitor: Visitor) -> None:
    panel = visitor.open("Video")
    panel.get_by_role("button", name="Take the example").click()
    visitor.image(panel, "Truth")
    panel = visitor.open("Depth 2: depth/demo")
    playwright.expect(panel.locator("video")).to_be_visible(timeout=_PATIENCE)


def test_a_hostile_upload_is_one_line_in_the_page(
    browser: Any, address: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    visitor = Visitor(browser, address)
    panel = visitor.open("Classification")
    _upload(panel, tmp_path / "broken.png")
    told = visitor.page.get_by_test_id("toast-body")
    playwright.expect(told).to_contain_text("broken.png", timeout=_PATIENCE)
    assert "Traceback" not in told.inner_text()
    visitor.page.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_can_be_read_by_everybody(
    browser: Any, address: str, tmp_path: Path, theme: str, width: int
) -> None:
    """axe-core finds no serious violation, before and after there is a result."""
    visitor = Visitor(browser, address, theme=theme, width=width)
    folder = Path(_PICTURES or tmp_path)
    titles = [tab.inner_text() for tab in visitor.page.get_by_role("tab").all() if tab.is_visible()]
    found = []
    for title in titles:
        panel = visitor.open(title)
        for stage in ("empty", "filled"):
            examples = panel.locator(".thumbnail-item")
            if stage == "filled" and examples.count() >= 4:
                examples.nth(1).click()
                playwright.expect(panel.locator(".file-preview")).to_be_visible()
                visitor.page.wait_for_timeout(3000)
            name = re.sub(r"\W+", "-", f"{title}-{stage}-{theme}-{width}")
            visitor.page.screenshot(path=folder / f"{name}.png", full_page=True)
            found += [
                f"{title}, {stage}: {violation['id']} in {violation['nodes'][0]['html'][:200]}"
                for violation in axe.Axe().run(visitor.page).response["violations"]
                if violation["impact"] in ("serious", "critical")
            ]
    visitor.close()
    assert found == []
