"The feature store against damage, kills and full disks"

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from conftest import ROOT
from locrl import files
from locrl.data import voc as data_module
from locrl.data.scenes import Scenes
from locrl.vision import feature_store
from locrl.vision.encoders import FeatureError, Projection, UnknownClassError
from locrl.vision.feature_store import FeatureStore, build_store
from mosaic import Mosaic, build, pictures


def contents(folder):
    "Every file but locks, which hold nothing"
    files = [f for f in Path(folder).rglob("*") if f.is_file() and f.name != ".lock"]
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    root = tmp_path_factory.mktemp("original")
    build(root)
    return root


@pytest.fixture
def copy(original, tmp_path):
    "A copy of a whole store that a test may damage"
    root = tmp_path / "copy"
    shutil.copytree(original, root)
    return FeatureStore(next(root.glob("Scenes*"))).path


def test_what_a_store_holds(original, tmp_path):
    store = build(original)
    encoder = Mosaic()
    data = pictures()
    assert (len(store), store.dim, store.grid, store.classes) == (10, 6, (4, 4), ("cat", "dog"))
    for i in range(len(data)):
        dense = encoder.encode([data.image(i)])
        np.testing.assert_allclose(store[i], store.projection(dense)[0], atol=2e-3)
        np.testing.assert_allclose(store.array("evidence")[i], encoder.evidence(dense, store.classes)[0], atol=1e-3)
        np.testing.assert_allclose(store.array("presence")[i], encoder.presence(dense, store.classes)[0], atol=1e-6)
    with pytest.raises(IndexError):
        store[10]
    mirrored = build(tmp_path, flip=True)
    assert mirrored.path != store.path and not np.array_equal(mirrored.array("features"), store.array("features"))


def test_a_second_build_encodes_nothing(original, monkeypatch):
    monkeypatch.setattr(Mosaic, "dense", lambda *_: pytest.fail("encoded again"))
    before = contents(original)
    build(original)
    assert contents(original) == before


def test_the_size_of_batches_and_shards_changes_nothing(original, tmp_path):
    a, b = build(original), build(tmp_path, shard_size=7, batch_size=5)
    for kind in ("features", "evidence", "presence"):
        np.testing.assert_allclose(a.array(kind), b.array(kind), atol=2e-3)
    assert build(tmp_path, shard_size=3).about["shard_size"] == 7  # the store that is there keeps its own


# Stores that do not fit


def test_another_encoder_is_refused_by_name(copy):
    with pytest.raises(FeatureError, match=r"was made with another encoder: Mosaic\(mosaic.*not Mosaic\(mosaic"):
        FeatureStore(copy, encoder=Mosaic(seed=1))
    FeatureStore(copy, encoder=Mosaic())


def test_another_data_set_is_refused_by_name(copy):
    with pytest.raises(FeatureError, match="another data: Scenes train, not Scenes train"):
        FeatureStore(copy, data=pictures(seed=1))
    with pytest.raises(FeatureError, match="another data: Scenes train, not Scenes train"):
        FeatureStore(copy, data=pictures(9))
    FeatureStore(copy, data=pictures())


def test_another_encoder_or_data_set_gets_a_store_of_its_own(tmp_path):
    assert (
        len(
            {
                build(tmp_path, **change).path
                for change in ({}, dict(encoder=Mosaic(seed=1)), dict(dim=5), dict(flip=True))
            }
        )
        == 4
    )
    assert build_store(pictures(seed=1), Mosaic(), 6, root=tmp_path).path not in (build(tmp_path).path,)


# Damage


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_flipped_bit_in_a_shard_is_found_and_named(original, random):
    folder = next(original.glob("Scenes*"))
    file = random.choice(sorted(folder.glob("*.npy")))
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[random.randrange(len(whole))] ^= 1 << random.randrange(8)
    try:
        file.write_bytes(damaged)
        with pytest.raises(FeatureError) as error:
            FeatureStore(folder)
        assert str(file) in str(error.value) and "delete" in str(error.value)
    finally:
        file.write_bytes(whole)
    FeatureStore(folder)


