"""What a browser shows of a sweep in MLflow: three trials are found, compared, and their curves drawn.

`DFVT_SCREENSHOTS=docs` keeps the pictures that the README shows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import Project
from tests.servers import free_port, mlflow_server

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="Chromium is not installed (Debian: apt-get install chromium chromium-driver)",
    ),
]
SECONDS = 90
SPEC = """
name: seen
algorithm: grid
num_epochs: 6
batch_size: 4
cfg_options: {log_config.interval: 1, evaluation.interval: 1}
space:
  lr: {grid: [3.0e-4, 1.0e-3, 3.0e-3]}
"""
TRIALS = ["seen 0001", "seen 0002", "seen 0003"]


@pytest.fixture
def server(prepared: Project) -> Iterator[str]:
    """MLflow's own address, with the runs of a sweep."""
    (prepared.path / "sweep.yaml").write_text(SPEC)
    result = prepared.run("python", "-m", "dfvt", "sweep", "sweep.yaml")
    assert result.returncode == 0, result.stderr
    with mlflow_server(prepared, prepared.path, free_port()) as address:
        yield address


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1500,1000"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={tmp_path / 'browser'}")
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


class Page:
    """A page of MLflow's that is waited for."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self.browser = browser
        self.wait = WebDriverWait(browser, SECONDS)

    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def shows(self, *words: str) -> None:
        self.wait.until(lambda _: all(word in self.text() for word in words), message=" ".join(words))

    def click(self, selector: str) -> None:
        """Clicks what is there in that moment: the page makes its rows anew while it loads."""
        script = "const one = document.querySelector(arguments[0]); if (one) one.click(); return one !== null"
        self.wait.until(lambda _: self.browser.execute_script(script, selector), message=selector)

    def picture(self, path: Path) -> None:
        """Takes a picture once the page has not changed for a moment."""
        last = b""

        def still(_: object) -> bool:
            nonlocal last
            before, last = last, self.browser.get_screenshot_as_png()
            return before == last

        WebDriverWait(self.browser, SECONDS, poll_frequency=2).until(still)
        path.write_bytes(last)


def test_three_trials_are_compared_in_the_browser(
    server: str, browser: webdriver.Chrome, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("DFVT_SCREENSHOTS") or tmp_path)
    page = Page(browser)
    browser.get(f"{server}/#/experiments/1/runs?compareRunsMode=CHART")
    page.click("[data-component-id*='runnamecellrenderer']")  # the sweep's run shows those of its trials
    page.shows(*TRIALS)
    page.click("button[aria-label='Close']")  # of MLflow's assistant
    search = page.wait.until(
        lambda _: browser.find_elements(By.CSS_SELECTOR, "input[placeholder='Search metric charts']")
    )
    search[0].send_keys("train/loss$|train/lr$|val/.*_mAP$")
    page.shows("train/loss", "train/lr", "val/bbox_mAP", "val/segm_mAP")
    page.picture(pictures / "mlflow-curves.png")

    for row in (1, 2, 3):
        page.click(
            f".ag-row[row-index='{row}'] input[aria-label='Press Space to toggle row selection (unchecked)']"
        )
    compare = page.wait.until(
        lambda _: [
            one for one in browser.find_elements(By.TAG_NAME, "button") if one.text.strip() == "Compare"
        ]
    )
    compare[0].click()
    page.shows("Comparing 3 Runs from 1 Experiment", *TRIALS, "0.0003", "0.001", "0.003", "best_bbox_mAP")
    page.picture(pictures / "mlflow-comparison.png")
