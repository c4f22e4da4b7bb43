"""A packed agent: small, whole, equal to its run; the one in the package needs no data, no cache and no run."""

import fnmatch
import hashlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch

from conftest import ROOT
from locrl.agents.predictions import confidence_of, predict
from locrl.apps import pretrained
from locrl.data.boxes import iou, pairwise_iou
from locrl.experiments.config import Config, ConfigError, prepare
from locrl.evaluation.protocols import all_queries
from locrl.apps.localizer import EXAMPLE, Localizer, PictureBank
from locrl.evaluation.multi import attended_regions, suppress
from locrl.apps.pretrained import AGENTS, LIMIT, PackError, load_pretrained, pack, pretrained_names
from locrl.experiments.results import evaluate_runs, save_results
from locrl.experiments.share import ABOUT, CARD, PICTURE, TENSORS, ShareError, write_agent
from locrl.experiments.train import Agent, train

TINY = Config().replace(
    {
        "name": "tiny",
        "data.train": "simple-scenes:train:30",
        "data.select": "simple-scenes:val:12",
        "data.report": "simple-scenes:test:12",
        "data.classes": ("cat", "dog"),
        "encoder.dim": 16,
        "encoder.input_size": 64,
        "learning.n_envs": 16,
        "learning.batch_size": 32,
        "learning.gradient_steps": 1,
        "network.net_arch": (48, 48),
        "network.region_width": 8,
        "learning.steps": 400,
        "evaluation.eval_every": 400,
        "learning.learning_starts": 100,
        "evaluation.report_confidence": "region*iou",
    }
)
SHIPPED = AGENTS / "animals-5.npz"


@pytest.fixture(scope="module")
def world():
    return prepare(TINY)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    return train(TINY, root=tmp_path_factory.mktemp("runs"), world=world, progress=False)


@pytest.fixture(scope="module")
def results(run, world, tmp_path_factory):
    return save_results(evaluate_runs([run], world=world, multi=True), tmp_path_factory.mktemp("results") / "tiny.json")


@pytest.fixture(scope="module")
def packed(run, results, tmp_path_factory):
    return pack(run, tmp_path_factory.mktemp("agents") / "tiny.npz", results, command="locrl pack tiny")


@pytest.fixture
def file(tmp_path, packed):
    "A file of the tiny agent, to be damaged"
    arrays = pretrained._shrunk(pretrained._arrays(packed, packed.classifier))
    (tmp_path / "tiny.npz").write_bytes(pretrained._file(arrays, packed.about))
    return tmp_path / "tiny.npz"


def states(bank, n, seed=0):
    "State keys of random questions, boxes, times and histories"
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.7, (n, 2))
    box = np.concatenate([low, low + rng.uniform(0.1, 0.3, (n, 2))], 1)
    keys = [
        rng.integers(0, len(bank), (n, 1)),
        rng.integers(0, len(bank.classes), (n, 1)),
        box,
        rng.integers(0, 40, (n, 1)),
        rng.integers(-1, 10, (n, 10)),
    ]
    return torch.from_numpy(np.concatenate(keys, 1).astype(np.float32))


