"Double DQN against SB3's DQN, saving and loading, and training runs that are killed, damaged or mixed up"
import errno
import json
import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import CallbackList, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.monitor import Monitor

from conftest import ROOT
from locrl import train as training
from locrl.agent import DoubleDQN
from locrl.config import Config, ConfigError, prepare
from locrl.train import Agent, load_checkpoint, make_model, model_state, save_checkpoint, train

TINY = Config(name="tiny", train="scenes:train:24", select="scenes:val:12", report="scenes:test:12", classes=("cat", "dog"), dim=8, input_size=64, n_envs=8,
              batch_size=16, gradient_steps=1, net_arch=(16, 16), region_width=4, steps=640, eval_every=160, learning_starts=64, buffer_size=400,
              target_update_interval=80)
CARTPOLE = dict(learning_rate=2.3e-3, batch_size=64, buffer_size=100_000, learning_starts=1000, gamma=.99, target_update_interval=10, train_freq=256,
                gradient_steps=128, exploration_fraction=.16, exploration_final_eps=.04, policy_kwargs=dict(net_arch=[256, 256]), device="cpu")
SMALL = dict(learning_starts=50, batch_size=16, policy_kwargs=dict(net_arch=[16]), seed=0, device="cpu")


def same_weights(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# The algorithm


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [DoubleDQN, DQN])
def test_cartpole(algorithm):
    "With the hyper-parameters of SB3's zoo both pass 400 of 500 within its 50,000 steps, by the best policy that was evaluated"
    model = algorithm("MlpPolicy", gym.make("CartPole-v1"), seed=0, **CARTPOLE)
    best = EvalCallback(Monitor(gym.make("CartPole-v1")), callback_on_new_best=StopTrainingOnRewardThreshold(400), eval_freq=2048, n_eval_episodes=10, verbose=0)
    model.learn(50_000, callback=best)
    print(f"{algorithm.__name__} on CartPole-v1: {best.best_mean_reward:.1f} after {model.num_timesteps} steps")
    assert best.best_mean_reward > 400


class Greedy(DQN):
    "SB3's DQN, drawing no random number when it does not explore"
    def predict(self, observation, state=None, episode_start=None, deterministic=False): return self.policy.predict(observation, state, episode_start, True)


def test_without_double_it_is_sb3s_dqn():
    "The same seed gives the same weights as SB3's DQN, where nothing is explored (they draw explored actions in other ways)"
    kwargs = SMALL | dict(learning_starts=0, exploration_initial_eps=0., exploration_final_eps=0., target_update_interval=40)
    ours = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), double=False, **kwargs).learn(300)
    theirs = Greedy("MlpPolicy", gym.make("CartPole-v1"), **kwargs).learn(300)
    torch.testing.assert_close(dict(ours.policy.state_dict()), dict(theirs.policy.state_dict()))
    assert ours._n_updates == theirs._n_updates > 0


def test_double_changes_the_choice_only():
    "Double targets take the target network's value of the action that the online network prefers"
    model = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), **SMALL).learn(200)
    with torch.no_grad():
        for p in model.q_net_target.parameters(): p += torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
        batch = model.replay_buffer.sample(64)
        online, target = model.q_net(batch.next_observations), model.q_net_target(batch.next_observations)
        best = target.gather(1, online.argmax(1, keepdim=True))
        torch.testing.assert_close(model.targets(batch), batch.rewards + (1 - batch.dones)*.99*best)
        model.double = False
        torch.testing.assert_close(model.targets(batch), batch.rewards + (1 - batch.dones)*.99*target.amax(1, keepdim=True))
        assert (best <= target.amax(1, keepdim=True)).all() and (best < target.amax(1, keepdim=True)).any()


