"""What makes an agent refuse to stop: reward x algorithm x returns x margin, on small scenes.

    python benchmarks/attribution.py                     # everything, three seeds; resumes where it was stopped
    python benchmarks/attribution.py --seeds 1 --processes 2

Every agent is v7 of `demo` with fewer pictures and fewer transitions, and the named fields replaced. The numbers are
those of the last validation, on scenes that it was not trained on; `expected` is the Q-value of the first action and
`paid` the discounted return of the best policy's searches. Results go to results/attribution.json after each run, run
folders to the cache folder.
"""

import argparse
import itertools
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm.auto import tqdm

from locrl.experiments.config import Config
from locrl.experiments.iterations import find_config
from locrl.files import cache_root, write_atomic

RESULTS = Path(__file__).resolve().parents[1] / "results/attribution.json"
REWARDS = ("paper", "flat", "jump", "continuous")
SMALL = {
    "data.train": "simple-scenes:train:400",
    "data.select": "simple-scenes:val:150",
    "learning.steps": 24_000,
    "evaluation.eval_every": 8_000,
}
SHOWN = ("trigger_rate", "trigger_rate_negatives", "hit_rate", "map11", "mean_trigger_iou", "q_mean")


def cells() -> list[dict]:
    "Return the combinations, each as a dictionary"
    axes = {"reward": REWARDS, "double": (False, True), "n_steps": (1, 3), "margin": (False, True)}
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def config_of(cell: dict) -> Config:
    "Return the configuration of one combination"
    algorithm, margin = "double" if cell["double"] else "dqn", "margin" if cell["margin"] else "none"
    name = f"{cell['reward']}-{algorithm}-{cell['n_steps']}-{margin}"
    return find_config("demo/v7").replace(
        SMALL
        | {
            "name": f"attribution/{name}",
            "reward": cell["reward"],
            "learning.double": cell["double"],
            "replay.n_steps": cell["n_steps"],
            "demonstrations.margin_weight": 2.0 if cell["margin"] else 0.0,
        }
    )


def measure(cell: dict, seed: int) -> dict:
    "Train one agent, or find it trained, and return its numbers"
    import torch

    from locrl.experiments.config import prepare
    from locrl.experiments.leaderboard import expectations
    from locrl.experiments.results import history
    from locrl.experiments.train import Agent, train

    torch.set_num_threads(1)
    config = config_of(cell)
    world = prepare(config)
    folder = train(config, seed, cache_root() / "runs", world, progress=False)
    rows = history(folder)
    agent = Agent.load(folder)
    value = expectations(agent, world.bank("select"), world.data["select"])
    warm = {f"warm_{name}": rows[0][name] for name in ("trigger_rate", "hit_rate", "map11")}
    return cell | {"seed": seed} | {name: rows[-1][name] for name in SHOWN} | warm | value


def main():
    "Measure what is missing"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="0, 1, 2, ...")
    parser.add_argument("--processes", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    done = {(config_of(run).name, run["seed"]) for run in runs}
    todo = [(c, seed) for seed in range(options.seeds) for c in cells() if (config_of(c).name, seed) not in done]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn"), max_tasks_per_child=4) as pool:
        waiting = [pool.submit(measure, *task) for task in todo]
        for finished in tqdm(as_completed(waiting), total=len(waiting), desc="agents"):
            runs.append(finished.result())
            runs.sort(key=lambda run: (run["seed"], config_of(run).name))
            command = f"python benchmarks/attribution.py --seeds {options.seeds}"
            content = {"command": command, "config": config_of(cells()[-1]).to_dict(), "runs": runs}
            write_atomic(options.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