def test_a_packed_agent_acts_like_its_run(run, packed, world):
    "Q-values, beliefs and actions on the same states; features, evidence and classifier of the same pictures"
    agent, bank = Agent.load(run), world.bank("select")
    keys = states(bank, 2_000)
    with torch.no_grad():
        (q, believed), (q_, believed_) = (a.policy.q_net.predict_all(keys, bank) for a in (agent, packed))
    torch.testing.assert_close(q_, q, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(believed_, believed, atol=2e-3, rtol=0)
    assert (q.argmax(1) == q_.argmax(1)).float().mean() > 0.98
    images = [world.data["select"].image(i) for i in range(4)]
    here, there = (
        PictureBank(images, world.encoder, a.projection, TINY.data.classes, a.prototypes) for a in (agent, packed)
    )
    torch.testing.assert_close(there.integral, here.integral, atol=0.3, rtol=5e-3)
    torch.testing.assert_close(there.saliency, here.saliency, atol=0.02, rtol=0)
    assert (
        packed.classifier.features == packed.projection.digest
        and packed.step == agent.step
        and packed.seed == agent.seed
    )
    assert packed.config.replace({"evaluation.report_confidence": TINY.evaluation.report_confidence}) == agent.config


def test_answers_are_those_of_the_run(run, packed, world):
    "One-shot answers on every question, and the numbers that the file says of them"
    m = packed.about["measured"]
    assert m["images"] == 12 and m["questions"] == 24 and m["same_answer"] > 0.7
    for k in ("hit_rate", "mean_iou", "map11"):
        assert m["packed"][k] == pytest.approx(m["run"][k], abs=0.15)
    agent, bank = Agent.load(run), world.bank("select")
    answers = predict(agent.policy, bank, *all_queries(len(bank), 2), TINY.moves)
    own = agent.evaluate(bank, world.data["select"])
    assert m["run"]["hit_rate"] == own.localisation.hit_rate and len(answers) == 24
    for c in m["calibration"].values():
        assert len(c["predicted"]) == len(c["observed"]) and 0 <= c["ece"] <= 1


def test_the_file_tells_where_it_comes_from(packed, results):
    about, found = packed.about, json.loads(results.read_text())
    assert about["results"]["metrics"]["one_shot"] == found["metrics"]["seeds"][0]["one_shot"]
    assert about["results"]["aggregate"]["aar"] == found["metrics"]["aggregate"]["aar"]
    assert about["results"]["sha256"] == hashlib.sha256(results.read_bytes()).hexdigest()
    assert (
        about["command"] == "locrl pack tiny"
        and about["config"]["evaluation"]["report_confidence"] == "region*iou"
        and packed.config.evaluation.report_confidence == "region*iou"
    )


def test_results_of_another_run_are_refused(run, results, tmp_path):
    found = json.loads(results.read_text())
    for change, words in (
        (lambda r: r["config"]["learning"].update(gamma=0.5), "gamma"),
        (lambda r: r["metrics"]["seeds"][0].update(seed=7), "does not hold seed 0"),
        (lambda r: r.clear(), None),
    ):
        other = json.loads(json.dumps(found))
        change(other)
        (tmp_path / "other.json").write_text(json.dumps(other) if words else "no JSON")
        with pytest.raises(PackError, match=words or "is no results file"):
            pack(run, tmp_path / "a.npz", tmp_path / "other.json")
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize("eight", pretrained._EIGHT)
def test_shrunk_and_grown_again(eight):
    "Half floats keep three digits, eight bits the nearest of 255 steps to the largest weight; small arrays stay exact"
    rng = np.random.default_rng(0)
    arrays = {
        "projection/matrix": rng.normal(size=(100, 64)),
        "classifier/hidden": rng.normal(size=(100, 64)),
        "q/0.weight": rng.normal(size=(64, 100)) * rng.uniform(0.01, 9, (64, 1)),
        "q/0.bias": rng.normal(size=64),
        "projection/scale": np.array(0.3),
    }
    arrays = {k: v.astype(np.float32) for k, v in arrays.items()}
    back = pretrained._grown(pretrained._shrunk(arrays, eight))
    assert back.keys() == arrays.keys()
    for name, x in arrays.items():
        assert back[name].dtype == np.float32 and back[name].shape == x.shape
        if x.size < 4096:
            np.testing.assert_array_equal(back[name], x)
        elif any(name.startswith(e) for e in eight):
            step = np.abs(x).max(1 if name.startswith("q/") else 0, keepdims=True) / 127
            assert (np.abs(back[name] - x) <= step * 0.501).all() and (
                np.abs(back[name] - x).max(1 if name.startswith("q/") else 0) > 0
            ).all()
        else:
            np.testing.assert_allclose(back[name], x, rtol=1e-3, atol=1e-6)


def test_it_shrinks_until_it_fits(run, tmp_path, monkeypatch):
    "Eight bits for the projection first, then for all; what does not fit then is refused"
    agent = pack(run, tmp_path / "a.npz", confidence="presence*iou", measured=False)
    arrays = pretrained._arrays(agent, None)
    sizes = {
        len(eight): len(pretrained._file(pretrained._shrunk(arrays, eight), agent.about)) for eight in pretrained._EIGHT
    }
    assert agent.classifier is None and agent.about["bits"] == dict(q=16, projection=16, prototypes=32)

    def packed(size):
        monkeypatch.setattr(pretrained, "LIMIT", size + pretrained._ROOM)
        return pack(run, tmp_path / "a.npz", confidence="presence*iou", measured=False).about["bits"]

    assert packed(sizes[0] - 200) == dict(q=16, projection=8, prototypes=32)
    assert packed(sizes[1] - 200) == dict(q=8, projection=8, prototypes=32)
    with pytest.raises(PackError, match="even in eight bits"):
        packed(sizes[max(sizes)] - 1_000)


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "text", "array", "objects"])
def test_a_damaged_file_is_named(file, damage):
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-500])
    if damage == "byte":
        file.write_bytes(whole[:9_000] + bytes([whole[9_000] ^ 1]) + whole[9_001:])
    if damage == "empty":
        file.write_bytes(b"")
    if damage == "text":
        file.write_bytes(b"not an agent")
    if damage == "array":
        with open(file, "wb") as f:
            np.save(f, np.zeros(3))
    if damage == "objects":
        np.savez(file, about=np.array([{}], object), sha256=np.array("0"))
    with pytest.raises(PackError, match=r"tiny\.npz is damaged.*install locrl again"):
        load_pretrained(file)


