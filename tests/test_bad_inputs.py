"""Every row of bad_inputs.md, from Python and by the command line: a line that helps, no pickle, no file elsewhere."""

import importlib.util
import io
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from conftest import VocFolder, box_xml
from locrl.apps import cli
from locrl.apps.localizer import Localizer, picture
from locrl.apps.pretrained import AGENTS, load_pretrained
from locrl.data.voc import VOC
from locrl.experiments import config as configs, diagnostics
from locrl.checkpoints import RunFolder
from locrl.experiments.train import Agent, train
from locrl.vision import encoders
from locrl.vision.feature_store import FeatureStore
from tiny import TINIEST, no_film
from mosaic import Mosaic

TABLE = Path(__file__).with_name("bad_inputs.md")
SLOW = 1  # factor of the time limit
EXIT = 2  # of a command that a user can mend
MANIFEST = importlib.util.find_spec("locrl.checkpoints")  # runs have one
DONE = set()  # items of issue 17 that the owners have mended
FLAGS = "<difficult>0</difficult><truncated>0</truncated>"


class Row:
    "A line of the table"

    def __init__(self, line):
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        self.kind, self.file, how, words, self.waits = cells
        self.how = how.strip("`")
        self.words = [w.strip() for w in words.split(",") if w.strip()]

    def __repr__(self):
        return re.sub(r"[^\w.%=-]+", "-", f"{self.kind}-{self.file}-{self.how}")[:90]


def rows():
    "Read the table"
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [Row(line) for line in lines if not line.startswith("| kind |")]


ROWS = rows()


def marked(way):
    "The rows, those that wait for a mend marked so that they cannot be forgotten"
    out = []
    for row in ROWS:
        if (way == "python" and row.kind == "command") or (way == "command" and row.waits == "heals"):
            continue
        waits = [w for w in row.waits.split() if w.rstrip("pc") not in {*DONE, "heals"}]
        waits = [w for w in waits if not w.endswith(dict(python="c", command="p")[way])]
        marks = [pytest.mark.xfail(strict=True, reason=f"item {w}") for w in waits]
        if row.kind == "run" and not MANIFEST:
            marks = [pytest.mark.skip(reason="runs have no manifest yet")]
        out.append(pytest.param(row, marks=marks, id=repr(row)))
    return out


# How files are damaged


class Canary:
    "Unpickled, it leaves a file"

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def unescaped(text):
    "What `text` stands for, as bytes"
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")


def damage(path, how, outside):
    "Damage a file as a cell of the table says"
    for step in how.split("; "):
        verb, _, rest = step.partition(" ")
        raw = path.read_bytes() if path.is_file() else b""
        if verb == "replace":
            a, _, b = (rest + " ").partition(" => ")
            assert a.encode() in raw, f"{path} does not hold {a!r}"
            path.write_bytes(raw.replace(a.encode(), b.strip().encode(), 1))
        elif verb in ("write", "append"):
            path.write_bytes(raw * (verb == "append") + unescaped(rest))
        elif verb == "json":
            content = json.loads(raw)
            place, _, value = rest.removesuffix(" gone").partition(" = ")
            node = content
            *way, last = place.split(".")
            for key in way:
                node = node[key]
            if value:
                node[last] = json.loads(value)
            else:
                del node[last]
            path.write_text(json.dumps(content))
        elif verb == "encode":
            path.write_bytes(raw.decode().encode(rest))
        elif verb == "cut":
            path.write_bytes(raw[: len(raw) * int(rest.rstrip("%")) // 100])
        elif verb == "flip":
            at = len(raw) * int(rest.rstrip("%")) // 100
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 255]) + raw[at + 1 :])
        elif verb == "as":
            with Image.open(path) as image:
                image = image.convert("1" if rest in ("MSP", "XBM") else "F" if rest == "SPIDER" else "RGB")
                image = image.resize((128, 128)) if rest in ("ICO", "ICNS") else image
                image.save(
                    buffer := io.BytesIO(), rest
                )  # to a path, Pillow would take its ending for SPIDER ever after
            path.write_bytes(buffer.getvalue())
        elif verb == "pickle":
            path.write_bytes(pickle.dumps(Canary(outside / "canary")))
        elif verb == "foreign":
            pattern = re.sub(r"-\d+\.", "-*.", path.name)
            (other,) = sorted((path.parents[1] / "seed-1").glob(pattern))[-1:]
            shutil.copy(other, path)
        elif verb == "bomb":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z, z.open("about.npy", "w") as f:
                f.write(b"\x93NUMPY\x01\x00v\x00{'descr': '|u1', 'fortran_order': False, 'shape': (4000000000,), }")
                f.write(b" " * 48 + b"\n" + bytes(1 << 28))
        else:
            path.unlink()
            if verb == "empty":
                path.touch()
            elif verb == "folder":
                path.mkdir()
            elif verb == "pipe":
                os.mkfifo(path)
            elif verb == "endless":
                path.symlink_to("/dev/zero")
            else:
                assert verb == "gone", f"nobody knows how to {step!r}"


