"""Train PPO and QR-DQN as they come beside locrl's Double DQN, on the demo's Scenes and with the demo's transitions.

All three play the same game: the same pictures, queries, moves and reward. PPO and QR-DQN see the full observation and
keep the settings of their authors, but for the discount and the number of environments; nothing was tuned. Every tenth
of the budget the policy searches, greedily and from the whole picture, for every object of the selection pictures. The
script writes the share of searches that end with an IoU of at least 0.5 (hit rate), and the processor's seconds of each
training with its validations, to results/benchmarks/algorithms.json, anew after each seed.

    pip install "locrl[contrib]"
    python benchmarks/algorithms.py --seeds 1
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from locrl.envs.localization import LocalizationVecEnv, ObservedVecEnv, Search, Targets
from locrl.envs.observation import observe
from locrl.envs.rewards import named_reward
from locrl.experiments.config import prepare
from locrl.experiments.iterations import find_config
from locrl.checkpoints import RunFolder
from locrl.experiments.train import train, versions
from locrl.files import write_atomic

OUT = Path(__file__).parents[1] / "results/benchmarks/algorithms.json"


def hit_rate(model, world, split="select"):
    "Share of greedy searches from the whole picture that end with an IoU of at least 0.5"
    bank, config = world.bank(split), world.config
    targets = Targets.of(world.data[split], bank.classes)
    search = Search(targets, len(targets), config.moves, named_reward(config.reward), config.observation.max_steps)
    search.start(episode=np.arange(len(targets)))
    final, going = np.zeros(len(targets)), np.ones(len(targets), bool)
    while going.any():
        seen = observe(bank, torch.from_numpy(search.keys), config.observation).cpu().numpy()
        actions, _ = model.predict(seen, deterministic=True)
        after, _, terminated, truncated = search.step(actions.astype(np.int64))
        final[going] = after[going]
        going &= ~(terminated | truncated)
    return float((final >= 0.5).mean())


class Curve(BaseCallback):
    "Notes the hit rate every so many transitions"

    def __init__(self, world, every):
        super().__init__()
        self.world = world
        self.every = every
        self.rows = []

    def _on_step(self):
        if self.num_timesteps // self.every > len(self.rows):
            self.rows.append(dict(step=self.num_timesteps, hit_rate=hit_rate(self.model, self.world)))
            print(self.rows[-1], flush=True)
        return True


def learned(make, world, seed, n_envs=16):
    "Curve of an algorithm as it comes"
    config = world.config
    game = Search(world.targets, n_envs, config.moves, named_reward(config.reward), config.observation.max_steps, seed)
    env = ObservedVecEnv(LocalizationVecEnv(game), world.bank("train"), config.observation)
    curve = Curve(world, config.learning.steps // 10)
    make(env, seed, config.learning.gamma).learn(config.learning.steps, callback=curve)
    return curve.rows


def ppo(env, seed, gamma):
    "PPO as Stable-Baselines3 has it"
    return PPO("MlpPolicy", env, gamma=gamma, n_steps=128, seed=seed, device="cpu")


def qr_dqn(env, seed, gamma):
    "QR-DQN as sb3-contrib has it: one update for four transitions, here after each step of sixteen searches"
    from sb3_contrib import QRDQN

    often = dict(train_freq=1, gradient_steps=4)
    return QRDQN("MlpPolicy", env, gamma=gamma, buffer_size=50_000, seed=seed, device="cpu", **often)


def double_dqn(world, seed):
    "Curve of locrl's Double DQN, with the demo's settings"
    with tempfile.TemporaryDirectory() as root:
        rows = RunFolder(train(world.config, seed, root, world, progress=False)).validations()
    return [dict(step=row["step"], hit_rate=row["hit_rate"]) for row in rows if "hit_rate" in row]


LEARNERS = {
    "Double DQN": double_dqn,
    "PPO": lambda world, seed: learned(ppo, world, seed),
    "QR-DQN": lambda world, seed: learned(qr_dqn, world, seed),
}


def main():
    "Train and write"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each algorithm")
    parser.add_argument("--steps", type=int, default=None, help="transitions; default the demo's")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write")
    chosen = parser.parse_args()
    config = find_config("demo")
    command = "python benchmarks/algorithms.py"
    if chosen.steps is not None:
        config = config.replace({"learning.steps": chosen.steps})
        command += f" --steps {chosen.steps}"
    config = config.replace({"evaluation.eval_every": config.learning.steps // 10})
    world, rows, costs = prepare(config), [], []
    for seed in range(chosen.seeds):
        for name, learn in LEARNERS.items():
            began = time.process_time()
            rows += [dict(algorithm=name, seed=seed, **row) for row in learn(world, seed)]
            costs.append(dict(algorithm=name, seed=seed, cpu_seconds=round(time.process_time() - began, 1)))
            print(costs[-1], flush=True)
        done = f"{command} --seeds {seed + 1}"
        found = dict(command=done, versions=versions(), steps=config.learning.steps, costs=costs, rows=rows)
        write_atomic(chosen.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