def test_changed_numbers_and_other_versions(file):
    "A file that is a good archive of other content, and one of a later format"
    with np.load(file) as z:
        arrays = {k: z[k] for k in z.files}
    np.savez(file, **arrays | {"q/iou_head.bias": arrays["q/iou_head.bias"] + 1})
    with pytest.raises(PackError, match="checksum does not match"):
        load_pretrained(file)
    about = json.loads(arrays["about"].tobytes()) | {"format": pretrained.FORMAT + 1}
    np.savez(file, **arrays | {"about": np.frombuffer(json.dumps(about).encode(), np.uint8)})
    known = pretrained.FORMAT
    said = rf"format {known + 1}, this locrl reads format {known}: install the locrl that wrote it \(0"
    with pytest.raises(PackError, match=said):
        load_pretrained(file)


def test_unknown_names():
    assert "animals-5" in pretrained_names()
    with pytest.raises(PackError, match="no pretrained agent called 'animals-6': there are animals-5"):
        load_pretrained("animals-6")
    with pytest.raises(PackError, match="there is no file .*mine.npz"):
        Localizer.pretrained("mine.npz")


def test_another_encoder_is_refused(packed):
    with pytest.raises(ConfigError, match="learned from an encoder with fingerprint 0000"):
        replace(packed, fingerprint="0000").world()


def test_a_localizer_from_either(run, packed, world):
    "The same answers, ranked by the confidence of the results"
    scenes = [world.data["select"].image(i) for i in range(6)]
    mine, theirs = Localizer(packed, world.encoder, classifier=packed.classifier), Localizer.from_run(run)
    assert mine.confidence == theirs.confidence == "region*iou"
    pairs = list(zip(mine.locate(scenes, "a cat"), theirs.locate(scenes, "a cat")))
    assert np.mean([iou(a.box, b.box) > 0.9 for a, b in pairs]) > 0.6
    for a, b in pairs:
        if (a.box == b.box).all():
            assert a.confidence == pytest.approx(b.confidence, abs=0.02)


@pytest.mark.parametrize("restarts", ["corners", "windows"])
def test_all_of_them(packed, world, restarts):
    "The regions of `attended_regions` after suppression, surest first, each with a way that leads to it"
    agent = replace(packed, config=packed.config.replace({"search.restarts": restarts}))
    localizer = Localizer(agent, world.encoder, "presence*iou")
    scene = world.data["select"].image(3)
    found = localizer.locate_all(scene, "the dogs", least=0.02)
    bank = PictureBank([scene], world.encoder, agent.projection, ("dog",), agent.prototypes)
    regions = attended_regions(agent.policy, bank, np.array([0]), np.array([0]), TINY.moves, restarts=restarts)
    score = np.exp(confidence_of(regions, "presence*iou"))
    best = [k for k in suppress(regions, score) if score[k] >= 0.02]
    assert len(found) == len(best) > 0
    np.testing.assert_allclose([x.confidence for x in found], sorted(score[best], reverse=True), atol=1e-6)
    boxes = np.array([x.box for x in found])
    assert (pairwise_iou(boxes, boxes)[~np.eye(len(boxes), dtype=bool)] <= 0.3).all()
    for x in found:
        assert len(x.boxes) == len(x.actions) + 1 == len(x.q_values) + 1 == len(x.believed) + 1
        for before, action, after in zip(x.boxes, x.actions, x.boxes[1:]):
            np.testing.assert_allclose(TINY.moves.apply(before, action), after, atol=1e-6)
        np.testing.assert_array_equal(x.boxes[-1], x.box)
        np.testing.assert_array_equal(x.episode.boxes[-1], x.box)
    assert localizer.locate_all(scene, "dog", least=1.1) == []


