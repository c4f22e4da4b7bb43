"""Train PPO and QR-DQN as they come beside locrl's Double DQN, on the demo's Scenes and with the demo's transitions.

All three play the same game: the same pictures, queries, moves and reward. PPO and QR-DQN see the full observation and
keep the settings of their authors, but for the discount and the number of environments; nothing was tuned. Every tenth
of the budget the policy searches, greedily and from the whole picture, for every object of the selection pictures. The
script writes the share of searches that end with an IoU of at least 0.5 (hit rate) to results/scenes/algorithms.json.

    pip install "locrl[contrib]"
    python benchmarks/algorithms.py --seeds 1
"""

import argparse
import json
import tempfile
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

OUT = Path(__file__).parents[1] / "results/scenes/algorithms.json"


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


def main():
    "Train and write"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="seeds of each algorithm")
    parser.add_argument("--steps", type=int, default=None, help="transitions; default the demo's")
    chosen = parser.parse_args()
    config = find_config("demo")
    if chosen.steps is not None:
        config = config.replace({"learning.steps": chosen.steps})
    config = config.replace({"evaluation.eval_every": config.learning.steps // 10})
    world, rows = prepare(config), []
    for seed in range(chosen.seeds):
        with tempfile.TemporaryDirectory() as root:
            for row in RunFolder(train(config, seed, root, world, progress=False)).validations():
                if "hit_rate" in row:
                    rows.append(dict(algorithm="Double DQN", seed=seed, step=row["step"], hit_rate=row["hit_rate"]))
        for name, make in (("PPO", ppo), ("QR-DQN", qr_dqn)):
            rows += [dict(algorithm=name, seed=seed, **row) for row in learned(make, world, seed)]
    command = f"python benchmarks/algorithms.py --seeds {chosen.seeds}"
    if chosen.steps is not None:
        command += f" --steps {chosen.steps}"
    write_atomic(OUT, json.dumps(dict(command=command, versions=versions(), rows=rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
