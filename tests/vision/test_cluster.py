"A store that several machines encode holds what one machine would write, also where one of them is lost"

import os
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from conftest import ROOT
from locrl.vision import cluster
from locrl.vision.cluster import on_ray
from locrl.vision.feature_store import FeatureError, build_store, encoding
from mosaic import Mosaic, Noted, build, pictures
from vision.test_feature_store import contents


class _Held:
    def __init__(self, value):
        self.value = value


class FewThings:
    "What `on_ray` asks of Ray, in this process: tasks run when they are waited for, the last one first"

    def __init__(self):
        self.started, self.cancelled, self.options = False, [], None

    def is_initialized(self):
        return self.started

    def init(self, address, **options):
        self.started = True

    def shutdown(self):
        self.started = False

    def put(self, value):
        return _Held(value)

    def get(self, reference):
        return reference.value if isinstance(reference, _Held) else reference()

    def remote(self, **options):
        self.options = options
        return lambda work: SimpleNamespace(remote=lambda *args: lambda: work(*args))

    def wait(self, tasks):
        return tasks[-1:], tasks[:-1]

    def cancel(self, task, force):
        self.cancelled.append(task)


@pytest.fixture
def few_things(monkeypatch):
    ray = FewThings()
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(cluster, "_HELD", {})
    return ray


def test_the_same_files_whoever_encodes(few_things, tmp_path):
    "Shards come in another order; a second build encodes nothing; what a lost worker left is swept away"
    alone = build(tmp_path / "alone")
    with on_ray("local", cores=2):
        assert few_things.started
        (tmp_path / "ray").mkdir()
        store = build(tmp_path / "ray", projection=alone.projection)
        assert contents(store.path) == contents(alone.path)
        (store.path / "shard-00001.json").unlink()
        (store.path / ".features-00001.npy.1-1.tmp").touch()
        build(tmp_path / "ray", projection=alone.projection)
        few_things.wait = lambda tasks: pytest.fail("nothing is missing")
        build(tmp_path / "ray", projection=alone.projection)
    assert contents(store.path) == contents(alone.path)
    assert few_things.options == dict(num_cpus=2, num_gpus=0, max_retries=3)
    assert not few_things.started and encoding.get() is None


def test_what_a_worker_raises_ends_the_build(few_things, tmp_path):
    projection, data = build(tmp_path / "alone").projection, pictures()
    image = data.image
    data.image = lambda i: image(i) if i != 5 else 1 / 0  # of the second of three shards
    with on_ray("local"), pytest.raises(ZeroDivisionError):
        build_store(data, Mosaic(), projection=projection, root=tmp_path / "ray", shard_size=4, batch_size=2)
    assert len(few_things.cancelled) == 1 and not few_things.started and encoding.get() is None
    assert [f.name for f in (tmp_path / "ray").rglob("shard-*.json")] == ["shard-00002.json"]


def test_a_machine_that_does_not_see_the_store(few_things, monkeypatch, tmp_path):
    projection = build(tmp_path / "alone").projection
    work = cluster._on_worker

    def elsewhere(reference, k):
        plans = reference[0].value[0]
        plans[0].path = tmp_path / "not there"
        return work(reference, k)

    monkeypatch.setattr(cluster, "_on_worker", elsewhere)
    with on_ray("local"), pytest.raises(FeatureError, match="is not there on .*LOCRL_CACHE"):
        build(tmp_path / "ray", projection=projection)


@pytest.mark.slow
def test_a_lost_node(tmp_path, monkeypatch):
    "Two nodes encode one store; one is killed while it works, and the other takes up its shards"
    pytest.importorskip("ray", reason='needs Ray: pip install "locrl[ray]"')
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)  # of the workers
    notes, root = tmp_path / "notes", tmp_path / "ray"
    notes.mkdir(), root.mkdir()
    data = Noted(24, notes)
    alone = build_store(data, Mosaic(), 6, root=tmp_path / "alone", shard_size=3, workers=8)
    for note in notes.iterdir():
        note.unlink()
    nodes = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1))
    second = nodes.add_node(num_cpus=1)
    found = []

    def kill():
        while len({note.name.split("-")[1] for note in notes.iterdir()}) < 2:  # until both are at work
            time.sleep(0.02)
        found.append(len(list(root.rglob("shard-*.json"))))
        nodes.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    try:
        with on_ray(nodes.address):
            store = build_store(
                data, Mosaic(), projection=alone.projection, root=root, shard_size=3, batch_size=1, workers=1
            )
    finally:
        killer.join(30)
        nodes.shutdown()
    assert found and found[0] < 8 and contents(store.path) == contents(alone.path)
    opened = [note.name.split("-")[0] for note in notes.iterdir()]
    assert len(opened) > len(set(opened)) == 24  # what the lost node had begun was opened again
