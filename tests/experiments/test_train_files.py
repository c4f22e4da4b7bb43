"""Files of runs: nothing is unpickled, what does not belong together is refused, one writer, readers beside it."""

import ast
import base64
import contextlib
import hashlib
import importlib
import inspect
import io
import json
import multiprocessing
import os
import pickle
import pkgutil
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

import locrl
from conftest import ROOT
from locrl import files
from locrl.agents.double_dqn import DoubleDQN
from locrl.apps.localizer import Localizer
from locrl.agents.judge import load_judge, load_judges
from locrl.apps.pretrained import load_pretrained, load_shared
from locrl.checkpoints import RunError, RunFolder, pack_tree, unpack_tree
from locrl.files import BusyError, locked
from locrl.data.formats import load_pictures
from locrl.data.voc import open_image, read_xml
from locrl.agents.predictions import RegionClassifier
from locrl.experiments import results
from locrl.experiments.config import ConfigError, prepare
from locrl.experiments.convert import convert_run
from locrl.experiments.share import read_agent
from locrl.experiments.train import FILES, Agent, LiveCurves, load_checkpoint, provenance, train
from locrl.vision.encoders import Projection, Prototypes
from locrl.vision.feature_store import FeatureStore
from test_train import newest, same_run
from tiny import TINIEST as TINY

pytestmark = pytest.mark.usefixtures("film_left_out")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture(scope="module")
def world():
    return prepare(TINY)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    return train(TINY, seed=5, root=tmp_path_factory.mktemp("whole"), world=world, progress=False)


@pytest.fixture(scope="module")
def other(world, tmp_path_factory):
    "A run of another seed and other features"
    config = TINY.replace({"data.train": "scenes:train:30"})
    return train(config, seed=6, root=tmp_path_factory.mktemp("other"), progress=False)


@pytest.fixture
def run(whole, tmp_path):
    "A copy of the finished run"
    return Path(shutil.copytree(whole, tmp_path / "tiny" / "seed-5"))


# what may be unpickled


class Evil:
    "Makes a folder when it is unpickled"

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def malicious(marker):
    "Files that make the folder `marker` when they are unpickled, by name"
    objects = np.array([Evil(marker)], dtype=object)
    blobs = {"pickle": pickle.dumps({"policy": Evil(marker)})}
    torch.save({"policy": Evil(marker)}, saved := io.BytesIO())
    np.save(array := io.BytesIO(), objects, allow_pickle=True)
    names = ("mean", "scale", "matrix", "key", "classes", "features", "sha256", "about", "policy")
    np.savez(arrays := io.BytesIO(), **dict.fromkeys(names, objects), allow_pickle=True)
    DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), device="cpu").save(agent := io.BytesIO())
    tree = unpack_tree(agent.getvalue())
    field = {":type:": "function", ":serialized:": base64.b64encode(blobs["pickle"]).decode()}
    tree["fields"]["learning_rate"] = {"pickled": field}
    blobs |= {"torch": saved.getvalue(), "npy": array.getvalue(), "npz": arrays.getvalue(), "agent": pack_tree(tree)}
    return blobs


def as_run(load):
    "A loader of run folders, given a folder in which every file is the malicious one"

    def call(path):
        folder, blob = path.parent / "run", path.read_bytes()
        folder.mkdir()
        names = ["projection.npz", "prototypes.safetensors", "metrics.jsonl", "best", "last"]
        about = json.dumps(dict(config=TINY.to_dict(), seed=5)).encode()
        RunFolder(folder).commit({"config.json": about} | dict.fromkeys(names, blob), step=0)
        return load(folder)

    return call


