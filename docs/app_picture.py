"""Make docs/app.png: `python docs/app_picture.py runs/pretrain/demo`, after `make test-app`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from pixio_lightning.cli.app.loaded import open_run
from pixio_lightning.cli.app.server import served


def main() -> None:
    """Open the page, take the second example, and photograph what is shown of it."""
    loaded = [open_run(Path(run)) for run in sys.argv[1:]]
    with served(loaded, host="127.0.0.1", port=0) as address, sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.goto(f"{address}?__theme=light")
        page.locator(".thumbnail-item").nth(1).click()
        expect(page.get_by_text("keep probability")).to_be_visible(timeout=120_000)
        page.wait_for_timeout(1000)  # for the pictures to be drawn
        page.screenshot(path=Path(__file__).with_name("app.png"))
        browser.close()


if __name__ == "__main__":
    main()