def test_a_damaged_shard_alone_is_made_anew(copy, original, monkeypatch):
    whole, file = contents(copy), copy / "features-00001.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FeatureError, match="delete .*shard-00001.json and build again: only that shard"):
        build(copy.parent)
    (copy / "shard-00001.json").unlink()
    encoded, dense = [], Mosaic.dense
    monkeypatch.setattr(Mosaic, "dense", lambda self, pixels: encoded.append(len(pixels)) or dense(self, pixels))
    build(copy.parent)
    assert sum(encoded) == 4 and contents(copy) == whole


@pytest.mark.parametrize("name", ["features-00002.npy", "evidence-00000.npy", "presence-00001.npy"])
def test_a_missing_file_of_a_shard_is_named(copy, name):
    (copy / name).unlink()
    with pytest.raises(FeatureError, match=f"{name} cannot be read"):
        FeatureStore(copy)


def test_a_missing_shard_is_made_by_the_next_build(copy):
    whole = contents(copy)
    for file in copy.glob("*-00001.*"):
        file.unlink()
    with pytest.raises(FeatureError, match="not finished .shard 1 is missing.: build it again"):
        FeatureStore(copy)
    build(copy.parent)
    assert contents(copy) == whole


@pytest.mark.parametrize("text", ["", '{"data": "Sce', "{}", "[]", "\xff", '{"shard_size": 4}'])
def test_a_damaged_description_is_named(copy, text):
    (copy / "store.json").write_bytes(text.encode("latin-1"))
    for opening in (lambda: FeatureStore(copy), lambda: build(copy.parent)):
        with pytest.raises(FeatureError, match="store.json.* delete .* and build it again"):
            opening()


def test_a_description_cut_anywhere_is_refused(copy):
    file = copy / "store.json"
    whole = file.read_bytes()
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        with pytest.raises(FeatureError, match="store.json is damaged"):
            FeatureStore(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 4}', '{"sha256": {}}', '{"sha256": []}'])
def test_a_damaged_checksum_file_is_refused(copy, text):
    (copy / "shard-00001.json").write_text(text)
    with pytest.raises(FeatureError, match="shard-00001.json and build again"):
        FeatureStore(copy)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.unlink(),
        lambda f: f.write_bytes(b""),
        lambda f: f.write_bytes(f.read_bytes()[:200]),
        lambda f: f.write_bytes(b"x" * 500),
        lambda f: np.savez(f, mean=np.zeros(12, np.float32)),
        lambda f: np.savez(f, mean=np.zeros((12, 1), np.float32), scale=1.0),
        lambda f: np.savez(f, mean=np.zeros(12, np.float32), scale=np.ones(2)),
        lambda f: np.savez(f, mean=np.zeros(12, np.float32), scale=np.nan),
        lambda f: np.savez(f, mean=np.zeros(12, np.float32), scale=1.0, matrix=np.zeros((11, 6), np.float32)),
        lambda f: np.savez(f, mean=np.zeros(12, int), scale=1.0),
        lambda f: np.savez(f, mean=np.array([print]), scale=1.0, allow_pickle=True),
        lambda f: Projection(np.zeros(12, np.float32), np.zeros((12, 6), np.float32), 1.0).save(f),
    ],
)
def test_a_damaged_projection_is_refused_and_made_again(copy, damage):
    whole = contents(copy)
    damage(copy / "projection.npz")
    with pytest.raises(FeatureError, match="projection.npz .*delete it and build the store again"):
        FeatureStore(copy)
    (copy / "projection.npz").unlink(missing_ok=True)
    build(copy.parent)
    assert (
        contents(copy).keys() == whole.keys()
        and FeatureStore(copy).projection.digest == FeatureStore(copy).about["projection"]
    )


WRONG = {  # what `store.json` may hold instead of what it should; True and 1 are not the same
    "data": [1, None, ["a"]],
    "data_fingerprint": ["", "0" * 64, 1, None],
    "images": [0, -1, 8, 9, 11, 12, 10**12, 10.0, "10", True, None],
    "encoder": [3, None],
    "encoder_fingerprint": ["", "mosaic 1", 0],
    "projection": ["", "0" * 64, 0],
    "dim": [0, 5, 7, -6, 6.5, "6", None, False],
    "grid": [[], [4], [4, 5], [4, 4, 1], [0, 16], [-4, -4], ["4", "4"], 4, None],
    "classes": [["cat"], ["cat", "cat"], ["cat", "dog", "bird"], "cat", [1, 2], None],
    "flip": [0, 1, "no", None],
    "shard_size": [0, -4, 3, 5, 2, 1, 4.0, "4", 10**12, None],
    "version": [0, 2, "1"],
}


