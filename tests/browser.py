"""A headless Chromium, driven by selenium: Debian's packages chromium and chromium-driver, nothing is downloaded."""

import importlib.util
import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

PROGRAMS = ("chromium", "chromedriver")
#: In seconds. The first page of a server that has just started takes a slow machine half a minute.
PATIENCE = 120.0


def missing() -> str:
    """Why no browser can be driven here; "" where one can."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    if lacking:
        return f"no {' and no '.join(lacking)}: apt-get install chromium chromium-driver"
    lacking = [name for name in ("selenium", "selenium_axe_python") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} not installed: pip install selenium selenium-axe-python" if lacking else ""


@contextmanager
def opened(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """A driver of a browser of its own, with a window of this size."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location, driver = map(str, map(shutil.which, PROGRAMS))
    # as root Chromium has no sandbox, and a container's /dev/shm is small; the pages are our own
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", f"window-size={width},{height}"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()


def wait(found: Callable[[], Any], what: str) -> Any:
    """What `found` gives as soon as it is true; a page that is still being built may raise meanwhile."""
    from selenium.common.exceptions import WebDriverException

    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        try:
            if value := found():
                return value
        except WebDriverException:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not within {PATIENCE:g} s: {what}")


def text_of(browser: Any) -> str:
    """All text that the page shows."""
    shown: str = browser.execute_script("return document.body.innerText")
    return shown


def photograph(browser: Any, path: Path) -> None:
    """Write the window as a PNG of few colours, which is small."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    image.quantize(64).save(path, optimize=True)