# What is damaged


def changed(config, values):
    "A configuration with other values, under dotted names"
    return config.replace(values)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Originals: a VOC folder, two seeds of a run on it, its store, a packed agent, a picture"
    importlib.import_module("open_clip")  # its first import takes long; the rows below are timed
    home = tmp_path_factory.mktemp("originals")
    voc = VocFolder(home)
    for id in "abcd":
        voc.image(id)
        voc.xml(id, box_xml("cat", extra=FLAGS) + box_xml("dog", (60, 11, 90, 40), FLAGS))
    voc.list("test", "a\nb\nc\nd\n")
    shutil.copy(voc.path / "JPEGImages/a.jpg", home / "p.jpg")
    shutil.copy(AGENTS / "animals-5.npz", home / "agent.npz")
    (home / "file").write_text("a file, no folder\n")
    with pytest.MonkeyPatch.context() as m:
        m.setitem(encoders.ENCODERS, "mosaic", lambda device="cpu", input_size=None: Mosaic())
        config = changed(
            TINIEST,
            {
                "name": "demo",
                "encoder.name": "mosaic",
                "encoder.input_size": None,
                "encoder.dim": 4,
                "data.train": "voc2007:test",
                "data.select": "voc2007:test",
                "data.report": "voc2007:test",
            },
        )
        m.setitem(configs.CONFIGS, "demo", config)
        m.setenv("LOCRL_DATA", str(home))
        m.setenv("LOCRL_CACHE", str(home / "cache"))
        with m.context() as briefly:
            briefly.setattr(diagnostics, "filmstrip", no_film)
            for seed in (0, 1):
                train(config, seed, home / "runs", progress=False)
        for events in home.rglob("events.out.tfevents.*"):  # nothing reads them, and every row would copy them
            events.unlink()
        m.setattr(Localizer, "pretrained", shared(Localizer.pretrained))
        yield home


def shared(make):
    "`Localizer.pretrained`, with the package's own agent loaded once"
    kept = []

    def pretrained(name="animals-5", *args, **kwargs):
        if name != "animals-5" or kwargs.get("device", "cpu") != "cpu":
            return make(name, *args, **kwargs)
        if not kept:
            kept.append(make())
        return kept[0]

    return pretrained


class Stuck(BaseException):
    "A row takes too long"