def as_store(path):
    "A feature store whose arrays are the malicious file"
    folder, blob = path.parent / "store", path.read_bytes()
    folder.mkdir()
    sums = {}
    for name in ("features", "evidence", "presence"):
        (folder / f"{name}-00000.npy").write_bytes(blob)
        sums[f"{name}-00000.npy"] = hashlib.sha256(blob).hexdigest()
    (folder / "shard-00000.json").write_text(json.dumps(dict(images=1, sha256=sums)))
    projection = Projection(np.zeros(2, np.float32), None, 1.0)
    projection.save(folder / "projection.npz")
    about = dict(version=1, data="d", data_fingerprint="f", images=1, encoder="e", encoder_fingerprint="f", flip=False)
    about |= dict(projection=projection.digest, dim=2, grid=[1, 1], classes=[], shard_size=1)
    (folder / "store.json").write_text(json.dumps(about))
    return FeatureStore(folder)


def as_shared(load):
    "A loader of shared agents, given a folder whose tensors are the malicious file"

    def call(path):
        folder, blob = path.parent / "shared", path.read_bytes()
        folder.mkdir()
        (folder / "agent.safetensors").write_bytes(blob)
        about = dict(sha256=hashlib.sha256(blob).hexdigest(), format=1, name="a", seed=0, step=0, versions={})
        about |= dict(config=TINY.to_dict(), classes=["cat"], encoder=dict(name="e", fingerprint="f"))
        (folder / "agent.json").write_text(json.dumps(about))
        return load(folder)

    return call


def agent_of_cartpole():
    return DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=100, device="cpu")


def with_ending(load, ending):
    "A loader that goes by the ending of a name"

    def call(path):
        return load(path.rename(path.with_name(f"file{ending}")))

    return call


# every function or method of the package whose name says that it loads or reads: how it is given a file,
# or None where it takes no file (a dictionary, a name, a directory of text)
LOADERS = {
    "locrl.agents.double_dqn.DoubleDQN.load": DoubleDQN.load,
    "locrl.agents.double_dqn.DoubleDQN.load_replay_buffer": lambda p: agent_of_cartpole().load_replay_buffer(p),
    "locrl.agents.double_dqn.DoubleDQN.set_parameters": lambda p: agent_of_cartpole().set_parameters(p),
    "locrl.agents.judge.load_judge": load_judge,
    "locrl.agents.replay.PrioritizedReplayBuffer.load_state": None,
    "locrl.agents.replay.DemoReplayBuffer.load_state": None,
    "locrl.apps.localizer.Localizer.from_run": as_run(Localizer.from_run),
    "locrl.apps.pretrained.load_pretrained": with_ending(load_pretrained, ".npz"),
    "locrl.apps.pretrained.load_shared": as_shared(load_shared),
    "locrl.checkpoints.RunFolder.read": as_run(lambda f: unpack_tree(RunFolder(f).read("last")["last"])),
    "locrl.data.formats.load_pictures": with_ending(lambda p: load_pictures(f"coco:{p}"), ".json"),
    "locrl.data.voc.open_image": open_image,
    "locrl.data.voc.read_xml": read_xml,
    "locrl.envs.localization.Search.load_state": None,
    "locrl.envs.localization.LocalizationVecEnv.load_state": None,
    "locrl.agents.predictions.RegionClassifier.load": RegionClassifier.load,
    "locrl.experiments.config.load_data": None,
    "locrl.experiments.convert.convert_run": as_run(lambda f: convert_run(f, trust=True)),
    "locrl.experiments.share.read_agent": as_shared(read_agent),
    "locrl.experiments.results._read": lambda p: results._read(p, "key", SimpleNamespace),
    "locrl.experiments.train.load_checkpoint": as_run(load_checkpoint),
    "locrl.experiments.train.load_model_state": None,
    "locrl.experiments.train.Agent.load": as_run(Agent.load),
    "locrl.files.read_bytes": None,
    "locrl.files.read_text": None,
    "locrl.files.read_json": files.read_json,
    "locrl.files.read_npz": files.read_npz,
    "locrl.files.read_tensors": lambda p: files.read_tensors(p, {}),
    "locrl.vision.encoders.Prototypes.load": Prototypes.load,
    "locrl.vision.encoders.load_encoder": None,
    "locrl.agents.judge.load_judges": load_judges,
    "locrl.experiments.config.World.read_quality": None,
    "locrl.vision.encoders.Projection.load": Projection.load,
    "locrl.vision.region_pooling.HalfMaps.load": None,
    "locrl.vision.feature_store.FeatureStore": as_store,
}
NOT_BY_NAME = {  # further loaders that the names do not tell, and readers of parts of what another loader has read
    "locrl.agents.double_dqn.DoubleDQN.set_parameters",
    "locrl.apps.localizer.Localizer.from_run",
    "locrl.data.voc.open_image",
    "locrl.experiments.convert.convert_run",
    "locrl.experiments.results._read",
    "locrl.vision.feature_store.FeatureStore",
}


