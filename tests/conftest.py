"""Options, environment and folders shared by all tests."""

import importlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from filelock import FileLock  # comes with torch
from PIL import Image

FLAGS = ("slow", "gpu", "net")
ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("locrl", parent=hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("locrl")


def pytest_addoption(parser):
    "`--slow`, `--gpu` and `--net`"
    for flag in FLAGS:
        parser.addoption(f"--{flag}", action="store_true", help=f"run the tests and notebook cells marked {flag}")


def pytest_configure(config):
    "One thread and one cache folder for each test process; the cache goes away with the session unless it was named"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None and "LOCRL_CACHE" not in os.environ:
        cache = os.environ["LOCRL_CACHE"] = tempfile.mkdtemp(prefix="locrl-tests-")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    elif worker is not None:
        os.environ["LOCRL_CACHE"] = str(Path(os.environ["LOCRL_CACHE"]) / worker)


def pytest_collection_modifyitems(config, items):
    "Skips what is marked with a flag that was not asked for"
    for item in items:
        for flag in FLAGS:
            if flag in item.keywords and not config.getoption(flag):
                item.add_marker(pytest.mark.skip(reason=f"runs with --{flag}"))


@pytest.fixture(scope="session")
def tiny_world():
    "What `tiny.TINY` looks at"
    from locrl.experiments.config import prepare  # not before pytest_configure has set the environment
    from tiny import TINY

    return prepare(TINY)


@pytest.fixture(scope="session")
def tiny_trained(tiny_world, tmp_path_factory):
    "Two seeds of `tiny.TINY`: the first test process to ask trains them, the others find them finished"
    from locrl.experiments.train import train
    from tiny import TINY

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with FileLock(shared / "tiny.lock"):
        return [train(TINY, seed, shared / "trained", tiny_world, progress=False) for seed in (0, 1)]


@pytest.fixture(scope="module")
def tiny_runs(tiny_trained, tmp_path_factory):
    "Copies of the two runs, for one test file to write into"
    root = tmp_path_factory.mktemp("runs")
    return [Path(shutil.copytree(run, root / run.parent.name / run.name)) for run in tiny_trained]


@pytest.fixture(scope="module")
def film_left_out():
    "Validations of a test file draw no film"
    from locrl.experiments import diagnostics
    from tiny import no_film

    with pytest.MonkeyPatch.context() as m:
        m.setattr(diagnostics, "filmstrip", no_film)
        yield


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    "A machine without network, proxies or anything in the Hugging Face cache, whose folder it gives"
    from huggingface_hub import constants

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return tmp_path / "hub"


@pytest.fixture
def benchmark_module(monkeypatch):
    "Imports a script of benchmarks/ by its name; it is forgotten after the test, with what it imports from there"
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    imported = []

    def load(name):
        imported.extend((name, "speed"))
        return importlib.import_module(name)

    yield load
    for name in imported:
        sys.modules.pop(name, None)


def box_xml(name="cat", box=(11, 21, 50, 60), extra=""):
    "An object as it stands in a VOC annotation"
    corners = "".join(f"<{t}>{v}</{t}>" for t, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


class VocFolder:
    "A VOC folder in the making"

    def __init__(self, root, year="2007"):
        self.root = root
        self.year = year
        self.path = root / "VOCdevkit" / f"VOC{year}"
        for sub in "JPEGImages", "Annotations", "ImageSets/Main":
            (self.path / sub).mkdir(parents=True)
        for id in "a", "b":
            self.image(id)
            self.xml(id, box_xml())
        self.list("test", "a\nb\n")

    def image(self, id, size=(100, 80), mode="RGB", **kwargs):
        rng = np.random.default_rng(0)
        picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
        picture.save(self.path / "JPEGImages" / f"{id}.jpg", **kwargs)

    def xml(self, id, objects="", size=(100, 80)):
        self.raw(
            id, f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{objects}</annotation>"
        )

    def raw(self, id, text):
        (self.path / "Annotations" / f"{id}.xml").write_text(text)

    def list(self, split, text):
        (self.path / "ImageSets" / "Main" / f"{split}.txt").write_text(text)

    def voc(self, split="test", **kwargs):
        from locrl.data.voc import VOC

        return VOC(self.year, split, root=self.root, **kwargs)
