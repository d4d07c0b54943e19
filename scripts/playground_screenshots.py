"""Takes the screenshots of docs/playground.md from a running service.

Needs Chromium and chromedriver, and the models that configs/serve.yaml names.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from tests.serve.browser import Browser, open_browser

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "assets"
MAX_BYTES = 150_000
STORY = "Tell me a story about Mia and a red boat."
PROMPT = "a big red star in the top left"


def take_chat(browser: Browser) -> None:
    """Leaves a page with a story and the code that asks for it."""
    choose(browser, "story")
    browser.field("Message").send_keys(STORY)
    browser.press("Send")
    browser.wait(".tg-status", "tokens in")


def take_images(browser: Browser) -> None:
    """Leaves a page with images of several seeds."""
    browser.wait("button[role=tab]", "Images").click()
    browser.field("Prompt").send_keys(PROMPT)
    number = browser.field("Images")
    number.clear()
    number.send_keys("4")
    browser.field("Seed of the first").send_keys("1")
    browser.press("Make images")
    browser.wait(".tg-status", "4 of 4 images in", limit_s=120)
    browser.until(lambda: len(browser.find(".tg-save")) == 4, "four images")


def choose(browser: Browser, model: str) -> None:
    """Chooses a model."""
    browser.until(lambda: browser.field("Model").get_attribute("value"), "a model")
    browser.field("Model").click()
    browser.wait("[role=option]", model).click()


def save(browser: Browser, path: Path) -> None:
    """Writes what the window shows with as many colors as fit into the size."""
    image = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    for colors in (256, 128, 64, 32):
        image.quantize(colors).save(path, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return
    raise SystemExit(f"{path} has more than {MAX_BYTES} bytes")


def main() -> None:
    """Takes both screenshots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/ui/")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name, take, height, dark in (
        ("playground-chat", take_chat, 760, False),
        ("playground-images", take_images, 760, True),
    ):
        with open_browser(width=900, height=height, dark=dark) as browser:
            browser.driver.get(options.url)
            browser.wait("button[role=tab]", limit_s=300)  # its process may start
            browser.field("Model")
            take(browser)
            browser.driver.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
            save(browser, options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
