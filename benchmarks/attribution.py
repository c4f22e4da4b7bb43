"""What makes an agent refuse to stop: reward x algorithm x returns x margin, on small scenes.

    python benchmarks/attribution.py                     # everything, three seeds; resumes where it was stopped
    python benchmarks/attribution.py --seeds 1 --processes 2

Every agent is v7 of `demo` with fewer pictures and fewer transitions, and the named fields replaced. The numbers are
those of the last validation, on scenes that it was not trained on; `expected` is the Q-value of the first action and
`paid` the discounted return of the searches. Results go to results/attribution.json after each run, run folders to the
cache folder.
"""

import itertools
from pathlib import Path

from locrl.experiments.config import Config
from locrl.experiments.iterations import find_config
from small_runs import SMALL, measure_all, options_of, trained

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
            "demonstrations.margin_weight": 5.0 if cell["margin"] else 0.0,
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
    options = options_of(__doc__, RESULTS).parse_args()
    about = {
        "command": f"python benchmarks/attribution.py --seeds {options.seeds}",
        "config": config_of(cells()[-1]).to_dict(),
    }
    measure_all(options, measure, cells(), cells(), lambda cell: config_of(cell).name, **about)


if __name__ == "__main__":
    main()
