"""Is each mechanism in effect? Small agents with each mechanism on and off, and one number that it should change.

    python benchmarks/mechanisms.py                      # everything, three seeds; resumes where it was stopped
    python benchmarks/mechanisms.py --seeds 1 --only margin warm-up

The agent with all of them on is v10 of `demo` with fewer pictures and fewer transitions. Each other agent differs from it
in the fields that are named. Results go to results/mechanisms.json after each run, run folders to the cache folder; the
page nbs/mechanisms.ipynb shows them.
"""

import argparse
import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from tqdm.auto import tqdm

from locrl.envs.observation import ObservationConfig
from locrl.experiments.config import Config
from locrl.experiments.iterations import find_config
from locrl.files import cache_root, write_atomic

RESULTS = Path(__file__).resolve().parents[1] / "results/mechanisms.json"
SMALL = {
    "data.train": "simple-scenes:train:400",
    "data.select": "simple-scenes:val:150",
    "learning.steps": 24_000,
    "evaluation.eval_every": 8_000,
}
ALWAYS = ("hit_rate", "map11")
# mechanism -> (fields that switch it off, what is read, which reading says that it is in effect: "higher" or "lower" with it on)
MECHANISMS = {
    "tenth action": ({"moves.n_actions": 9, "observation.n_actions": 9}, "mean_trigger_iou", "higher"),
    "Double DQN": ({"learning.double": False}, "overestimation", "lower"),
    "three-step returns": ({"replay.n_steps": 1}, "q_error_early", "lower"),
    "margin": ({"demonstrations.margin_weight": 1e-9}, "demo_accuracy", "higher"),
    "warm-up": ({"demonstrations.warmup": 0}, "map_early", "higher"),
    "mixed demonstrations": ({"demonstrations.mixed": False}, "demo_accuracy_lowest", "higher"),
    "continuous trigger reward": ({"reward": "paper"}, "trigger_rho", "higher"),
    "IoU head into the trunk": ({"learning.iou_gradient": False}, "rho_probe", "higher"),
    "pairwise ranking": ({"learning.rank_weight": 0.0}, "rank_accuracy", "higher"),
    "saliency in the observation": ({"observation.saliency": False}, "hit_rate", "higher"),
    "action history": ({"observation.history": False}, "reversals", "lower"),
    "prioritised replay": ({"replay.alpha": 0.0}, "priority_spread", "lower"),
    "guided exploration": ({"exploration.guided": False}, "rollout_ep_iou", "higher"),
}


def config_of(mechanism: str | None) -> Config:
    "Return the configuration with a mechanism switched off; None switches none off"
    off = MECHANISMS[mechanism][0] if mechanism else {}
    name = (mechanism or "all on").replace(" ", "-").lower()
    base = find_config("demo/v10").replace(SMALL)
    return base.replace({"name": f"mechanisms/{name}", **off})