def test_the_shipped_agent_is_small_and_tells_the_committed_results():
    agent = load_pretrained("animals-5")
    assert SHIPPED.stat().st_size < LIMIT == 3_000_000
    told = agent.about["results"]
    committed = ROOT / told["file"]
    assert told["sha256"] == hashlib.sha256(committed.read_bytes()).hexdigest(), (
        "pack it again: the results file is another one now"
    )
    found = json.loads(committed.read_text())
    (mine,) = [m for m in found["metrics"]["seeds"] if m["seed"] == agent.seed]
    assert told["metrics"]["one_shot"] == mine["one_shot"] and told["metrics"]["hit_rate"] == mine["hit_rate"]
    m = agent.about["measured"]
    for k in ("hit_rate", "mean_iou", "map11"):
        assert abs(m["packed"][k] - m["run"][k]) < 0.01
    for word in ("/work", "/root", "/tmp", "/home"):
        assert word not in json.dumps(agent.about)


def test_it_works_at_once(tmp_path):
    "In an empty cache, with no data: the command finds the cat, and leaves nothing behind"
    (tmp_path / "cache").mkdir()
    here = os.environ | dict(LOCRL_CACHE=str(tmp_path / "cache"), LOCRL_DATA=str(tmp_path / "nowhere"))
    done = subprocess.run(
        [sys.executable, "-c", "from locrl.apps.cli import main; main()", "locate", str(EXAMPLE), "the cats"],
        env=here,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    name, numbers = done.stdout.split(",")[0].split(": ")
    x1, y1, x2, y2 = map(int, numbers.split())
    assert name == "cat" and (x2 - x1) * (y2 - y1) > 0.5 * 451 * 300
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]


def test_source_distribution_holds_the_agent(tmp_path):
    "And the picture, and what setup.py reads; the wheel is looked at in test_package"
    shutil.copytree(ROOT / "locrl", tmp_path / "locrl", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as t:
        names = {n.split("/", 1)[-1] for n in t.getnames()}
    assert {"locrl/assets/agents/animals-5.npz", "locrl/assets/pictures/cat.jpg", "settings.ini"} <= names


@pytest.fixture(scope="module")
def shared(run, results, world, tmp_path_factory):
    "The run as a folder to share, with numbers and a picture; and the localizer it was made of"
    localizer = Localizer.from_run(run)
    found = localizer.locate(world.data["select"].image(0), "cat")
    return localizer.save_pretrained(tmp_path_factory.mktemp("shared") / "tiny", results, found), localizer


@pytest.fixture
def copy(shared, tmp_path):
    "A copy of the folder, to be damaged"
    return Path(shutil.copytree(shared[0], tmp_path / "copy"))


def test_a_shared_agent_is_the_same_agent(shared, world):
    "Weights bit for bit, and so boxes, Q-values and confidences"
    folder, mine = shared
    theirs = Localizer.from_pretrained(folder)
    assert theirs.confidence == mine.confidence == "region*iou"
    for name, x in mine.agent.policy.q_net.state_dict().items():
        assert torch.equal(x, theirs.agent.policy.q_net.state_dict()[name])
    scenes = [world.data["select"].image(i) for i in range(4)]
    for a, b in zip(mine.locate(scenes, "a dog"), theirs.locate(scenes, "a dog")):
        np.testing.assert_array_equal(a.boxes, b.boxes)
        np.testing.assert_array_equal(a.q_values, b.q_values)
        assert a.confidence == b.confidence
    assert "cat, dog" in repr(theirs.agent)


def test_the_card_has_the_measured_numbers(shared, results):
    "As the hub reads them; no folder of this machine is in any file"
    folder, found = shared[0], json.loads(results.read_text())
    card = huggingface_hub.ModelCard.load(folder / CARD)
    values = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert values["hit rate"] == round(found["metrics"]["seeds"][0]["hit_rate"], 4)
    assert values["mAP (11 points)"] == round(found["metrics"]["seeds"][0]["one_shot"]["map11"], 4)
    assert card.data.library_name == "locrl" and f"]({PICTURE})" in card.text
    assert (folder / PICTURE).read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in folder.iterdir()) == sorted([TENSORS, ABOUT, CARD, PICTURE])
    for name in (ABOUT, CARD):
        assert not [word for word in ("/work/", "/root/", "/tmp/", "/home/") if word in (folder / name).read_text()]


