"""A headless Chromium for tests of pages; knows no page."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

WAIT_S = 120
"""A busy machine draws a page in ten times the time; what is there is not waited for."""
LEVELS = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FIND = """
const [selector, text] = arguments;
const shown = {checkOpacity: true, checkVisibilityCSS: true};
return [...document.querySelectorAll(selector)].filter((one) =>
  one.checkVisibility(shown)
  && [...one.getClientRects()].some((box) => box.width && box.height)
  && (one.innerText ?? one.textContent).replace(/\\s+/g, " ").includes(text));
"""
"""One question to the driver, where one for each element keeps the page from its own work."""


@dataclass
class Browser:
    """One window.

    Attributes:
        driver: Selenium's.
    """

    driver: Any

    def find(self, selector: str, text: str = "") -> list[Any]:
        """Returns the elements that can be seen, with a text in them."""
        return list(self.driver.execute_script(_FIND, selector, text))

    def wait(self, selector: str, text: str = "", *, limit_s: float = WAIT_S) -> Any:
        """Waits for an element with a text in it."""
        return self.until(
            lambda: next(iter(self.find(selector, text)), None),
            f"{selector} with {text!r}",
            limit_s,
        )

    def field(self, label: str) -> Any:
        """Waits for the field of this label."""
        path = (
            f"//label[.//span[normalize-space()='{label}']]//*[self::input or self::textarea]"
            f"|//*[@aria-label='{label}']"
        )
        return self.until(
            lambda: next(
                (e for e in self.driver.find_elements("xpath", path) if e.is_displayed()), None
            ),
            f"a field {label}",
        )

    def until(self, found: Callable[[], Any], what: str, limit_s: float = WAIT_S) -> Any:
        """Waits until something is true; an element that vanishes meanwhile is looked for again."""
        from selenium.common.exceptions import StaleElementReferenceException

        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            try:
                if value := found():
                    return value
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        raise AssertionError(f"there was never {what}: {self.driver.page_source[-2000:]}")

    def press(self, name: str) -> None:
        """Clicks the button of this name."""
        self.until(
            lambda: next((e for e in self.find("button", name) if e.text.strip() == name), None),
            f"a button {name}",
        ).click()

    def open(self, name: str) -> None:
        """Opens what can be folded."""
        self.wait("button.label-wrap", name).click()

    def violations(self) -> list[str]:
        """Returns what axe-core finds of WCAG's levels A and AA."""
        from axe_core_python.selenium import Axe

        options = {"runOnly": list(LEVELS), "resultTypes": ["violations"]}
        result = Axe().run(self.driver, options=options)
        return [
            f"{one['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
            for one in result["violations"]
            for node in one["nodes"]
        ]

    def hosts(self) -> set[str]:
        """Returns the hosts that were asked for anything since the last call."""
        found = set()
        for line in self.driver.get_log("performance"):
            message = json.loads(line["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                parameters = message["params"]
                url = urlsplit(parameters.get("request", parameters)["url"])
                if url.scheme not in ("data", "blob", "about", "chrome"):
                    found.add(url.netloc)
        return found

    def complaints(self) -> list[str]:
        """Returns errors of the console since the last call."""
        return [
            one["message"] for one in self.driver.get_log("browser") if one["level"] == "SEVERE"
        ]

    def is_too_wide(self) -> bool:
        """Returns whether the page scrolls sideways."""
        script = "return document.documentElement.scrollWidth > window.innerWidth"
        return bool(self.driver.execute_script(script))


@contextmanager
def open_browser(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Browser]:
    """Opens a window; skips the test where Chromium or its driver is missing."""
    chromium = next(filter(None, map(shutil.which, _NAMES)), None)
    program = shutil.which("chromedriver")
    if chromium is None or program is None:
        pytest.skip("needs Chromium and chromedriver (Debian: chromium, chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--use-fake-device-for-media-stream",  # a microphone that beeps
        "--use-fake-ui-for-media-stream",
        f"--window-size={width},{height}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program))
    try:
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        driver.set_page_load_timeout(WAIT_S)
        driver.set_script_timeout(WAIT_S)
        yield Browser(driver)
    finally:
        driver.quit()