@pytest.mark.parametrize("key, value", [(key, value) for key, values in WRONG.items() for value in values])
def test_a_description_that_is_wrong_in_one_place(copy, key, value):
    "Types, numbers and what contradicts the shards, in stores with a digest and in older ones without"
    file = copy / "store.json"
    about = json.loads(file.read_text())
    for old in (False, True):
        if old:
            del about["digest"]
        file.write_text(json.dumps(about | {key: value}))
        with pytest.raises(FeatureError) as error:
            FeatureStore(copy, encoder=Mosaic(), data=pictures())
        assert str(copy) in str(error.value) and re.search("delete|build it again|of its own", str(error.value))
        with pytest.raises(FeatureError):
            build(copy.parent)


@pytest.mark.parametrize("key", [key for key in WRONG if key != "version"])
def test_a_description_without_one_of_its_keys(copy, key):
    about = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps({k: v for k, v in about.items() if k not in (key, "digest")}))
    with pytest.raises(FeatureError, match=f"store.json is damaged .the object has no {key}.: delete"):
        FeatureStore(copy)


def test_what_cannot_be_told_from_the_shards_is_told_from_the_digest(copy):
    "Classes in another order and a mirrored store: a build sees them in old stores, too"
    file = copy / "store.json"
    about = json.loads(file.read_text())
    for change in (dict(classes=["dog", "cat"]), dict(flip=True), dict(encoder="another")):
        file.write_text(json.dumps(about | change))
        with pytest.raises(FeatureError, match="was changed after it was written"):
            FeatureStore(copy)
        file.write_text(json.dumps({k: v for k, v in (about | change).items() if k != "digest"}))
        with pytest.raises(FeatureError, match=f"is of something else .{next(iter(change))}."):
            build(copy.parent)


