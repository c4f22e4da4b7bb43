"""The page: what visitors are told, that nothing is kept, and several of them at once (the last needs Gradio)."""

import base64
import html
import json
import re
import sys
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest

from locrl.apps import app
from locrl.vision.encoders import UnknownClassError
from test_media import COLOURS, MadeUp, made_up, shade


class Visited(MadeUp):
    "Knows cats and dogs"

    def locate(self, image, phrases=None, example=None):
        if phrases == "unicorn":
            raise UnknownClassError("unicorn", ["cat", "dog"], "")
        near = 0.5 if phrases == "puppy" else 1.0
        found = super().locate(image, phrases, example)
        return made_up(image, "dog", 0.7, nearness=near) if phrases == "puppy" else found


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "red.png"
    shade(COLOURS[0]).save(path)
    return path


def steps_in(text):
    return json.loads(html.unescape(re.search(r'data-steps="([^"]*)"', text)[1]))


def test_the_walk_is_the_search(photo):
    first, second = app.searched(Visited(), photo, "  cat ")
    assert first.sentence == (
        "Found: cat, confidence 0.80. The agent came to this box after 3 actions; it stopped there by itself."
    )
    steps = steps_in(first.walk)
    assert steps["boxes"] == [[0, 0, 100, 100], [20, 0, 100, 100], [25, 50, 75, 100], [25, 50, 75, 100]]
    assert steps["words"] == ["start", "1: right", "2: smaller", "3: trigger"] and steps["taken"] == [0, 5, 8]
    np.testing.assert_allclose(steps["q"], np.arange(30).reshape(3, 10) / 10)
    assert first.ranking == "" and second.walk == first.walk
    assert [each["confidence"] for each in second.record["ranking"]] == [0.8, 0.4, 0.1]


def test_a_corrected_box_ends_the_last_step():
    location = made_up(shade(COLOURS[0]), "cat", 0.8, box=(0.2, 0.5, 0.7, 1.0), visited=np.float32([0.2, 0, 1, 1]))
    steps = steps_in(app.walk_html(location))
    assert steps["words"] == ["start", "1: right"] and steps["boxes"][-1] == [20, 50, 70, 100]
    assert app.location_record(location)["visited"] == [13, 0, 64, 48]


def test_files_are_in_the_page_and_nowhere_else(photo):
    before = set(photo.parent.iterdir())
    *_, whole = app.searched(Visited(), photo, "cat")
    gif, record = (base64.b64decode(data) for data in re.findall(r'href="data:[\w/]+;base64,([^"]*)"', whole.ranking))
    assert gif[:6] == b"GIF89a" and json.loads(record) == whole.record
    assert set(photo.parent.iterdir()) == before


@pytest.mark.parametrize(
    "name, phrase, said",
    [
        (None, "cat", "Give a photograph first."),
        ("red.png", " \n", "Say what to look for."),
        ("red.png", None, "Say what to look for."),
        ("red.png", "unicorn", "This agent does not know “unicorn”. It was trained on: cat, dog."),
        ("text.jpg", "cat", "text.jpg cannot be read as a picture. Give a JPEG, PNG or WebP photograph."),
        ("gone.png", "cat", "The picture has been deleted by now, as promised: give it again."),
        ("red.png", "dog", "No dog was found: the surest box has confidence 0.01, below 0.10. "),
        ("red.png", "puppy", "“puppy” is taken for dog, the nearest class the agent knows. Found: dog"),
    ],
)
def test_sentences(name, phrase, said, photo):
    (photo.parent / "text.jpg").write_text("Dear visitor")
    shown = next(app.searched(Visited(), name and photo.with_name(name), phrase))
    assert shown.sentence.startswith(said) and str(photo.parent) not in shown.sentence


def test_words_of_a_visitor_are_no_html(photo):
    class Anything(MadeUp):
        def locate(self, image, phrases=None, example=None):
            return made_up(image, phrases, 0.8)

        def locate_all(self, image, phrase, least):
            return [made_up(image, phrase, 0.8)]

    evil = '<img src=x onerror="alert(1)">'
    *_, whole = app.searched(Anything(), photo, evil)
    assert "<img src=x" not in whole.walk + whole.ranking and "&lt;img src=x" in whole.ranking


def test_without_gradio(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    for do in (lambda: app.page(Visited()), lambda: app.write_space(tmp_path / "space")):
        with pytest.raises(ImportError, match=r'the page needs Gradio: pip install "locrl\[app\]"'):
            do()
    assert not (tmp_path / "space").exists()


# With Gradio


@pytest.fixture
def address(monkeypatch):
    pytest.importorskip("gradio")
    with app.running(Visited(), kept=1) as address:
        yield address


def asked(address, path, phrase):
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False, analytics_enabled=False)
    return client.predict(handle_file(str(path)), phrase, api_name="/search")


def test_eight_visitors_get_their_own_answers(address, tmp_path):
    "A cat in a red picture, none in a green one, in pictures of different sizes"
    answers = {}

    def visit(k):
        path = tmp_path / f"{k}.png"
        shade(COLOURS[k % 2], (60 + k, 40)).save(path)
        answers[k] = asked(address, path, "cat")

    visitors = [threading.Thread(target=visit, args=[k]) for k in range(8)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    for k, (sentence, _, _, record) in answers.items():
        assert record["width"] == 60 + k and record["found"] == (k % 2 == 0)
        assert ("Found: cat" in sentence) == (k % 2 == 0)
    assert len(answers) == 8


def test_a_wrong_file_gets_a_sentence(address, tmp_path):
    path = tmp_path / "text.jpg"
    path.write_text("Dear visitor")
    sentence, *_ = asked(address, path, "cat")
    assert "text.jpg cannot be read as a picture" in sentence


def test_a_file_of_the_server_is_refused(address):
    "Asked without a client, which would upload the file first"

    def answer(place, data=None):
        request = Request(f"{address}gradio_api/call/search{place}", data, {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as response:
            return response.read().decode()

    for path in (app.EXAMPLE, Path(app.__file__)):
        secret = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        event = json.loads(answer("", json.dumps({"data": [secret, "cat"]}).encode()))["event_id"]
        assert answer(f"/{event}").startswith("event: error")


def test_uploads_are_deleted_with_the_page(tmp_path, monkeypatch):
    "None is left when it ends"
    import os
    import tempfile

    pytest.importorskip("gradio")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    photo = tmp_path / "photo.png"
    shade(COLOURS[0]).save(photo)
    with app.running(Visited()) as address:
        folder = Path(os.environ["GRADIO_TEMP_DIR"])
        asked(address, photo, "cat")
        assert [p.name for p in folder.rglob("*.png")] == ["photo.png"]
    assert not folder.exists() and "GRADIO_TEMP_DIR" not in os.environ


def test_a_space(tmp_path):
    gradio = pytest.importorskip("gradio")
    names = {path.name for path in app.write_space(tmp_path)}
    assert names == {"app.py", "requirements.txt", "README.md"}
    compile((tmp_path / "app.py").read_text(), "app.py", "exec")
    import yaml

    header = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert (header["sdk"], header["app_file"], header["sdk_version"]) == ("gradio", "app.py", gradio.__version__)
    assert (tmp_path / "requirements.txt").read_text().startswith("locrl[app] @ git+")
