"""The report of a comparison as people see it: in a real browser, wide, on a phone, and printed."""

import base64

import numpy as np
import polars as pl
import pytest
from random_data import made

from browser import chromium
from reczero.cli import main

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    data = made(folder, rows=400)
    rng = np.random.default_rng(0)
    rows = data.examples("test", cold_start=None).select("example_id", "rating")
    guess = pl.Series("prediction", rng.integers(1, 6, rows.height).astype(float))
    rows.select("example_id", guess).write_csv(folder / "mine.csv")
    command = ["compare", str(data.path), "--out", str(folder / "out"), "--predictions", f"mine={folder / 'mine.csv'}"]
    command += ["--baseline", "averages", "--min-user-history", "2", "--min-item-history", "2", "--rounds", "200"]
    assert main.run(command) == 0
    return (folder / "out" / "report.html").as_uri()


def errors(browser) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def first_column(table) -> list[str]:
    from selenium.webdriver.common.by import By

    return [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "tbody tr > *:first-child")]


def test_tables_sort_and_examples_filter(report):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.select import Select

    with chromium() as browser:
        browser.get(report)
        table = browser.find_element(By.CSS_SELECTOR, "table.comparison")
        before = first_column(table)
        assert "mine" in before
        heading = table.find_element(By.XPATH, ".//thead//button[contains(., 'RMSE')]")
        heading.send_keys(Keys.ENTER)  # by the keyboard
        once = first_column(table)
        heading.click()
        again = first_column(table)
        assert sorted(once) == sorted(again) == sorted(before)
        assert {once.index("mine"), again.index("mine")} == {0, len(before) - 1}  # the worst by far: last, and first
        count = browser.find_element(By.ID, "count")
        everything = int(count.text.split()[0])
        Select(browser.find_element(By.ID, "truth")).select_by_value("1")
        assert 0 < int(count.text.split()[0]) < everything
        assert errors(browser) == []


@pytest.mark.parametrize("width", [390, 820, 1200])
def test_no_page_is_wider_than_its_window(report, width):
    with chromium(width=width) as browser:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 800},
        )
        browser.get(report)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
        assert errors(browser) == []


def test_it_prints(report):
    with chromium() as browser:
        browser.get(report)
        pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
