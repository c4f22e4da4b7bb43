"""Folders, films and answers: against films with known frames, a second decoder, and a localizer that is made up."""

import json
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from locrl.apps import cli, localizer, media
from locrl.apps.localizer import Location
from locrl.data.voc import DataError

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]


def shade(colour, size=(64, 48)):
    return Image.new("RGB", size, colour)


def named(image):
    "Which of `COLOURS` a picture shows"
    middle = np.asarray(image)[image.height // 2, image.width // 2].astype(int)
    return int(np.abs(np.array(COLOURS) - middle).sum(1).argmin())


def made_up(image, name, confidence, box=(0.25, 0.5, 0.75, 1.0), nearness=1.0, visited=None):
    "A location after two moves and a trigger"
    boxes = np.float32([[0, 0, 1, 1], [0.2, 0, 1, 1], box, box])
    return Location(
        image,
        name,
        np.float32(box),
        confidence,
        True,
        boxes,
        np.array([0, 5, 8]),
        np.arange(30).reshape(3, 10) / 10,
        np.float32([0.1, 0.2, 0.3]),
        np.full((16, 16), 0.5),
        visited=visited,
        nearness=nearness,
    )


class MadeUp:
    "Finds what the middle of the picture shows: cats in red pictures, with confidence .8, and nothing else"

    least = 0.1
    agent = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(classes=("cat", "dog"))))

    def name_of(self, phrase):
        return phrase, 1.0

    def locate(self, image, phrases=None, example=None):
        sure = {"cat": 0.8 if named(image) == 0 else 0.02}
        if example is not None:
            return made_up(image, "this", 0.03)
        if isinstance(phrases, str):
            return made_up(image, phrases, sure.get(phrases, 0.01))
        return [made_up(image, p, sure.get(p, 0.01)) for p in phrases]

    def locate_all(self, image, phrase, least):
        return [made_up(image, phrase, c) for c in (0.8, 0.4, 0.1) if c >= least and named(image) == 0]


# Answers


def test_below_the_bound_nothing_is_found():
    cat, dog = localizer.answers_in(MadeUp(), shade(COLOURS[0]), ["cat", "dog"])
    assert cat.lines() == ["cat: 16 24 48 48, confidence 0.80, 3 actions"]
    assert dog.lines() == ["dog: not found, no box has confidence 0.10 (the surest box has confidence 0.01)"]
    assert cat.records() == [
        dict(phrase="cat", found=True, nearness=1.0, box=[16, 24, 48, 48], confidence=0.8, triggered=True, actions=3)
        | {"class": "cat"}
    ]
    assert dog.records() == [dict(phrase="dog", found=False, box=None, confidence=0.01, least=0.1)]
    assert localizer.answers_in(MadeUp(), shade(COLOURS[0]), ["dog"], least=0)[0].locations
    assert not localizer.answers_in(MadeUp(), shade(COLOURS[0]), ["cat"], least=0.9)[0].locations


def test_all_of_them_and_an_example():
    assert [len(a.locations) for a in localizer.answers_in(MadeUp(), shade(COLOURS[0]), ["cat"], every=True)] == [2]
    assert len(localizer.answers_in(MadeUp(), shade(COLOURS[0]), ["cat"], every=True, least=0.05)[0].locations) == 3
    (none,) = localizer.answers_in(MadeUp(), shade(COLOURS[1]), ["cat"], every=True)
    assert none.lines() == ["cat: not found, no box has confidence 0.30"]
    (like,) = localizer.answers_in(MadeUp(), shade(COLOURS[1]), example=shade(COLOURS[0]))
    assert like.phrase == localizer.THE_EXAMPLE and like.locations, "no bound was measured for examples"


def test_the_path_in_pixels():
    record = localizer.location_record(made_up(shade(COLOURS[0]), "cat", 0.8), path=True)
    assert record["start"] == [0, 0, 64, 48] and [step["action"] for step in record["path"]] == [
        "right",
        "smaller",
        "trigger",
    ]
    assert record["path"][1]["box"] == [16, 24, 48, 48] and record["path"][2]["q_values"][9] == 2.9
    json.dumps(record)


# Films


