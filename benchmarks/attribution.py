"""What makes an agent refuse to stop: reward x algorithm x returns x margin, on small scenes.

    python benchmarks/attribution.py                     # everything, three seeds; resumes where it was stopped
    python benchmarks/attribution.py --seeds 1 --processes 2

Every agent is v7 of `demo` with fewer pictures and fewer transitions, and the named fields replaced. The numbers are
those of the last validation, on scenes that it was not trained on; `expected` is the Q-value of the first action and
`paid` the discounted return of the searches. Results go to results/attribution.json after each run, run folders to the
cache folder.
"""

import argparse
import itertools
import json
from pathlib import Path

from locrl.experiments.config import Config
from locrl.experiments.iterations import find_config
from small_runs import SMALL, measure_all, trained

RESULTS = Path(__file__).resolve().parents[1] / "results/attribution.json"
AXES = {
    "reward": ("paper", "flat", "jump", "continuous"),
    "double": (False, True),
    "n_steps": (1, 3),
    "margin": (False, True),
}
SHOWN = ("trigger_rate", "trigger_rate_negatives", "hit_rate", "map11", "mean_trigger_iou", "q_mean")


def cells() -> list[dict]:
    "Return the combinations, each as a dictionary"
    return [dict(zip(AXES, values)) for values in itertools.product(*AXES.values())]


def config_of(cell: dict) -> Config:
    "Return the configuration of one combination"
    algorithm, margin = "double" if cell["double"] else "dqn", "margin" if cell["margin"] else "none"
    return find_config("demo/v7").replace(
        SMALL
        | {
            "name": f"attribution/{cell['reward']}-{algorithm}-{cell['n_steps']}-{margin}",
            "reward": cell["reward"],
            "learning.double": cell["double"],
            "replay.n_steps": cell["n_steps"],
            "demonstrations.margin_weight": 2.0 if cell["margin"] else 0.0,
        }
    )


def measure(cell: dict, seed: int) -> dict:
    "Train one agent, or find it trained, and return its numbers"
    from locrl.experiments.leaderboard import expectations

    agent, rows, bank, data = trained(config_of(cell), seed)
    warm = {f"warm_{name}": rows[0][name] for name in ("trigger_rate", "hit_rate", "map11")}
    numbers = {name: rows[-1][name] for name in SHOWN}
    return cell | {"seed": seed} | numbers | warm | expectations(agent, bank, data)


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
    command = f"python benchmarks/attribution.py --seeds {options.seeds}"
    order = [config_of(cell).name for cell in cells()].index
    about = {"command": command, "config": config_of(cells()[-1]).to_dict()}
    measure_all(
        measure, todo, options.processes, options.out, lambda run: (order(config_of(run).name), run["seed"]), **about
    )


if __name__ == "__main__":
    main()
