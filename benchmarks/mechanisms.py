"""Is each mechanism in effect? Small agents with each mechanism on and off, and one number that it should change.

    python benchmarks/mechanisms.py                      # everything, three seeds; resumes where it was stopped
    python benchmarks/mechanisms.py --seeds 1 --only margin warm-up

The agent with all of them on is v10 of `demo` with fewer pictures and fewer transitions. Each other agent differs from
it in the fields that are named. All numbers are of the last policy, on scenes that it was not trained on. Results go to
results/mechanisms.json after each run, run folders to the cache folder; the page nbs/mechanisms.ipynb shows them.
"""

from pathlib import Path

import numpy as np

from locrl.data.boxes import TRIGGER, iou
from locrl.experiments.config import Config
from locrl.experiments.iterations import find_config
from small_runs import SMALL, measure_all, options_of, trained

RESULTS = Path(__file__).resolve().parents[1] / "results/mechanisms.json"
# mechanism -> fields that switch it off, what is read, what the reading does when the mechanism is in effect
MECHANISMS = {
    "tenth action": ({"moves.n_actions": 9, "observation.n_actions": 9}, "mean_iou", "rises"),
    "Double DQN": ({"learning.double": False}, "overestimation", "falls"),
    "three-step returns": ({"replay.n_steps": 1}, "q_still_to_go", "falls"),
    "margin": ({"demonstrations.margin_weight": 0.0}, "demos_accuracy", "rises"),
    "mixed demonstrations": ({"demonstrations.mixed": False}, "demos_accuracy_lowest", "rises"),
    "warm-up": ({"demonstrations.warmup": 0}, "map_first", "rises"),
    "continuous trigger reward": ({"reward": "paper"}, "trigger_rho", "rises"),
    "IoU head's gradient": ({"learning.iou_gradient": False}, "rho_probe", "rises"),
    "pairwise ranking": ({"learning.rank_weight": 0.0}, "pairs_right", "rises"),
    "saliency map": ({"observation.saliency": False}, "hit_rate", "rises"),
    "action history": ({"observation.history": False}, "reversals", "falls"),
    "prioritised replay": ({"replay.alpha": 0.0}, "priority_spread", "falls"),
    "guided exploration": ({"exploration.guided": False}, "explored_iou", "rises"),
}
# readings looked for in the logs when the one above had not moved: weaker evidence, for they were chosen afterwards
SECOND = {
    "tenth action": ("trained_iou", "rises"),
    "three-step returns": ("steps", "falls"),
    "continuous trigger reward": ("mean_trigger_iou", "rises"),
    "IoU head's gradient": ("iou_loss", "falls"),
    "pairwise ranking": ("map11", "rises"),
}


def config_of(mechanism: str | None) -> Config:
    "Return the configuration with a mechanism switched off; None switches none off"
    off = MECHANISMS[mechanism][0] if mechanism else {}
    name = (mechanism or "all on").replace(" ", "-").replace("'", "").lower()
    return find_config("demo/v10").replace(SMALL | {"name": f"mechanisms/{name}", **off})


def readings(agent, rows, bank, data) -> dict:
    "Return every number that some mechanism should change"
    from locrl.agents.search import search
    from locrl.envs.localization import Targets
    from locrl.experiments.leaderboard import expectations

    targets, config = Targets.of(data, bank.classes), agent.config
    steps = search(agent.policy, bank, targets.image, targets.label, config.moves, config.observation.max_steps)
    truth = iou(steps.box[:, None], targets.boxes[steps.query]).max(1)
    good = truth >= 0.5
    band = np.flatnonzero(good & (truth <= 0.85))
    one, other = np.triu_indices(len(band), 1)
    same = steps.query[band][one] == steps.query[band][other]
    one, other = band[one[same]], band[other[same]]
    apart = np.abs(truth[one] - truth[other]) > 0.05
    right = (steps.iou[one] > steps.iou[other]) == (truth[one] > truth[other])
    back = np.abs(steps.box[2:] - steps.box[:-2]).max(1) < 1e-3
    back &= steps.query[2:] == steps.query[:-2]
    value = expectations(agent, bank, data)
    learned = [row for row in rows if row["step"]]
    first, last = learned[0], learned[-1]
    return {
        "hit_rate": last["hit_rate"],
        "map11": last["map11"],
        "mean_iou": last["mean_iou"],
        "overestimation": value["expected"] - value["paid"],
        "q_still_to_go": abs(first["q_mean"] - last["q_mean"]),
        "demos_accuracy": last.get("demos_accuracy"),
        "demos_accuracy_lowest": min(
            (row["demos_accuracy"] for row in learned if "demos_accuracy" in row), default=None
        ),
        "map_first": first["map11"],
        "trigger_rho": float(np.corrcoef(steps.q_values[good, TRIGGER], truth[good])[0, 1]),
        "rho_probe": last["rho_probe"],
        "pairs_right": float(right[apart].mean()),
        "reversals": float(back.mean()),
        "priority_spread": last.get("replay_priority_spread", 1.0),
        "explored_iou": first["rollout_ep_iou"],
        "trained_iou": last["rollout_ep_iou"],
        "steps": last["val_steps"],
        "mean_trigger_iou": last["mean_trigger_iou"],
        "iou_loss": last.get("iou_loss"),
    }


def measure(task: dict, seed: int) -> dict:
    "Train one agent, or find it trained, and return its numbers"
    return task | {"seed": seed} | readings(*trained(config_of(task["off"]), seed))


def main():
    "Measure what is missing"
    parser = options_of(__doc__, RESULTS)
    parser.add_argument("--only", nargs="*", choices=list(MECHANISMS), help="mechanisms; default all")
    options = parser.parse_args()
    tasks = [{"off": mechanism} for mechanism in (None, *MECHANISMS)]
    wanted = [task for task in tasks if not options.only or task["off"] in (None, *options.only)]
    about = {
        "command": f"python benchmarks/mechanisms.py --seeds {options.seeds}",
        "config": config_of(None).to_dict(),
    }
    measure_all(options, measure, tasks, wanted, lambda task: task["off"], **about)


if __name__ == "__main__":
    main()
