"""A person in a browser: the champion is changed in MLflow's own pages, and the report is read with keys alone.

UN2CLIP_SCREENSHOTS=docs/pictures writes the two screenshots of docs/serving.md anew.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from PIL import Image

from tests import browser as driven
from tests.candidates import HOW, Candidate, new_weights
from un2clip.__main__ import main
from un2clip.evidence.scores import load_scores
from un2clip.models.registry import FILES, Registry
from un2clip.stages.compare import compare

pytestmark = pytest.mark.skipif(bool(driven.missing()), reason=driven.missing())
ALIASES = "[title='Edit aliases']"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with driven.opened() as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A champion, a challenger that passed and waits for a person, and `mlflow ui` on a free port."""
    folder = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UN2CLIP_TRACKING", raising=False)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        registry, weights = Registry("un2clip"), new_weights()
        first, second = (Candidate(folder, weights, name, detail=n) for name, n in (("a", 160), ("b", 200)))
        first.promote(registry)
        second.promote(registry, champion="manual")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--port", str(port), "--workers", "1"]
        with (folder / "ui.log").open("w") as log:
            server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log)
        address = f"http://127.0.0.1:{port}"

        def ready() -> bool:
            assert server.poll() is None, (folder / "ui.log").read_text()
            try:
                return requests.get(f"{address}/health", timeout=5).ok
            except requests.ConnectionError:
                return False

        try:
            driven.wait(ready, "mlflow ui answers")
            yield SimpleNamespace(
                address=address, registry=registry, second=second,
                third=lambda: Candidate(folder, weights, "c", detail=210), folder=folder,
            )  # fmt: skip
        finally:
            server.terminate()
            server.wait(30)


def screenshot(browser, tmp_path: Path, name: str) -> None:
    """Where the variable says, or beside the test's files; small either way."""
    path = Path(os.environ.get("UN2CLIP_SCREENSHOTS") or tmp_path).absolute() / name
    driven.photograph(browser, path)
    with Image.open(path) as image:
        assert image.size[0] >= 1000 and path.stat().st_size < 120_000


def test_a_person_makes_the_champion(served, browser, tmp_path, monkeypatch) -> None:
    """Scores, gate and data are on the pages; the alias moves by their controls, and promote and export follow it."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    monkeypatch.chdir(Path(__file__).parents[2] if os.environ.get("UN2CLIP_SCREENSHOTS") else tmp_path)

    def shows(*words: str) -> None:
        driven.wait(lambda: all(word in driven.text_of(browser) for word in words), f"{words} on the page")

    def one(selector: str):
        return driven.wait(lambda: browser.find_element(By.CSS_SELECTOR, selector), selector)

    browser.get(f"{served.address}/#/models/un2clip")
    shows("Version 1", "Version 2", "champion", "challenger", "50.0 % (40.0), +10.0 ±3.1", "passed")
    one("a[href$='/models/un2clip/versions/2']").click()
    shows("Passed, judged against version 1, the champion.", "superiority", "400 samples", "+7.0 to +13.2")
    if close := browser.find_elements(By.CSS_SELECTOR, "[data-component-id='mlflow.assistant.chat_panel.close']"):
        close[0].click()
    version = browser.current_url
    screenshot(browser, tmp_path, "mlflow-version.png")
    one("a[href*='/models/m-']").click()
    shows("mmvp_vlm/tuned", "zeroshot/reference", "mmvp_vlm (#dddd", "zeroshot")  # the scores with their data

    browser.get(version)
    one(ALIASES).click()
    box = one("[role=dialog] input")
    driven.wait(box.is_displayed, "the box of aliases")
    box.send_keys("champion")
    box.send_keys(Keys.ENTER)
    shows('The "champion" alias is also being used on version 1')
    screenshot(browser, tmp_path, "mlflow-alias.png")
    (save,) = [each for each in browser.find_elements(By.CSS_SELECTOR, "[role=dialog] button") if "Save" in each.text]
    save.click()
    driven.wait(lambda: served.registry.aliases().get("champion") == "2", "the alias moved")

    monkeypatch.chdir(served.folder)
    assert main(["export", "--model", "un2clip", "--alias", "champion", "--to", str(tmp_path / "out")]) == 0
    for name in FILES:
        assert (tmp_path / "out" / name).read_bytes() == (served.second.encoder / name).read_bytes()
    decision = served.third().promote(served.registry, champion="manual")
    assert decision["champion"]["version"] == "2" and decision["rules"][0]["champion"] == 50.0


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """A report with everything in it: types that are folded, pictures, training curves."""
    folder = tmp_path_factory.mktemp("report")
    made = Candidate(folder, new_weights(), "a", detail=160, zeroshot=280)
    for role in ("reference", "tuned"):
        path = made.scores / "zeroshot" / f"{role}.json"
        scores = load_scores(path)
        items = tuple(replace(item, type=f"type {i % 14}") for i, item in enumerate(scores.items))
        replace(scores, items=items).save(path)
    for name in ("scores/zeroshot/plot.png", "reconstructions/grid.png"):
        (folder / "a" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 32), "teal").save(folder / "a" / name)
    points = [{"step": step, "loss": 1.0 / step, "cosine": 1.0} for step in (1, 2, 3)]
    (made.encoder / "history.json").write_text(json.dumps(points))
    compare(HOW["compare"], seed=10, scores=[made.scores], encoder=made.encoder,
            reconstructions=folder / "a/reconstructions", report=made.report)  # fmt: skip
    return made.report / "index.html"


def test_the_report_has_no_error_and_every_picture(page, browser) -> None:
    """Opened as a file: nothing in the console, every picture has pixels, and nothing else was fetched."""
    browser.get("about:blank")
    browser.get_log("browser")
    browser.get(page.as_uri())
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    widths = browser.execute_script("return [...document.images].map(each => each.complete && each.naturalWidth)")
    assert len(widths) == 3 and all(widths)
    fetched = "return performance.getEntriesByType('resource').map(each => each.name)"
    assert all(name.startswith("data:") for name in browser.execute_script(fetched))


def test_the_keyboard_reaches_everything(page, browser) -> None:
    """Tab goes to every part that unfolds or scrolls, in the order of the page; Enter unfolds."""
    from selenium.webdriver.common.keys import Keys

    browser.set_window_size(500, 800)  # so narrow that tables scroll
    browser.get(page.as_uri())
    wanted = browser.execute_script(
        "const all = [...document.querySelectorAll('a[href], summary, .scroll')];"
        "window.wanted = all.filter(each => each.checkVisibility());"
        "return window.wanted.length"
    )
    assert wanted > 3
    reached = []
    for _ in range(wanted):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.execute_script("return window.wanted.indexOf(document.activeElement)"))
    assert reached == list(range(wanted))
    browser.execute_script("document.querySelector('summary').focus()")
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.querySelector('details').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 500])
def test_an_accessibility_checker_finds_nothing(page, browser, width: int, scheme: str) -> None:
    """axe-core, all its rules of WCAG 2.1 A and AA and of good practice, with everything unfolded."""
    from selenium_axe_python import Axe

    browser.set_window_size(width, 800)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true })")
    axe = Axe(browser)
    axe.inject()
    found = axe.run()
    said = [f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}" for each in found["violations"]]
    assert not said, "\n".join(said)
    assert len(found["passes"]) > 10