def loaders_by_name():
    "Public functions and methods of the package that begin with load or read"
    found = set()
    for info in pkgutil.walk_packages(locrl.__path__, "locrl."):
        module = importlib.import_module(info.name)
        own = {n: x for n, x in vars(module).items() if getattr(x, "__module__", None) == info.name}
        places = {info.name: own} | {f"{info.name}.{n}": vars(x) for n, x in own.items() if inspect.isclass(x)}
        for place, names in places.items():
            for name, value in names.items():
                if name.startswith(("load", "read")) and (callable(value) or hasattr(value, "__get__")):
                    found.add(f"{place}.{name}")
    return found


def test_every_loader_is_tried():
    "A new function that loads something is listed in `LOADERS`"
    assert loaders_by_name() == set(LOADERS) - NOT_BY_NAME


@pytest.mark.parametrize("name", [name for name, load in LOADERS.items() if load])
def test_a_malicious_file_runs_nothing(name, tmp_path):
    "Each loader, given each kind of file that runs code when it is unpickled: an error or a warning, and no code ran"
    marker = tmp_path / "code-has-run"
    for kind, blob in malicious(marker).items():
        path = tmp_path / kind / "file"
        path.parent.mkdir()
        path.write_bytes(blob)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                there = LOADERS[name](path)
            except (ValueError, OSError) as e:
                assert str(e)
            else:
                assert there is None or kind == "agent" or isinstance(there, Path), "it was read as if it were sound"
        assert not marker.exists(), kind


OPENED = {  # how each kind is read by who trusts it
    "pickle": pickle.loads,
    "torch": lambda blob: torch.load(io.BytesIO(blob), weights_only=False),
    "npy": lambda blob: np.load(io.BytesIO(blob), allow_pickle=True),
    "npz": lambda blob: np.load(io.BytesIO(blob), allow_pickle=True)["mean"],
    "agent": lambda blob: DoubleDQN.load(io.BytesIO(blob), gym.make("CartPole-v1"), "cpu", trusted=True),
}


@pytest.mark.parametrize("kind", OPENED)
def test_the_malicious_files_are_malicious(kind, tmp_path):
    "Without this the test above could pass by files that do nothing"
    blob = malicious(tmp_path / "marker")[kind]
    with contextlib.suppress(TypeError, AttributeError, AssertionError):  # no agent, but by then the code has run
        OPENED[kind](blob)
    assert (tmp_path / "marker").is_dir()


UNSAFE = {  # module -> calls that can unpickle, and why they are there
    "locrl.agents.double_dqn": ["json_to_data"],  # a field that the caller trusts
    "locrl.experiments.convert": ["pickle.Unpickler", "torch.load"],  # with a list of what it may name
    "locrl.vision.encoders": ["torch.load(weights_only=True)"],  # weights that come with a package
}


def unsafe_calls(path):
    "What a module calls that can unpickle"
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = ast.unparse(node.func if isinstance(node, ast.Call) else node)
        if isinstance(node, ast.Attribute) and name.split(".")[0] in (
            "pickle",
            "cloudpickle",
            "dill",
            "joblib",
            "shelve",
        ):
            found.add(name)
        if not isinstance(node, ast.Call):
            continue
        words = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in ("torch.load", "th.load"):
            found.add("torch.load(weights_only=True)" if words.get("weights_only") == "True" else "torch.load")
        if name.endswith("np.load") and words.get("allow_pickle", "False") != "False":
            found.add("np.load(allow_pickle)")
        if name.split(".")[-1] in ("json_to_data", "load_from_pkl", "load_from_zip_file", "read_pickle", "unsafe_load"):
            found.add(name)
    return sorted(found)