def test_what_a_packed_agent_knows_goes_with_it(packed, world, results, tmp_path):
    "And back; its numbers belong to one confidence, so another one takes none of them"
    localizer = Localizer(packed, world.encoder, classifier=packed.classifier)
    again = Localizer.from_pretrained(localizer.save_pretrained(tmp_path / "a"), encoder=world.encoder)
    assert again.agent.about["results"] == packed.about["results"]
    np.testing.assert_array_equal(again.classifier.hidden, packed.classifier.hidden)
    other = Localizer(packed, world.encoder, "presence*iou").save_pretrained(tmp_path / "b")
    assert "no number stands here" in (other / CARD).read_text() and not (other / PICTURE).exists()
    assert Localizer.from_pretrained(other, encoder=world.encoder).confidence == "presence*iou"


def test_results_by_another_confidence_are_refused(run, results, tmp_path):
    with pytest.raises(PackError, match="ranks by region.iou, this agent by presence.iou: make it with confidence="):
        Localizer.from_run(run, "presence*iou").save_pretrained(tmp_path / "a", results)
    assert not (tmp_path / "a").exists()


def test_another_encoder_is_no_encoder_of_a_shared_agent(shared):
    from locrl.vision.encoders import load_encoder

    with pytest.raises(ConfigError, match="learned from an encoder with fingerprint"):
        Localizer.from_pretrained(shared[0], encoder=load_encoder(input_size=96))


class Trap:
    "Makes a folder when it is unpickled"

    def __reduce__(self):
        return Path.mkdir, (Path("sprung"),)


@pytest.mark.parametrize(
    "damage, words",
    [
        ("cut", "agent.safetensors is damaged"),
        ("number", "SHA-256 differs"),
        ("pickle", "agent.safetensors is damaged"),
        ("missing", "agent.safetensors is missing"),
        ("json", "agent.json is damaged"),
        ("field", "agent.json is damaged.*has no seed"),
        ("format", "has format 99, this locrl reads format 1"),
        ("smaller", "does not hold the numbers that its configuration needs"),
        ("empty", "holds no shared agent: agent.json is missing"),
    ],
)
def test_a_damaged_folder_is_named(copy, damage, words, monkeypatch):
    "And nothing in it is unpickled"
    monkeypatch.chdir(copy.parent)
    whole, about = (copy / TENSORS).read_bytes(), json.loads((copy / ABOUT).read_text())
    if damage in ("cut", "number", "pickle"):
        other = {"cut": whole[:-9], "number": whole[:-4] + bytes(4), "pickle": pickle.dumps(Trap())}
        (copy / TENSORS).write_bytes(other[damage])
    if damage in ("missing", "empty"):
        (copy / {"missing": TENSORS, "empty": ABOUT}[damage]).unlink()
    if damage == "json":
        (copy / ABOUT).write_text(json.dumps(about)[:-20])
    if damage in ("field", "format", "smaller"):
        about.pop("seed") if damage == "field" else None
        about["format"] = 99 if damage == "format" else about["format"]
        about["config"]["network"]["net_arch"] = [8] if damage == "smaller" else [48, 48]
        (copy / ABOUT).write_text(json.dumps(about))
    with pytest.raises(ShareError, match=words):
        Localizer.from_pretrained(copy)
    assert not (copy.parent / "sprung").exists()


