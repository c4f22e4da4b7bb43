"Training runs that are killed, stopped, damaged or mixed up"

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from operator import attrgetter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import CallbackList

from conftest import ROOT
from locrl import checkpoints, files
from locrl.experiments import train as training
from locrl.data.boxes import Moves
from locrl.experiments.config import AFTER_TRAINING, LOOKS, ConfigError, config_fields, prepare
from locrl.experiments.train import CLOCK, Agent, load_checkpoint, make_model, model_state, train
from locrl.checkpoints import RunError, RunFolder, pack_tree, unpack_tree
from tiny import TINIEST as TINY
from tiny import amend, rewrite

pytestmark = pytest.mark.usefixtures("film_left_out")


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def world():
    return prepare(TINY)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    return train(TINY, seed=5, root=tmp_path_factory.mktemp("whole"), world=world, progress=False)


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    return train(TINY, seed=5, root=tmp_path_factory.mktemp("half"), world=world, stop_after=300, progress=False)


@pytest.fixture
def half(stopped, tmp_path):
    "A copy of the run that was stopped at 320 of its 640 steps, in `tmp_path`"
    return Path(shutil.copytree(stopped, tmp_path / "tiny" / "seed-5"))


def same_run(a, b):
    "Weights, replay, and the log but for the clock"
    x, y = load_checkpoint(a), load_checkpoint(b)
    for k in ("policy", "optimizer", "counters", "replay", "env", "log", "random"):
        assert same_state(x["model"][k], y["model"][k]), k
    assert (
        same_weights(load_checkpoint(a, "best")["policy"], load_checkpoint(b, "best")["policy"])
        and x["best"] == y["best"]
    )
    rows = [
        [
            {k: v for k, v in json.loads(row).items() if k not in CLOCK}
            for row in (f / "metrics.jsonl").read_text().splitlines()
        ]
        for f in (a, b)
    ]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [160, 320, 480, 640]
    return True


