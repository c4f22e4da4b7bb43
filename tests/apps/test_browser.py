"""The page in a real browser, on a desk and on a phone, by the agent of the package.

Needs Gradio, Playwright and a Chromium: `pip install "locrl[app]" playwright`. Each test leaves its screenshots in its
folder, which `--basetemp` names."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from locrl.apps import app
from locrl.apps.localizer import EXAMPLE, Localizer, picture

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
PATIENCE = 120_000  # milliseconds; machines are shared


def wall(place, size=(480, 320), side=220):
    "Return a wall with a picture of a cat on it"
    photo = Image.new("RGB", size, "#8d9181")
    photo.paste(picture(EXAMPLE).resize((side, side * 2 // 3)), place)
    return photo


@pytest.fixture(scope="module")
def animals():
    return Localizer.pretrained()


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(browser, animals):
    with app.running(animals) as address:
        yield address


@pytest.fixture
def visit(browser, address):
    "A function that opens the page in a window of some width"
    windows, elsewhere, broken = [], [], []

    def note(request):
        if not request.url.startswith((address, "data:", "blob:")):
            elsewhere.append(request.url)

    def visit(width):
        window = browser.new_page(viewport=dict(width=width, height=900), reduced_motion="reduce")
        window.set_default_timeout(PATIENCE)
        window.on("request", note)
        window.on("pageerror", lambda error: broken.append(str(error)))
        windows.append(window)
        window.goto(address)
        window.wait_for_selector("#photo input[type=file]", state="attached")
        return window

    yield visit
    for window in windows:
        window.close()
    assert not elsewhere and not broken  # nothing is fetched from another server, and no script fails


def asked(window, path, phrase):
    "Give a picture and a phrase, and ask"
    window.set_input_files("#photo input[type=file]", str(path))
    window.wait_for_selector("#photo img")
    window.fill("#phrase textarea, #phrase input", phrase)
    window.click("#search")


def answered(window):
    "Wait for all of the answer, and return the record"
    window.wait_for_selector("#ranking .locrl-links")
    link = window.get_attribute("#ranking a[download='search.json']", "href")
    return json.loads(window.evaluate("async link => await (await fetch(link)).text()", link))


def fits(window):
    "Whether nothing sticks out to the side"
    return window.evaluate("document.documentElement.scrollWidth <= innerWidth")


def seen(window, part):
    "Whether some of a part is in the window, without scrolling"
    return window.evaluate(
        "part => { const r = document.querySelector(part).getBoundingClientRect();"
        " return r.height > 0 && r.top < innerHeight && r.bottom > 0 }",
        part,
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_a_photograph_is_searched(width, visit, animals, tmp_path):
    "And the slider goes through the steps, the ranking and the files are there, and all of it fits"
    photo = wall((27, 133))
    photo.save(tmp_path / "wall.png")
    alone = animals.locate(photo, "a cat")
    window = visit(width)
    window.screenshot(path=tmp_path / "start.png", full_page=True)
    asked(window, tmp_path / "wall.png", "a cat")
    window.wait_for_selector("#walk .locrl-walk")
    window.wait_for_timeout(500)  # the page scrolls there
    assert seen(window, "#walk .scene")
    record = answered(window)
    assert record["box"] == list(alone.pixels) and record["ranking"][0]["class"] == "cat"
    assert window.inner_text("#sentence").startswith("Found: cat, confidence ")
    window.screenshot(path=tmp_path / "found.png", full_page=True)

    slider, word = window.locator("#walk input[type=range]"), window.locator("#walk output")
    last = int(slider.get_attribute("max"))
    assert last == alone.episode.steps and word.inner_text().startswith(f"{last}: ")
    slider.fill("0")
    x, y, w, h = (float(window.get_attribute("#walk rect.box.edge", k)) for k in ("x", "y", "width", "height"))
    np.testing.assert_allclose([x, y, x + w, y + h], 100 * alone.episode.boxes[0], atol=0.02)
    assert word.inner_text() == "start"
    first = alone.episode.action_name(0)
    assert window.inner_text("#walk .bar.taken span") == first.replace("_", " ")
    slider.press("ArrowRight")
    assert word.inner_text() == f"1: {first}" and window.locator("#walk rect.past.edge").count() == 1
    assert not window.is_visible("#walk .heat")
    window.check("#walk input[type=checkbox]")
    assert window.is_visible("#walk .heat")
    window.screenshot(path=tmp_path / "step.png", full_page=True)
    assert fits(window)

    with window.expect_download() as download:
        window.click("#ranking a[download='search.gif']")
    with Image.open(download.value.path()) as film:
        assert film.format == "GIF" and film.n_frames > 1


@pytest.mark.parametrize("width", [1280, 390])
def test_a_wrong_file_gets_a_sentence_that_is_seen(width, visit, tmp_path):
    "And the page goes on: the right file is answered after it"
    letter, photo = tmp_path / "letter.jpg", tmp_path / "wall.png"
    letter.write_text("Dear visitor")
    wall((200, 60)).save(photo)
    window = visit(width)
    asked(window, letter, "a cat")
    window.wait_for_selector("#sentence :text('letter.jpg cannot be read as a picture')")
    assert seen(window, "#sentence") and not window.locator("#walk .locrl-walk").count()
    assert str(tmp_path) not in window.content()
    window.screenshot(path=tmp_path / "wrong.png", full_page=True)
    window.click("#photo button[aria-label*='lear'], #photo button[aria-label*='emove']")
    asked(window, photo, "a mitten")
    window.wait_for_selector("#sentence :text('does not know “a mitten”')")
    window.fill("#phrase textarea, #phrase input", "cat")
    window.press("#phrase textarea, #phrase input", "Enter")
    assert answered(window)["found"] and fits(window)


def test_eight_visitors_at_once_get_what_the_agent_finds_alone(visit, animals, tmp_path):
    photos = [wall((20 + 25 * k, 10 + 20 * k), (420 + 10 * k, 320), 200 + 4 * k) for k in range(8)]
    windows = [visit(1280) for _ in photos]
    for k, (window, photo) in enumerate(zip(windows, photos, strict=True)):
        photo.save(tmp_path / f"{k}.png")
        window.set_input_files("#photo input[type=file]", str(tmp_path / f"{k}.png"))
        window.fill("#phrase textarea, #phrase input", "a cat")
        window.wait_for_selector("#photo img")
    for window in windows:
        window.evaluate("document.querySelector('#search').click()")
    for window, photo in zip(windows, photos, strict=True):
        record, alone = answered(window), animals.locate(photo, "a cat")
        assert record["width"] == photo.width and record["box"] == list(alone.pixels)
        assert record["confidence"] == pytest.approx(alone.confidence, abs=1e-4)
        every = animals.locate_all(photo, "a cat", least=app.RANKED)
        assert [each["box"] for each in record["ranking"]] == [list(each.pixels) for each in every]