def test_a_name_leads_out_of_no_folder(copy):
    about = json.loads((copy / ABOUT).read_text())
    (copy / ABOUT).write_text(json.dumps(about | {"name": "../../elsewhere"}))
    folder = pretrained.load_shared(copy).folder
    assert folder.parent == pretrained.cache_root() / "pretrained" and ".." not in folder.parts


def test_other_folders_are_left_alone(run, shared, tmp_path):
    (tmp_path / CARD).write_text("of my own")
    with pytest.raises(ShareError, match="of no agent, and would lose it"):
        write_agent(tmp_path, {}, {})
    with pytest.raises(ShareError, match="the folder of a run, which Localizer.from_run reads"):
        Localizer.from_pretrained(run)
    with pytest.raises(ShareError, match="is a folder, which has no revision 'v2'"):
        Localizer.from_pretrained(shared[0], "v2")
    with pytest.raises(ShareError, match="neither a folder nor the name of a repository"):
        Localizer.from_pretrained(tmp_path / "nowhere")
    assert (tmp_path / CARD).read_text() == "of my own"


class Hub:
    "Keeps repositories as folders, a folder for each branch"

    def __init__(self, root):
        self.root = root
        self.private = {}

    def create_repo(self, repo_id, private=None, exist_ok=False):
        self.private.setdefault(repo_id, private)
        (self.root / repo_id / "main").mkdir(parents=True, exist_ok=exist_ok)

    def create_branch(self, repo_id, branch, exist_ok=False):
        (self.root / repo_id / branch).mkdir(exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, revision, commit_message):
        shutil.copytree(folder_path, self.root / repo_id / (revision or "main"), dirs_exist_ok=True)
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, revision=None, allow_patterns=None):
        there, here = self.root / repo_id / (revision or "main"), self.root / "fetched" / f"{repo_id}-{revision}"
        if not there.is_dir():
            raise FileNotFoundError(f"404 Client Error: {repo_id} has no {revision or 'main'}")
        here.mkdir(parents=True, exist_ok=True)
        for file in there.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, here)
        return str(here)


def test_by_way_of_a_hub(shared, world, tmp_path, monkeypatch):
    "A push, another one to a branch, and both fetched; a pickle that somebody put beside them is not"
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    _, localizer = shared
    assert localizer.push_to_hub("me/agent", private=True) == "https://hub/me/agent/commit/1"
    found = localizer.locate(world.data["select"].image(0), "cat")
    localizer.push_to_hub("me/agent", example=found, revision="v2")
    (tmp_path / "me/agent/main/replay.pkl").write_bytes(pickle.dumps(Trap()))
    assert hub.private == {"me/agent": True}
    assert not (tmp_path / "me/agent/main" / PICTURE).exists() and (tmp_path / "me/agent/v2" / PICTURE).exists()
    for revision in (None, "v2"):
        again = Localizer.from_pretrained("me/agent", revision, encoder=world.encoder)
        np.testing.assert_array_equal(again.locate(found.image, "cat").boxes, found.boxes)
    assert not list((tmp_path / "fetched").rglob("*.pkl"))
    with pytest.raises(
        ShareError, match="no agent could be fetched.*at revision 'v3': 404 Client Error.*hf auth login"
    ):
        Localizer.from_pretrained("me/agent", "v3")


def test_without_a_network(shared, world, tmp_path, monkeypatch):
    "huggingface_hub itself, with no host to be found: what is in its cache is read, all else is one error at once"
    from huggingface_hub import constants

    def refuse(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    repo, commit = tmp_path / "models--me--agent", "0" * 40
    shutil.copytree(shared[0], repo / "snapshots" / commit)
    for branch in ("main", "v2"):
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / branch).write_text(commit)
    for revision in (None, "v2", commit):
        assert Localizer.from_pretrained("me/agent", revision, encoder=world.encoder).confidence == "region*iou"
    with pytest.raises(ShareError, match="hf download me/other --local-dir FOLDER"):
        Localizer.from_pretrained("me/other")
    with pytest.raises(ShareError, match="me/other was not uploaded.*hf auth login.*save_pretrained"):
        shared[1].push_to_hub("me/other")