def test_save_and_load(tmp_path):
    model = DoubleDQN("MlpPolicy", gym.make("CartPole-v1"), double=True, **SMALL).learn(150)
    model.save(tmp_path/"agent")
    model.save_replay_buffer(tmp_path/"replay")
    again = DoubleDQN.load(tmp_path/"agent", env=gym.make("CartPole-v1"), device="cpu")
    again.load_replay_buffer(tmp_path/"replay")
    assert same_weights(model.policy.state_dict(), again.policy.state_dict()) and again.double and again.guide is None
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(model.predict(observations, deterministic=True)[0], again.predict(observations, deterministic=True)[0])
    assert again.num_timesteps == model.num_timesteps and again.replay_buffer.size() == model.replay_buffer.size()
    again.learn(50, reset_num_timesteps=False)
    assert again.num_timesteps >= model.num_timesteps + 50


# Runs


@pytest.fixture(scope="module")
def world(): return prepare(TINY)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory): return train(TINY, seed=5, root=tmp_path_factory.mktemp("whole"), world=world, progress=False)


def same_run(a, b):
    "Weights, replay, and the log but for the clock"
    x, y = load_checkpoint(a/"last.pt"), load_checkpoint(b/"last.pt")
    for k in ("policy", "optimizer", "counters", "replay", "env", "random"): assert same_state(x["model"][k], y["model"][k]), k
    assert same_weights(load_checkpoint(a/"best.pt")["policy"], load_checkpoint(b/"best.pt")["policy"]) and x["best"] == y["best"]
    rows = [[{k: v for k, v in json.loads(row).items() if k != "minutes"} for row in (f/"metrics.jsonl").read_text().splitlines()] for f in (a, b)]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [160, 320, 480, 640]
    return True


def same_state(a, b):
    if isinstance(a, dict): return a.keys() == b.keys() and all(same_state(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same_state, a, b))
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    return np.array_equal(a, b)


