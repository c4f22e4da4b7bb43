"""Threads on one localizer, processes on one store, readers beside a writer: the same answers as alone."""

import json
import multiprocessing
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from locrl.apps.localizer import Localizer
from locrl.checkpoints import RunFolder
from locrl.data.scenes import Scenes
from locrl.experiments import diagnostics
from locrl.experiments.train import CLOCK, Agent, train
from conftest import ROOT
from mosaic import Mosaic, build
from tiny import TINIEST, no_film

CLASSES = ("cat", "dog", "sheep", "horse")
THREADS = 8


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    "Draw no films while a run is trained, in forked processes too"
    monkeypatch.setattr(diagnostics, "filmstrip", no_film)


def told(found):
    "What an answer says, to compare"
    arrays = [found.box, found.boxes, found.actions, found.q_values, found.saliency]
    return (found.class_name, found.confidence, found.triggered, *(a.tobytes() for a in arrays))


@pytest.fixture(scope="module")
def localizer():
    return Localizer.pretrained()


@pytest.fixture(scope="module")
def photos():
    data = Scenes(4, seed=5, size=(96, 128), classes=CLASSES)
    return [data.image(i) for i in range(len(data))]


def test_eight_threads_on_one_localizer(localizer, photos):
    "`locate`, `locate_all` and `locate_stream` of one object, called from eight threads at the same moments"

    def ask(k):
        image, name = photos[k % len(photos)], CLASSES[k // len(photos) % len(CLASSES)]
        if k % 4 == 3:
            return [told(f) for f in localizer.locate_all(image, name, least=0.0)]
        if k % 4 == 2:
            return [told(f) for f in localizer.locate_stream([image] * 2, name)]
        return [told(localizer.locate(image, name))]

    alone = [ask(k) for k in range(16)]
    gate = threading.Barrier(THREADS)

    def together(k):
        if k < THREADS:
            gate.wait(20)
        try:
            return ask(k)
        except Exception as e:
            return repr(e)

    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(together, range(16)))
    wrong = {k: a if isinstance(a, str) else "another answer" for k, a in enumerate(answers) if a != alone[k]}
    assert not wrong


def build_and_tell(root, gate, answers):
    "Build the store when all are there; tell what it holds"
    try:
        gate.wait(60)
        store = build(root, encoder=Mosaic(pause=0.01))
        answers.put([store.array(name).tobytes() for name in ("features", "evidence", "presence")])
    except BaseException as e:
        answers.put(repr(e))
        raise


def test_eight_processes_on_one_store(tmp_path):
    alone = build(tmp_path / "alone")
    want = [alone.array(name).tobytes() for name in ("features", "evidence", "presence")]
    context = multiprocessing.get_context("fork")  # they share the imports
    gate, answers = context.Barrier(8), context.Queue()
    crowd = [context.Process(target=build_and_tell, args=(tmp_path / "shared", gate, answers)) for _ in range(8)]
    for process in crowd:
        process.start()
    found = [answers.get(timeout=60) for _ in crowd]
    for process in crowd:
        process.join(60)
    assert found == [want] * 8
    files = {f.name for f in (tmp_path / "shared").rglob("*") if f.is_file()}
    assert files - {".lock"} == {f.name for f in (tmp_path / "alone").rglob("*") if f.is_file()} - {".lock"}


def rows(folder):
    "Validations, without what the clock says"
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in RunFolder(folder).validations()]


def weights(agent):
    "The bytes of a policy"
    return b"".join(v.numpy().tobytes() for _, v in sorted(agent.policy.state_dict().items()))


def test_readers_beside_a_training_run(tmp_path, tiniest_world, alone):
    "Readers in tight loops see whole generations only, in order, and the run ends as it does alone"
    folder = tmp_path / "shared" / TINIEST.name / "seed-0"
    over, faults, seen = threading.Event(), [], [[], []]

    def read(mine):
        while not over.wait(0.02):
            try:
                manifest = RunFolder(folder).manifest()
                if manifest and "best" in manifest["files"]:
                    mine.append(Agent.load(folder).step)
            except Exception as e:  # a warning about damage, too
                faults.append(repr(e))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, module="locrl|__main__|test_stress|tests")
        readers = [threading.Thread(target=read, args=(mine,)) for mine in seen]
        for reader in readers:
            reader.start()
        try:
            train(TINIEST, 0, tmp_path / "shared", tiniest_world, progress=False)
        finally:
            over.set()
            for reader in readers:
                reader.join()
    assert not faults
    assert all(mine == sorted(mine) for mine in seen) and max(map(len, seen)) > 3
    assert rows(folder) == rows(alone)
    assert weights(Agent.load(folder)) == weights(Agent.load(alone))


def begin(root, seed, gate, answers, world, config):
    "Train when the other is there too"
    try:
        gate.wait(60)
        train(config, seed, root, world, progress=False)
        answers.put("done")
    except (ValueError, OSError) as e:
        answers.put(str(e))


def test_one_of_two_writers_is_refused(tmp_path, tiniest_world, alone):
    "Two processes, one folder: one trains, the other is told who does and where the lock is"
    context = multiprocessing.get_context("fork")
    gate, answers = context.Barrier(2), context.Queue()
    args = (tmp_path, 0, gate, answers, tiniest_world, TINIEST)
    pair = [context.Process(target=begin, args=args) for _ in range(2)]
    for process in pair:
        process.start()
    found = sorted(answers.get(timeout=120) for _ in pair)
    for process in pair:
        process.join(60)
    refused = [said for said in found if said != "done"]
    assert len(refused) == 1 and "lock" in refused[0]
    assert rows(tmp_path / TINIEST.name / "seed-0") == rows(alone)


@pytest.fixture(scope="module")
def tiniest_world():
    from locrl.experiments.config import prepare

    world = prepare(TINIEST)
    world.bank("select")
    return world


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiniest_world):
    "A run that nobody else reads or writes"
    with pytest.MonkeyPatch.context() as m:
        m.setattr(diagnostics, "filmstrip", no_film)
        return train(TINIEST, 0, tmp_path_factory.mktemp("alone"), tiniest_world, progress=False)


def test_the_answers_told_differ_where_answers_do(localizer, photos):
    "`told` would notice another picture or class"
    first = told(localizer.locate(photos[0], "cat"))
    assert first == told(localizer.locate(photos[0].copy(), "cat"))
    assert first != told(localizer.locate(photos[0], "dog"))
    assert first != told(localizer.locate(Image.new("RGB", (96, 128)), "cat"))
    assert json.dumps(first[:3]) and len(first) == 8 and np.isfinite(first[1])


def test_a_few_kills(monkeypatch):
    "The short form of benchmarks/kill.py: nothing lost, nothing left over, nothing different"
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("LOCRL_CACHE", "set by the script")
    import kill

    counts = dict(store=4, train=3, pack=1, download=3)
    found = kill.run(counts)
    assert {row["job"]: row["kills"] for row in found} == counts
    faults = [fault for row in found for kind in ("lost", "leftovers", "different", "failed") for fault in row[kind]]
    assert not faults