def test_no_module_unpickles_but_where_it_is_said():
    "A new `torch.load`, `pickle` or `np.load(allow_pickle=True)` fails here"
    found = {}
    for path in sorted((ROOT / "locrl").rglob("*.py")):
        if calls := unsafe_calls(path):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts)] = calls
    assert found == UNSAFE


def old_format(run, folder):
    "A run as an older locrl saved it"
    folder.mkdir(parents=True)
    for name in ("config.json", "projection.npz", "metrics.jsonl"):
        shutil.copy(run / name, folder)
    torch.save(Prototypes.load(run / "prototypes.safetensors"), folder / "prototypes.pt")
    for role in ("best", "last"):
        torch.save(load_checkpoint(run, role), folder / f"{role}.pt")
        (folder / f"{role}.pt.sha256").write_text(hashlib.sha256((folder / f"{role}.pt").read_bytes()).hexdigest())


def test_an_old_run_is_converted_to_the_same_bits(whole, tmp_path):
    folder = tmp_path / "tiny" / "seed-5"
    old_format(whole, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(RunError, match="pickles, which may run code .*locrl convert .*--trust"):
        Agent.load(folder)
    with pytest.raises(ConfigError, match="best.pt, last.pt, prototypes.pt .* would be unpickled"):
        convert_run(folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    for _ in range(2):  # the second time there is nothing to do
        assert convert_run(folder, trust=True) == folder
        assert same_run(whole, folder)
    assert torch.equal(Agent.load(folder).prototypes.weight, Agent.load(whole).prototypes.weight)


def test_an_old_run_with_a_damaged_best_policy_is_not_converted(whole, tmp_path):
    folder = tmp_path / "tiny" / "seed-5"
    old_format(whole, folder)
    shutil.copy(folder / "best.pt", folder / "best.pt.previous")
    (folder / "best.pt").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="best.pt is damaged"), pytest.raises(RunError, match="older policy"):
        convert_run(folder, trust=True)


# what belongs together


def swap_classes(run, other):
    about = json.loads((run / "config.json").read_text())
    about["config"] = json.loads(json.dumps(about["config"]).replace('["cat", "dog"]', '["dog", "cat"]'))
    assert '["dog", "cat"]' in json.dumps(about)
    (run / "config.json").write_text(json.dumps(about, indent=1))


def take(name, role=None):
    "Replace a file by that of another run"

    def change(run, other):
        there = newest(other, role) if role else other / name
        shutil.copy(there, newest(run, role) if role else run / name)

    return change


def lose_row(run, other):
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:1] + rows[2:]))


def edit_row(run, other):
    text = (run / "metrics.jsonl").read_text()
    assert '"step": 320' in text
    (run / "metrics.jsonl").write_text(text.replace('"step": 320', '"step": 321'))


def edit_manifest(run, other):
    text = (run / "manifest.json").read_text()
    (run / "manifest.json").write_text(text.replace('"step": 640', '"step": 641'))


def cut_best(run, other):
    newest(run, "best").write_bytes(newest(run, "best").read_bytes()[:-1])