@pytest.fixture
def gif(tmp_path):
    return media.write_film(tmp_path / "film.gif", map(shade, COLOURS), rate=5)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_animations(kind, tmp_path):
    path = tmp_path / f"film.{kind}"
    first, *rest = map(shade, COLOURS)
    options = dict(lossless=True) if kind == "webp" else {}
    first.save(path, save_all=True, append_images=rest, duration=[100, 300, 100, 100, 100, 100], **options)
    frames = list(media.frames_of(path))
    assert media.is_film(path) and [named(image) for *_, image in frames] == list(range(6))
    assert [round(seconds, 2) for _, seconds, _ in frames] == [0, 0.1, 0.4, 0.5, 0.6, 0.7]
    assert [number for number, *_ in media.frames_of(path, rate=5)] == [0, 2, 4]


def test_a_photograph_is_no_film(tmp_path):
    shade(COLOURS[0]).save(tmp_path / "a.png")
    shade(COLOURS[0]).save(tmp_path / "a.gif")
    (tmp_path / "b.webp").write_text("no picture")
    assert not any(media.is_film(tmp_path / name) for name in ("a.png", "a.gif", "b.webp", "missing.gif", "a.jpg"))
    assert media.is_film("a.MP4")


def test_a_film_that_is_cut_short(gif):
    raw = gif.read_bytes()
    gif.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match=r"film\.gif, frame \d, cannot be decoded .*give a film that a player shows"):
        list(media.frames_of(gif))


def test_a_failed_film_leaves_the_old_one(gif):
    before = gif.read_bytes()

    def broken():
        yield shade(COLOURS[0])
        raise DataError("the source ended")

    with pytest.raises(DataError, match="the source ended"):
        media.write_film(gif, broken())
    assert gif.read_bytes() == before and len(list(gif.parent.iterdir())) == 1
    with pytest.raises(ValueError, match="no pictures"):
        media.write_film(gif, [])


def test_the_longer_side_is_bounded(tmp_path):
    media.write_film(tmp_path / "wide.gif", [shade(COLOURS[0], (961, 301))])
    with Image.open(tmp_path / "wide.gif") as image:
        assert image.size == (480, 150)


def test_without_pyav(monkeypatch, tmp_path, gif):
    monkeypatch.setitem(sys.modules, "av", None)
    for do in (
        lambda: list(media.frames_of(tmp_path / "a.mp4")),
        lambda: media.write_film(tmp_path / "a.mp4", [shade(COLOURS[0])]),
        lambda: media.frame_rate(tmp_path / "a.mp4"),
    ):
        with pytest.raises(ImportError, match=r'a\.mp4: videos need PyAV: pip install "locrl\[video\]"'):
            do()
    assert len(list(media.frames_of(gif))) == 6


@pytest.fixture
def mp4(tmp_path):
    pytest.importorskip("av")
    return media.write_film(tmp_path / "film.mp4", (shade(c, (65, 49)) for c in COLOURS), rate=5)


def test_videos(mp4):
    frames = list(media.frames_of(mp4))
    assert [named(image) for *_, image in frames] == list(range(6)) and frames[0][2].size == (64, 48)
    assert [round(seconds, 3) for _, seconds, _ in frames] == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert media.frame_rate(mp4) == 5 and [number for number, *_ in media.frames_of(mp4, rate=2.5)] == [0, 2, 4]


def test_a_film_that_lies_on_its_side(tmp_path):
    "A phone notes a quarter turn clockwise in the matrix of the track header: what was top left is shown top right"
    pytest.importorskip("av")
    flat = Image.new("RGB", (64, 48), "black")
    flat.paste("white", (0, 0, 32, 24))
    path = media.write_film(tmp_path / "film.mp4", [flat] * 3)
    raw = path.read_bytes()
    matrix = raw.index(b"tkhd") + 4 + 4 + 4 * 5 + 8 + 2 * 4
    assert struct.unpack(">9i", raw[matrix : matrix + 36]) == (65536, 0, 0, 0, 65536, 0, 0, 0, 2**30)
    turned = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 * 65536, 0, 2**30)
    path.write_bytes(raw[:matrix] + turned + raw[matrix + 36 :])
    shown = np.asarray(next(media.frames_of(path))[2].convert("L"))
    assert shown.shape == (64, 48)
    assert [corner > 128 for corner in (shown[16, 12], shown[16, 36], shown[48, 12], shown[48, 36])] == [0, 1, 0, 0]


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 5000])
def test_damaged_videos(content, tmp_path):
    pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    for do in (lambda: list(media.frames_of(path)), lambda: media.frame_rate(path)):
        with pytest.raises(DataError, match=r"film\.mp4.*give a film that a player shows"):
            do()