def same_state(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_state, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return np.array_equal(a, b)


KILLED = """
import random, sys
sys.path[:0] = [sys.argv[2]]
from killed import killed
from locrl.experiments import diagnostics
from locrl.experiments.config import prepare
from locrl.experiments.train import train
from tiny import TINIEST, no_film
diagnostics.filmstrip = no_film
random.seed(int(sys.argv[3]))
world = prepare(TINIEST)
world.bank("select")
killed(lambda: train(TINIEST, seed=5, root=sys.argv[1], world=world, progress=False), 6, (.1, 1.))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_random_moments_resumes_to_the_same_bits(whole, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    environment = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, ROOT / "tests", str(seed)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) >= 1 and same_run(whole, tmp_path / "tiny" / "seed-5"), seed


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, half, world, tmp_path):
    file = newest(half)
    damaged = bytearray(file.read_bytes())
    damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match=f"{file.name} is damaged .*goes on from the checkpoint before"):
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    assert same_run(whole, half)


def newest(run, role="last"):
    "The file of a checkpoint"
    return run / RunFolder(run).manifest()["files"][role]["file"]


def test_nothing_whole_left_is_said(half, world, tmp_path):
    for file in half.glob("last-*"):
        file.write_bytes(file.read_bytes()[:1000])
    with (
        warnings.catch_warnings(),
        pytest.raises(RunError, match=r"last-\d+.safetensors is damaged .*delete .* to train anew"),
    ):
        warnings.simplefilter("ignore")
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"learning.gamma": 0.5}, "learning.gamma: 0.9 -> 0.5"),
        ({"network.net_arch": (8,)}, r"network.net_arch: \[16, 16\] -> \[8\]"),
        ({"data.train": "scenes:train:25"}, "scenes:train:24"),
        ({"reward": "paper"}, "reward: 'potential' -> 'paper'"),
    ],
)
def test_a_run_of_another_config_is_refused(whole, world, change, named):
    before = {f.name: f.read_bytes() for f in whole.iterdir()}
    with pytest.raises(ConfigError, match=f"holds another run .*{named}.*another name or root"):
        train(TINY.replace(change), seed=5, root=whole.parent.parent, world=world, progress=False)
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == before


def test_a_finished_run_is_left_as_it_is(whole, world):
    before = {f: f.read_bytes() for f in whole.iterdir() if "events" not in f.name}
    train(TINY, seed=5, root=whole.parent.parent, world=world, progress=False)
    assert {f: f.read_bytes() for f in before} == before


def test_training_leaves_arithmetic_as_it_was(whole):
    "Denormal numbers are flushed for speed while training, not in the process that called it"
    assert np.float64(1e-310) * np.ones(1) > 0


def test_another_seed_is_another_run(whole, world, tmp_path):
    other = train(TINY, seed=6, root=tmp_path, world=world, progress=False)
    assert other.name == "seed-6" and not same_weights(*(load_checkpoint(f)["model"]["policy"] for f in (whole, other)))


def test_an_agent_is_loaded_with_what_it_needs(whole, world, tmp_path):
    agent = Agent.load(whole)
    row = max(
        map(json.loads, (whole / "metrics.jsonl").read_text().splitlines()), key=lambda r: (r["map_area"], r["step"])
    )
    assert agent.step == row["step"] and agent.projection.digest == world.projection.digest
    seen = agent.world()
    assert agent.evaluate(seen.bank("select"), seen.data["select"]).detection.map_area == pytest.approx(
        row["map_area"], abs=1e-9
    )
    with pytest.raises(ConfigError, match="is no run .config.json is missing"):
        Agent.load(tmp_path)


def test_a_state_goes_on_exactly(world, tmp_path):
    "The saved state of a model put into two others: both continue alike"

    def go(model, n):
        for _ in range(n):
            model.collect_rollouts(
                model.env,
                quiet(model),
                model.train_freq,
                model.replay_buffer,
                learning_starts=TINY.learning.learning_starts,
            )
            model.train(1, TINY.learning.batch_size)
        return model_state(model)

    def fresh(seed):
        model = make_model(world, seed)
        model._setup_learn(TINY.learning.steps)
        return model

    a, b = fresh(0), fresh(1)
    saved = pack_tree(go(a, 60))  # beyond the size of the replay buffer
    assert a.replay_buffer.full
    ends = []
    for model in (a, b):
        training.load_model_state(model, unpack_tree(saved))
        ends.append(go(model, 20))
    assert same_state(*ends)


def quiet(model):
    callback = CallbackList([])
    callback.init_callback(model)
    return callback


def test_chunks_by_minutes_give_the_same_bits(whole, world, tmp_path):
    "A call that has no minute to spare does one step and saves it, also between validations"
    for steps in (8, 16, 24):
        run = train(TINY, seed=5, root=tmp_path, world=world, minutes=0, progress=False)
        assert load_checkpoint(run)["model"]["counters"]["num_timesteps"] == steps
    train(TINY, seed=5, root=tmp_path, world=world, stop_after=100, progress=False)
    for steps in (168, 176):
        train(TINY, seed=5, root=tmp_path, world=world, minutes=0, progress=False)
        assert load_checkpoint(run)["model"]["counters"]["num_timesteps"] == steps
    train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    assert same_run(whole, run)


def test_a_chunk_with_time_left_goes_on(whole, world, tmp_path):
    assert same_run(whole, train(TINY, seed=5, root=tmp_path, world=world, minutes=60, progress=False))


def test_the_clock_goes_on_where_it_stopped(half, world, tmp_path):
    "Minutes count those of the chunks before, and not the time between"
    amend(half, last=load_checkpoint(half) | dict(minutes=30.0))
    train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    minutes = [json.loads(row)["minutes"] for row in (half / "metrics.jsonl").read_text().splitlines()]
    assert minutes[1] < 5 and 30 <= minutes[2] <= minutes[3] < 35
    assert minutes[3] - 0.02 <= load_checkpoint(half)["minutes"] < 35


def flaky(monkeypatch, fails):
    "Every file's first `fails` writes end in an input/output error; waits take no time. Returns the files written"
    counts, real = {}, checkpoints.write_atomic

    def write(file, content):
        counts[file] = counts.get(file, 0) + 1
        if counts[file] <= fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(file, content)

    monkeypatch.setattr(checkpoints, "write_atomic", write)
    monkeypatch.setattr(files, "WAIT", 0.0)
    return counts


def test_a_disk_that_fails_twice_at_each_file_changes_nothing(whole, world, tmp_path, monkeypatch):
    counts = flaky(monkeypatch, 2)
    assert same_run(whole, train(TINY, seed=5, root=tmp_path, world=world, progress=False))
    assert {
        "config.json",
        "projection.npz",
        "prototypes.safetensors",
        "metrics.jsonl",
        "last-2.safetensors",
        "best-2.safetensors",
        "manifest.json",
    } <= {f.name for f in counts}


def test_a_disk_that_fails_for_good_loses_nothing(whole, half, world, tmp_path, monkeypatch):
    before = {f: f.read_bytes() for f in half.iterdir() if "events" not in f.name}
    with monkeypatch.context() as m:
        flaky(m, 10**6)
        with pytest.raises(
            OSError, match=r"cannot write .*metrics.jsonl: .*Input/output error.*run the same command again"
        ):
            train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    assert {f: f.read_bytes() for f in before} == before
    assert same_run(whole, train(TINY, seed=5, root=tmp_path, world=world, progress=False))


def test_another_encoder_is_refused_with_both_fingerprints(half, world, tmp_path):
    rewrite(half, lambda about: about["encoder"].update(fingerprint="abc123"))
    with pytest.raises(ConfigError, match=f"fingerprint abc123, this one has {world.encoder.fingerprint}"):
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    with pytest.raises(ConfigError, match=f"fingerprint abc123, this one has {world.encoder.fingerprint}"):
        Agent.load(half).world()


def test_a_checkpoint_put_into_another_folder_is_refused(half, world, tmp_path):
    other = train(TINY, seed=6, root=tmp_path, world=world, stop_after=1, progress=False)
    amend(other, last=load_checkpoint(half))  # with a manifest that lists it
    with pytest.raises(ConfigError, match="the last checkpoint in .* holds another run .seed: 5 -> 6"):
        train(TINY, seed=6, root=tmp_path, world=world, progress=False)


def test_another_minor_version_does_not_go_on(half, world, tmp_path):
    rewrite(half, lambda about: about["versions"].update(locrl="7.3.1"))
    with pytest.raises(
        ConfigError, match="trained with locrl 7.3.1, this is .*go on with locrl 7.3, or start anew under another name"
    ):
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    assert Agent.load(half).step


def test_another_torch_is_a_warning(half, world, tmp_path):
    rewrite(half, lambda about: about["versions"].update(torch="1.0"))
    with pytest.warns(UserWarning, match="torch: '1.0' -> .*bit for bit"):
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)


def test_a_finished_run_of_another_version_is_left_as_it_is(whole, world, tmp_path):
    run = tmp_path / "tiny" / "seed-5"
    shutil.copytree(whole, run)
    rewrite(run, lambda about: about["versions"].update(locrl="7.3.1"))
    assert train(TINY, seed=5, root=tmp_path, world=world, progress=False) == run


def test_a_run_that_noted_neither_encoder_nor_more_goes_on(whole, half, world, tmp_path):
    "As runs did before fingerprints were kept"
    rewrite(half, lambda about: about.pop("encoder", None))
    state = load_checkpoint(half)
    del state["about"]
    amend(half, last=state)
    assert Agent.load(half).world().encoder.fingerprint == world.encoder.fingerprint
    assert same_run(whole, train(TINY, seed=5, root=tmp_path, world=world, progress=False))


EVERYTHING = TINY.replace(
    {
        "name": "everything",
        "reward": "centre",
        "exploration.random_starts": 0.3,
        "exploration.trigger_share": 0.2,
        "network.dropout": 0.1,
        "learning.rank_weight": 0.2,
        "replay.n_steps": 3,
        "replay.alpha": 0.6,
        "demonstrations.ratio": 0.5,
        "demonstrations.episodes": 16,
        "demonstrations.oracle": "greedy",
        "demonstrations.warmup": 4,
        "demonstrations.warmup_loss": "dqfd",
        "demonstrations.margin_weight": 0.5,
        "demonstrations.margin_end": 0.5,
        "exploration.fraction": 0.5,
        "replay.buffer_size": 128,
        "learning.steps": 240,
        "evaluation.eval_every": 240,
    }
)
CHANGED = {
    "observation": replace(TINY.observation, grid=2),
    "moves": Moves(alpha=0.1),
    "reward": "paper",
    "learning.double": False,
    "learning.gamma": 0.8,
    "learning.n_envs": 4,
    "learning.gradient_steps": 2,
    "learning.batch_size": 8,
    "learning.learning_rate": 4e-4,
    "replay.buffer_size": 64,
    "learning.learning_starts": 128,
    "learning.target_update_interval": 160,
    "exploration.fraction": 0.9,
    "exploration.initial_eps": 0.6,
    "exploration.final_eps": 0.3,
    "exploration.random_starts": 0.9,
    "exploration.guided": False,
    "exploration.trigger_share": 0.6,
    "network.net_arch": (8, 8),
    "network.region_width": 6,
    "network.dropout": 0.3,
    "learning.iou_weight": 0.5,
    "learning.rank_weight": 0.6,
    "learning.iou_gradient": False,
    "replay.n_steps": 2,
    "replay.alpha": 0.3,
    "replay.beta": 0.9,
    "demonstrations.ratio": 0.25,
    "demonstrations.mixed": True,
    "demonstrations.episodes": 8,
    "demonstrations.oracle": "planning",
    "demonstrations.warmup": 6,
    "demonstrations.warmup_loss": "cross_entropy",
    "demonstrations.margin": 0.3,
    "demonstrations.margin_weight": 0.2,
    "demonstrations.margin_end": 0.1,
    "demonstrations.margin_labels": "single",
    "learning.steps": 248,
}


@pytest.fixture(scope="module")
def learned(world, tmp_path_factory):
    "The weights that `EVERYTHING` with some fields changed ends with"

    def again(changes):
        config, root = EVERYTHING.replace(changes), tmp_path_factory.mktemp("fields")
        folder = train(config, seed=0, root=root, world=world, progress=False)
        return load_checkpoint(folder)["model"]["policy"]

    base = again({})
    assert same_weights(base, again({}))
    return lambda changes: again(changes) if changes else base


@pytest.mark.parametrize("field", CHANGED)
def test_no_field_is_idle(field, learned):
    "Each field that learning depends on changes what is learned: otherwise one could be read by nobody, unnoticed"
    shared = {"exploration.trigger_share": 0.0} if field == "exploration.guided" else {}  # which needs it
    assert attrgetter(field)(EVERYTHING) != CHANGED[field]
    assert not same_weights(learned(shared), learned(shared | {field: CHANGED[field]}))


def test_all_fields_of_learning_are_tried():
    "Those left out say what is looked at, when it is validated, or what happens to a trained agent"
    whole = {"observation", "moves"}  # one field of each is tried; the tests of their modules try the others
    tried = {f.partition(".")[0] if f.partition(".")[0] in (*whole, *LOOKS) else f for f in config_fields()}
    elsewhere = {"network.tied"}  # in test_quality.py: it needs a world with judges
    assert tried - {*LOOKS, *AFTER_TRAINING, *elsewhere, "evaluation.eval_every", "evaluation.confidence"} == {
        f.partition(".")[0] if f.partition(".")[0] in whole else f for f in CHANGED
    }
