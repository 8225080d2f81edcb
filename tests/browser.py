"""A real headless Chromium for the tests that look at a page, wherever one is found."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def chromium(width: int = 1200, height: int = 900, profile: Path | None = None) -> Iterator:
    """A Selenium driver; skips the test, and says so, where the system has no Chromium with its driver."""
    binary, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not (binary and driver):
        pytest.skip("no chromium and chromedriver here: install the system's packages to look at pages in a browser")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for switch in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
        "disable-component-update", "disable-sync", "disable-dev-shm-usage", f"window-size={width},{height}",
        *([f"user-data-dir={profile}"] if profile else []),
    ):  # fmt: skip
        options.add_argument(f"--{switch}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield browser
    finally:
        browser.quit()