@pytest.fixture
def limits():
    "No row may take ten seconds, or a gigabyte"
    resource = pytest.importorskip("resource")

    def stop(*_):
        raise Stuck("ten seconds are over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10 * SLOW)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), memory[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, memory)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def box(world, tmp_path, monkeypatch, limits):
    "A copy of the originals; beside it a folder that nobody may touch"
    folder = tmp_path / "box"
    shutil.copytree(world, folder, copy_function=shutil.copyfile)
    (tmp_path / "outside").mkdir()
    monkeypatch.setenv("LOCRL_DATA", str(folder))
    monkeypatch.setenv("LOCRL_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)
    return folder


def store_of(box):
    "The folder of the store"
    (store,) = (box / "cache/features").glob("*/store.json")
    return store.parent


def folder_of(row, box):
    "Where the file of a row lies"
    voc = box / "VOCdevkit/VOC2007"
    return dict(
        annotation=voc / "Annotations",
        list=voc / "ImageSets/Main",
        photo=voc / "JPEGImages",
        store=store_of(box),
        run=box / "runs/demo/seed-0",
    ).get(row.kind, box)


def path_of(row, box):
    "The file of a row; a star stands for a number"
    folder = folder_of(row, box)
    return sorted(folder.glob(row.file))[-1] if "*" in row.file else folder / row.file


def read_voc(path):
    "All of a VOC folder"
    data = VOC("2007", "test", root=path.parents[4] if path.parent.name == "Main" else path.parents[3])
    for i in range(len(data)):
        data.annotation(i)
        data.image(i)


def load_run(path):
    "An agent, and its rows"
    Agent.load(path.parent)
    return RunFolder(path.parent).validations()


PYTHON = dict(
    annotation=read_voc,
    list=read_voc,
    photo=read_voc,
    picture=picture,
    store=lambda path: FeatureStore(path.parent),
    agent=load_pretrained,
    run=load_run,
)


def arguments(row, box):
    "What is typed for a row"
    if row.kind == "command":
        places = dict(RUN="runs/demo/seed-0", OTHER="runs/demo/seed-1", FILE="file", PICTURE="p.jpg")
        return [re.sub(r"^[A-Z]+", lambda m: places.get(m[0], m[0]), word) for word in shlex.split(row.how)]
    if row.kind == "config":
        return ["sweep", "--on", "demo", "--seeds", "1", "--root", "new", "--set", f"{row.file}={row.how}"]
    if row.kind == "picture":
        return ["locate", "p.jpg", "cat"]
    if row.kind == "agent":
        return ["locate", "p.jpg", "cat", "--run", "agent.npz"]
    if row.kind == "run":
        return ["evaluate", "runs/demo/seed-0", "--no-baselines"]
    return ["cache", "demo"]


def outside_of(box):
    "What lies beside the box: names and sizes"
    parent = box.parent
    return sorted(str(p) for p in parent.rglob("*") if box not in p.parents and p != box)


def check(row, said):
    "The words are there, each of them"
    places = dict(FILE="file", RUN="runs/demo")
    missing = [w for w in row.words if places.get(w, w).lower() not in said.lower()]
    assert not missing, f"{missing} not in: {said}"


@pytest.mark.parametrize("row", marked("python"))
def test_python(row, box):
    before = outside_of(box)
    path = path_of(row, box)
    with pytest.raises((ValueError, OSError)) as caught:
        if row.kind == "config":
            made = changed(configs.CONFIGS["demo"], {row.file: json.loads(row.how)})
            configs.prepare(made)
        else:
            damage(path, row.how, box.parent / "outside")
            PYTHON[row.kind](path)
    undocumented = (ValueError, UnicodeDecodeError, json.JSONDecodeError)
    assert type(caught.value) not in undocumented, repr(caught.value)
    check(row, str(caught.value))
    assert outside_of(box) == before


@pytest.mark.parametrize("row", marked("command"))
def test_command(row, box, monkeypatch, capsys):
    before = outside_of(box)
    if row.kind not in ("command", "config"):
        damage(path_of(row, box), row.how, box.parent / "outside")
    monkeypatch.setattr(sys, "argv", ["locrl", *arguments(row, box)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    said = capsys.readouterr().err
    trial = row.kind == "config" and " failed: " in said  # a sweep goes on with its other trials, and ends with 1
    assert caught.value.code == (1 if trial else EXIT), said
    assert "Traceback" not in said
    lines = [line for line in said.strip().splitlines() if line.strip()]
    assert len(lines) == 1 or said.startswith("Usage:"), said
    check(row, said)
    assert outside_of(box) == before


def test_the_table_is_long_and_every_row_is_another():
    assert len(ROWS) >= 120
    assert len({(r.kind, r.file, r.how) for r in ROWS}) == len(ROWS)


def test_a_good_box_is_no_mistake(box, monkeypatch, capsys):
    "Without damage everything is read, and the command succeeds: the rows fail for what they say"
    for kind, read in PYTHON.items():
        file = dict(annotation="a.xml", list="test.txt", photo="a.jpg", picture="p.jpg", agent="agent.npz")
        row = ROWS[0]
        row = type("R", (), dict(kind=kind, file=file.get(kind, "store.json" if kind == "store" else "config.json")))
        read(path_of(row, box))
    for words in (["cache", "demo"], ["locate", "p.jpg", "cat"], ["evaluate", "runs/demo/seed-0", "--no-baselines"]):
        monkeypatch.setattr(sys, "argv", ["locrl", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        assert not caught.value.code, capsys.readouterr().err