# The command


@pytest.fixture
def invoke(monkeypatch):
    "Run `locrl locate` with the localizer that is made up"
    monkeypatch.setattr(cli, "_localizer", lambda *args: MadeUp())

    def run(*words, code=0):
        result = CliRunner().invoke(cli.app, ["locate", *map(str, words)])
        assert result.exit_code == code, result.output
        return result.stdout.splitlines()

    return run


def test_several_phrases_as_json(invoke, tmp_path):
    shade(COLOURS[0]).save(tmp_path / "a b.png")
    (line,) = invoke(tmp_path / "a b.png", "cat", "dog", "--json")
    found = json.loads(line)
    assert (found["file"], found["width"], found["height"]) == (str(tmp_path / "a b.png"), 64, 48)
    assert [each["found"] for each in found["objects"]] == [True, False]


def test_a_folder(invoke, tmp_path):
    "Damaged pictures are named, the others are searched, and the exit code is 1"
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    shade(COLOURS[0]).save(photos / "a.png")
    shade(COLOURS[1]).save(photos / "sub/b.png")
    assert invoke(photos, "cat", "--out", tmp_path / "found") == [
        "a.png: cat: 16 24 48 48, confidence 0.80, 3 actions",
        "sub/b.png: cat: not found, no box has confidence 0.10 (the surest box has confidence 0.02)",
    ]
    written = sorted(p.relative_to(tmp_path / "found").as_posix() for p in (tmp_path / "found").rglob("*.jpg"))
    assert written == ["a.png.found.jpg", "sub/b.png.found.jpg"]
    (photos / "c.jpg").write_text("no picture")
    lines = [json.loads(line) for line in invoke(photos, "cat", "--json", code=1)]
    assert [line.get("error", "")[:0] + line["file"].rpartition("/")[2] for line in lines] == [
        "a.png",
        "c.jpg",
        "b.png",
    ]
    assert "cannot be decoded" in lines[1]["error"]


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_film_in_and_out(kind, invoke, gif, tmp_path):
    if kind == "mp4":
        pytest.importorskip("av")
    out = tmp_path / f"found.{kind}"
    lines = [json.loads(line) for line in invoke(gif, "cat", "--json", "--out", out, "--rate", 2.5)]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(0, 0), (2, 0.4), (4, 0.8)]
    assert [line["objects"][0]["found"] for line in lines] == [True, False, False]
    frames = [np.asarray(image).astype(int) for *_, image in media.frames_of(out)]
    assert len(frames) == 3 and abs(media.frame_rate(out) - 2.5) < 0.01
    edges = [frame[36, 14:19].std(0).max() for frame in frames]  # across the left side of the box
    assert edges[0] > 20 > edges[1]


def test_nothing_found_draws_nothing(invoke, tmp_path):
    shade(COLOURS[1]).save(tmp_path / "a.png")
    invoke(tmp_path / "a.png", "cat", "--out", tmp_path / "search.gif")
    assert not (tmp_path / "search.gif").exists()
    invoke(tmp_path / "a.png", "cat", "dog", "--out", tmp_path / "search.gif", "--least", 0)
    assert (tmp_path / "search.gif").exists()


@pytest.mark.parametrize(
    "words, said",
    [
        ("a.png", "say what to look for"),
        ("a.png cat --example a.png", "say what to look for"),
        ("a.png --example a.png --all", "--all looks for phrases"),
        ("a.png cat --rate 2", "--rate is for films"),
        ("film.gif cat --rate 0", "no number above 0"),
        ("a.png cat --out a.mp4", "ends in .gif or .png"),
        ("film.gif cat --out a.png", "ends in .gif or .mp4"),
        (". cat --out a.gif", "of a folder, give the name of a folder"),
        ("a.png cat --least 2", "--least"),
        ("none cat", "there is no picture none"),
        ("empty cat", "holds no pictures"),
    ],
)
def test_mistakes(words, said, gif, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_localizer", lambda *args: MadeUp())
    monkeypatch.chdir(tmp_path)
    shade(COLOURS[0]).save("a.png")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["locrl", "locate", *words.split()])
    with pytest.raises(SystemExit) as e:
        cli.main()
    err = capsys.readouterr().err
    assert e.value.code == 2 and said in err and len(err.strip().splitlines()) == 1