KILLED = """
import os, random, signal, sys, time, warnings
sys.path[:0] = [sys.argv[2]]
from test_agent import TINY, prepare, train
random.seed(int(sys.argv[3]))
world, kills = prepare(TINY), 0
world.bank("select")
while True:
    child = os.fork()
    if not child:
        train(TINY, seed=5, root=sys.argv[1], world=world, progress=False)
        os._exit(0)
    time.sleep(random.uniform(.1, 1.))
    if kills < 6: os.kill(child, signal.SIGKILL); kills += 1
    if os.waitpid(child, 0)[1] == 0: break
print(kills)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_killed_at_random_moments_resumes_to_the_same_bits(whole, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    environment = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))
    ran = subprocess.run([sys.executable, "-c", KILLED, tmp_path, ROOT/"tests", str(seed)], capture_output=True, text=True, env=environment, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout.split()[-1]) >= 1 and same_run(whole, tmp_path/"tiny"/"seed-5"), seed


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, world, tmp_path):
    run = train(TINY, seed=5, root=tmp_path, world=world, stop_after=300, progress=False)
    file = run/"last.pt"
    damaged = bytearray(file.read_bytes())
    damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match="last.pt is damaged"):
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)
    assert same_run(whole, run)


def test_nothing_whole_left_is_said(world, tmp_path):
    run = train(TINY, seed=5, root=tmp_path, world=world, stop_after=300, progress=False)
    for name in ("last.pt", "last.pt.previous"): (run/name).write_bytes((run/name).read_bytes()[:1000])
    with warnings.catch_warnings(), pytest.raises(ConfigError, match="no whole checkpoint at .*last.pt: delete the run's folder"):
        warnings.simplefilter("ignore")
        train(TINY, seed=5, root=tmp_path, world=world, progress=False)


@pytest.mark.parametrize("change, named", [(dict(gamma=.5), "gamma: 0.9 -> 0.5"), (dict(net_arch=(8,)), r"net_arch: \[16, 16\] -> \[8\]"),
                                           (dict(train="scenes:train:25"), "scenes:train:24"), (dict(reward="paper"), "reward: 'potential' -> 'paper'")])
def test_a_run_of_another_config_is_refused(whole, world, change, named):
    before = {f.name: f.read_bytes() for f in whole.iterdir()}
    with pytest.raises(ConfigError, match=f"holds another run .*{named}.*another name or root"):
        train(replace(TINY, **change), seed=5, root=whole.parent.parent, world=world, progress=False)
    assert {f.name: f.read_bytes() for f in whole.iterdir()} == before


def test_a_finished_run_is_left_as_it_is(whole, world):
    before = {f: (whole/f).read_bytes() for f in ("last.pt", "best.pt", "metrics.jsonl")}
    train(TINY, seed=5, root=whole.parent.parent, world=world, progress=False)
    assert {f: (whole/f).read_bytes() for f in before} == before


def test_training_leaves_arithmetic_as_it_was(whole):
    "Denormal numbers are flushed for speed while training, not in the process that called it"
    assert np.float64(1e-310)*np.ones(1) > 0


def test_another_seed_is_another_run(whole, world, tmp_path):
    other = train(TINY, seed=6, root=tmp_path, world=world, progress=False)
    assert other.name == "seed-6" and not same_weights(*(load_checkpoint(f/"last.pt")["model"]["policy"] for f in (whole, other)))


def test_an_agent_is_loaded_with_what_it_needs(whole, world, tmp_path):
    agent = Agent.load(whole)
    row = max(map(json.loads, (whole/"metrics.jsonl").read_text().splitlines()), key=lambda r: (r["map_area"], r["step"]))
    assert agent.step == row["step"] and agent.projection.digest == world.projection.digest
    seen = agent.world()
    assert agent.evaluate(seen.bank("select"), seen.data["select"]).detection.map_area == pytest.approx(row["map_area"], abs=1e-9)
    with pytest.raises(ConfigError, match="is no run .config.json is missing"): Agent.load(tmp_path)


# Checkpoint files


class Kill(BaseException): "Stands for SIGKILL: nothing may catch it and tidy up"


@pytest.mark.parametrize("before", range(4))
def test_a_kill_between_any_two_writes_leaves_a_whole_checkpoint(tmp_path, monkeypatch, before):
    "Kill at every renaming and writing in turn, twice in a row, and always find the newest whole checkpoint"
    file = tmp_path/"last.pt"
    for step in range(before): save_checkpoint(file, {"step": step})
    newest, left = before - 1, [0]
    def counted(real):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0: raise Kill
            return real(*args, **kwargs)
        return call
    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(type(file), "write_text", counted(type(file).write_text))
    for first in range(5):
        for second in range(5):
            for calls in (first, second):
                left[0], done = calls, True
                try: save_checkpoint(file, {"step": newest + 1})
                except Kill: done = False
                newest += done
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    there = load_checkpoint(file)
                assert (there or {"step": -1})["step"] == newest
    assert newest > before


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    file = tmp_path/"last.pt"
    save_checkpoint(file, {"step": 1})
    def full(content, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(training.torch, "save", full)
    with pytest.raises(OSError, match="cannot write the checkpoint .*last.pt.*No space left on device.*free some space"): save_checkpoint(file, {"step": 2})
    assert load_checkpoint(file) == {"step": 1} and {f.name for f in tmp_path.iterdir()} == {"last.pt", "last.pt.sha256"}


def test_a_state_goes_on_exactly(world, tmp_path):
    "The saved state of a model put into two others: both continue alike"
    def go(model, n):
        for _ in range(n):
            model.collect_rollouts(model.env, quiet(model), model.train_freq, model.replay_buffer, learning_starts=TINY.learning_starts)
            model.train(1, TINY.batch_size)
        return model_state(model)
    def fresh(seed):
        model = make_model(world, seed)
        model._setup_learn(TINY.steps)
        return model
    a, b = fresh(0), fresh(1)
    save_checkpoint(tmp_path/"state", go(a, 60))   # beyond the size of the replay buffer
    assert a.replay_buffer.full
    ends = []
    for model in (a, b):
        training.load_model_state(model, load_checkpoint(tmp_path/"state"))
        ends.append(go(model, 20))
    assert same_state(*ends)


def quiet(model):
    callback = CallbackList([])
    callback.init_callback(model)
    return callback