@pytest.mark.parametrize(
    "name, array",
    [
        ("features", np.zeros((2, 4, 4, 5), np.float16)),
        ("features", np.zeros((2, 4, 4, 6), np.float32)),
        ("features", np.zeros((), np.float16)),
        ("evidence", np.zeros((2, 3, 4, 4), np.float16)),
        ("presence", np.zeros((2, 2), np.float64)),
    ],
)
def test_a_shard_of_another_shape(copy, name, array):
    "Its checksum is right, its content is not"
    file = copy / f"{name}-00002.npy"
    np.save(file, array)
    declared = json.loads((copy / "shard-00002.json").read_text())
    declared["sha256"][file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
    (copy / "shard-00002.json").write_text(json.dumps(declared))
    with pytest.raises(FeatureError, match=rf"{file.name} holds .*shard-00002.json and build again"):
        FeatureStore(copy)


def test_a_shard_is_never_unpickled(copy):
    file = copy / "features-00002.npy"
    file.write_bytes(pickle.dumps(print))
    with pytest.raises(FeatureError, match="features-00002.npy cannot be read"):
        FeatureStore(copy, verify=False)


def test_a_shard_of_the_wrong_length_is_refused(copy):
    about = json.loads((copy / "store.json").read_text())
    del about["digest"]  # as in stores of before November 2026
    (copy / "store.json").write_text(json.dumps(about | {"shard_size": 5, "images": 15}))
    with pytest.raises(FeatureError, match="holds 4 pictures instead of 5"):
        FeatureStore(copy)


def test_no_store_there(tmp_path):
    with pytest.raises(FeatureError, match="is no feature store .store.json is missing.*locrl cache"):
        FeatureStore(tmp_path)


def test_features_that_are_not_finite_are_refused(tmp_path, monkeypatch):
    projection = build(tmp_path).projection
    monkeypatch.setattr(Mosaic, "dense", lambda self, pixels: torch.full((len(pixels), 12, 4, 4), 1e9))
    with pytest.raises(FeatureError, match="NaN or infinite features for pictures"):
        build(tmp_path / "other", projection=projection)
    monkeypatch.setattr(Mosaic, "dense", lambda self, pixels: torch.full((len(pixels), 12, 4, 4), torch.nan))
    with pytest.raises(FeatureError, match="NaN or infinite features"):
        build(tmp_path / "third")


# Kills

KILLED = """
import random, sys
sys.path[:0] = [sys.argv[2]]
from killed import killed
from mosaic import Mosaic, build
random.seed(int(sys.argv[3]))
killed(lambda: build(sys.argv[1], encoder=Mosaic(pause=.02)), 8, (0, .25))
"""


class Watched(Mosaic):
    """While a batch is in the network, the next one's pictures must be opened and the last one's features scored;
    nothing is timed, so a busy machine only makes it wait"""

    def __init__(self, data, size):
        super().__init__()
        self.size, self.image = size, data.image
        batches = len(data) // size
        self.opened = [threading.Event() for _ in range(batches)]
        self.scored = [threading.Event() for _ in range(batches)]
        self.ran, self.scores, self.furthest, self.faults = 0, 0, 0, []
        data.image = self.open

    def open(self, i):
        picture = self.image(i)
        self.furthest = max(self.furthest, i // self.size)
        if i % self.size == self.size - 1:
            self.opened[i // self.size].set()
        return picture

    def presence(self, dense, names):
        found = super().presence(dense, names)
        self.scores += len(dense)
        if self.scores % self.size == 0:
            self.scored[self.scores // self.size - 1].set()
        return found

    def dense(self, pixels):
        k, self.ran = self.ran, self.ran + 1
        if self.furthest > k + 3:
            self.faults.append(f"{self.furthest - k} batches are opened ahead")
        if k + 1 < len(self.opened) and not self.opened[k + 1].wait(20):
            self.faults.append(f"batch {k + 1} was not opened while batch {k} was in the network")
        if k and not self.scored[k - 1].wait(20):
            self.faults.append(f"batch {k - 1} was not scored while batch {k} was in the network")
        if self.faults:
            raise AssertionError(self.faults[0])
        return super().dense(pixels)


def test_nothing_holds_the_network_up(tmp_path):
    projection = build(tmp_path).projection
    data = pictures(40)
    encoder = Watched(data, 4)
    root = tmp_path / "watched"
    build_store(data, encoder, projection=projection, root=root, shard_size=8, batch_size=4, workers=2)
    assert encoder.ran == 10 and encoder.scores == 40 and not encoder.faults


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_number_of_threads_changes_no_bit(original, tmp_path, monkeypatch, workers):
    "Pieces of two pictures, in a random order of finishing; batches of four, three and one piece"
    monkeypatch.setattr(feature_store, "PIECE", 2)
    image, rng = Scenes.image, np.random.default_rng(workers)

    def slow(self, i):
        time.sleep(float(rng.uniform(0, 0.01)))
        return image(self, i)

    monkeypatch.setattr(Scenes, "image", slow)
    assert contents(build(tmp_path, batch_size=5, workers=workers).path) == contents(build(original).path)


def test_pictures_are_opened_side_by_side(tmp_path):
    "Each of two threads opens a picture only when the other does; nothing is timed"
    projection, data, both = build(tmp_path).projection, pictures(32), threading.Barrier(2, timeout=60)
    image = data.image(0)
    data.image = lambda i: (both.wait(), image)[1]
    build_store(data, Mosaic(), projection=projection, root=tmp_path / "two", batch_size=8, workers=2)
    assert not both.broken


@pytest.mark.parametrize("workers", [1, 4])
def test_the_first_damaged_picture_is_named_whoever_opens_it(tmp_path, workers):
    "A later one that fails sooner is not"
    data, projection = pictures(), build(tmp_path).projection
    image = data.image

    def damaged(i):
        if i in (5, 8):
            time.sleep(0.1 * (i == 5))
            raise data_module.DataError(f"{i:06}.jpg is cut short")
        return image(i)

    data.image = damaged
    with pytest.raises(data_module.DataError, match="000005.jpg"):
        build_store(
            data, Mosaic(), projection=projection, root=tmp_path / "other", shard_size=4, batch_size=2, workers=workers
        )
    assert [p.name for p in (tmp_path / "other").rglob("shard-*.json")] == ["shard-00000.json"]


# Two layers by one forward pass


class TwoLayers(Mosaic):
    "A `Mosaic` with a finer layer of four times as many cells; it counts the pictures that pass through it"

    seen = 0

    def finer(self):
        return FinerLayer(self)

    def dense(self, pixels):
        type(self).seen += len(pixels)
        return super().dense(pixels)

    def both(self, pixels):
        return self.dense(pixels), self.finer()._of(pixels)


class FinerLayer(Mosaic):
    "The layer in the middle of a `TwoLayers`, which knows no class"

    name, dim, grid, seen = "mosaic/4", 3, (8, 8), 0

    def __init__(self, of):
        self.fingerprint = f"{of.fingerprint}/4"

    def _of(self, pixels):
        return F.avg_pool2d(pixels, 4)

    def dense(self, pixels):
        type(self).seen += len(pixels)
        return self._of(pixels)

    def class_embeddings(self, names):
        raise UnknownClassError(names[0], ())


@pytest.fixture
def two_layers(tmp_path):
    "Return an encoder of two layers, the projection of the finer, and the files of stores that two passes built"
    TwoLayers.seen = FinerLayer.seen = 0
    encoder, root = TwoLayers(), tmp_path / "apart"
    build(root, encoder=encoder)
    finer = build(root, encoder=encoder.finer(), dim=2)
    assert finer.grid == (8, 8) and finer.classes == ()
    files = {name: data for name, data in contents(root).items() if not name.startswith("projection-")}
    return encoder, finer.projection, files


def _shards(folder):
    return sorted(f.name for f in folder.glob("shard-*.json"))


def test_one_pass_makes_the_stores_of_both_layers(two_layers, tmp_path):
    "The same files as two passes; another build finds both"
    encoder, finer, files = two_layers
    root, projection = tmp_path / "together", build(tmp_path / "apart", encoder=encoder).projection
    TwoLayers.seen = FinerLayer.seen = 0
    for _ in range(2):
        build(root, encoder=encoder, projection=projection, finer=finer)
        build(root, encoder=encoder.finer(), projection=finer)
        assert contents(root) == files and (TwoLayers.seen, FinerLayer.seen) == (10, 0)


@pytest.mark.parametrize("lost, alone, together", [("mosaic", 4, 0), ("mosaic_4", 0, 4), ("", 0, 0)])
def test_only_what_is_missing_is_encoded(two_layers, tmp_path, lost, alone, together):
    "A shard that one layer lacks is made for that layer; a whole store of the last layer is left as it is"
    encoder, finer, files = two_layers
    root = tmp_path / "apart"
    projection = build(root, encoder=encoder).projection
    TwoLayers.seen = FinerLayer.seen = 0
    folders = [f for f in root.glob("Scenes*") if lost and f.name.startswith(f"Scenes train-{lost}-")]
    for folder in folders:
        (folder / "shard-00001.json").unlink()
    build(root, encoder=encoder, projection=projection, finer=finer)
    build(root, encoder=encoder.finer(), projection=finer)
    assert (TwoLayers.seen, FinerLayer.seen) == (alone, together)
    assert files == {name: data for name, data in contents(root).items() if not name.startswith("projection-")}


def test_a_pass_that_ends_early_is_taken_up_for_both(two_layers, tmp_path, monkeypatch):
    encoder, finer, files = two_layers
    root, projection = tmp_path / "together", build(tmp_path / "apart", encoder=encoder).projection
    write, done = feature_store._write_shard, []

    def fails(path, k, *arrays):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((path, k))
        write(path, k, *arrays)

    monkeypatch.setattr(feature_store, "_write_shard", fails)
    with pytest.raises(KeyboardInterrupt):
        build(root, encoder=encoder, projection=projection, finer=finer)
    monkeypatch.undo()
    assert sorted(len(_shards(f)) for f in root.iterdir()) == [1, 2]
    build(root, encoder=encoder, projection=projection, finer=finer)
    build(root, encoder=encoder.finer(), projection=finer)
    assert contents(root) == files


def test_single_pictures_are_read(original):
    store = build(original)
    whole = {name: np.concatenate([np.load(f) for f in sorted(store.path.glob(f"{name}-*.npy"))]) for name in NAMES}
    for name in NAMES:
        for ids in ([3], [0, 1, 2, 3, 4, 5], [9, 0, 0, 4, 3], [], range(10)):
            assert np.array_equal(store.take(name, ids), whole[name][np.array(ids, int)])
        assert np.array_equal(store.array(name), whole[name])
    for ids in ([10], [-1, 3]):
        with pytest.raises(IndexError, match="of a store of 10"):
            store.take("features", ids)


NAMES = ("features", "evidence", "presence")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_an_open_store_holds_no_file(original):
    "A hundred thousand pictures are 1,200 files, more than a process may have open"
    store = build(original)
    before = set(os.listdir("/proc/self/fd")), mapped(store.path)
    FeatureStore(store.path).array("features")
    assert (set(os.listdir("/proc/self/fd")), mapped(store.path)) == before


def mapped(path):
    "The files below a path that this process has mapped into memory"
    with open("/proc/self/maps") as f:
        return {line.split()[-1] for line in f if str(path) in line}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_build_killed_at_random_moments_resumes_to_the_same_bits(original, tmp_path):
    seed = np.random.SeedSequence().entropy % 2**32
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, ROOT / "tests", str(seed)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert int(ran.stdout) >= 1, seed
    there, whole = contents(tmp_path), contents(original)
    assert {k: v for k, v in there.items() if not k.endswith(".tmp")} == whole, seed


@pytest.mark.parametrize("missing", ["shard-00001.json", "projection.npz"])
def test_what_killed_builds_left_is_swept_away_at_once(copy, missing):
    "Who builds holds the lock, so even a file of this moment belongs to no process at work"
    part = copy / ".features-00001.npy.1.tmp"
    part.write_bytes(b"half")
    (copy / missing).unlink()
    build(copy.parent)
    assert not part.exists() and (copy / missing).exists()


def test_what_a_kill_left_beside_the_stores_is_swept_away_too(original, tmp_path):
    part = tmp_path / ".projection-0123456789.npz.1.tmp"
    part.write_bytes(b"half")
    build(tmp_path)
    assert contents(tmp_path) == contents(original)
    assert not part.exists()


def test_a_second_writer_waits_and_names_the_lock(copy, monkeypatch):
    told, waits = [], threading.Event()

    def say(text, **kwargs):
        told.append(text)
        waits.set()

    monkeypatch.setattr(files, "print", say, raising=False)
    (copy / "shard-00001.json").unlink()
    with ThreadPoolExecutor(1) as pool:
        with files.locked(copy):
            part = copy / ".features-00001.npy.1.tmp"
            part.write_bytes(b"what the first writer is writing")
            second = pool.submit(build, copy.parent)
            assert waits.wait(60)
            assert part.exists() and not (copy / "shard-00001.json").exists()
        assert len(second.result(60)) == 10
    assert len(told) == 1 and str(copy / ".lock") in told[0]
    assert (copy / "shard-00001.json").exists() and not part.exists()


def test_a_folder_that_cannot_be_locked_is_told(copy, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    (copy / "shard-00001.json").unlink()
    with pytest.raises(FeatureError, match="cannot write to .*LOCRL_CACHE"):
        build(copy.parent)


# Disks


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_a_place_that_cannot_be_written(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(FeatureError, match="cannot make .*LOCRL_CACHE"):
        build(tmp_path / "file" / below)


def test_a_read_only_folder(copy, monkeypatch):
    "What a read-only disk says when a file is opened for writing (root may write everywhere, so it is acted)"
    (copy / "shard-00001.json").unlink()
    before, real = contents(copy.parent), open

    def refuse(path, mode="r", *args, **kwargs):
        if "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(FeatureError, match="cannot write .*Read-only file system.*LOCRL_CACHE"):
        build(copy.parent)
    assert contents(copy.parent) == before


@pytest.mark.parametrize("code", ["EROFS", "EACCES", "EPERM", "ENOENT", "ENOSPC", "EDQUOT", "ENAMETOOLONG", "EISDIR"])
def test_an_error_that_stays_is_told_at_once(tmp_path, monkeypatch, code):
    "Waiting helps where a network disk stumbles, not where a disk is read-only or full"

    def refuse(fd):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(feature_store.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(FeatureError, match="cannot write .*LOCRL_CACHE"):
        feature_store._write(tmp_path / "a", b"")


def test_a_root_that_is_not_there_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store.time, "sleep", lambda seconds: pytest.fail("waited"))
    with pytest.raises(FeatureError, match="is gone: was the disk or Google Drive unmounted"):
        feature_store._write(tmp_path / "none" / "a", b"")
    assert not (tmp_path / "none").exists()


# Names of folders


class Hub(Mosaic):
    "An encoder with the name of a repository on a hub"

    name = "hf-hub:laion/CLIP*16?"


def test_folders_have_names_that_windows_can_make(tmp_path):
    store = build(tmp_path, encoder=Hub())
    assert not set('<>:"/\\|?*') & set(store.path.name) and store.path.name.startswith(
        "Scenes train-hf-hub_laion_CLIP_16_-"
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot have such a folder")
def test_folders_of_before_are_still_found(tmp_path, monkeypatch):
    "Their names kept a colon; what is in them is not encoded again"
    path = build(tmp_path, encoder=Hub()).path
    old = path.rename(path.with_name(path.name.replace("hf-hub_laion_CLIP_16_", "hf-hub:laion_CLIP*16?")))
    monkeypatch.setattr(Mosaic, "dense", lambda *_: pytest.fail("encoded again"))
    assert build(tmp_path, encoder=Hub()).path == old and not path.exists()


def test_too_little_space_is_noticed_before_encoding(tmp_path, monkeypatch):
    projection = build(tmp_path / "first").projection
    monkeypatch.setattr(Mosaic, "dense", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))
    with pytest.raises(FeatureError, match="needs .* GB and the disk has 0.0 GB free"):
        build(tmp_path / "second", projection=projection)


@pytest.mark.parametrize("after", range(12))
def test_a_disk_that_fills_up_midway(original, tmp_path, monkeypatch, after):
    "The write number `after` fails: nothing half-written is left, and with space again the build goes on"
    real, count = os.fsync, []

    def full(fd):
        count.append(fd)
        if len(count) == after + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FeatureError, match="cannot write .*No space left on device.*Free some space"):
        build(tmp_path)
    whole, there = contents(original), contents(tmp_path)
    assert len(there) == after and all(whole[k] == v for k, v in there.items())
    build(tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("code", ["EIO", "ENOTCONN", "ETIMEDOUT"])
def test_a_write_that_fails_for_a_while_is_tried_again(original, tmp_path, monkeypatch, code):
    "As Google Drive does it: every third write fails once"
    real = os.fsync
    count = []
    waited = []

    def shaky(fd):
        count.append(fd)
        if len(count) % 3 == 0:
            raise OSError(getattr(errno, code), "not now")
        real(fd)

    monkeypatch.setattr(os, "fsync", shaky)
    monkeypatch.setattr(feature_store.time, "sleep", waited.append)
    build(tmp_path)
    assert contents(tmp_path) == contents(original) and set(waited) - {0.0} == {1}


def test_a_write_that_keeps_failing_ends_with_its_reason(tmp_path, monkeypatch):
    def broken(fd):
        raise OSError(errno.EIO, "Input/output error")

    waited = []
    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(feature_store.time, "sleep", waited.append)
    with pytest.raises(FeatureError, match="cannot write .*Input/output error"):
        build(tmp_path)
    assert [w for w in waited if w] == [1, 4, 15]


def test_a_destination_that_disappears_midway(original, tmp_path, monkeypatch):
    "The disk goes after the first shard: it is said, nothing is made in its place, and later the build goes on"
    root, away = tmp_path / "drive", tmp_path / "away"
    real = feature_store._write_shard
    dense = Mosaic.dense
    encoded = []

    def gone(path, k, *arrays):
        if k == 1:
            root.rename(away)
        real(path, k, *arrays)

    monkeypatch.setattr(feature_store, "_write_shard", gone)
    with pytest.raises(FeatureError, match="is gone: was the disk or Google Drive unmounted.*finished shards are kept"):
        build(root)
    assert not root.exists() and next(away.glob("Scenes*/shard-00000.json"))
    monkeypatch.setattr(feature_store, "_write_shard", real)
    away.rename(root)
    monkeypatch.setattr(Mosaic, "dense", lambda self, pixels: encoded.append(len(pixels)) or dense(self, pixels))
    build(root)
    assert contents(root) == contents(original) and sum(encoded) == 6


def test_a_drive_that_is_not_mounted(monkeypatch):
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("made a folder below an empty mount point"))
    with pytest.raises(FeatureError, match="not mounted: run .*drive.mount"):
        build("/content/drive/MyDrive/locrl")


def test_what_is_ahead_is_told(tmp_path, capsys):
    data = Scenes(60, seed=0, size=(40, 60), classes=("cat", "dog", "bird"))
    encoder = Mosaic()
    store = build_store(data, encoder, 6, root=tmp_path)
    told = capsys.readouterr().err
    assert "60 pictures at" in told and "minutes; 0.00 GB to write" in told and "GB are free" in told
    assert feature_store._estimate(tmp_path, 5000, 0.12, 2e5).startswith(
        "5,000 pictures at 8.3 img/s (measured on the first batch): about 10.0 minutes; 1.00 GB to write"
    )
    written = sum(f.stat().st_size for f in store.path.rglob("*.npy"))
    foretold = 60 * feature_store._Plan(tmp_path, data, encoder, store.projection, False, 256).picture_bytes
    assert foretold <= written < 1.2 * foretold  # beside the cells stand only presences and headers


def test_a_damaged_picture_stops_the_build_and_the_rest_is_kept(tmp_path):
    data = pictures()
    image = data.image

    def damaged(i):
        if i == 6:
            raise data_module.DataError("000006.jpg is cut short")
        return image(i)

    data.image = damaged
    projection = build(tmp_path).projection
    with pytest.raises(data_module.DataError, match="000006.jpg"):
        build_store(data, Mosaic(), projection=projection, root=tmp_path / "other", shard_size=4, batch_size=2)
    assert [p.name for p in (tmp_path / "other").rglob("shard-*.json")] == ["shard-00000.json"]


def test_a_batch_that_does_not_fit_is_halved_in_the_middle_of_a_build(original, tmp_path, monkeypatch):
    from locrl.vision.encoders import Batches

    batches, dense = Batches(size=2), Mosaic.dense

    def cramped(self, pixels):
        def run(x):
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return dense(self, x)

        return batches(run, pixels)

    monkeypatch.setattr(Mosaic, "dense", cramped)
    assert contents(build(tmp_path).path).keys() == contents(build(original).path).keys() and batches.size == 1


LIMITED = """
import resource, sys
sys.path[:0] = [sys.argv[2]]
from mosaic import build
resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
build(sys.argv[1])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
def test_a_write_the_system_cuts_short(original, tmp_path):
    "Files may hold 900 bytes: the system itself breaks off a write in the middle of a file"
    ran = subprocess.run(
        [sys.executable, "-c", LIMITED, tmp_path, ROOT / "tests"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 1
    assert re.search(
        "^locrl.*FeatureError: cannot write", ran.stderr, re.M
    )  # Python 3.10 may tell of the unfinished file below it
    whole, there = contents(original), contents(tmp_path)
    assert all(whole[k] == v for k, v in there.items()) and len(there) < len(whole)
    build(tmp_path)
    assert contents(tmp_path) == whole


# Several readers


def _read(path):
    store = FeatureStore(path)
    return {kind: store.array(kind).sum(dtype=np.float64) for kind in ("features", "evidence", "presence")}


def test_several_processes_read_at_once(copy):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        answers = pool.map(_read, [copy] * 6)
    assert answers == [_read(copy)] * 6