TAMPERED = {
    "another projection": (take("projection.npz"), "projection.npz is damaged or of another run"),
    "other prototypes": (take("prototypes.safetensors"), "prototypes.safetensors is damaged or of another run"),
    "another best policy": (take("best", "best"), r"best-\d+.safetensors is damaged or of another run"),
    "no prototypes": (
        lambda run, other: (run / "prototypes.safetensors").unlink(),
        "prototypes.safetensors is missing",
    ),
    "no best policy": (lambda run, other: newest(run, "best").unlink(), r"best-\d+.safetensors is missing"),
    "classes swapped": (swap_classes, "config.json is damaged or of another run"),
    "a row lost": (lose_row, "metrics.jsonl has lost rows"),
    "a row changed": (edit_row, "metrics.jsonl is damaged or of another run"),
    "an edited manifest": (edit_manifest, "manifest.json is damaged"),
    "no manifest": (lambda run, other: (run / "manifest.json").unlink(), "manifest.json is missing, but there are"),
    "a damaged best policy": (cut_best, r"best-\d+.safetensors is damaged"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_does_not_belong_to_a_run_is_refused(what, run, other, world, tmp_path):
    "An evaluation names file and cure, and no older policy stands in; training does not go on as if nothing were wrong"
    change, said = TAMPERED[what]
    change(run, other)
    with pytest.raises(RunError, match=f"{said}.*copy .*back from a backup"):
        Agent.load(run)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            train(TINY, 5, tmp_path, world, progress=False)
        except RunError as e:
            told.append(SimpleNamespace(message=e))
    assert any(f"{run.name}" in str(w.message) for w in told)


def test_a_flipped_bit_is_found_wherever_it_is(run):
    "In every file that an evaluation reads"
    rng = np.random.default_rng(0)
    listed = [entry["file"] for role, entry in RunFolder(run).manifest()["files"].items() if role != "last"]
    for name in [*listed, "manifest.json"] * 4:
        blob = bytearray((run / name).read_bytes())
        whole = bytes(blob)
        blob[rng.integers(len(blob))] ^= 1 << int(rng.integers(8))
        (run / name).write_bytes(blob)
        with pytest.raises(RunError, match=name):
            Agent.load(run)
        (run / name).write_bytes(whole)
    assert Agent.load(run).step


def test_a_run_says_by_what_it_was_made(whole):
    "The commit, whether the files were as committed, and versions, in the manifest and with the agent"
    (made,) = Agent.load(whole).made
    head = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert made == dict(step=0, **provenance()) and made["versions"]["torch"] == torch.__version__.split("+")[0]
    assert made["commit"] == (head or None) and made["clean"] in ((True, False) if head else (None,))


# one writer, many readers


def test_a_second_writer_is_refused(world, tmp_path):
    with locked(tmp_path / "tiny" / "seed-5"), pytest.raises(BusyError, match=r"written by another process.*\.lock"):
        train(TINY, 5, tmp_path, world, progress=False)
    assert not (tmp_path / "tiny" / "seed-5").exists()


@needs_fork
def test_two_configurations_in_one_new_folder(world, tmp_path):
    "Started together: one trains, the other is refused"
    world.bank("select")

    def begin(config):
        child = os.fork()
        if not child:
            code = 1
            try:
                train(config, 5, tmp_path, world, progress=False)
                code = 0
            except (BusyError, ConfigError):
                code = 3
            finally:
                os._exit(code)
        return child

    children = [begin(TINY.replace({"learning.gamma": gamma})) for gamma in (0.9, 0.5)]
    assert sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children) == [0, 3]


def read_on(folder, stop, told):
    "Read the run again and again"
    reads, failures = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while not stop.is_set():
            try:
                files = RunFolder(folder).read(*FILES)
                reads += bool(files)
                if "last" in files:
                    assert unpack_tree(files["last"])["model"]["counters"]["num_timesteps"] % 8 == 0
            except Exception as e:
                failures.append(repr(e))
    told.put((reads, failures))


@needs_fork
def test_readers_beside_a_training_see_no_damage(whole, world, tmp_path):
    "Four readers in a tight loop while a run writes 80 checkpoints"
    context = multiprocessing.get_context("fork")
    stop, told = context.Event(), context.Queue()
    folder = tmp_path / "tiny" / "seed-5"
    readers = [context.Process(target=read_on, args=(folder, stop, told), daemon=True) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        train(TINY, 5, tmp_path, world, progress=False, checkpoint_minutes=0)
    finally:
        stop.set()
    counts = [told.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    assert not [failure for _, failures in counts for failure in failures]
    assert sum(reads for reads, _ in counts) > 80, "the readers hardly read"
    assert RunFolder(folder).manifest()["generation"] > 80 and same_run(whole, folder)


# kills


KILLS = {"after a checkpoint": "manifest.json", "before its manifest": "last-"}


@needs_fork
@pytest.mark.parametrize("when", KILLS)
def test_a_kill_between_validations_resumes_to_the_same_bits(when, whole, world, tmp_path, monkeypatch):
    "A checkpoint at every step; the process is killed at step 232, far from the validations at 160 and 320"
    world.bank("select")
    folder, real = tmp_path / "tiny" / "seed-5", RunFolder._write

    def write(self, name, content):
        real(self, name, content)
        at = (json.loads((folder / "manifest.json").read_text()).get("step", 0), name.startswith(KILLS[when]))
        if at == (232, True):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        RunFolder._write = write
        train(TINY, 5, tmp_path, world, progress=False, checkpoint_minutes=0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert load_checkpoint(folder)["model"]["counters"]["num_timesteps"] == 232
    (folder / ".last-99.safetensors.1-2.tmp").write_bytes(b"left by a kill")
    train(TINY, 5, tmp_path, world, progress=False)
    assert same_run(whole, folder)
    listed = {e["file"] for part in ("files", "previous") for e in entries(RunFolder(folder).manifest(), part)}
    left = {file.name for file in folder.iterdir()} - listed - {"manifest.json", ".lock"}
    assert all("events" in name for name in left), left


def entries(manifest, part):
    "Files of this generation, or of the one before"
    return (manifest["files"] if part == "files" else manifest["previous"]["files"]).values()


def test_training_leaves_no_folder_of_stable_baselines(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    train(TINY, 5, tmp_path, world, progress=False, stop_after=1)
    DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), device="cpu").learn(10)
    assert not list((tmp_path / "temporary").iterdir())


# the curves between validations


def test_live_curves_change_nothing_and_are_there(whole, world, tmp_path):
    "A point every 40 transitions, in TensorBoard; weights, log and random numbers stay what they were"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(TINY, 5, tmp_path, world, progress=False, scalars_every=40)
    assert same_run(whole, folder)
    events = EventAccumulator(str(folder)).Reload()
    steps = [point.step for point in events.Scalars("live/td_loss")]
    assert steps == [80, 120, 200, 240, 280, 360, 400, 440, 520, 560, 600]


def test_a_live_curve_is_the_mean_since_the_point_before():
    "By hand: 1, 2, 3 then 7, 9, then nothing, then a fresh logger"
    from stable_baselines3.common.logger import Logger

    model = SimpleNamespace(
        logger=Logger(None, []), exploration_rate=0.5, num_timesteps=0, env=SimpleNamespace(finished=[])
    )
    live = LiveCurves()
    for values, mean in (((1.0, 2.0, 3.0), 2.0), ((7.0, 9.0), 8.0)):
        for value in values:
            model.logger.record_mean("train/loss", value)
        assert live(model)["live/loss"] == pytest.approx(mean)
    assert "live/loss" not in live(model)
    model.logger.dump()
    live.restart()
    model.logger.record_mean("train/loss", 4.0)
    model.env.finished = [(0.5, True, 10, 1.0), (0.7, False, 20, -1.0)]
    assert live(model) == pytest.approx(
        {
            "live/exploration_rate": 0.5,
            "live/loss": 4.0,
            "live/ep_iou": 0.6,
            "live/trigger_rate": 0.5,
            "live/ep_len": 15.0,
            "live/ep_return": 0.0,
        }
    )


def test_waiting_for_a_lock(tmp_path):
    "Who waits gets the folder when the other has ended"
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    process = context.Process(target=hold, args=(tmp_path, held))
    process.start()
    assert held.wait(60)
    begun = time.monotonic()
    with locked(tmp_path, wait=True):
        assert time.monotonic() - begun > 0.2
    process.join()


def hold(folder, held):
    with locked(folder):
        held.set()
        time.sleep(0.5)
